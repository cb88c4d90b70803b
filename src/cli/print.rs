//! Standard output.
//!
//! `println!` panics where nobody reads any more, as after `rowcast watched | head -1`. A command that
//! does something does it to the end all the same.

use std::fmt;
use std::io::{self, ErrorKind, Write};

/// Prints a line: `say!("watching {table}")`.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::print::text(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(super) use say;

/// Prints text as it is.
pub(super) fn text(text: fmt::Arguments<'_>) {
    let _nobody_reads = is_read(text);
}

/// Prints text as it is. Whether somebody reads it; where it cannot be written for another reason the
/// program ends.
pub(super) fn is_read(text: fmt::Arguments<'_>) -> bool {
    let mut output = io::stdout().lock();
    match output.write_fmt(text).and_then(|()| output.flush()) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => false,
        Err(error) => {
            eprintln!(
                "error: what was found cannot be printed\n  found: {error}\n  \
                 try:   another place for the output"
            );
            std::process::exit(1);
        }
    }
}
