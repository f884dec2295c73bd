//! Objects of Firecracker's API, field by field (`firecracker.yaml`, definitions). What is not a field is an error.
//! Out of scope: what they do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Version;

/// `FullVmConfiguration`; the file that `--config-file` names.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    pub machine_config: MachineConfig,
    pub boot_source: Option<BootSource>,
    /// Must be there even if it is empty.
    pub drives: Vec<Drive>,
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    pub vsock: Option<Vsock>,
    pub entropy: Option<Entropy>,
    pub logger: Option<Logger>,
    #[serde(skip_serializing)]
    pub metrics: Option<Metrics>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    pub vcpu_count: u8,
    pub mem_size_mib: usize,
    #[serde(default)]
    pub smt: bool,
    #[serde(default)]
    pub track_dirty_pages: bool,
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

impl MachineConfig {
    pub fn valid(self, version: Version) -> Result<Self, String> {
        if !(1..=32).contains(&self.vcpu_count) {
            return Err("The vCPU number is invalid!".to_owned());
        }
        if self.mem_size_mib == 0 {
            return Err("The memory size (MiB) is invalid.".to_owned());
        }
        if self.huge_pages == HugePages::Transparent && version < (1, 17) {
            return Err("unknown variant `Transparent`".to_owned());
        }
        Ok(self)
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    #[default]
    None,
    Transparent,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// Of the body of `PATCH /machine-config`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePatch {
    vcpu_count: Option<u8>,
    mem_size_mib: Option<usize>,
    smt: Option<bool>,
    track_dirty_pages: Option<bool>,
    huge_pages: Option<HugePages>,
}

impl MachinePatch {
    pub fn over(self, old: &MachineConfig, version: Version) -> Result<MachineConfig, String> {
        let missing = self.mem_size_mib.is_none() || self.track_dirty_pages.is_none();
        if version < (1, 11) && missing {
            return Err("missing field".to_owned());
        }
        Ok(MachineConfig {
            vcpu_count: self.vcpu_count.unwrap_or(old.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(old.mem_size_mib),
            smt: self.smt.unwrap_or(old.smt),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(old.track_dirty_pages),
            huge_pages: self.huge_pages.unwrap_or(old.huge_pages),
        })
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    pub kernel_image_path: PathBuf,
    pub initrd_path: Option<PathBuf>,
    pub boot_args: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    pub drive_id: String,
    pub is_root_device: bool,
    pub path_on_host: Option<PathBuf>,
    pub is_read_only: Option<bool>,
    pub partuuid: Option<String>,
    #[serde(default)]
    pub cache_type: CacheType,
    pub io_engine: Option<IoEngine>,
    pub rate_limiter: Option<RateLimiter>,
    pub socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub enum CacheType {
    #[default]
    Unsafe,
    Writeback,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub enum IoEngine {
    Sync,
    Async,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    pub iface_id: String,
    pub host_dev_name: String,
    pub guest_mac: Option<String>,
    /// Since 1.16.
    pub mtu: Option<u16>,
    pub rx_rate_limiter: Option<RateLimiter>,
    pub tx_rate_limiter: Option<RateLimiter>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    pub guest_cid: u32,
    pub uds_path: PathBuf,
    pub vsock_id: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    pub rate_limiter: Option<RateLimiter>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    pub bandwidth: Option<TokenBucket>,
    pub ops: Option<TokenBucket>,
}

/// The one of two that takes whatever else is said.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenBucket {
    pub size: u64,
    pub refill_time: u64,
    pub one_time_burst: Option<u64>,
}

/// Since 1.14.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    #[serde(rename = "serial_out_path")]
    _out: Option<PathBuf>,
    #[serde(rename = "rate_limiter")]
    _limit: Option<TokenBucket>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    pub log_path: Option<PathBuf>,
    pub level: Option<String>,
    pub show_level: Option<bool>,
    pub show_log_origin: Option<bool>,
    pub module: Option<String>,
}

/// The other one that takes whatever else is said.
#[derive(Clone, Serialize, Deserialize)]
pub struct Metrics {
    pub metrics_path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionInfo {
    pub action_type: Action,
}

#[derive(Clone, Copy, Deserialize)]
pub enum Action {
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    pub state: Resume,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Resume {
    Paused,
    Resumed,
}
