//! How much memory there is, and how much of it is used.
//!
//! A [`Budget`] is a limit that somebody gave, that of the control group the relay runs in, or what
//! the machine has. It promises a [`Pressure`] that is not above [`Pressure::Low`] as long as a tenth
//! is left. It knows nothing of who uses it. On systems without `/proc` there is never any.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::procfs;
use crate::shutdown::Shutdown;

/// How short memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// There is enough.
    #[default]
    Low,
    /// 90 % are used: nobody new.
    High,
    /// 95 % are used: somebody must go.
    Severe,
}

/// How often is looked.
const LOOK: Duration = Duration::from_millis(250);

/// A limit, and where is looked how much is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes.
    pub limit: u64,
    used: Used,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Used {
    /// By this process.
    Resident,
    /// By everybody in the control group of this folder: a private database is in there too.
    Group(PathBuf),
}

impl Budget {
    /// A limit for this process alone.
    #[must_use]
    pub fn of_process(limit: u64) -> Self {
        Self {
            limit,
            used: Used::Resident,
        }
    }

    /// The narrowest limit of the control groups that this process is in, if there is one.
    #[must_use]
    pub fn of_group() -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        of_groups(&groups, Path::new("/sys/fs/cgroup"))
    }

    /// All memory of the machine, of which others use some too: what is left when nobody sets a limit.
    #[must_use]
    pub fn of_machine() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        kib(&text, "MemTotal:").map(Self::of_process)
    }

    /// Bytes in use; `None` where nobody tells.
    #[must_use]
    pub fn used(&self) -> Option<u64> {
        match &self.used {
            Used::Resident => procfs::resident("self"),
            Used::Group(folder) => {
                let text = std::fs::read_to_string(folder.join("memory.stat")).ok()?;
                Some(held(&text))
            }
        }
    }

    /// How short it is when `used` bytes are in use.
    #[must_use]
    pub fn pressure(&self, used: u64) -> Pressure {
        let share = |percent| u128::from(self.limit) * percent / 100;
        let used = u128::from(used);
        if used >= share(95) {
            Pressure::Severe
        } else if used >= share(90) {
            Pressure::High
        } else {
            Pressure::Low
        }
    }
}

/// Says how short memory is, until the stop signal. `told` hears of each look: bytes in use.
pub async fn run(
    budget: Option<Budget>,
    pressure: watch::Sender<Pressure>,
    shutdown: Shutdown,
    told: impl Fn(u64),
) {
    let looking = async {
        loop {
            let used = budget
                .as_ref()
                .map_or_else(|| procfs::resident("self"), Budget::used);
            if let Some(used) = used {
                told(used);
                let now = budget
                    .as_ref()
                    .map_or(Pressure::Low, |budget| budget.pressure(used));
                pressure.send_if_modified(|known| {
                    let before = std::mem::replace(known, now);
                    if before == Pressure::Low && now != before {
                        let limit = budget.as_ref().map(|budget| budget.limit);
                        tracing::warn!(used, limit, "memory is short; new streams are refused");
                    }
                    before != now
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        _grace = shutdown.begun() => {}
        () = looking => {}
    }
}

/// The value of a line of `/proc`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Bytes that the kernel cannot take back, by `memory.stat`: not the cache of files, nor what it remembers
/// of folders and files (`slab_reclaimable`, a part of `kernel`). The second version of control groups and
/// the first have other names for them.
fn held(stat: &str) -> u64 {
    let value = |name: &str| -> u64 {
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let kernel = value("kernel").saturating_sub(value("slab_reclaimable"));
    let second = value("anon") + value("shmem") + kernel + value("sock");
    let first = value("total_rss") + value("total_shmem");
    second.max(first)
}

/// The narrowest limit on the way from a group to the root.
fn of_groups(groups: &str, root: &Path) -> Option<Budget> {
    // `0::/path` in the second version, `4:memory:/path` in the first.
    let lines = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let folder = match controllers {
            "" => root.to_owned(),
            _ if controllers.split(',').any(|name| name == "memory") => root.join("memory"),
            _ => return None,
        };
        Some((folder, path))
    });
    let mut narrowest: Option<Budget> = None;
    for (top, path) in lines {
        let path = Path::new(path.trim_start_matches('/'));
        for ancestor in path.ancestors() {
            let folder = top.join(ancestor);
            let limit = ["memory.max", "memory.limit_in_bytes"]
                .into_iter()
                .find_map(|file| std::fs::read_to_string(folder.join(file)).ok());
            // "max", or a number beyond every machine, is no limit.
            let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
            let Some(limit) = limit.filter(|limit| *limit < 1 << 50) else {
                continue;
            };
            if narrowest.as_ref().is_none_or(|known| limit < known.limit) {
                narrowest = Some(Budget {
                    limit,
                    used: Used::Group(folder),
                });
            }
        }
    }
    narrowest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_tenths_are_some_pressure_and_nineteen_twentieths_severe() {
        let budget = Budget::of_process(1000);
        for (used, pressure) in [
            (0, Pressure::Low),
            (899, Pressure::Low),
            (900, Pressure::High),
            (949, Pressure::High),
            (950, Pressure::Severe),
            (5000, Pressure::Severe),
        ] {
            assert_eq!(budget.pressure(used), pressure, "{used}");
        }
        assert_eq!(
            Budget::of_process(u64::MAX).pressure(1 << 60),
            Pressure::Low
        );
    }

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    #[test]
    fn the_narrowest_limit_on_the_way_to_the_root_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "a/memory.max", "3000\n");
        write(root, "a/b/memory.max", "max\n");
        write(
            root,
            "a/memory.stat",
            "anon 100\nfile 5000\nkernel 620\nsock 3\nshmem 7\nanon_thp 9\nslab_reclaimable 600\n",
        );
        let budget = of_groups("0::/a/b\n", root).unwrap();
        assert_eq!((budget.limit, budget.used()), (3000, Some(130)));
        assert_eq!(of_groups("0::/c\n", root), None);

        write(
            root,
            "memory/x/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(of_groups("4:memory:/x\n2:cpu:/a\n", root), None);
        write(root, "memory/memory.limit_in_bytes", "7000\n");
        write(
            root,
            "memory/memory.stat",
            "cache 900\nrss 1\ntotal_rss 40\ntotal_shmem 2\n",
        );
        let budget = of_groups("4:cpu,memory:/x\n0::/c\n", root).unwrap();
        assert_eq!((budget.limit, budget.used()), (7000, Some(42)));
    }

    #[test]
    fn this_process_uses_some() {
        if cfg!(target_os = "linux") {
            assert!(procfs::resident("self").unwrap() > 1 << 20);
        }
    }
}
