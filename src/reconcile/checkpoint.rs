//! The checkpoints of stages: what each stage records about the state that it converged to. Pure.
//! Out of scope: storing them (the engine); when a stage has converged (the stages).
//!
//! # Why
//! The store keeps a checkpoint as text, because its content belongs to the stage. A text that cannot be decoded must not count as an
//! absent one: a VM whose VMM has exited and must not be restarted would be started. So [`check`] decodes all of them when the state is
//! opened, and a state that it refuses is not used.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::error;

use super::power::VmmCheckpoint;
use crate::api::network::Connection;
use crate::api::stage::{STAGES, Stage, StageStatus};
use crate::store::World;

/// A decoded checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// Net: how the guest is connected.
    Connection(Box<Connection>),
    /// Firewall: the digest of the rules that the flows were evaluated against.
    Rules(String),
    /// Vmm: the process and its last exit.
    Vmm(Box<VmmCheckpoint>),
}

/// The error for a stored text that is not a checkpoint of its stage.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint of the {stage} stage cannot be decoded: {reason}")]
pub struct InvalidCheckpoint {
    stage: Stage,
    reason: String,
}

impl Checkpoint {
    /// Decodes the text that is stored for a stage.
    ///
    /// # Errors
    /// The text is not a checkpoint of this stage.
    pub fn decode(stage: Stage, text: &str) -> Result<Self, InvalidCheckpoint> {
        match stage {
            Stage::Lease => Err(InvalidCheckpoint {
                stage,
                reason: "this stage has none".to_owned(),
            }),
            Stage::Net => json(stage, text).map(Self::Connection),
            Stage::Firewall => Ok(Self::Rules(text.to_owned())),
            Stage::Vmm => json(stage, text).map(Self::Vmm),
        }
    }
}

/// The text of the Vmm stage's checkpoint. None if it is empty.
pub fn vmm_text(checkpoint: &VmmCheckpoint) -> Option<String> {
    (*checkpoint != VmmCheckpoint::default()).then(|| encode(checkpoint))
}

/// The text that [`Checkpoint::decode`] decodes.
///
/// # Panics
/// Never: the keys of all maps in checkpoints are strings.
pub fn encode(checkpoint: &impl Serialize) -> String {
    serde_json::to_string(checkpoint).expect("maps with strings as keys")
}

fn json<T: DeserializeOwned>(stage: Stage, text: &str) -> Result<T, InvalidCheckpoint> {
    serde_json::from_str(text).map_err(|error| InvalidCheckpoint {
        stage,
        reason: error.to_string(),
    })
}

/// Decodes the checkpoints of all VMs.
///
/// # Errors
/// A message with the VM whose checkpoint cannot be decoded.
pub fn check(world: &World) -> Result<(), String> {
    for vm in world.vms() {
        for stage in STAGES {
            let status = world.status(vm.meta.uid, stage);
            if let Some(text) = status.and_then(|status| status.checkpoint.as_deref()) {
                let decoded = Checkpoint::decode(stage, text);
                decoded.map_err(|error| format!("vm/{}: {error}", vm.meta.name))?;
            }
        }
    }
    Ok(())
}

/// The connection in the checkpoint of the Net stage.
pub fn connection(status: Option<&StageStatus>) -> Option<Connection> {
    match decoded(Stage::Net, status)? {
        Checkpoint::Connection(connection) => Some(*connection),
        Checkpoint::Rules(_) | Checkpoint::Vmm(_) => None,
    }
}

/// The checkpoint of the Vmm stage; the default one before the VMM was started.
pub fn vmm(status: Option<&StageStatus>) -> VmmCheckpoint {
    match decoded(Stage::Vmm, status) {
        Some(Checkpoint::Vmm(checkpoint)) => *checkpoint,
        Some(Checkpoint::Connection(_) | Checkpoint::Rules(_)) | None => VmmCheckpoint::default(),
    }
}

/// [`check`] has decoded what was stored before this start, and the daemon decodes what it encodes.
fn decoded(stage: Stage, status: Option<&StageStatus>) -> Option<Checkpoint> {
    let text = status?.checkpoint.as_deref()?;
    Checkpoint::decode(stage, text)
        .inspect_err(|error| error!(%error))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_another_stage_or_of_none_is_an_error() {
        let vmm = r#"{"restarts":1}"#;
        let connection = r#"{"tap":"tap0","mac":"02:00:00:00:00:07","ip":"10.0.0.2","prefix_len":24,"mtu":1500}"#;
        for (stage, text, is_valid) in [
            (Stage::Vmm, vmm, true),
            (Stage::Vmm, "{", false),
            (Stage::Vmm, "", false),
            (Stage::Vmm, "[]", false),
            (Stage::Net, connection, true),
            (Stage::Net, vmm, false),
            (Stage::Net, "null", false),
            (Stage::Firewall, "0123456789ab", true),
            (Stage::Lease, "0123456789ab", false),
        ] {
            let decoded = Checkpoint::decode(stage, text);
            assert_eq!(decoded.is_ok(), is_valid, "{stage} {text}: {decoded:?}");
        }
    }
}
