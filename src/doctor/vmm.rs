//! The programs that run guests, and KVM.
//! Not here: trying KVM; that boots a kernel and is done once a boot, before the first VM.

use std::fs::OpenOptions;

use serde::Deserialize;

use super::{Host, ask, ok, warn, words};
use crate::api::view::Check;
use crate::host::fs;

const QEMU: &str = "qemu";
const KVM: &str = "/dev/kvm";

/// The emulator for guests of the host's own architecture.
#[cfg(target_arch = "x86_64")]
const PROGRAM: &str = "qemu-system-x86_64";
#[cfg(not(target_arch = "x86_64"))]
const PROGRAM: &str = "qemu-system-aarch64";

/// `<run>/machine.json`, which whoever tried KVM has left. Only what is read here.
#[derive(Deserialize)]
struct Cached {
    boot: String,
    machine: Machine,
}

#[derive(Deserialize)]
struct Machine {
    accel: Accel,
}

/// What came of the trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Accel {
    Kvm,
    Tcg,
}

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let version = ask(&[PROGRAM, "--version"]).await.map_err(|e| words(&e));
    let device = OpenOptions::new().read(true).write(true).open(KVM);
    let device = device.map(drop).map_err(|e| e.to_string());
    let tried = fs::read(&cx.run_dir.join("machine.json"));
    let tried = tried.ok().flatten().zip(fs::boot_id().ok());
    let tried = tried.and_then(|(bytes, boot)| accel(&bytes, boot));
    vec![judge_qemu(&version), judge_kvm(&device, tried)]
}

/// What was found out in this boot; nothing of another.
fn accel(bytes: &[u8], boot: &str) -> Option<Accel> {
    let cached: Cached = serde_json::from_slice(bytes).ok()?;
    (cached.boot == boot).then_some(cached.machine.accel)
}

fn judge_qemu(version: &Result<String, String>) -> Check {
    let first = version
        .as_ref()
        .map(|said| said.lines().next().unwrap_or_default());
    match first {
        Ok("") => warn(
            QEMU,
            format!("{PROGRAM} is there but did not tell its version"),
            format!("See what `{PROGRAM} --version` says."),
        ),
        Ok(first) => ok(QEMU, first),
        Err(why) => warn(
            QEMU,
            format!("groups with `hypervisor: qemu` cannot start: {why}"),
            "Install it: `apt-get install qemu-system-x86` (groups with `hypervisor: none` do without).",
        ),
    }
}

fn judge_kvm(device: &Result<(), String>, tried: Option<Accel>) -> Check {
    match (device, tried) {
        (_, Some(Accel::Kvm)) => ok(KVM, "a guest kernel was booted with it"),
        (Ok(()), None) => ok(
            KVM,
            "opens; whether it runs a guest is not probed until the first VM starts",
        ),
        (Ok(()), Some(Accel::Tcg)) => warn(
            KVM,
            "opens, but no guest kernel booted with it: guests run by translation, some ten times slower",
            "On a cloud host choose one with nested virtualisation; then remove machine.json in the run directory and restart sliced.",
        ),
        (Err(why), _) => warn(
            KVM,
            format!("does not open ({why}): guests run by translation, some ten times slower"),
            "Switch virtualisation on in the firmware and `modprobe kvm_intel` or `modprobe kvm_amd`.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckVerdict;

    #[test]
    fn a_device_that_opens_is_not_taken_for_one_that_works() {
        let open = Ok(());
        assert!(judge_kvm(&open, None).found.contains("not probed"));
        assert_eq!(judge_kvm(&open, Some(Accel::Kvm)).verdict, CheckVerdict::Ok);
        let broken = judge_kvm(&open, Some(Accel::Tcg));
        assert_eq!(broken.verdict, CheckVerdict::Warn);
        assert!(broken.found.contains("no guest kernel booted"));
        assert_eq!(
            judge_kvm(&Err("no such file".into()), None).verdict,
            CheckVerdict::Warn
        );
    }

    #[test]
    fn an_answer_of_another_boot_or_of_another_shape_is_none() {
        let file = br#"{"boot":"b","machine":{"accel":"tcg","tsc_khz":2000000}}"#;
        assert_eq!(accel(file, "b"), Some(Accel::Tcg));
        assert_eq!(accel(file, "c"), None);
        assert_eq!(accel(b"{}", "b"), None);
        assert_eq!(accel(b"", "b"), None);
    }

    #[test]
    fn the_emulators_version_is_its_first_line() {
        let said = Ok("QEMU emulator version 7.2.0 (Debian)\nCopyright (c) someone\n".into());
        assert_eq!(
            judge_qemu(&said).found,
            "QEMU emulator version 7.2.0 (Debian)"
        );
        let gone = judge_qemu(&Err("cannot run qemu: not found".into()));
        assert_eq!(gone.verdict, CheckVerdict::Warn);
        assert!(gone.remedy.contains("qemu-system-x86"));
    }
}
