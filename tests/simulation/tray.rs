//! A connection into which events are written where they are published.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fastrand::Rng;
use rowcast::subscription::direct::{Direct, Outlet};
use tokio::time::Instant;

/// What one connection has taken, as the bytes of HTTP/1.1.
pub struct Tray {
    direct: Arc<Direct>,
    taken: Arc<Taken>,
}

struct Taken(Mutex<Inside>);

struct Inside {
    random: Rng,
    /// What was taken of each chunk, and when.
    chunks: Vec<(Instant, Vec<u8>)>,
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
        taken.chunks.push((Instant::now(), chunk[..most].to_vec()));
        most
    }
}

impl Tray {
    pub fn new(direct: Arc<Direct>, seed: u64) -> Self {
        let taken = Arc::new(Taken(Mutex::new(Inside {
            random: Rng::with_seed(seed),
            chunks: Vec::new(),
        })));
        let outlet: Arc<Taken> = Arc::clone(&taken);
        direct.lend(outlet);
        Self { direct, taken }
    }

    /// The stream waits.
    pub fn idle(&self) {
        self.direct.idle();
    }

    /// The stream is about to be asked: frames that were written meanwhile, and when, and whether the last of
    /// them was left in part.
    pub fn clear(&self) -> (Vec<(Instant, String)>, bool) {
        let rest = self.direct.busy();
        let mut chunks = std::mem::take(&mut self.taken.0.lock().unwrap().chunks);
        if let (Some(rest), Some((_, last))) = (&rest, chunks.last_mut()) {
            last.extend_from_slice(rest);
        }
        let frames = chunks.into_iter().map(|(at, chunk)| {
            let chunk = String::from_utf8(chunk).unwrap();
            let (size, frame) = chunk.split_once("\r\n").unwrap();
            let frame = frame.strip_suffix("\r\n").unwrap();
            assert_eq!(usize::from_str_radix(size, 16), Ok(frame.len()));
            (at, frame.to_owned())
        });
        (frames.collect(), rest.is_some())
    }
}

impl Drop for Tray {
    fn drop(&mut self) {
        self.direct.end();
    }
}
