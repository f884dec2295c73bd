//! The daemon's settings: its file, and what the command line and the environment say instead.
//! Not here: what a settings file may contain ([`crate::api::manifest::settings`]).

use std::path::Path;
use std::time::Duration;

use super::Error;
use crate::api::allowed::Allowed;
use crate::api::manifest::{Source, settings};
use crate::api::vmm_ids::IdRange;
use crate::cli::sliced::Args;
use crate::cni;
use crate::host::fs;
use crate::host::iptables;

/// What of the daemon is the caller's to say.
#[derive(Debug)]
pub struct Settings {
    /// CNI networks and plugins.
    pub cni: cni::Runtime,
    /// Users for VMMs.
    pub vmm_ids: IdRange,
    /// Where programs and images may lie.
    pub allowed: Allowed,
    /// For a commit to the packet filter.
    pub filter_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cni: cni::Runtime::from_env(),
            vmm_ids: IdRange::default(),
            allowed: Allowed::default(),
            filter_deadline: iptables::DEADLINE,
        }
    }
}

/// Where programs and images may lie: as the command line or the environment say, else as the file says, else the default.
pub(super) fn allowed(args: &Args) -> Result<Allowed, Error> {
    let file = read(&args.settings)?;
    let default = Allowed::default();
    Ok(Allowed {
        programs: args
            .programs
            .clone()
            .map(|dirs| dirs.0)
            .or(file.programs)
            .unwrap_or(default.programs),
        images: args
            .images
            .clone()
            .map(|dirs| dirs.0)
            .or(file.images)
            .unwrap_or(default.images),
    })
}

/// One that is not there says nothing.
fn read(path: &Path) -> Result<settings::Settings, Error> {
    let Some(text) = fs::read_text(path)? else {
        return Ok(settings::Settings::default());
    };
    let name = path.display().to_string();
    settings::parse(&Source { name, text }).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Error::Settings(lines.join("; "))
    })
}
