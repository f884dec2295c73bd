//! Programs that stand for VMMs, and a guest for them.
//! Not here: starting them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use slicectl::api::vm::Hypervisor;

/// The real program that was named for this hypervisor, or its double; none: the one in `PATH` will do.
pub fn program(hypervisor: Hypervisor, dir: &Path) -> Option<PathBuf> {
    let (variable, double) = match hypervisor {
        Hypervisor::None => return None,
        Hypervisor::Qemu => ("SLICE_TEST_QEMU", None),
        Hypervisor::Firecracker => ("SLICE_TEST_FIRECRACKER", Some("firecracker")),
        Hypervisor::CloudHypervisor => ("SLICE_TEST_CLOUD_HYPERVISOR", Some("cloud-hypervisor")),
    };
    let named = std::env::var_os(variable).map(PathBuf::from);
    named.or_else(|| double.map(|name| double_of(name, dir)))
}

/// A double by this name, which says of whom and of which version. Copied by another process: what this one holds open for writing
/// a child of another test's may hold, too, and then it cannot be run.
pub fn double_of(name: &str, dir: &Path) -> PathBuf {
    let path = dir.join(name);
    let copied = std::process::Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_vmm-double"))
        .arg(&path)
        .status();
    assert!(copied.unwrap().success());
    path
}

/// The guest of `tests/guest`, built by this process when it is first asked for.
pub fn tiny_guest() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build.sh");
        let built = std::process::Command::new(&script).arg(&out).status();
        assert!(built.is_ok_and(|status| status.success()), "{script:?}");
        out.join("tiny")
    };
    BUILT.get_or_init(build).clone()
}
