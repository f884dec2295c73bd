//! The daemon as a user sees it: the real `sliced` on a real folder, asked through the real `slicectl`, in a private kernel,
//! with slots without VMM and with real guests.
//! Out of scope: single modules.
//!
//! | file | what it tests |
//! |---|---|
//! | `agent` | `slice-agent` on a Unix socket |
//! | `api_listener` | the second listener of the API: settings, token, TLS, hostile clients |
//! | `bridge` | the same questions of groups in bridge mode |
//! | `modes` | groups of all modes on one host |
//! | `converge` | from a manifest to what stands, and what scripts rely on |
//! | `reload` | a saved file, live and not |
//! | `difference` | what `diff` wait_for_output, and what is then done |
//! | `docs` | the commands of the documentation, and the output that it shows |
//! | `damage` | a state that is damaged, lost or replaced under VMs that run |
//! | `delete_on_exit` | VMs that are deleted when their guest ends by itself, and a daemon that is killed meanwhile |
//! | `dependents` | what depends on a bridge or on the host's switch, after that was broken |
//! | `fleet` | multiple hosts: the client of etcd, nodes and the scheduler against three real members |
//! | `forced` | deletions that are forced |
//! | `fairness` | VMs that exist are repaired while thousands are built or deleted |
//! | `foreign_rules` | hosts with tens of thousands of rules of others |
//! | `disks` | made, kept, refused |
//! | `origin` | whose a group is: a file's or an apply's |
//! | `drift` | everything that somebody can break, seen and repaired |
//! | `bridge_drift` | the same in bridge mode |
//! | `completion` | what shells offer |
//! | `contract` | the REST API of existing clients, request by request |
//! | `conventions` | what all commands of `slicectl` have in common |
//! | `claims` | ranges, subnets and addresses, held by one daemon or by two |
//! | `power` | what a power failure leaves of what was answered |
//! | `power_verbs` | `vm start`, `stop`, `restart`, `pause` and `resume` in every state |
//! | `recovery` | kill -9, lost and broken state, two daemons |
//! | `hung_files` | file systems that do not answer |
//! | `leftovers` | garbage |
//! | `reach` | the way to bridge groups, and their quarrels |
//! | `cni` | CNI groups, with the plugins of Debian |
//! | `cni_requests` | requests to CNI plugins, and the address and MAC that a VM name keeps |
//! | `cni_ends` | CNI groups that end, and hosts that boot, whatever plugins and others do |
//! | `cni_faults` | plugins that fail, daemons that die |
//! | `cni_guest` | QEMU in a CNI network |
//! | `cni_matrix` | chains of plugins through everything that happens to a host; one test at a time |
//! | `full_disk` | a state disk or a run directory that is full or read-only |
//! | `guests` | QEMU |
//! | `guest_access` | commands, shells and connections in guests, through their agents |
//! | `guest_agent` | the same in real Linux guests, through vsock |
//! | `inject` | agents that are not in the image; Debian |
//! | `holders` | deletions of what others hold |
//! | `identity` | a state directory that was moved, copied or mounted elsewhere |
//! | `journal` | the log in systemd's journal |
//! | `life_events` | what is reported of the life of groups and VMs, and by whom it was requested |
//! | `once` | what `--once` reports when it does not converge |
//! | `linux` | Linux guests: paused, stopped, crashed, and what follows |
//! | `linux_disks` | what they read and write |
//! | `hanging` | programs that do not end |
//! | `input` | a config folder that is missing, damaged or silent |
//! | `liveness` | clients that take up what they can |
//! | `named` | members of the socket's group who name files |
//! | `newcomer` | the README's quick start on a bare Debian |
//! | `questions` | what is asked before disks are deleted |
//! | `scale` | the number of VMs of a group, changed alone |
//! | `web` | the web page of the API, in a browser |
//! | `watch` | changes and events for programs, which continue from a version |
//! | `waiting` | what is waited for, and what is not |
//! | `not_observed` | what is answered between a start and the first observation |
//! | `on_demand` | VMs made on demand |
//! | `local_users` | what other users of the host may do to it |
//! | `confinement` | what a VMM may do on the host |
//! | `screens` | the output of `slicectl` at terminals of several widths, and across restarts of the daemon |
//! | `transcripts` | the output of every verb of `slicectl` |
//! | `vsock` | guest access through vsock, and whether the agent of a guest answers |
//! | `undecodable` | records of a VM that cannot be decoded |
//! | `upgrade` | state and running VMs of the version before |
//! | `service` | the process: signals, logs, errors, rest |

mod agent;
mod api_listener;
mod bridge;
mod bridge_drift;
mod claims;
mod cni;
mod cni_ends;
mod cni_faults;
mod cni_flows;
mod cni_guest;
mod cni_matrix;
mod cni_requests;
mod completion;
mod confinement;
mod connections;
mod contract;
mod conventions;
mod converge;
mod damage;
mod delete_on_exit;
mod dependents;
mod difference;
mod disks;
mod docs;
mod drift;
mod fairness;
mod fleet;
mod forced;
mod foreign_rules;
mod full_disk;
mod guest_access;
mod guest_agent;
mod guests;
mod hanging;
mod holders;
mod hung_files;
mod identity;
mod inject;
mod input;
mod journal;
mod leftovers;
mod life_events;
mod linux;
mod linux_disks;
mod liveness;
mod local_users;
mod modes;
mod named;
mod newcomer;
mod not_observed;
mod on_demand;
mod once;
mod origin;
mod power;
mod power_verbs;
mod questions;
mod reach;
mod recovery;
mod reload;
mod scale;
mod screens;
mod service;
mod transcripts;
mod undecodable;
mod upgrade;
mod vsock;
mod waiting;
mod watch;
mod web;
