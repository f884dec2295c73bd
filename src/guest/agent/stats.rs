//! Figures of the guest from proc(5) and statvfs(3).
//! Out of scope: the request.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::statvfs;
use rustix::system::uname;

use crate::clock;
use crate::guest::protocol::Stats;

/// Reads all figures. A figure without its file is 0.
///
/// # Errors
/// The root file system cannot be read.
pub fn read() -> io::Result<Stats> {
    let system = uname();
    let file = |path: &str| fs::read_to_string(format!("/proc/{path}")).unwrap_or_default();
    let mut stats = Stats {
        hostname: system.nodename().to_string_lossy().into_owned(),
        arch: system.machine().to_string_lossy().into_owned(),
        timestamp: clock::now().to_string(),
        uptime: duration(number(&file("uptime"), 0)),
        total_cpus: cpus(&file("stat")),
        open_files: number(&file("sys/fs/file-nr"), 0),
        entropy: number(&file("sys/kernel/random/entropy_avail"), 0),
        open_connections: connections(&file("net/snmp")),
        ..Stats::default()
    };
    memory(&mut stats, &file("meminfo"));
    load(&mut stats, &file("loadavg"));
    disks(&mut stats, &file("diskstats"), |name| {
        Path::new("/sys/block").join(name).exists()
    });
    links(&mut stats, &file("net/dev"));
    let space = statvfs("/")?;
    stats.disk_space_total = space.f_blocks.saturating_mul(space.f_frsize);
    stats.disk_space_free = space.f_bavail.saturating_mul(space.f_frsize);
    let free = space.f_bfree.saturating_mul(space.f_frsize);
    stats.disk_space_used = stats.disk_space_total.saturating_sub(free);
    stats.disk_space_used_percent = percent(stats.disk_space_used, stats.disk_space_total);
    Ok(stats)
}

/// A field of a line as a whole number: the digits before a dot.
fn number(line: &str, field: usize) -> u64 {
    let field = line.split_ascii_whitespace().nth(field).unwrap_or_default();
    let digits = field.split('.').next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// As Go writes it: `6m53s`.
fn duration(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a percentage")]
fn percent(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        _ => part as f64 * 100.0 / whole as f64,
    }
}

fn cpus(stat: &str) -> u64 {
    let names = stat.lines().filter_map(|line| line.strip_prefix("cpu"));
    names
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        .count() as u64
}

fn memory(stats: &mut Stats, meminfo: &str) {
    let bytes = |name: &str| {
        let mut lines = meminfo.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        number(value.unwrap_or_default(), 0).saturating_mul(1024)
    };
    stats.total_memory = bytes("MemTotal");
    stats.memory_available = bytes("MemAvailable");
    stats.memory_used = stats.total_memory.saturating_sub(stats.memory_available);
    stats.memory_used_percent = percent(stats.memory_used, stats.total_memory);
}

fn load(stats: &mut Stats, loadavg: &str) {
    let mut fields = loadavg
        .split_ascii_whitespace()
        .map(|field| field.parse().unwrap_or(0.0));
    let mut next = || fields.next().unwrap_or(0.0);
    (stats.load_avg_1, stats.load_avg_5, stats.load_avg_15) = (next(), next(), next());
}

/// Sums of disks, without partitions and without devices that are made of others, which would be counted twice. Sectors of diskstats have
/// 512 bytes on all disks.
fn disks(stats: &mut Stats, diskstats: &str, is_disk: impl Fn(&str) -> bool) {
    const MADE_OF_OTHERS: [&str; 5] = ["loop", "ram", "zram", "dm-", "md"];
    for line in diskstats.lines() {
        let name = line.split_ascii_whitespace().nth(2).unwrap_or_default();
        if MADE_OF_OTHERS.iter().any(|prefix| name.starts_with(prefix)) || !is_disk(name) {
            continue;
        }
        stats.disk_read_total += number(line, 5).saturating_mul(512);
        stats.disk_write_total += number(line, 9).saturating_mul(512);
        stats.disk_io_inflight += number(line, 11);
    }
}

fn links(stats: &mut Stats, dev: &str) {
    let lines = dev.lines().filter_map(|line| line.split_once(':'));
    for (_, figures) in lines.filter(|(name, _)| name.trim() != "lo") {
        stats.network_read_total += number(figures, 0);
        stats.network_write_total += number(figures, 8);
    }
}

/// `CurrEstab` of the line `Tcp` with values, which follows the one with names.
fn connections(snmp: &str) -> u64 {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Tcp:"));
    let mut fields = lines.next().unwrap_or_default().split_ascii_whitespace();
    let field = fields.position(|name| name == "CurrEstab");
    field.map_or(0, |field| number(lines.next().unwrap_or_default(), field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_files_of_a_kernel() {
        let mut stats = Stats::default();
        memory(
            &mut stats,
            "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    250 kB\n",
        );
        assert_eq!(
            (stats.total_memory, stats.memory_used),
            (1_024_000, 768_000)
        );
        assert!((stats.memory_used_percent - 75.0).abs() < 1e-9);
        load(&mut stats, "0.50 1.25 2.00 1/100 4711\n");
        assert_eq!((stats.load_avg_1, stats.load_avg_15), (0.5, 2.0));
        let diskstats = " 254 0 vda 10 0 8 0 20 0 16 0 3 0 0\n 254 1 vda1 10 0 8 0 20 0 16 0 3 0 0\n 253 0 dm-0 10 0 8 0 20 0 16 0 3 0 0\n";
        disks(&mut stats, diskstats, |name| name != "vda1");
        assert_eq!(
            (stats.disk_read_total, stats.disk_write_total),
            (8 * 512, 16 * 512)
        );
        assert_eq!(stats.disk_io_inflight, 3);
        links(
            &mut stats,
            "Inter-| Receive\n face |bytes\n lo: 5 0 0 0 0 0 0 0 6 0\neth0:7 0 0 0 0 0 0 0 8 0\n",
        );
        assert_eq!(
            (stats.network_read_total, stats.network_write_total),
            (7, 8)
        );
        assert_eq!(cpus("cpu  1 2\ncpu0 1\ncpu1 1\nintr 5\n"), 2);
        assert_eq!(connections("Tcp: A CurrEstab B\nTcp: 1 42 3\n"), 42);
        assert_eq!(connections(""), 0);
    }

    #[test]
    fn an_uptime_is_written_as_go_does() {
        for (seconds, text) in [
            (0, "0s"),
            (413, "6m53s"),
            (3600, "1h0m0s"),
            (90061, "25h1m1s"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn the_figures_of_this_machine_are_plausible() {
        let stats = read().expect("figures");
        assert!(stats.total_cpus > 0 && stats.total_memory > 1 << 20);
        assert!(stats.memory_used <= stats.total_memory && stats.open_files > 0);
        assert!(stats.disk_space_total > 0 && !stats.arch.is_empty());
    }
}
