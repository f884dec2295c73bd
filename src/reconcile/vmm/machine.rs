//! What this host can do for a VMM: found out once a boot for each program, remembered in the run directory.
//! Out of scope: what is made of it (`qemu`).
//!
//! # Why KVM is tried by booting
//! `/dev/kvm` opens on hosts whose KVM cannot run an ordinary kernel (nested without hardware help, para-virtual only). So a kernel of
//! our own is booted (`kernel`) by the program in question, which is confined ([`process::query`]), and must give the answer that
//! follows from a random number. Nothing that a manifest names but the program takes part, and a program's result is for that file
//! alone, as long as it is not written to or replaced: neither a manifest's kernel nor another manifest's program decides.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{confine, kernel, qemu};
use crate::host::fs::{self, Durability};
use crate::host::named::Named;
use crate::host::process::{self, Query};
use crate::host::{Error, cpu};

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

/// What has been found out in this boot.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    boot: String,
    /// The time-stamp counter's rate; none: not measured yet.
    tsc_khz: Option<Option<u32>>,
    /// For each program, by [`key`].
    programs: HashMap<String, Accel>,
}

/// The file in the run directory that remembers the answers.
const KNOWN: &str = "kvm.json";
/// Programs that are remembered: a host has a few, and each upgrade brings one more.
const MOST: usize = 64;
/// A processor gets there in some 0.1 s.
const DEADLINE: Duration = Duration::from_secs(3);
/// What QEMU says of a guest that KVM cannot go on with.
const STUCK: &str = "KVM internal error";
const KVM: &str = "/dev/kvm";

/// Finds out what machines there are; one for the daemon.
#[derive(Debug, Default)]
pub struct Machines {
    /// None: not read yet. Held while a program is tried: two at once would only slow each other down.
    known: Mutex<Option<Known>>,
}

impl Machines {
    /// What this program can do on this host: found out, or remembered in `<run_dir>/kvm.json` from earlier in this boot.
    pub async fn machine(&self, run_dir: &Path, qemu: &Named) -> Result<Machine, Error> {
        let boot = fs::boot_id()?;
        let path = run_dir.join(KNOWN);
        let mut known = self.known.lock().await;
        let known = match &mut *known {
            Some(known) => known,
            none => none.insert(remembered(&path, boot)?),
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
        tracing::info!(program = %qemu.real().display(), ?accel, "tried whether a guest runs with KVM");
        if known.programs.len() >= MOST {
            known.programs.clear();
        }
        known.programs.insert(key, accel);
        known.tsc_khz = Some(tsc_khz);
        let text =
            serde_json::to_vec(known).map_err(|error| Error::other("describe", KNOWN, error))?;
        fs::write(&path, &text, 0o600, Durability::Process)?;
        Ok(Machine { accel, tsc_khz })
    }
}

/// Nothing of another boot, and nothing that cannot be understood.
fn remembered(path: &Path, boot: &str) -> Result<Known, Error> {
    let bytes = fs::read(path)?;
    let known = bytes.and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
    Ok(known
        .filter(|known| known.boot == boot)
        .unwrap_or_else(|| Known {
            boot: boot.to_owned(),
            ..Known::default()
        }))
}

/// The file: its device, inode, length and times.
fn key(program: &Named) -> String {
    program.stamp().map(|part| part.to_string()).join("-")
}

async fn kvm_runs(qemu: &Named) -> bool {
    Path::new(KVM).exists() && boots(qemu, Accel::Kvm).await
}

/// Whether this program boots our kernel so, with the right answer, within 3 s.
pub async fn boots(qemu: &Named, accel: Accel) -> bool {
    let (_, number) = Uuid::new_v4().as_u64_pair();
    let trial = kernel::trial(number);
    // Its standard input, which it opens anew.
    let mut words = vec!["-M", "microvm", "-m", "16M", "-kernel", "/proc/self/fd/0"];
    for (option, value) in qemu::accelerator(accel) {
        words.extend([option, value]);
    }
    words.extend(["-nodefaults", "-no-user-config", "-no-reboot"]);
    words.extend(["-display", "none", "-serial", "stdio"]);
    words.extend(["-sandbox", qemu::SANDBOX]);
    let beside = confine::installed(qemu.real());
    let query = Query {
        program: qemu,
        words: &words,
        beside: &beside,
        input: Some(&trial.image),
        kvm: accel == Accel::Kvm,
    };
    let is_answer = |line: &str| line.trim_end() == trial.answer;
    let enough = |said: &str| {
        let whole = said
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        whole.into_iter().any(is_answer) || said.contains(STUCK)
    };
    match process::query(&query, DEADLINE, enough).await {
        Ok(outcome) => outcome.output.lines().any(is_answer),
        // No QEMU: the start says so.
        Err(error) => {
            tracing::debug!(%error, source = %error.source, "a program cannot be tried");
            false
        }
    }
}

/// What was found out in this boot, for people: of how many programs, and how many run guests with KVM.
pub fn tried(run_dir: &Path) -> Option<(usize, usize)> {
    let known = remembered(&run_dir.join(KNOWN), fs::boot_id().ok()?).ok()?;
    let with_kvm = known
        .programs
        .values()
        .filter(|accel| **accel == Accel::Kvm);
    Some((known.programs.len(), with_kvm.count())).filter(|(all, _)| *all > 0)
}
