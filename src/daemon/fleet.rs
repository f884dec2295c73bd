//! The connection to the fleet, as far as the settings have one.
//! Out of scope: the connection ([`crate::fleet::link`]).

mod answers;
mod preliminary;

use std::sync::Arc;

use parking_lot::RwLock;

use crate::fleet::link::Link;

/// The connection of this daemon; empty without `fleet:` in the settings file.
#[derive(Default)]
pub struct Slot(RwLock<Option<Arc<Link>>>);

impl Slot {
    /// The connection; `None` without `fleet:` in the settings file.
    pub fn get(&self) -> Option<Arc<Link>> {
        self.0.read().clone()
    }
}
