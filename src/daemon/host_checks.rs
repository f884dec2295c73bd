//! The checks of `doctor` while no daemon runs: slicectl runs them itself, with the settings that the daemon would have.
//! Out of scope: the checks ([`crate::doctor`]).

use std::path::Path;

use rustix::fs::Access;

use super::{instance, settings};
use crate::api::allowed::AllowedDirectories;
use crate::api::view::{Check, CheckStatus};
use crate::cli::sliced::Args;
use crate::cni;
use crate::doctor::{self, Examiner, Host};
use crate::host::netns::Netns;
use crate::host::process;
use crate::reconcile::host_network::unmanaged::OurLinks;

/// Runs the checks for a daemon with these arguments.
///
/// # Errors
/// The network namespace of this process cannot be opened.
pub async fn without_daemon(args: Args) -> Result<Vec<Check>, String> {
    let home = Netns::current().map_err(|error| error.to_string())?;
    let state_dir = args
        .state_dir
        .canonicalize()
        .unwrap_or(args.state_dir.clone());
    let instance = instance::expected(&state_dir);
    let (allowed, invalid) = match settings::read_all(&args) {
        Ok(settings) => (settings.allowed, None),
        Err(error) => (AllowedDirectories::default(), Some(error.to_string())),
    };
    let examiner = match rustix::process::geteuid().is_root() {
        true => Examiner::Root,
        false => Examiner::User,
    };
    let host = Host {
        examiner,
        home,
        links: OurLinks {
            veth_prefix: instance.link_prefix(),
            ..OurLinks::default()
        },
        instance,
        run_dir: args.run_dir,
        config_dir: args.config_dir,
        read_only: read_only(&state_dir),
        state_dir,
        vmm_ids: args.vmm_ids,
        allowed,
        cni: cni::Runtime::from_env(),
        guarded: Vec::new(),
    };
    let mut checks = doctor::examine(&host).await;
    checks.extend(invalid.map(|found| Check {
        name: "settings file".to_owned(),
        status: CheckStatus::Fail,
        found,
        remedy: format!("Correct {}, or remove it.", args.settings.display()),
    }));
    process::end_helpers();
    Ok(checks)
}

/// Why nothing can be stored in an existing state directory.
fn read_only(state_dir: &Path) -> Option<String> {
    match rustix::fs::access(state_dir, Access::WRITE_OK) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => None,
        Err(error) => Some(format!("cannot write to {}: {error}", state_dir.display())),
    }
}
