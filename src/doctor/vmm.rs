//! Checks the hypervisor programs and KVM.
//! Out of scope: probing KVM, which boots a kernel once per boot, before the first VM starts.

use std::fs::OpenOptions;

use super::{Examiner, Host, ok, skipped, warn};
use crate::api::view::Check;
use crate::api::vm::Hypervisor;
use crate::vmm::{ConfinedBy, FileAccess, Program, Programs, Version, tested_programs};

pub(super) const KVM: &str = "/dev/kvm";

/// Hypervisors. QEMU first: it also runs guests without KVM.
const HYPERVISORS: [Hypervisor; 3] = [
    Hypervisor::Qemu,
    Hypervisor::Firecracker,
    Hypervisor::CloudHypervisor,
];

/// The program of a hypervisor.
enum Found {
    Program(Program),
    /// There is one, whose version only root can query: the query is confined.
    NotQueried,
    /// There is one that cannot be used.
    Unusable(String),
    Absent,
}

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let programs = Programs::new(FileAccess {
        allowed: cx.allowed.clone(),
        ..FileAccess::default()
    });
    let mut found = Vec::new();
    for hypervisor in HYPERVISORS {
        let program = match (programs.is_absent(hypervisor), cx.examiner) {
            (true, _) => Found::Absent,
            (false, Examiner::User) => Found::NotQueried,
            (false, Examiner::Daemon | Examiner::Root) => {
                match programs.get(hypervisor, None).await {
                    Ok(program) => Found::Program(program),
                    Err(why) => Found::Unusable(why),
                }
            }
        };
        found.push((hypervisor, program));
    }
    let device = OpenOptions::new().read(true).write(true).open(KVM);
    let device = device.map(drop).map_err(|e| e.to_string());
    let tried = tested_programs(&cx.run_dir);
    let mut checks = Vec::new();
    for (hypervisor, program) in &found {
        if let (Hypervisor::Firecracker, Found::Program(program)) = (hypervisor, program) {
            checks.push(evaluate_jailer(programs.confinement(None, program).await));
        }
    }
    checks.splice(0..0, evaluate_programs(found));
    checks.push(evaluate_kvm(&device, tried));
    checks
}

/// One is enough. Without any, only groups with `hypervisor: none` work.
fn evaluate_programs(found: Vec<(Hypervisor, Found)>) -> Vec<Check> {
    let is_usable = |program: &Found| matches!(program, Found::Program(_) | Found::NotQueried);
    let any = found.iter().any(|(_, program)| is_usable(program));
    let evaluate = |(hypervisor, program): (Hypervisor, Found)| {
        let name = hypervisor.to_string();
        let old = match &program {
            Found::Program(program) => old(hypervisor, program),
            Found::NotQueried | Found::Unusable(_) | Found::Absent => None,
        };
        let why = match (program, old) {
            (Found::Program(program), None) => {
                let found = format!("{} at {}", program.version, program.path.display());
                return ok(&name, found);
            }
            (Found::NotQueried, _) => {
                return skipped(&name, "installed; its version requires root");
            }
            (Found::Absent, _) if any => return skipped(&name, "not installed (optional)"),
            (Found::Absent, _) => "not installed".to_owned(),
            (Found::Program(_), Some(why)) | (Found::Unusable(why), _) => why,
        };
        let remedy = match any {
            true => "Install a release that is supported, or remove it.",
            false => {
                "Install one of qemu, firecracker, cloud-hypervisor (groups with `hypervisor: none` need none)."
            }
        };
        let found = format!("groups with `hypervisor: {name}` cannot start: {why}");
        warn(&name, found, remedy)
    };
    found.into_iter().map(evaluate).collect()
}

/// Firecracker is confined with or without the jailer.
fn evaluate_jailer(found: Result<ConfinedBy, String>) -> Check {
    const JAILER: &str = "jailer";
    match found {
        Ok(ConfinedBy::Jailer(Program { path, version })) => ok(
            JAILER,
            format!("{version} at {}, confines firecracker", path.display()),
        ),
        Ok(ConfinedBy::Sliced { why: None }) => {
            ok(JAILER, "not installed: sliced confines firecracker itself")
        }
        Ok(ConfinedBy::Sliced { why: Some(why) }) | Err(why) => warn(
            JAILER,
            format!("cannot be used, sliced confines firecracker itself: {why}"),
            "Install firecracker and jailer of the same release.",
        ),
    }
}

fn old(hypervisor: Hypervisor, program: &Program) -> Option<String> {
    let minimum = Version::oldest_supported(hypervisor).filter(|least| program.version < *least)?;
    let path = program.path.display();
    Some(format!(
        "{} at {path} is too old, expected at least {minimum}",
        program.version
    ))
}

/// `tried`: the number of QEMU programs that were probed in this boot, and how many of them ran a guest with KVM.
fn evaluate_kvm(device: &Result<(), String>, tried: Option<(usize, usize)>) -> Check {
    match (device, tried) {
        (_, Some((all, with_kvm))) if all == with_kvm => {
            ok(KVM, "works: a guest kernel was booted")
        }
        (Ok(()), None) => ok(
            KVM,
            "can be opened; not probed until the first VM with hypervisor qemu starts",
        ),
        (Ok(()), Some((all, 1..))) => warn(
            KVM,
            format!(
                "some of the {all} QEMU programs boot a guest kernel with KVM and others do not: their guests are emulated (TCG), about ten times slower"
            ),
            "Compare the QEMU programs in the manifests (qemu_bin).",
        ),
        (Ok(()), Some((_, 0))) => warn(
            KVM,
            "can be opened, but no guest kernel booted: guests are emulated (TCG), about ten times slower",
            "On a cloud host, enable nested virtualisation; then remove kvm.json in the run directory and restart sliced.",
        ),
        (Err(why), _) => warn(
            KVM,
            format!("cannot be opened ({why}): guests are emulated (TCG), about ten times slower"),
            "Enable virtualisation in the firmware and run `modprobe kvm_intel` or `modprobe kvm_amd`.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckStatus;

    #[test]
    fn a_jailer_that_cannot_be_used_is_a_warning_and_a_missing_one_is_ok() {
        let jailer = Program {
            path: "/usr/bin/jailer".into(),
            version: Version::new(1, 17),
        };
        let evaluate_sliced = |why: Option<&str>| {
            let why = why.map(str::to_owned);
            evaluate_jailer(Ok(ConfinedBy::Sliced { why }))
        };
        let used = evaluate_jailer(Ok(ConfinedBy::Jailer(jailer)));
        assert!(used.found.contains("1.17 at /usr/bin/jailer"));
        assert_eq!(evaluate_sliced(None).status, CheckStatus::Ok);
        let unusable = evaluate_sliced(Some("it is of 1.9"));
        assert_eq!(unusable.status, CheckStatus::Warn);
        assert!(unusable.found.contains("it is of 1.9"));
    }

    #[test]
    fn a_device_that_can_be_opened_is_not_reported_as_working() {
        let open = Ok(());
        assert!(evaluate_kvm(&open, None).found.contains("not probed"));
        assert_eq!(evaluate_kvm(&open, Some((2, 2))).status, CheckStatus::Ok);
        let mixed = evaluate_kvm(&open, Some((2, 1)));
        assert_eq!(mixed.status, CheckStatus::Warn);
        assert!(mixed.found.contains("others do not"));
        let broken = evaluate_kvm(&open, Some((1, 0)));
        assert_eq!(broken.status, CheckStatus::Warn);
        assert!(broken.found.contains("no guest kernel booted"));
        assert_eq!(
            evaluate_kvm(&Err("no such file".into()), None).status,
            CheckStatus::Warn
        );
    }

    #[test]
    fn programs_are_reported_with_their_versions_and_a_warning_only_if_all_are_missing() {
        let program = |major, minor| Program {
            path: "/usr/bin/vmm".into(),
            version: Version::new(major, minor),
        };
        let some = evaluate_programs(vec![
            (Hypervisor::Qemu, Found::Absent),
            (Hypervisor::Firecracker, Found::Program(program(1, 15))),
            (Hypervisor::CloudHypervisor, Found::Program(program(37, 0))),
        ]);
        let statuses: Vec<CheckStatus> = some.iter().map(|check| check.status).collect();
        assert_eq!(
            statuses,
            [CheckStatus::Skipped, CheckStatus::Ok, CheckStatus::Warn]
        );
        assert_eq!(some[0].found, "not installed (optional)");
        assert_eq!(some[1].name, "firecracker");
        assert_eq!(some[1].found, "1.15 at /usr/bin/vmm");
        assert!(
            some[2].found.contains("expected at least 38.0"),
            "{}",
            some[2].found
        );
        let none = evaluate_programs(vec![(Hypervisor::Qemu, Found::Absent)]);
        assert_eq!(none[0].status, CheckStatus::Warn);
        assert!(none[0].found.ends_with("not installed"));
        let refused = Found::Unusable("/opt/qemu is writable by others".to_owned());
        let refused = evaluate_programs(vec![(Hypervisor::Qemu, refused)]);
        assert_eq!(refused[0].status, CheckStatus::Warn);
        assert!(refused[0].found.contains("/opt/qemu is writable"));
    }
}
