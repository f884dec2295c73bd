//! HTTP and JSON on Unix and TCP sockets: the requests ([`backend`], [`fleet_backend`]), the listening sockets ([`socket`]), the server, the client.
//! Out of scope: decisions, storage, messages and tables for users.
//!
//! # Endpoints
//! | request | response |
//! |---|---|
//! | `GET /v1/version` | [`ServerInfo`](crate::api::view::ServerInfo) |
//! | `POST /v1/apply?dry_run=false`, body `{"sources":[{"name","text"}]}` | array of [`ApplyResult`](crate::api::view::ApplyResult) |
//! | `POST /v1/diff?steps=true`, same body | [`DiffResult`](crate::api::view::DiffResult) |
//! | `POST /v1/names`, same body | array of the groups' names |
//! | `GET /v1/objects/{kind}[/{name}]` | [`List`](crate::api::view::List) |
//! | `GET /v1/objects/{kind}[/{name}]?follow=true` | lines of [`Change`](crate::api::view::Change) |
//! | `DELETE /v1/objects/{kind}/{name}?force=false` | 204; the object is removed when it has no more finalizers |
//! | `PUT /v1/groups/{group}/scale`, body [`Scale`](crate::api::view::Scale) | [`ApplyResult`](crate::api::view::ApplyResult); a group of a file is refused, and one with another uid or generation than the body |
//! | `POST /v1/groups/{group}/vms`, body [`NewVm`](crate::api::on_demand::NewVm) | [`NewVmResult`](crate::api::view::NewVmResult) |
//! | `DELETE /v1/vms/{vm}` | 204; for VMs on demand, a VM of a group's `count` is refused |
//! | `POST /v1/vms/{vm}/{verb}`, a [`PowerCommand`](crate::api::vm::PowerCommand) | [`Applied`](crate::api::view::Applied) |
//! | `ANY /v1/vms/{vm}/agent/{*path}`, a request of [`crate::guest::protocol`] | the response of the VM's agent; its errors have a [`Problem`](crate::api::view::Problem) as their body |
//! | `GET /v1/secrets` | array of [`SecretView`](crate::api::secret::SecretView) |
//! | `POST /v1/secrets`, body [`SecretRequest`](crate::api::secret::SecretRequest) | 201, [`SecretView`](crate::api::secret::SecretView); 409 if it exists |
//! | `PATCH /v1/secrets/{name}`, same body | [`SecretView`](crate::api::secret::SecretView) |
//! | `DELETE /v1/secrets/{name}` | 200 |
//! | `GET /v1/metrics/{vm}` | [`Metrics`](crate::api::metrics::Metrics) of the VMM |
//! | `GET /v1/usage/{vm}` | [`Usage`](crate::api::usage::Usage) of the VMM on the host |
//! | `GET /v1/events?object=vm/x&follow=false` | lines of [`Event`](crate::api::event::Event) |
//! | `GET /v1/fleet/events?object=vm/x&follow=false` | lines of [`FleetEvent`](crate::api::event::FleetEvent), of all nodes |
//! | `GET /v1/watch?since=VERSION&kinds=vm,lease&events=true&object=vm/x` | lines of [`WatchLine`](crate::api::view::WatchLine); 410 if the watch cannot be continued from that version |
//! | `GET /v1/logs/{vm}?follow=false&lines=10` | bytes; without `lines` the whole log |
//! | `POST /v1/console/{vm}`, body: bytes for the serial port | 204; an empty body checks whether that is possible |
//! | `POST /v1/gc?dry_run=false` | array of [`Orphan`](crate::api::view::Orphan) |
//! | `GET /v1/doctor` | array of [`Check`](crate::api::view::Check) |
//! | `GET /v1/explain/{vm}?packet=1.2.3.4:443/tcp` | [`Explanation`](crate::api::view::Explanation) |
//! | `GET /v1/route/{group}` | [`RouteInfo`](crate::api::view::RouteInfo) |
//! | `GET /v1/fleet/status` | [`FleetStatus`](crate::api::view::FleetStatus); all requests of `/v1/fleet`: 409 if the daemon is not part of a fleet |
//! | `POST /v1/fleet/accept`, body [`FleetAccept`](crate::api::view::FleetAccept) | the same with the id of the accepted cluster |
//! | `POST /v1/fleet/apply?dry_run=false`, body as of `/v1/apply` | array of [`ApplyResult`](crate::api::view::ApplyResult) |
//! | `POST /v1/fleet/diff`, same body | [`DiffResult`](crate::api::view::DiffResult) without steps |
//! | `GET /v1/fleet/groups[/{group}]` | [`FleetList`](crate::api::view::FleetList) of [`FleetGroup`](crate::api::view::FleetGroup) |
//! | `DELETE /v1/fleet/groups/{group}?uid=` | 204; the group is removed when its VMs are deleted; 409 if it has another uid than `uid` |
//! | `PUT /v1/fleet/groups/{group}/scale`, body [`Scale`](crate::api::view::Scale) | [`ApplyResult`](crate::api::view::ApplyResult) |
//! | `GET /v1/fleet/vms[/{name}]` | [`FleetList`](crate::api::view::FleetList) of [`FleetVm`](crate::api::view::FleetVm) |
//! | `GET /v1/fleet/nodes[/{node}]` | [`FleetList`](crate::api::view::FleetList) of [`FleetNode`](crate::api::view::FleetNode) |
//! | `POST /v1/fleet/nodes/{node}`, body [`NodeAction`](crate::api::view::NodeAction) | [`Applied`](crate::api::view::Applied) |
//! | `GET /v1/fleet/nodes/{node}/vms` | array of [`NodeVm`](crate::api::view::NodeVm) |
//! | `GET /v1/fleet/subnets` | [`FleetList`](crate::api::view::FleetList) of [`FleetSubnet`](crate::api::view::FleetSubnet) |
//!
//! "Lines" are `application/x-ndjson`: one JSON value per line, each flushed immediately. Errors are 400 (malformed request),
//! 401 (no or an invalid token), 403 (the peer is not permitted), 404, 409, 410, 413, 422, 500, 502 to 504 (an agent does not answer) or 503
//! (a limit is reached; try again), with
//! a [`Problem`](crate::api::view::Problem) as the body.

mod access;
mod admission;
mod agent;
mod agent_client;
mod agent_rules;
mod agents;
pub mod auth;
pub mod backend;
mod browser;
mod caller;
pub mod client;
mod client_error;
mod compat;
mod connections;
mod endpoint;
mod error_body;
mod extract;
mod fleet;
mod fleet_backend;
mod fleet_client;
mod guarded;
pub mod limits;
mod lines;
mod listener;
mod openapi;
mod operation;
mod origin;
pub mod packet;
pub mod peer;
mod problem;
mod queries;
pub mod rates;
mod secrets;
mod secrets_client;
pub mod server;
mod shared;
pub mod socket;
mod stoppable;
mod stream;
mod transport;
mod tunnel;
mod ui;
mod user;
mod v1;
mod watch;
mod watch_client;
mod weight;

pub use agent_client::{AgentRequest, AgentSocket, Upload};
pub use auth::{Auth, Token};
pub use backend::{Backend, Deletion, Detail, Effect, Refusal, StreamMode};
pub use caller::Caller;
pub use client::Client;
pub use endpoint::Url;
pub use fleet_backend::FleetBackend;
pub use listener::{AgentRequests, Listening, Server, is_of_connection, serve};
pub use openapi::text as openapi;
pub use socket::Listener;
pub use ui::Page;
