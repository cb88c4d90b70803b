//! Who is told to stop: by SIGTERM, Ctrl-C, or because the terminal has gone.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::procfs;

/// The signals that ask to stop, from when this is made on: none of them ends the process any more.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    /// None under nohup, which is how to outlive a terminal.
    hangup: Option<Signal>,
}

impl Stop {
    /// # Errors
    /// Those of the system, when signals cannot be taken.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if hangup_is_ignored() {
                None
            } else {
                Some(signal(SignalKind::hangup())?)
            },
        })
    }

    /// Waits for the next one.
    pub(super) async fn asked(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whoever started us said so. SIGHUP is signal 1, the lowest bit of the mask (proc(5)).
fn hangup_is_ignored() -> bool {
    let ignored = procfs::status("self", "SigIgn:");
    ignored.is_some_and(|mask| u64::from_str_radix(&mask, 16).is_ok_and(|mask| mask & 1 == 1))
}
