//! What this host can do for a VMM: found out once a boot, cached in the run directory.
//! Not here: what is made of it (`qemu`).
//!
//! # Why KVM is probed by booting
//! `/dev/kvm` opens on hosts whose KVM cannot run an ordinary kernel (nested without hardware help, para-virtual only). So the
//! probe boots the kernel in question without a root file system and waits for its complaint about that, which comes last.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::qemu;
use crate::host::fs::{self, Durability};
use crate::host::{Error, cpu, process};

/// How guest code is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By translation, anywhere, some ten times slower.
    Tcg,
}

/// What a recipe needs to know of the host. The same for a whole boot, so that command lines can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// How guest code is run.
    pub accel: Accel,
    /// The time-stamp counter's rate, in kHz.
    pub tsc_khz: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    boot: String,
    machine: Machine,
}

/// The file in the run directory that remembers the answer.
const CACHE: &str = "machine.json";
/// A kernel on real KVM gets there in well under a second.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// The last thing a kernel says that finds no root file system (init/do_mounts.c).
const BOOTED: &str = "Unable to mount root fs";
/// What QEMU says of a guest that KVM cannot go on with.
const STUCK: &str = "KVM internal error";

impl Machine {
    /// Finds out, or reads from `<run_dir>/machine.json` what was found out earlier in this boot. At most about 2 s.
    pub async fn probe(run_dir: &Path, qemu: &Path, kernel: &Path) -> Result<Self, Error> {
        let path = run_dir.join(CACHE);
        let boot = fs::boot_id()?;
        let cached =
            fs::read(&path)?.and_then(|bytes| serde_json::from_slice::<Cached>(&bytes).ok());
        if let Some(cached) = cached.filter(|cached| cached.boot == boot) {
            return Ok(cached.machine);
        }
        let accel = if kvm_works(qemu, kernel).await {
            Accel::Kvm
        } else {
            Accel::Tcg
        };
        let tsc_khz = tokio::task::spawn_blocking(cpu::tsc_khz)
            .await
            .ok()
            .flatten();
        let machine = Self { accel, tsc_khz };
        tracing::info!(?machine, "looked what this host can do for a VMM");
        let text = serde_json::to_vec(&Cached {
            boot: boot.to_owned(),
            machine,
        })
        .map_err(|error| Error::other("describe", CACHE, error))?;
        fs::write(&path, &text, 0o644, Durability::Process)?;
        Ok(machine)
    }
}

/// Whether KVM runs this kernel: it is booted, without network or disk, for at most 2 s.
pub async fn kvm_works(qemu: &Path, kernel: &Path) -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let (program, kernel) = (qemu.display().to_string(), kernel.display().to_string());
    let mut argv = vec![
        program.as_str(),
        "-M",
        "microvm",
        "-m",
        "256M",
        "-kernel",
        &kernel,
    ];
    for (option, value) in qemu::accelerator(Accel::Kvm) {
        argv.extend([option, value]);
    }
    argv.extend([
        "-append",
        "console=ttyS0 panic=-1",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    argv.extend(["-display", "none", "-serial", "stdio"]);
    // The kernel is the user's own and runs before there is a user to run it as.
    argv.extend(["-sandbox", qemu::SANDBOX]);
    let enough = |said: &str| said.contains(BOOTED) || said.contains(STUCK);
    match process::run_until(&argv, PROBE_DEADLINE, enough).await {
        Ok(outcome) => outcome.output.contains(BOOTED),
        // No QEMU: the launch will say so.
        Err(_) => false,
    }
}
