//! `Metrics`: what a VM's VMM has counted, under the VMM's own names, and what the kernel has counted of its connections.
//! Out of scope: querying the VMM.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use super::meta::Name;
use super::vm::Hypervisor;

/// What one VMM has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Whose.
    pub vm: Name,
    /// Who counted.
    pub hypervisor: Hypervisor,
    /// Since when.
    pub since: Since,
    /// Each by its name, as its VMM calls it, after those of the parts that it is in: `net_eth0.rx_bytes_count`.
    pub counters: Counters,
    /// Why its VMM's own counters are missing; none: they are not, or there is no VMM that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_error: Option<String>,
}

/// Counters by name.
pub type Counters = BTreeMap<String, Number>;

/// Since when a VMM has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Since {
    /// Its start.
    Start,
    /// It was asked last, at most a minute ago: it counts anew every minute, and whenever it is asked.
    LastAsked,
}

impl Since {
    /// Of this hypervisor.
    pub fn of(hypervisor: Hypervisor) -> Self {
        match hypervisor {
            Hypervisor::Firecracker => Self::LastAsked,
            Hypervisor::None | Hypervisor::Qemu | Hypervisor::CloudHypervisor => Self::Start,
        }
    }
}

/// Takes in every number that `told` holds, below this name. What is no number is passed over, and so are lists.
pub fn collect(counters: &mut Counters, name: &str, told: &Value) {
    match told {
        Value::Number(number) => {
            counters.insert(name.to_owned(), number.clone());
        }
        Value::Object(parts) => {
            for (part, told) in parts {
                match name {
                    "" => collect(counters, part, told),
                    name => collect(counters, &format!("{name}.{part}"), told),
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
    fn numbers_are_taken_in_by_the_names_of_all_that_they_are_in() {
        let told = serde_json::json!({
            "at": 7, "net": { "rx": { "bytes": 1 }, "up": true, "name": "x" }, "list": [1, 2], "part": null,
        });
        let mut counters = Counters::new();
        collect(&mut counters, "", &told);
        let found: Vec<(String, String)> = counters
            .into_iter()
            .map(|(name, count)| (name, count.to_string()))
            .collect();
        let pair = |name: &str, count: &str| (name.to_owned(), count.to_owned());
        assert_eq!(found, [pair("at", "7"), pair("net.rx.bytes", "1")]);
    }
}
