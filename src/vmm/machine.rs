//! Capabilities of this host for a VMM: determined once per boot and program, cached in the run directory.
//! Out of scope: how they are used (`qemu`).
//!
//! # Why KVM is tested by booting
//! `/dev/kvm` can be opened on hosts with a KVM that cannot run an ordinary kernel (nested without hardware support, para-virtual only). So a
//! minimal kernel (`kernel`) is booted by the program in question, which is confined ([`process::query`]), and must print the result
//! computed from a random number. Of a manifest only the program is used, and a result is valid only for that file, until it is written to
//! or replaced: neither the kernel of a manifest nor the program of another manifest has an influence.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::program::installed_dirs;
use super::{kernel, qemu};
use crate::host::fs::{self, Durability};
use crate::host::named::Named;
use crate::host::process::{self, Query};
use crate::host::{Error, cpu};

/// How guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By translation; available on every host, about ten times slower.
    Tcg,
}

/// The properties of the host that a recipe depends on. They are constant until the next boot, so that command lines can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// How guest code is executed.
    pub accel: Accel,
    /// Rate of the time-stamp counter in kHz.
    pub tsc_khz: Option<u32>,
}

/// The results of this boot.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Cache {
    boot: String,
    /// Rate of the time-stamp counter in kHz; `None`: not measured yet.
    tsc_khz: Option<Option<u32>>,
    /// The result for each program, by [`key`].
    programs: HashMap<String, Accel>,
}

/// The cache file in the run directory.
const CACHE_FILE: &str = "kvm.json";
/// Maximum number of cached programs: a host has a few, and each upgrade adds one.
const MAX_PROGRAMS: usize = 64;
/// Deadline for the boot, which takes about 0.1 s on a processor.
const DEADLINE: Duration = Duration::from_secs(3);
/// QEMU's message for a guest that KVM cannot continue.
const KVM_ERROR: &str = "KVM internal error";
const KVM: &str = "/dev/kvm";

/// Determines and caches [`Machine`]s; one per daemon.
#[derive(Debug, Default)]
pub struct Machines {
    /// `None`: not read yet. Locked during a test: two concurrent ones would only slow each other down.
    known: Mutex<Option<Cache>>,
}

impl Machines {
    /// The capabilities of this host with this program: tested, or read from `<run_dir>/kvm.json` if tested in this boot.
    pub async fn machine(&self, run_dir: &Path, qemu: &Named) -> Result<Machine, Error> {
        let boot = fs::boot_id()?;
        let path = run_dir.join(CACHE_FILE);
        let mut cache = self.known.lock().await;
        let known = match &mut *cache {
            Some(known) => known,
            none => none.insert(read_cache(&path, boot)?),
        };
        let key = key(qemu);
        if let (Some(accel), Some(tsc_khz)) = (known.programs.get(&key), known.tsc_khz) {
            return Ok(Machine {
                accel: *accel,
                tsc_khz,
            });
        }
        let accel = match kvm_runs(qemu).await {
            true => Accel::Kvm,
            false => Accel::Tcg,
        };
        let tsc_khz = match known.tsc_khz {
            Some(measured) => measured,
            None => tokio::task::spawn_blocking(cpu::tsc_khz)
                .await
                .ok()
                .flatten(),
        };
        tracing::info!(program = %qemu.real().display(), ?accel, "tested whether the program can use KVM");
        if known.programs.len() >= MAX_PROGRAMS {
            known.programs.clear();
        }
        known.programs.insert(key, accel);
        known.tsc_khz = Some(tsc_khz);
        let text =
            serde_json::to_vec(known).map_err(|error| Error::other("encode", CACHE_FILE, error))?;
        fs::write(&path, &text, 0o600, Durability::Process)?;
        Ok(Machine { accel, tsc_khz })
    }
}

/// The cached results; empty if they are of another boot or invalid.
fn read_cache(path: &Path, boot: &str) -> Result<Cache, Error> {
    let bytes = fs::read(path)?;
    let cache = bytes.and_then(|bytes| serde_json::from_slice::<Cache>(&bytes).ok());
    Ok(cache
        .filter(|known| known.boot == boot)
        .unwrap_or_else(|| Cache {
            boot: boot.to_owned(),
            ..Cache::default()
        }))
}

/// Key of a program: device, inode, length and times of its file.
fn key(program: &Named) -> String {
    program.stamp().map(|part| part.to_string()).join("-")
}

async fn kvm_runs(qemu: &Named) -> bool {
    Path::new(KVM).exists() && boots(qemu, Accel::Kvm).await
}

/// Whether this program boots the test kernel with this accelerator and prints the expected result within 3 s.
pub async fn boots(qemu: &Named, accel: Accel) -> bool {
    let (_, number) = Uuid::new_v4().as_u64_pair();
    let trial = kernel::test_kernel(number);
    // Its standard input, which it opens again.
    let mut arguments = vec!["-M", "microvm", "-m", "16M", "-kernel", "/proc/self/fd/0"];
    for (option, value) in qemu::accelerator(accel) {
        arguments.extend([option, value]);
    }
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"]);
    arguments.extend(["-display", "none", "-serial", "stdio"]);
    arguments.extend(["-sandbox", qemu::SANDBOX]);
    let installed = installed_dirs(qemu.real());
    let query = Query {
        program: qemu,
        args: &arguments,
        beside: &installed,
        input: Some(&trial.image),
        kvm: accel == Accel::Kvm,
    };
    let is_answer = |line: &str| line.trim_end() == trial.answer;
    let enough = |output: &str| {
        let lines = output
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        lines.into_iter().any(is_answer) || output.contains(KVM_ERROR)
    };
    match process::query(&query, DEADLINE, enough).await {
        Ok(outcome) => outcome.output.lines().any(is_answer),
        // Without QEMU, the start of the VM reports an error.
        Err(error) => {
            tracing::debug!(%error, "cannot test whether a program can use KVM");
            false
        }
    }
}

/// The number of programs that were tested in this boot, and how many of them run guests with KVM.
pub fn tested_programs(run_dir: &Path) -> Option<(usize, usize)> {
    let cache = read_cache(&run_dir.join(CACHE_FILE), fs::boot_id().ok()?).ok()?;
    let with_kvm = cache
        .programs
        .values()
        .filter(|accel| **accel == Accel::Kvm);
    Some((cache.programs.len(), with_kvm.count())).filter(|(all, _)| *all > 0)
}
