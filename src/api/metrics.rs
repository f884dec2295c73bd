//! `Metrics`: the counters of a VM's VMM, with the names of the VMM, and the kernel's counters of the VM's connections.
//! Out of scope: querying the VMM.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};
use utoipa::ToSchema;

use super::meta::Name;
use super::vm::Hypervisor;

/// The counters of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    /// The VM.
    pub vm: Name,
    /// The VMM that counts.
    pub hypervisor: Hypervisor,
    /// The start of the counting period.
    pub since: CountingSince,
    /// The counters by name: the name that the VMM uses, prefixed with the names of the enclosing objects: `net_eth0.rx_bytes_count`.
    #[schema(value_type = BTreeMap<String, f64>)]
    pub counters: Counters,
    /// The reason why the VMM's counters are missing; `None` if they are not, or if the VM has no VMM with counters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_error: Option<String>,
}

/// Counters by name.
pub type Counters = BTreeMap<String, Number>;

/// The start of the counting period of a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CountingSince {
    /// The start of the VMM.
    Start,
    /// The last query, at most a minute ago: the VMM resets its counters every minute and on each query.
    #[serde(rename = "last-asked")]
    LastQuery,
}

impl CountingSince {
    /// The counting period of this hypervisor.
    pub fn of(hypervisor: Hypervisor) -> Self {
        match hypervisor {
            Hypervisor::Firecracker => Self::LastQuery,
            Hypervisor::None | Hypervisor::Qemu | Hypervisor::CloudHypervisor => Self::Start,
        }
    }
}

/// Adds every number in `counter_value` to `counters`, with its path below `name`. Lists and other values are skipped.
pub fn collect(counters: &mut Counters, name: &str, value: &Value) {
    match value {
        Value::Number(number) => {
            counters.insert(name.to_owned(), number.clone());
        }
        Value::Object(parts) => {
            for (part, counter_value) in parts {
                match name {
                    "" => collect(counters, part, counter_value),
                    name => collect(counters, &format!("{name}.{part}"), counter_value),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_collected_with_the_path_of_their_objects() {
        let value = serde_json::json!({
            "at": 7, "net": { "rx": { "bytes": 1 }, "up": true, "name": "x" }, "list": [1, 2], "part": null,
        });
        let mut counters = Counters::new();
        collect(&mut counters, "", &value);
        let found: Vec<(String, String)> = counters
            .into_iter()
            .map(|(name, count)| (name, count.to_string()))
            .collect();
        let pair = |name: &str, count: &str| (name.to_owned(), count.to_owned());
        assert_eq!(found, [pair("at", "7"), pair("net.rx.bytes", "1")]);
    }
}
