//! Executes one step for a TAP's filter and forwarding switch.
//! Out of scope: which steps are executed, and in which order.

use super::BridgeFirewall;
use super::observe::is_ours;
use super::plan::{Action, AllowedFrames, Desired};
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::link::{Change, State};
use crate::host::{Error, link, tc};

pub(super) async fn act(
    firewall: &BridgeFirewall,
    desired: &Desired,
    action: &Action,
) -> Result<(), Error> {
    let Some(tap) = link::get(&firewall.netlink, &desired.tap).await? else {
        let not_found = std::io::Error::from_raw_os_error(libc::ENODEV);
        return absent_is_done_if_off(action, Error::io("find link", &desired.tap, not_found));
    };
    match action {
        Action::DisableForwarding => set(firewall, tap.index, State::Down).await,
        Action::EnableForwarding => set(firewall, tap.index, State::Up).await,
        Action::SetFilter { .. } => set_filter(firewall, desired, tap.index).await,
        Action::RemoveFilter => remove_filter(firewall, tap.index).await,
    }
}

fn absent_is_done_if_off(action: &Action, error: Error) -> Result<(), Error> {
    match action {
        Action::DisableForwarding | Action::RemoveFilter => Ok(()),
        Action::EnableForwarding | Action::SetFilter { .. } => Err(error),
    }
}

async fn set(firewall: &BridgeFirewall, tap: u32, state: State) -> Result<(), Error> {
    let change = Change {
        state: Some(state),
        ..Change::default()
    };
    link::set(&firewall.netlink, tap, &change).await
}

async fn set_filter(firewall: &BridgeFirewall, desired: &Desired, tap: u32) -> Result<(), Error> {
    let Some(program) = desired.allowed.as_ref().and_then(AllowedFrames::program) else {
        return Ok(());
    };
    exists_is_done(tc::add_hook(&firewall.netlink, tap).await)?;
    tc::replace_program(&firewall.netlink, tap, &program).await
}

async fn remove_filter(firewall: &BridgeFirewall, tap: u32) -> Result<(), Error> {
    let filters = tc::list(&firewall.netlink, tap).await?;
    match filters.iter().find(|filter| is_ours(filter)) {
        None => Ok(()),
        Some(ours) => absent_is_done(tc::delete(&firewall.netlink, tap, ours).await),
    }
}
