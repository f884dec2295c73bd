//! Single modules on a real kernel, each test in network and mount namespaces of its own. Root, or root of a user namespace.
//! Out of scope: the daemon as a whole (`e2e`), VMMs (`vmm`).
//!
//! | file | what it tests |
//! |---|---|
//! | `bridge_stages` | the stages of bridge mode |
//! | `cni` | the CNI runtime, with a recorded plugin and Debian's |
//! | `cni_stages` | the stages of CNI mode, with Debian's plugins |
//! | `crash` | the daemon's modules killed before each action |
//! | `disks` | copies, locks and growth of disk images |
//! | `doctor` | the checks of the host |
//! | `host_bridge` | bridges, ports, filters on links |
//! | `host_events` | notifications of the kernel |
//! | `host_filter` | iptables rules and conntrack |
//! | `host_net` | namespaces, links, addresses, routes, TAP devices |
//! | `legacy_filter` | rules of the legacy iptables back end |
//! | `oracle` | random allow and drop lists, compared with packets |
//! | `packets` | packets through a real TAP |
//! | `pipeline` | the order of stages; claims under concurrency |
//! | `store` | the database on real file systems: power failures, damage, full disks |

mod bridge_stages;
mod cni;
mod cni_stages;
mod crash;
mod disks;
mod doctor;
mod host_bridge;
mod host_events;
mod host_filter;
mod host_net;
mod legacy_filter;
mod oracle;
mod packets;
mod pipeline;
mod store;
