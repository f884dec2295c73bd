//! Figures of the host and of the daemon, for metrics, from proc(5).
//! Out of scope: figures of VMs ([`super::usage`]).

use crate::host::blocking::FILE_TIMEOUT;
use crate::wire::backend::HostFigure;

/// Reads the figures; those that cannot be read are left out.
pub(super) async fn read() -> Vec<HostFigure> {
    let read = tokio::task::spawn_blocking(figures);
    match tokio::time::timeout(FILE_TIMEOUT, read).await {
        Ok(Ok(figures)) => figures,
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

fn figures() -> Vec<HostFigure> {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let load = file("/proc/loadavg");
    let load = |at: usize| load.split_whitespace().nth(at)?.parse().ok();
    let memory = file("/proc/meminfo");
    let network = file("/proc/net/dev");
    let descriptors = std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
    let sockets = file("/proc/net/sockstat");
    let gauge = |name, help, value: Option<f64>| value.map(|value| (name, "gauge", help, value));
    let counter =
        |name, help, value: Option<f64>| value.map(|value| (name, "counter", help, value));
    [
        gauge(
            "slicer_system_load_avg_1",
            "Load average of one minute.",
            load(0),
        ),
        gauge(
            "slicer_system_load_avg_5",
            "Load average of five minutes.",
            load(1),
        ),
        gauge(
            "slicer_system_load_avg_15",
            "Load average of fifteen minutes.",
            load(2),
        ),
        gauge(
            "slicer_system_memory_total_bytes",
            "Memory of the host.",
            memory_field(&memory, "MemTotal:"),
        ),
        gauge(
            "slicer_system_memory_available_bytes",
            "Memory of the host that is available.",
            memory_field(&memory, "MemAvailable:"),
        ),
        counter(
            "slicer_system_egress_tx",
            "Bytes sent by all links but lo.",
            transferred(&network, 8),
        ),
        counter(
            "slicer_system_egress_rx",
            "Bytes received by all links but lo.",
            transferred(&network, 0),
        ),
        gauge(
            "slicer_system_open_files",
            "Open files of the daemon.",
            descriptors.map(|count| count as f64),
        ),
        gauge(
            "slicer_system_open_connections",
            "TCP sockets in use.",
            tcp_sockets(&sockets),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn memory_field(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

/// The sum of a column of all links but `lo`.
fn transferred(text: &str, column: usize) -> Option<f64> {
    let links = text.lines().filter_map(|line| line.split_once(':'));
    let links = links.filter(|(name, _)| name.trim() != "lo");
    let values =
        links.filter_map(|(_, fields)| fields.split_whitespace().nth(column)?.parse::<f64>().ok());
    Some(values.sum())
}

fn tcp_sockets(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("TCP: inuse "))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_found() {
        let memory = "MemTotal:       8 kB\nMemAvailable:   4 kB\n";
        assert_eq!(memory_field(memory, "MemAvailable:"), Some(4096.0));
        assert_eq!(memory_field(memory, "Other:"), None);
        let network = "Inter-|   Receive\n face |bytes\n    lo: 5 0 0 0 0 0 0 0 5 0\n  eth0: 7 0 0 0 0 0 0 0 9 0\n";
        assert_eq!(transferred(network, 0), Some(7.0));
        assert_eq!(transferred(network, 8), Some(9.0));
        assert_eq!(
            tcp_sockets("sockets: used 3\nTCP: inuse 4 orphan 0\n"),
            Some(4.0)
        );
    }
}
