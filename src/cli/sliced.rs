//! The arguments of `sliced`.
//! Out of scope: what the daemon does with them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::api::allowed::directories;
use crate::api::manifest::settings;
use crate::api::vmm_ids::IdRange;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `sliced`: keeps this host's microVM networking as its host groups say.
#[derive(Clone, Debug, Parser)]
#[command(name = "sliced", version, after_help = EXAMPLES)]
pub struct Args {
    /// The folder whose *.yaml and *.yml files are read, not below it
    #[arg(
        long,
        env = "SLICE_CONFIG_DIR",
        value_name = "DIR",
        default_value = "/etc/slice/groups.d"
    )]
    pub config_dir: PathBuf,
    /// Where the state database is kept; names this daemon among others on the host
    #[arg(
        long,
        env = "SLICE_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/slice"
    )]
    pub state_dir: PathBuf,
    /// Where the socket, the namespaces and the VMs' own directories are
    #[arg(
        long,
        env = "SLICE_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/slice"
    )]
    pub run_dir: PathBuf,
    /// Converge and exit: 0 converged, 1 not
    #[arg(long)]
    pub once: bool,
    /// How log lines look, on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Which log lines are written, as tracing's EnvFilter reads it
    #[arg(long, env = "SLICE_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How often everything is looked at although nothing has happened
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = at_least_a_second)]
    pub resync: Duration,
    /// How long a group's file, or the group in it, must be gone before the group is deleted. Without it `removal_grace:` of the
    /// settings file, else 2s
    #[arg(long, env = "SLICE_REMOVAL_GRACE", value_name = "TIME", value_parser = removal_grace)]
    pub removal_grace: Option<Duration>,
    /// How many VMs are looked at or worked on at once. More than the cores: most of a run is waiting
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// How long one CNI plugin may take for one operation; then it is killed, and what it left is undone
    #[arg(long, env = "SLICE_CNI_DEADLINE", value_name = "TIME", default_value = "1m", value_parser = at_least_a_second)]
    pub cni_deadline: Duration,
    /// How long one iptables-restore may take; then it is killed, and the kernel keeps the rules that it has
    #[arg(long, env = "SLICE_FILTER_DEADLINE", value_name = "TIME", default_value = "30s", value_parser = at_least_a_second)]
    pub filter_deadline: Duration,
    /// The user ids that VMMs run as, one for each VM and with a group of the same number: nobody else on the host may give them out
    #[arg(
        long,
        env = "SLICE_VMM_IDS",
        value_name = "FIRST-LAST",
        default_value_t
    )]
    pub vmm_ids: IdRange,
    /// The file of settings, with the lists `programs:` and `images:`; one that does not exist says nothing
    #[arg(
        long,
        env = "SLICE_SETTINGS",
        value_name = "FILE",
        default_value = "/etc/slice/sliced.yaml"
    )]
    pub settings: PathBuf,
    /// Below which directories programs that a manifest names, and those found in PATH, may lie; root alone can write there. Without
    /// it `programs:` of the settings file, else the system's: /usr/bin, /usr/sbin, /usr/local, /usr/lib, /usr/libexec, /opt, /nix/store
    #[arg(long, env = "SLICE_PROGRAMS", value_name = "DIR[:DIR]")]
    pub programs: Option<Directories>,
    /// Below which directories kernels, initrds, images and disks may lie; root alone can write there. Without it `images:` of the
    /// settings file, else /var/lib/slice/images. A block device is allowed by its directory: /dev/vg0, /dev/mapper
    #[arg(long, env = "SLICE_IMAGES", value_name = "DIR[:DIR]")]
    pub images: Option<Directories>,
    /// The group, by name or number, whose members may talk to the socket
    #[arg(long, value_name = "GROUP", default_value = "slice")]
    pub socket_group: String,
}

/// A list of directories, `DIR[:DIR]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories(pub Vec<PathBuf>);

impl std::str::FromStr for Directories {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        directories(text).map(Self)
    }
}

const EXAMPLES: &str = "\
Environment:
  SLICE_CNI_CONF_DIR   where CNI networks are configured [default: /etc/cni/net.d]
  CNI_PATH             the folders of CNI plugins [default: /opt/cni/bin:/usr/lib/cni]
  SLICE_CNI_CACHE_DIR  the folder of libcni's cache; ours is `slice` in it [default: /var/lib/cni]

Examples:
  # As a service would
  sliced
  # A second daemon beside the first: its things never mix with the other's
  sliced --config-dir ./groups.d --state-dir ./state --run-dir /run/slice-test
  # Images of one directory and the logical volumes of one group, beside nothing else
  sliced --images /srv/images:/dev/vg0
  # In a script: converge once, exit 0 when everything is as written
  sliced --once";

fn at_least_a_second(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    match time >= Duration::from_secs(1) {
        true => Ok(time),
        false => Err("it must be at least 1s".into()),
    }
}

fn removal_grace(text: &str) -> Result<Duration, String> {
    settings::grace(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound_and_have_the_documented_defaults() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["sliced"]).unwrap();
        assert_eq!(args.resync, Duration::from_secs(600));
        assert_eq!(args.socket_group, "slice");
        assert!(!args.once);
        assert_eq!(args.cni_deadline, crate::cni::DEADLINE);
        assert!(Args::try_parse_from(["sliced", "--resync", "0s"]).is_err());
        assert_eq!(args.filter_deadline, crate::host::iptables::DEADLINE);
        assert!(Args::try_parse_from(["sliced", "--cni-deadline", "0s"]).is_err());
        for text in ["0s", "149ms", "2", "-1s", "25h"] {
            let flag = format!("--removal-grace={text}");
            assert!(Args::try_parse_from(["sliced", &flag]).is_err(), "{text}");
        }
        let args = Args::try_parse_from(["sliced", "--removal-grace", "1m 5s"]).unwrap();
        assert_eq!(args.removal_grace, Some(Duration::from_secs(65)));
    }
}
