//! A connection into which events are written where they are published.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fastrand::Rng;
use rowcast::subscription::direct::{Direct, Outlet};

/// What one connection has taken, as the bytes of HTTP/1.1.
pub struct Tray {
    direct: Arc<Direct>,
    taken: Arc<Taken>,
}

struct Taken(Mutex<Inside>);

struct Inside {
    random: Rng,
    bytes: Vec<u8>,
}

impl Outlet for Taken {
    fn write(&self, chunk: &Bytes) -> usize {
        let taken = &mut *self.0.lock().unwrap();
        // Sometimes nothing fits, or not all.
        let most = match taken.random.u8(..8) {
            0 => 0,
            1 => taken.random.usize(..chunk.len()),
            _ => chunk.len(),
        };
        taken.bytes.extend_from_slice(&chunk[..most]);
        most
    }
}

impl Tray {
    pub fn new(direct: Arc<Direct>, seed: u64) -> Self {
        let taken = Arc::new(Taken(Mutex::new(Inside {
            random: Rng::with_seed(seed),
            bytes: Vec::new(),
        })));
        let outlet: Arc<Taken> = Arc::clone(&taken);
        direct.lend(outlet);
        Self { direct, taken }
    }

    /// The stream waits.
    pub fn idle(&self) {
        self.direct.idle();
    }

    /// The stream is about to be asked: frames that were written meanwhile, and whether the last of
    /// them was left in part.
    pub fn clear(&self) -> (String, bool) {
        let rest = self.direct.busy();
        let mut bytes = std::mem::take(&mut self.taken.0.lock().unwrap().bytes);
        bytes.extend_from_slice(rest.as_deref().unwrap_or_default());
        let (mut frames, mut left) = (String::new(), &bytes[..]);
        while !left.is_empty() {
            let line = left.windows(2).position(|two| two == b"\r\n").unwrap();
            let size = std::str::from_utf8(&left[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            let (frame, end) = left[line + 2..].split_at(size);
            frames.push_str(std::str::from_utf8(frame).unwrap());
            left = end.strip_prefix(b"\r\n").unwrap();
        }
        (frames, rest.is_some())
    }
}

impl Drop for Tray {
    fn drop(&mut self) {
        self.direct.end();
    }
}
