//! What needs neither a kernel of its own nor privileges: rules on the sources, texts, parsing, plans, laws, simulated time.
//! Out of scope: the host.
//!
//! | file | what it tests |
//! |---|---|
//! | `cli` | `slicectl` without a daemon: usage errors, help, `new` |
//! | `connect` | the client waits for a daemon that is starting |
//! | `cycles` | files do not import each other in a circle |
//! | `docs` | README and documentation: blocks, commands, links, the index |
//! | `endpoints` | the table of endpoints and the router agree |
//! | `help` | the help of every verb |
//! | `internals` | the functions that docs/internals.md names exist |
//! | `laws` | what holds for every plan |
//! | `keys` | the table of keys agrees with the parser: locations, defaults, effects of changes, the JSON Schema, the reference |
//! | `layers` | imports between modules, places of `unsafe`, length of files |
//! | `listener` | the daemon's socket: what it replaces, who gets access |
//! | `manifests` | manifests that are valid, and the message for each that is not |
//! | `plans` | golden plans |
//! | `queue` | the queue and the controller in simulated time |
//! | `reference` | `docs/reference` and the man pages are complete |
//! | `terms` | retired terms do not come back |
//! | `texts` | every text that a user may read is in a golden file |

mod cli;
mod connect;
mod cycles;
mod docs;
mod endpoints;
mod examples;
mod help;
mod internals;
mod keys;
mod laws;
mod layers;
mod listener;
mod manifests;
mod plans;
mod queue;
mod reference;
mod source;
mod terms;
mod texts;
