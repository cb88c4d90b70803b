//! What Linux says of processes and of the machine. Elsewhere nothing is known, and that is said.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::procfs;

/// The processor time of each thread of a process, by its id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu(BTreeMap<u32, u64>);

impl Cpu {
    /// Of process `pid` up to now. Exact to the scheduler's nanosecond, where ticks would be off by
    /// a part of a second for a process that sleeps often.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let thread = thread.ok()?;
            let id = thread.file_name().to_str()?.parse().ok()?;
            // A thread may have ended just now.
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let spent = text.split(' ').next()?.parse();
            threads.insert(id, spent.unwrap_or_default());
        }
        Some(Self(threads))
    }

    /// Of all these processes, as far as they are there.
    #[must_use]
    pub fn of_all(pids: &[u32]) -> Self {
        let each = pids.iter().filter_map(|pid| Self::of(*pid));
        Self(each.flat_map(|cpu| cpu.0).collect())
    }

    /// What was spent since `before`. A thread that has ended in between is not counted.
    #[must_use]
    pub fn since(&self, before: &Self) -> Duration {
        let spent = self.0.iter().map(|(thread, spent)| {
            spent.saturating_sub(before.0.get(thread).copied().unwrap_or_default())
        });
        Duration::from_nanos(spent.sum())
    }
}

/// The processes that process `pid` has started and that are still there.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> { procfs::status(pid, "PPid:")?.parse().ok() };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|child| parent(*child) == Some(pid)).collect()
}

/// What the machine's processors have done, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl Machine {
    /// Up to now.
    #[must_use]
    pub fn now() -> Option<Self> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let ticks: Vec<u64> = text
            .lines()
            .next()?
            .split_whitespace()
            .skip(1)
            .take(8)
            .map(|ticks| ticks.parse().unwrap_or_default())
            .collect();
        Some(Self {
            all: ticks.iter().sum(),
            idle: ticks.get(3)? + ticks.get(4)?,
            stolen: *ticks.get(7)?,
        })
    }

    /// The share since `before` in which they worked, for anybody. The time spent waiting for disks is part
    /// of what was idle, and may go backwards (proc(5)).
    #[must_use]
    pub fn busy_since(&self, before: &Self) -> f64 {
        let idle = self.idle.saturating_sub(before.idle);
        1.0 - share(idle, self.all.saturating_sub(before.all))
    }

    /// The share since `before` that a hypervisor gave to others.
    #[must_use]
    pub fn stolen_since(&self, before: &Self) -> f64 {
        let stolen = self.stolen.saturating_sub(before.stolen);
        share(stolen, self.all.saturating_sub(before.all))
    }
}

#[allow(clippy::cast_precision_loss, reason = "a share, not a count")]
fn share(part: u64, whole: u64) -> f64 {
    part.min(whole) as f64 / whole.max(1) as f64
}

/// How many files this process may have open: now, and when it asks for more.
#[must_use]
pub fn file_limit() -> Option<(u64, u64)> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_whitespace().map(|number| match number {
        "unlimited" => Ok(u64::MAX),
        number => number.parse(),
    });
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// How many connections one address can have open to one port.
#[must_use]
pub fn local_ports() -> Option<u64> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some(last.saturating_sub(first) + 1)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn work_of_this_process_is_seen() {
        let me = std::process::id();
        let (cpu, machine) = (Cpu::of(me).unwrap(), Machine::now().unwrap());
        let begun = std::time::Instant::now();
        let mut memory = Vec::new();
        let before = procfs::resident(me).unwrap();
        while begun.elapsed() < Duration::from_millis(60) {
            memory.push(vec![1_u8; 4096]);
        }
        let spent = Cpu::of(me).unwrap().since(&cpu);
        assert!(spent > Duration::from_millis(5), "{spent:?}");
        assert!(procfs::resident(me).unwrap() > before);
        let busy = Machine::now().unwrap().busy_since(&machine);
        assert!((0.0..=1.0).contains(&busy), "{busy}");
        assert!(file_limit().is_some_and(|(soft, hard)| soft > 2 && hard >= soft));
        assert!(local_ports().is_some_and(|ports| ports > 1));
    }

    #[test]
    fn time_that_goes_backwards_is_no_time() {
        let before = Machine {
            all: 1000,
            idle: 600,
            stolen: 5,
        };
        let after = Machine {
            all: 1100,
            idle: 590,
            stolen: 4,
        };
        let shares = [after.busy_since(&before), after.stolen_since(&before)];
        assert_eq!(shares.map(f64::to_bits), [1.0_f64, 0.0].map(f64::to_bits));
    }
}
