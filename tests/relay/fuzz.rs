//! What the fuzz targets have met stays met: the kept corpus, and so many of its neighbours. `make fuzz`
//! looks for more, and another `ROWCAST_SEED` for others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::harness::seed;
use crate::targets::ALL;

/// How many neighbours a target meets, in about two seconds. Those of HTTP start a server each.
fn neighbours(name: &str) -> usize {
    match name {
        "token" => 1_000_000,
        "resume" | "image" => 500_000,
        "body" | "jwt" => 100_000,
        "filter" => 65_000,
        "sse" => 8_000,
        "config" => 4_500,
        "http2" => 1_000,
        "http1" => 500,
        _ => panic!("nobody knows how quick {name} is"),
    }
}

fn kept(name: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut files: Vec<_> = std::fs::read_dir(corpus.join(name))
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

/// Bytes that mean something to somebody.
const ODD: &[u8] = b"\0\n\r\"'\\%(),.:;-~\x7f\x80\xff0";

/// A neighbour: some bytes changed, doubled, dropped, or taken from another.
fn changed(bytes: &[u8], other: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.usize(1..5) {
        let at = random.usize(0..=bytes.len());
        match random.u8(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
            1 if at < bytes.len() => {
                bytes[at] = *random.choice(ODD).unwrap();
            }
            2 => bytes.insert(at, random.u8(..)),
            3 => bytes.truncate(at),
            4 if !other.is_empty() => {
                let from = random.usize(0..other.len());
                bytes.splice(at..at, other[from..].iter().copied());
            }
            _ => {
                let copy = bytes[at..].to_vec();
                bytes.extend(copy);
            }
        }
        bytes.truncate(1 << 14);
    }
    bytes
}

fn holds(name: &str, target: fn(&[u8]), bytes: &[u8]) {
    let held = catch_unwind(AssertUnwindSafe(|| target(bytes)));
    assert!(
        held.is_ok(),
        "{name} does not hold for {:?}",
        String::from_utf8_lossy(bytes)
    );
}

#[test]
fn what_holds_for_the_corpus_holds_for_its_neighbours() {
    let mut random = fastrand::Rng::with_seed(seed());
    for (name, target) in ALL {
        let kept = kept(name);
        assert!(kept.len() >= 4, "{name}");
        for bytes in &kept {
            holds(name, target, bytes);
        }
        for _ in 0..neighbours(name) {
            let (one, other) = (random.choice(&kept).unwrap(), random.choice(&kept).unwrap());
            holds(name, target, &changed(one, other, &mut random));
        }
    }
}
