//! `vm top`: the resources that VMs use, as the host and their guests see them.
//! Out of scope: all counters of a VMM (`vm metrics`).

use std::io::{self, IsTerminal};
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;

use super::super::failure::Failure;
use super::super::paint::Colors;
use super::super::print::{self, Format};
use super::super::table::{Field, Table};
use super::args::TopArgs;
use super::signals::Signals;
use crate::api::meta::Name;
use crate::api::usage::{Traffic, Usage};
use crate::api::view::Kind;
use crate::clock;
use crate::guest::protocol::Stats;
use crate::wire::client::ClientError;
use crate::wire::{AgentRequest, Client};

/// Interval of the refresh on a terminal.
const INTERVAL: Duration = Duration::from_secs(2);

/// The time over which the CPU use of a single table is measured.
const SAMPLE: Duration = Duration::from_millis(500);

/// How long a guest may take to answer; the others are shown without waiting longer.
const GUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Number of VMs that are asked at the same time.
const CONCURRENCY: usize = 16;

/// Clears the terminal (ECMA-48: ED, CUP).
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";

/// The resources of a VM.
#[derive(Serialize)]
struct Row {
    vm: Name,
    /// CPU time of the VMM in percent of one CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
    /// What the host knows of the VMM.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<Usage>,
    /// What the agent in the guest reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<Stats>,
    /// Why there is nothing of the host or the guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
}

/// A measurement of the host.
type Sample = (Name, Result<Usage, ClientError>, std::time::Instant);

/// `vm top [VM]`.
pub async fn top(client: &Client, args: TopArgs) -> Result<(), Failure> {
    let repeats = io::stdout().is_terminal() && !args.once && args.output == Format::Table;
    let mut signals = Signals::new()?;
    let mut before = measure(client, names(client, &args).await?).await;
    if let ([(_, Err(_), _)], Some(_)) = (before.as_slice(), &args.vm)
        && let Some((_, Err(error), _)) = before.pop()
    {
        return Err(error.into());
    }
    let mut pause = SAMPLE;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = signals.next() => return Ok(()),
        }
        let now = measure(client, names(client, &args).await?).await;
        let rows = rows(client, &before, now).await;
        if !repeats {
            return print::answer(args.output, &rows.0, |rows| table(rows));
        }
        print::bytes(CLEAR)?;
        print::out(&table(&rows.0))?;
        before = rows.1;
        pause = INTERVAL;
    }
}

async fn names(client: &Client, args: &TopArgs) -> Result<Vec<Name>, Failure> {
    if let Some(vm) = &args.vm {
        return Ok(vec![vm.clone()]);
    }
    let list = client.get(Kind::Vm, None).await?;
    let names = list.items.iter().map(|vm| vm.metadata().name.clone());
    Ok(names.collect())
}

/// The use of each VM, in the order of the names.
async fn measure(client: &Client, names: Vec<Name>) -> Vec<Sample> {
    let measure = |name: Name| async move {
        let usage = client.usage(&name).await;
        (name, usage, clock::monotonic())
    };
    let samples = futures::stream::iter(names).map(measure);
    samples.buffered(CONCURRENCY).collect().await
}

/// The rows, and the samples for the next ones.
async fn rows(client: &Client, before: &[Sample], now: Vec<Sample>) -> (Vec<Row>, Vec<Sample>) {
    let row = |sample: Sample| async move {
        let guest = match &sample.1 {
            Ok(_) => Some(guest(client, &sample.0).await),
            Err(_) => None,
        };
        let mut errors = Vec::new();
        let earlier = before.iter().find(|(name, ..)| *name == sample.0);
        let host = match &sample.1 {
            Ok(usage) => Some(usage.clone()),
            Err(error) => {
                errors.extend(error.causes());
                None
            }
        };
        let guest = guest.and_then(|guest| guest.map_err(|error| errors.push(error)).ok());
        let row = Row {
            vm: sample.0.clone(),
            cpu_percent: earlier.and_then(|earlier| cpu_percent(earlier, &sample)),
            host,
            guest,
            errors,
        };
        (row, sample)
    };
    let rows = futures::stream::iter(now).map(row).buffered(CONCURRENCY);
    rows.collect::<Vec<_>>().await.into_iter().unzip()
}

async fn guest(client: &Client, vm: &Name) -> Result<Stats, String> {
    let stats = client.agent_json(AgentRequest::get(vm, "/stats"));
    match tokio::time::timeout(GUEST_TIMEOUT, stats).await {
        Ok(stats) => stats.map_err(|error| error.causes().join(": ")),
        Err(_) => Err("the agent does not answer in time".to_owned()),
    }
}

fn cpu_percent((_, before, begin): &Sample, (_, now, end): &Sample) -> Option<f64> {
    let (before, now) = (before.as_ref().ok()?, now.as_ref().ok()?);
    // Another process has started in between.
    let spent = now.cpu_ns.checked_sub(before.cpu_ns)?;
    let elapsed = end.saturating_duration_since(*begin).as_nanos();
    (elapsed > 0).then(|| (spent as f64 / elapsed as f64 * 1000.0).round() / 10.0)
}

fn table(rows: &[Row]) -> String {
    let columns = vec![
        "VM",
        "CPU",
        "MEMORY",
        "READ",
        "WRITTEN",
        "RECEIVED",
        "SENT",
        "GUEST LOAD",
        "GUEST MEMORY",
        "GUEST DISK",
    ];
    let rows = rows.iter().map(|row| {
        let host = |value: fn(&Usage) -> u64| {
            row.host
                .as_ref()
                .map_or("-".into(), |host| size(value(host)))
        };
        let network = row.host.as_ref().and_then(|host| host.network);
        let traffic = |value: fn(&Traffic) -> u64| {
            network.map_or("-".into(), |network| size(value(&network)))
        };
        let guest = |value: &dyn Fn(&Stats) -> String| row.guest.as_ref().map_or("-".into(), value);
        let cells = [
            row.vm.to_string(),
            row.cpu_percent
                .map_or("-".into(), |percent| format!("{percent:.1}%")),
            host(|host| host.memory_bytes),
            host(|host| host.disk_read_bytes),
            host(|host| host.disk_written_bytes),
            traffic(|network| network.received_bytes),
            traffic(|network| network.sent_bytes),
            guest(&|stats| format!("{:.2}", stats.load_avg_1)),
            guest(&|stats| format!("{}/{}", size(stats.memory_used), size(stats.total_memory))),
            guest(&|stats| {
                format!(
                    "{}/{}",
                    size(stats.disk_space_used),
                    size(stats.disk_space_total)
                )
            }),
        ];
        cells.into_iter().map(Field::from).collect()
    });
    Table::new(columns, Colors::for_stdout()).draw(rows.collect())
}

/// Bytes with one decimal in the largest binary unit: `1.5Gi`.
fn size(bytes: u64) -> String {
    let units = ["B", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ => format!("{value:.1}{}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_largest_binary_unit() {
        for (bytes, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0Ki"),
            (1_610_612_736, "1.5Gi"),
            (u64::MAX, "16384.0Pi"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn cpu_use_is_that_between_two_measurements_of_one_process() {
        let (name, now) = ("a".parse::<Name>().unwrap(), clock::monotonic());
        let sample = |cpu_ns, after| {
            let usage = Usage {
                vm: "a".parse().unwrap(),
                cpu_ns,
                memory_bytes: 0,
                disk_read_bytes: 0,
                disk_written_bytes: 0,
                network: None,
            };
            (name.clone(), Ok(usage), now + Duration::from_secs(after))
        };
        assert_eq!(
            cpu_percent(&sample(0, 0), &sample(500_000_000, 1)),
            Some(50.0)
        );
        assert_eq!(
            cpu_percent(&sample(9, 0), &sample(3, 1)),
            None,
            "another process"
        );
    }
}
