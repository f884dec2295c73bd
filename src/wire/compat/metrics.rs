//! Metrics in the text format of Prometheus.
//! Out of scope: those of a VMM (`/v1/metrics`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::super::backend::Backend;
use super::super::shared::AppState;
use super::counters::{BUCKETS, COUNTERS, Counts};
use super::errors::{Rejection, refused};
use crate::api::meta::Name;
use crate::api::node::Node;
use crate::api::view::VmmState;

/// The metrics.
#[utoipa::path(get, path = "/metrics", tag = "daemon", responses(Rejection,
    (status = 200, body = String, content_type = "text/plain"),
))]
pub(super) async fn metrics<B: Backend>(State(state): AppState<B>) -> Result<Response, Rejection> {
    let nodes = state.backend.nodes(None).await.map_err(refused)?;
    let host = state.backend.host_figures().await;
    let mut text = String::new();
    write_requests(&mut text, &COUNTERS.lock());
    write_vms(&mut text, &nodes);
    for (name, kind, help, value) in host {
        metric(&mut text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    }
    let content_type = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    Ok((content_type, text).into_response())
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn write_requests(text: &mut String, counts: &Counts) {
    metric(
        text,
        "slicer_api_requests_total",
        "counter",
        "Requests to the REST API.",
    );
    for ((method, code), count) in &counts.requests {
        let _ = writeln!(
            text,
            "slicer_api_requests_total{{method=\"{method}\",code=\"{code}\"}} {count}"
        );
    }
    let name = "slicer_api_request_duration_seconds";
    metric(
        text,
        name,
        "histogram",
        "Time until the head of the response.",
    );
    let mut total = 0;
    for (bound, count) in BUCKETS.iter().zip(counts.durations) {
        total += count;
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}");
    }
    let (sum, count) = (counts.duration_sum, counts.duration_count);
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
    metric(
        text,
        "slicer_vm_launch_total",
        "counter",
        "Requests for VMs.",
    );
    for ((group, code), count) in &counts.launches {
        let _ = writeln!(
            text,
            "slicer_vm_launch_total{{host_group=\"{group}\",code=\"{code}\"}} {count}"
        );
    }
}

fn write_vms(text: &mut String, nodes: &[Node]) {
    let mut running: BTreeMap<(&Name, bool, &str), usize> = BTreeMap::new();
    for node in nodes {
        let state = match node.state {
            VmmState::Starting => "starting",
            VmmState::Running | VmmState::None => "running",
            VmmState::Paused => "paused",
            VmmState::Stopping => "stopping",
            VmmState::Stopped => "stopped",
            VmmState::Failed => "failed",
        };
        let key = (&node.group, node.on_demand, state);
        *running.entry(key).or_default() += 1;
    }
    metric(
        text,
        "slicer_vm_running",
        "gauge",
        "VMs by group, origin and state.",
    );
    for ((group, api, state), count) in running {
        let _ = writeln!(
            text,
            "slicer_vm_running{{host_group=\"{group}\",api=\"{api}\",state=\"{state}\"}} {count}"
        );
    }
    metric(text, "slicer_vm_gpu_count", "gauge", "GPUs of VMs.");
    let _ = writeln!(text, "slicer_vm_gpu_count 0");
}
