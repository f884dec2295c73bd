//! The command line of `sliced`.
//! Out of scope: the implementation of its options.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::api::allowed::directories;
use crate::api::manifest::settings;
use crate::api::vmm_ids::IdRange;

pub use super::log_filter::LogFilter;

/// Log formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// Text
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// Run the microVMs and networks of this host as host groups specify them
#[derive(Clone, Debug, Parser)]
#[command(name = "sliced", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Directory of manifests (*.yaml and *.yml, without subdirectories)
    #[arg(
        long,
        env = "SLICE_CONFIG_DIR",
        value_name = "DIR",
        default_value = "/etc/slice/groups.d"
    )]
    pub config_dir: PathBuf,
    /// Directory of the state database; identifies this daemon among others on the host
    #[arg(
        long,
        env = "SLICE_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/slice"
    )]
    pub state_dir: PathBuf,
    /// Directory of the socket, the network namespaces and the VM directories
    #[arg(
        long,
        env = "SLICE_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/slice"
    )]
    pub run_dir: PathBuf,
    /// Converge once and exit: 0 if converged, else 1
    #[arg(long)]
    pub once: bool,
    /// Check the settings file and the manifest directory, and exit: 0 if both are valid, else 1
    #[arg(long, conflicts_with = "once")]
    pub check_config: bool,
    /// Log format, on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Log filter: a level (error, warn, info, debug, trace, off), or MODULE=LEVEL, separated by commas
    #[arg(long, env = "SLICE_LOG", value_name = "FILTER", default_value = "info")]
    pub log: LogFilter,
    /// Interval between full reconciliations
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_interval)]
    pub resync: Duration,
    /// Delete a group when its file, or the group in it, has been missing for this time. If omitted: `removal_grace:` of the
    /// settings file, else 2s
    #[arg(long, env = "SLICE_REMOVAL_GRACE", value_name = "TIME", value_parser = parse_removal_grace)]
    pub removal_grace: Option<Duration>,
    /// Number of VMs that are reconciled concurrently. May exceed the number of cores: most of the time is waiting
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Timeout of one CNI plugin call; then the plugin is killed and its changes are undone
    #[arg(long, env = "SLICE_CNI_DEADLINE", value_name = "TIME", default_value = "1m", value_parser = parse_interval)]
    pub cni_deadline: Duration,
    /// Timeout of iptables-restore; then it is killed and the rules in the kernel stay unchanged
    #[arg(long, env = "SLICE_FILTER_DEADLINE", value_name = "TIME", default_value = "30s", value_parser = parse_interval)]
    pub filter_deadline: Duration,
    /// Range of user ids for VMMs, one per VM, with the same group id; reserved: must not be assigned to other users of this host
    #[arg(
        long,
        env = "SLICE_VMM_IDS",
        value_name = "FIRST-LAST",
        default_value_t
    )]
    pub vmm_ids: IdRange,
    /// Settings file, with the lists `programs:` and `images:`; may be absent
    #[arg(
        long,
        env = "SLICE_SETTINGS",
        value_name = "FILE",
        default_value = "/etc/slice/sliced.yaml"
    )]
    pub settings: PathBuf,
    /// Directories from which programs (named in a manifest or found in PATH) may be run; must be writable by root only. If omitted:
    /// `programs:` of the settings file, else /usr/bin, /usr/sbin, /usr/local, /usr/lib, /usr/libexec, /opt, /nix/store
    #[arg(long, env = "SLICE_PROGRAMS", value_name = "DIR[:DIR]")]
    pub programs: Option<Directories>,
    /// Directories from which kernels, initrds, images and disks may be used; must be writable by root only. If omitted: `images:` of
    /// the settings file, else /var/lib/slice/images. Block devices are allowed by their directory: /dev/vg0, /dev/mapper
    #[arg(long, env = "SLICE_IMAGES", value_name = "DIR[:DIR]")]
    pub images: Option<Directories>,
    /// The static `slice-agent` for groups with `agent: inject`. If omitted: ../lib/slicectl/slice-agent or slice-agent, relative to the
    /// directory of this program, else /usr/lib/slicectl/slice-agent
    #[arg(long, env = "SLICE_GUEST_AGENT", value_name = "FILE")]
    pub guest_agent: Option<PathBuf>,
    /// Group (name or id); its members may connect to the socket
    #[arg(long, value_name = "GROUP", default_value = "slice")]
    pub socket_group: String,
    /// The second listener of the API.
    #[command(flatten)]
    pub api: super::api_args::ApiArgs,
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

const AFTER_HELP: &str = "\
--check-config needs no running daemon and changes nothing. It does not check groups of `slicectl apply`, nor the files and programs \
that manifests name. The unit does not run it before a start: a broken manifest must not keep the daemon from starting, which keeps the \
last valid version of its groups; and a broken settings file ends the daemon with the same error anyway. Run it before a restart.

Environment:
  SLICE_CNI_CONF_DIR   CNI network configurations [/etc/cni/net.d]
  CNI_PATH             CNI plugins [/opt/cni/bin:/usr/lib/cni]
  SLICE_CNI_CACHE_DIR  libcni's cache; sliced uses `slice` in it [/var/lib/cni]

Examples:
  # As a service
  sliced
  # A second daemon on the same host, independent of the first
  sliced --config-dir ./groups.d --state-dir ./state --run-dir /run/slice-test
  # Allow images of one directory and the logical volumes of one volume group
  sliced --images /srv/images:/dev/vg0
  # In a script: converge once, exit 0 if converged
  sliced --once
  # After an edit of the settings file
  sliced --check-config && systemctl restart sliced";

fn parse_interval(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    match time >= Duration::from_secs(1) {
        true => Ok(time),
        false => Err("expected at least 1s".into()),
    }
}

fn parse_removal_grace(text: &str) -> Result<Duration, String> {
    settings::parse_removal_grace(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_valid_and_have_the_documented_defaults() {
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
