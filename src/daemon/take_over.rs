//! What an earlier run, or an earlier boot, has left to this one.
//! Out of scope: reading it back ([`Engine::adopt`]).

use tracing::{error, info, warn};

use super::Error;
use crate::api::event::EventType;
use crate::api::meta::Timestamp;
use crate::clock;
use crate::reconcile::engine::Engine;
use crate::store::{Opened, Recalled};

/// Takes over what is on the host, and says what was lost.
///
/// # Errors
/// What is on the host cannot be looked at, or cannot be remembered.
pub(super) async fn take_over(
    engine: &Engine,
    opened: Opened,
    recalled: Recalled,
) -> Result<(), Error> {
    let now = clock::now();
    for message in engine.store.notes() {
        warn!(%message, "the state database");
        warn_of(engine, now, "StateNoticed", message);
    }
    let is_fresh = opened == Opened::Fresh;
    match &opened {
        Opened::Existing => {
            if engine.forget_an_earlier_boot(now).await? {
                info!("the host was restarted: everything is built anew, with the same leases");
            }
        }
        Opened::Fresh => {}
        Opened::SetAside { path, why } => {
            let message = format!(
                "the state database is damaged ({why}) and is now {}",
                path.display()
            );
            error!(path = %path.display(), %why, "the state database is damaged and is set aside");
            warn_of(engine, now, "StateSetAside", &message);
        }
    }
    let journal = match &recalled {
        Recalled::World(world) => Some(&**world),
        Recalled::Nothing => None,
        Recalled::Unreadable(why) => {
            warn!(%why, "the copy of the state in the run directory cannot be used");
            let message = format!("{why}; what single VMs' records tell is adopted");
            warn_of(engine, now, "StateCopyUnreadable", &message);
            None
        }
    };
    let adopted = engine
        .adopt(journal, now)
        .await
        .map_err(|error| Error::Host(error.to_string()))?;
    if opened != Opened::Existing {
        // A crash before this adopts once more.
        engine.store.recovered().await?;
    }
    if is_fresh && (adopted > 0 || journal.is_some()) {
        error!("the state database is gone");
        let message =
            "the state database is gone; what this boot's run directory has of it is adopted";
        warn_of(engine, now, "StateLost", message);
    }
    Ok(())
}

fn warn_of(engine: &Engine, now: Timestamp, reason: &str, message: &str) {
    let events = engine.store.events();
    events.note(now, EventType::Warning, "ground", reason, message);
}
