//! Takes over the state of an earlier run or an earlier boot, and reports what was lost.
//! Out of scope: adoption ([`Engine::adopt`]).

use tracing::{error, info, warn};

use super::Error;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Timestamp;
use crate::clock;
use crate::engine::Engine;
use crate::store::{Opened, RunDirState};

/// Adopts existing VMs and reports lost or damaged state as events.
///
/// # Errors
/// The host cannot be observed, or the state cannot be persisted.
pub(super) async fn take_over(
    engine: &Engine,
    opened: Opened,
    recalled: RunDirState,
) -> Result<(), Error> {
    let now = clock::now();
    for message in engine.store.notes() {
        warn!(%message, "state database");
        warn_of(engine, now, EventReason::StateNoticed, message);
    }
    let is_fresh = opened == Opened::Fresh;
    match &opened {
        Opened::Existing => {
            if engine.reset_stages_after_reboot(now).await? {
                info!("the host was restarted: all VMs are created again with the same leases");
            }
        }
        Opened::Fresh => {}
        Opened::SetAside { path, why } => {
            let message = format!(
                "the state database is damaged ({why}) and was moved to {}",
                path.display()
            );
            error!(path = %path.display(), %why, "the state database is damaged and was moved away");
            warn_of(engine, now, EventReason::StateSetAside, &message);
        }
    }
    let journal = match &recalled {
        RunDirState::World(world) => Some(&**world),
        RunDirState::Nothing => None,
        RunDirState::Unreadable(why) => {
            warn!(%why, "cannot use the copy of the state in the run directory");
            let message = format!("{why}; VMs are adopted from their records instead");
            warn_of(engine, now, EventReason::StateCopyUnreadable, &message);
            None
        }
    };
    let adopted = engine
        .adopt(journal, now)
        .await
        .map_err(|error| Error::Host(error.to_string()))?;
    if opened != Opened::Existing {
        // After a crash before this line, the next start adopts again.
        engine.store.end_recovery().await?;
    }
    if is_fresh && (adopted > 0 || journal.is_some()) {
        error!("the state database is missing");
        let message =
            "the state database is missing; VMs are adopted from this boot's run directory";
        warn_of(engine, now, EventReason::StateLost, message);
    }
    Ok(())
}

fn warn_of(engine: &Engine, now: Timestamp, reason: EventReason, message: &str) {
    let events = engine.store.events();
    events.note(now, EventType::Warning, &ObjectRef::Host, reason, message);
}
