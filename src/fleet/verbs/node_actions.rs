//! What administrators specify of nodes: cordon, drain, gone.
//! Out of scope: moving VMs, which the scheduler does.

use super::super::keys::Key;
use super::super::kv::{Client, Compare, EtcdKey, KeyValue, Op, Revision, Txn};
use super::super::object::{self, Drain, Gone, Node, NodeStatus};
use super::Error;
use super::attempts::Attempts;
use super::remove_node::remove_node;
use crate::api::meta::{Name, Timestamp};
use crate::api::view::{Applied, NodeAction};

/// What is known of a node.
struct Current {
    admin: Option<KeyValue>,
    status: Option<KeyValue>,
    alive: Option<KeyValue>,
}

/// Changes what administrators specify of a node.
///
/// # Errors
/// [`Error::NotFound`] if nothing of the node is known; [`Error::Conflict`] if a node that renews its lease is to be gone or removed, or a node
/// with VMs is to be removed.
pub async fn act_on_node(
    client: &Client,
    name: &Name,
    action: NodeAction,
    now: Timestamp,
) -> Result<Applied, Error> {
    let mut attempts = Attempts::begin();
    loop {
        let current = read(client, name).await?;
        let before = decoded::<Node>(name, current.admin.as_ref(), "object")?.unwrap_or_default();
        let mut after = before.clone();
        let mut compares = vec![unchanged(&Key::Node(name.clone()), current.admin.as_ref())];
        match action {
            NodeAction::Cordon => after.unschedulable = true,
            NodeAction::Uncordon => {
                after.unschedulable = false;
                after.drain = None;
                after.gone = None;
            }
            NodeAction::Drain { delete_local } => {
                after.unschedulable = true;
                after.drain = Some(Drain { delete_local });
            }
            NodeAction::Gone { force } => {
                after.gone = Some(gone(name, &current, before.gone.as_ref(), force, now)?);
                let status = Key::NodeStatus(name.clone());
                compares.push(unchanged(&status, current.status.as_ref()));
                if !force {
                    compares.push(Compare::absent(Key::Alive(name.clone())));
                }
            }
            NodeAction::Remove => return remove_node(client, name).await,
        }
        if after == before {
            return Ok(Applied::Unchanged);
        }
        let txn = Txn {
            compares,
            then: vec![Op::Put {
                key: Key::Node(name.clone()).into(),
                value: object::encode(&after)?,
                lease: None,
            }],
            otherwise: Vec::new(),
        };
        let response = client.txn(&txn).await;
        let response = response.map_err(|error| Error::of_change(error, "nodes"))?;
        if response.succeeded {
            return Ok(Applied::Configured);
        }
        attempts.next().await?;
    }
}

async fn read(client: &Client, name: &Name) -> Result<Current, Error> {
    let (_, admin) = client.get(Key::Node(name.clone())).await?;
    let (_, status) = client.get(Key::NodeStatus(name.clone())).await?;
    let (_, alive) = client.get(Key::Alive(name.clone())).await?;
    if admin.is_none() && status.is_none() && alive.is_none() {
        return Err(Error::NotFound(format!("node/{name}")));
    }
    Ok(Current {
        admin,
        status,
        alive,
    })
}

/// The statement that the node is fenced, in the boot that it has last reported. The same statement is not made twice.
fn gone(
    name: &Name,
    current: &Current,
    before: Option<&Gone>,
    force: bool,
    now: Timestamp,
) -> Result<Gone, Error> {
    if current.alive.is_some() && !force {
        return Err(Error::conflict(format!(
            "node/{name} renews its lease, so it is not gone: power it off, and wait until `slicectl get nodes` shows it as Unknown; \
             `slicectl node drain {name}` moves the VMs of a node that runs"
        )));
    }
    let status = decoded::<NodeStatus>(name, current.status.as_ref(), "status")?;
    let boot_id = status.map(|status| status.boot_id);
    Ok(match before {
        Some(before) if before.boot_id == boot_id => before.clone(),
        _ => Gone { at: now, boot_id },
    })
}

fn decoded<T: serde::de::DeserializeOwned>(
    name: &Name,
    kv: Option<&KeyValue>,
    what: &str,
) -> Result<Option<T>, Error> {
    let value = kv.map(|kv| object::decode(&kv.value)).transpose();
    value.map_err(|error| {
        Error::conflict(format!("the {what} of node/{name} cannot be read: {error}"))
    })
}

fn unchanged(key: &Key, kv: Option<&KeyValue>) -> Compare {
    let since = kv.map_or(Revision(0), |kv| kv.mod_revision);
    Compare::unchanged(EtcdKey::from(key), since)
}
