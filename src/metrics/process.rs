//! What the kernel says of this process, under the names that every Prometheus client uses.
//! Nothing where there is no `/proc`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Read anew for every reader of the counters.
#[derive(Debug)]
pub(super) struct Process;

/// In which `/proc` counts time; the same on every Linux that Rust runs on. How large a page is differs (16 or
/// 64 KiB on many ARM machines), so memory is read where it is told in kB.
const TICKS: f64 = 100.0;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(found) = read() else { return Ok(()) };
        let cpu = encoder.encode_descriptor(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(found.cpu).encode(cpu)?;
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                found.resident,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes",
                found.virtual_size,
            ),
            (
                "process_open_fds",
                "Number of open file descriptors",
                found.open_files,
            ),
            (
                "process_max_fds",
                "Maximum number of open file descriptors",
                found.most_files,
            ),
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds",
                found.started,
            ),
            ("process_threads", "Number of threads", found.threads),
        ];
        for (name, help, value) in gauges {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)?;
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Found {
    cpu: f64,
    resident: f64,
    virtual_size: f64,
    open_files: f64,
    most_files: f64,
    started: f64,
    threads: f64,
}

fn read() -> Option<Found> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let mut found = parse(&stat, &status, &limits, &boot)?;
    found.open_files = f64::from(u32::try_from(files).unwrap_or(u32::MAX));
    Some(found)
}

fn parse(stat: &str, status: &str, limits: &str, boot: &str) -> Option<Found> {
    // The name in parentheses may hold anything; what follows are numbers, the third field first.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |nth: usize| fields.get(nth - 3)?.parse::<f64>().ok();
    let after = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(Found {
        cpu: (number(14)? + number(15)?) / TICKS,
        threads: number(20)?,
        started: after(boot, "btime").unwrap_or(0.0) + number(22)? / TICKS,
        virtual_size: number(23)?,
        resident: after(status, "VmRSS:").unwrap_or(0.0) * 1024.0,
        most_files: after(limits, "Max open files").unwrap_or(0.0),
        open_files: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194560 99 0 0 0 250 50 0 0 20 0 12 0 3000 8192000 321 18446744073709551615";
        let limits = "Limit  Soft  Hard  Units\nMax open files            20000                20000                files\n";
        let status = "VmHWM:\t    5000 kB\nVmRSS:\t    1284 kB\n";
        let found = parse(stat, status, limits, "cpu 1 2\nbtime 1000\n").unwrap();
        let all = [
            found.cpu,
            found.threads,
            found.started,
            found.virtual_size,
            found.resident,
            found.most_files,
        ];
        let wanted = [3.0, 12.0, 1030.0, 8_192_000.0, 1_314_816.0, 20_000.0];
        assert_eq!(all.map(f64::to_bits), wanted.map(f64::to_bits));
        assert!(parse("nonsense", "", "", "").is_none());
    }
}
