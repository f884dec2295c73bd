//! The daemon's settings: the settings file, overridden by the command line and the environment.
//! Out of scope: what a settings file may contain ([`crate::api::manifest::settings`]).

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;
use super::fleet;
use crate::api::allowed::AllowedDirectories;
use crate::api::manifest::settings::fleet::FleetSettings;
use crate::api::manifest::{self, Source, settings};
use crate::api::meta::Name;
use crate::api::vmm_ids::IdRange;
use crate::api_server;
use crate::cli::sliced::Args;
use crate::cni;
use crate::host::fs;
use crate::host::iptables;
use crate::intake::REMOVAL_GRACE;
use crate::ssh;

/// Settings that the caller of [`Daemon::prepare_with`](super::Daemon::prepare_with) chooses.
#[derive(Debug)]
pub struct Settings {
    /// CNI networks and plugins.
    pub cni: cni::Runtime,
    /// Range of user ids for VMMs.
    pub vmm_ids: IdRange,
    /// Directories from which programs and images may be used.
    pub allowed: AllowedDirectories,
    /// Deadline for a commit to the packet filter.
    pub filter_deadline: Duration,
    /// The program `sliced`, which is also the process beside a QEMU.
    pub sliced: PathBuf,
    /// `slice-agent` for `agent: inject`; `None`: it is where it is installed.
    pub guest_agent: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cni: cni::Runtime::from_env(),
            vmm_ids: IdRange::default(),
            allowed: AllowedDirectories::default(),
            filter_deadline: iptables::DEADLINE,
            sliced: own_program(),
            guest_agent: None,
        }
    }
}

/// This program. If its path cannot be read it is empty, and the start of a VM that needs it names the missing program.
pub(super) fn own_program() -> PathBuf {
    std::env::current_exe().unwrap_or_default()
}

/// Where `slice-agent` for `agent: inject` may be: next to this program, or where packages have it.
pub(super) fn agents(configured: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(path) = configured {
        return vec![path];
    }
    // Empty: only the path of packages is left.
    let own = own_program();
    let beside = own.parent().map(|dir| dir.join("slice-agent"));
    // <prefix>/bin and <prefix>/lib.
    let lib = own.ancestors().nth(2).map(|prefix| prefix.join(LIB));
    let packaged = Path::new("/usr").join(LIB);
    let mut all: Vec<PathBuf> = lib.into_iter().chain(beside).chain([packaged]).collect();
    all.dedup();
    all
}

/// The agent of an installation, in the directory of its prefix.
const LIB: &str = "lib/slicectl/slice-agent";

/// Settings that the settings file may specify.
pub(super) struct FromFile {
    /// Directories from which programs and images may be used.
    pub allowed: AllowedDirectories,
    /// How long a file must be absent from the manifest directory before its groups are removed.
    pub removal_grace: Duration,
    /// The SSH server.
    pub ssh: Option<ssh::Config>,
    /// The second listener of the API.
    pub api: Option<api_server::Config>,
    /// The fleet.
    pub fleet: Option<fleet::Config>,
    /// The certificates of the fleet.
    pub fleet_files: Option<api_server::FleetFiles>,
}

/// Values of the command line or the environment take precedence over the file, and the file over the defaults.
pub(super) fn read_all(args: &Args) -> Result<FromFile, Error> {
    let file = read(&args.settings)?;
    let default = AllowedDirectories::default();
    let programs = args.programs.clone().map(|dirs| dirs.0);
    let images = args.images.clone().map(|dirs| dirs.0);
    let grace = args.removal_grace.or(file.removal_grace);
    let ssh = ssh_config(args, &file);
    let fleet_files = file.fleet.as_ref().and_then(fleet_files);
    let api = api_config(args, &file, fleet_files.is_some())?;
    Ok(FromFile {
        allowed: AllowedDirectories {
            programs: programs.or(file.programs).unwrap_or(default.programs),
            images: images.or(file.images).unwrap_or(default.images),
        },
        removal_grace: grace.unwrap_or(REMOVAL_GRACE),
        ssh,
        fleet_files,
        fleet: fleet_config(file.fleet, api.as_ref()),
        api,
    })
}

/// The name of the host key in the state directory.
const HOST_KEY: &str = "ssh_host_ed25519_key";

/// The SSH server, if there is one.
fn ssh_config(args: &Args, file: &settings::Settings) -> Option<ssh::Config> {
    let server = file.ssh.as_ref()?;
    let host_key = server.host_key.clone();
    Some(ssh::Config {
        address: server.address,
        host_key: host_key.unwrap_or_else(|| args.state_dir.join(HOST_KEY)),
        keys: file.ssh_keys.clone().unwrap_or_default(),
    })
}

/// The files with the certificates of the fleet; `None` without TLS, or if the host name is no name of a node.
fn fleet_files(fleet: &FleetSettings) -> Option<api_server::FleetFiles> {
    let tls = fleet.tls.clone()?;
    Some(api_server::FleetFiles {
        node: fleet.node.clone().or_else(host_name)?,
        ca: tls.ca,
        cert: tls.cert,
        key: tls.key,
        crl: fleet.crl.clone(),
    })
}

/// The host name up to the first dot.
pub(super) fn host_name() -> Option<Name> {
    let system = rustix::system::uname();
    let name = system.nodename().to_str().ok()?.split('.').next()?;
    Name::new(name.to_ascii_lowercase()).ok()
}

/// The token of the API in the state directory.
const TOKEN: &str = "api/token";

/// The second listener of the API, if there is one.
fn api_config(
    args: &Args,
    file: &settings::Settings,
    has_fleet: bool,
) -> Result<Option<api_server::Config>, Error> {
    if file.api.is_none() && !args.api.has_place() {
        return Ok(None);
    }
    let settings = args.api.settings().or(file.api.clone().unwrap_or_default());
    let listener = settings.listener().map_err(|wrong| {
        let message = format!(
            "the settings file with the flags --api-*: api.{}: {}",
            wrong.key, wrong.message
        );
        Error::Settings(message)
    })?;
    Ok(Some(api_server::Config {
        listener,
        socket_group: args.socket_group.clone(),
        default_token: args.state_dir.join(TOKEN),
        has_fleet,
    }))
}

/// The fleet, if there is one.
fn fleet_config(
    fleet: Option<FleetSettings>,
    api: Option<&api_server::Config>,
) -> Option<fleet::Config> {
    let fleet = fleet?;
    let listener = api.map(|api| &api.listener);
    // Nodes get the certificate of the fleet.
    let listener = listener.filter(|_| fleet.tls.is_some());
    let own = listener.and_then(|listener| listener.url());
    Some(fleet::Config {
        url: fleet.url.as_ref().map(ToString::to_string).or(own),
        fleet,
    })
}

/// Reads the settings file. A missing file is empty.
fn read(path: &Path) -> Result<settings::Settings, Error> {
    let Some(text) = fs::read_text(path)? else {
        return Ok(settings::Settings::default());
    };
    let name = path.display().to_string();
    settings::parse(&Source { name, text }).map_err(|problems| {
        let problems = manifest::shown(problems);
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Error::Settings(lines.join("; "))
    })
}
