//! Events and checks of the contact to the fleet.
//! Out of scope: the contact.

use tracing::{info, warn};

use super::Slot;
use crate::api::condition::Status;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::view::Check;
use crate::clock;
use crate::doctor;
use crate::engine::Engine;
use crate::fleet::contact::{Boottime, ContactReason};
use crate::fleet::link::Link;

/// Reports each change of the reason of the condition.
pub(super) async fn contact(engine: &Engine, link: &Link) {
    let mut changes = link.subscribe();
    let mut known = ContactReason::NotConnectedYet;
    loop {
        changes.borrow_and_update();
        let condition = link.read(|_, contact| contact.condition(Boottime(clock::boottime())));
        let is_start = matches!(
            condition.reason,
            ContactReason::LeaseGone | ContactReason::NotListed
        ) && known == ContactReason::NotConnectedYet;
        if condition.reason != known && !is_start {
            known = condition.reason;
            match condition.status {
                Status::True => note(
                    engine,
                    EventType::Normal,
                    EventReason::FleetContact,
                    "etcd answers, and the objects of the fleet are listed",
                ),
                Status::False | Status::Unknown => note(
                    engine,
                    EventType::Warning,
                    EventReason::FleetContactLost,
                    &format!("{known}: {}", condition.message),
                ),
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Reports settings that cannot be used, once.
pub(super) fn failed(engine: &Engine, before: Option<&String>, why: &String) {
    if before != Some(why) {
        let message = format!("the settings of the fleet cannot be used: {why}");
        note(
            engine,
            EventType::Warning,
            EventReason::FleetContactLost,
            &message,
        );
    }
}

fn note(engine: &Engine, kind: EventType, reason: EventReason, message: &str) {
    match kind {
        EventType::Normal => info!("{message}"),
        EventType::Warning => warn!("{message}"),
    }
    let events = engine.store.events();
    events.note(clock::now(), kind, &ObjectRef::Host, reason, message);
}

impl Slot {
    /// The check for `doctor`; `None` without `fleet:` in the settings file.
    pub(in crate::daemon) fn check(&self) -> Option<Check> {
        if let Some(why) = self.failure() {
            return Some(doctor::fleet(&format!(
                "the settings cannot be used: {why}"
            )));
        }
        let link = self.get()?;
        let condition = link.read(|_, contact| contact.condition(Boottime(clock::boottime())));
        if condition.status == Status::True {
            return Some(doctor::fleet_contact(link.node().as_str()));
        }
        let error = link.last_error().map(|error| format!(" ({error})"));
        let (reason, message) = (condition.reason, condition.message);
        let error = error.unwrap_or_default();
        Some(doctor::fleet(&format!("{reason}: {message}{error}")))
    }
}
