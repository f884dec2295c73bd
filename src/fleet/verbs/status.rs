//! Which daemon schedules.
//! Out of scope: the election; the contact of this node.

use super::super::keys;
use super::super::kv::{Client, ClusterId};
use super::Error;

/// The leader, as the majority has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The cluster that has answered.
    pub cluster_id: ClusterId,
    /// The name of the node; `None`: nobody is elected.
    pub node: Option<String>,
}

/// Reads who is elected, which also shows that etcd answers and that the user of this node may read.
///
/// # Errors
/// [`Error::Etcd`]
pub async fn leader(client: &Client) -> Result<Leader, Error> {
    let (header, found) = client.get(keys::ELECTION).await?;
    let node = found.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
    Ok(Leader {
        cluster_id: header.cluster_id,
        node,
    })
}
