//! Executes one step for a TAP's filter and forwarding switch.
//! Out of scope: which steps are executed, and in which order.

use super::Gate;
use super::observe::is_ours;
use super::plan::{Action, Desired, Pass};
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::link::{Change, State};
use crate::host::{Error, link, tc};

pub(super) async fn act(gate: &Gate, desired: &Desired, action: &Action) -> Result<(), Error> {
    let Some(tap) = link::get(&gate.netlink, &desired.tap).await? else {
        let gone = std::io::Error::from_raw_os_error(libc::ENODEV);
        return absent_is_done_if_shut(action, Error::io("find link", &desired.tap, gone));
    };
    match action {
        Action::ShutGate => set(gate, tap.index, State::Down).await,
        Action::OpenGate => set(gate, tap.index, State::Up).await,
        Action::SetFilter { .. } => set_filter(gate, desired, tap.index).await,
        Action::RemoveFilter => remove_filter(gate, tap.index).await,
    }
}

fn absent_is_done_if_shut(action: &Action, error: Error) -> Result<(), Error> {
    match action {
        Action::ShutGate | Action::RemoveFilter => Ok(()),
        Action::OpenGate | Action::SetFilter { .. } => Err(error),
    }
}

async fn set(gate: &Gate, tap: u32, state: State) -> Result<(), Error> {
    let change = Change {
        state: Some(state),
        ..Change::default()
    };
    link::set(&gate.netlink, tap, &change).await
}

async fn set_filter(gate: &Gate, desired: &Desired, tap: u32) -> Result<(), Error> {
    let Some(program) = desired.pass.as_ref().and_then(Pass::program) else {
        return Ok(());
    };
    exists_is_done(tc::add_hook(&gate.netlink, tap).await)?;
    tc::replace_program(&gate.netlink, tap, &program).await
}

async fn remove_filter(gate: &Gate, tap: u32) -> Result<(), Error> {
    let filters = tc::list(&gate.netlink, tap).await?;
    match filters.iter().find(|filter| is_ours(filter)) {
        None => Ok(()),
        Some(ours) => absent_is_done(tc::delete(&gate.netlink, tap, ours).await),
    }
}
