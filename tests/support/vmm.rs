//! Programs that stand for VMMs, and a guest for them.
//! Out of scope: starting them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use slicectl::api::vm::Hypervisor;

use super::programs;

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

/// A double by this name, which says of whom and of which version.
pub fn double_of(name: &str, dir: &Path) -> PathBuf {
    let path = dir.join(name);
    install(&programs::built("vmm-double"), &path);
    path
}

/// By another process: what this one holds open for writing, any child of it may hold, too, and then it cannot be run.
fn install(from: &Path, to: &Path) {
    let mut install = std::process::Command::new("install");
    let done = install.args(["-m", "755"]).args([from, to]).status();
    assert!(done.unwrap().success(), "{to:?}");
}

/// Firecracker and its jailer: the real ones if both are named, else doubles.
#[allow(dead_code, reason = "not every suite has jails")]
pub fn jailed_program(dir: &Path) -> (PathBuf, PathBuf) {
    let named = |name| std::env::var_os(name).map(PathBuf::from);
    let real = named("SLICE_TEST_FIRECRACKER").zip(named("SLICE_TEST_JAILER"));
    real.unwrap_or_else(|| {
        (
            static_double_of("firecracker", dir),
            double_of("jailer", dir),
        )
    })
}

/// A double that needs no loader, as far as can be seen: a few instructions that become the double. In a jail that is `/double`, which the
/// jailer's double has put there.
#[allow(dead_code, reason = "not every suite has jails")]
pub fn static_double_of(name: &str, dir: &Path) -> PathBuf {
    // What lies in `lib` beside the `bin` of a program is seen with it, where no jailer confines it.
    let [bin, lib] = ["bin", "lib"].map(|part| dir.join("static").join(part));
    for part in [&bin, &lib] {
        std::fs::create_dir_all(part).unwrap();
    }
    let (inner, path) = (double_of(name, &lib), bin.join(name));
    let draft = dir.join("static/draft");
    std::fs::write(&draft, becomes(&["/double", inner.to_str().unwrap()])).unwrap();
    install(&draft, &path);
    path
}

/// A program (x86-64, elf(5)) of one segment that executes the first of these that is there, with its own arguments.
fn becomes(programs: &[&str]) -> Vec<u8> {
    const BASE: u32 = 0x40_0000;
    const HEADERS: usize = 64 + 56;
    // mov rcx,[rsp]; lea rsi,[rsp+8]; lea rdx,[rsi+rcx*8+8]
    let start = [
        0x48, 0x8b, 0x0c, 0x24, 0x48, 0x8d, 0x74, 0x24, 0x08, 0x48, 0x8d, 0x54, 0xce, 0x08,
    ];
    // mov edi,127; mov eax,60 (exit); syscall
    let end = [0xbf, 127, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let mut name_at = BASE + (HEADERS + start.len() + 12 * programs.len() + end.len()) as u32;
    let (mut code, mut names) = (start.to_vec(), Vec::new());
    for program in programs {
        // mov edi,name; mov eax,59 (execve); syscall
        code.extend(
            [
                &[0xbf][..],
                &name_at.to_le_bytes(),
                &[0xb8, 59, 0, 0, 0, 0x0f, 0x05],
            ]
            .concat(),
        );
        names.extend([program.as_bytes(), &[0]].concat());
        name_at += program.len() as u32 + 1;
    }
    code.extend(end);
    let mut file = vec![0_u8; HEADERS];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let base = u64::from(BASE);
    let size = (HEADERS + code.len() + names.len()) as u64;
    put(0, b"\x7fELF\x02\x01\x01");
    // ET_EXEC, EM_X86_64, version 1.
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &(base + HEADERS as u64).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0, 64, 0]);
    // PT_LOAD, to be read and executed, all of the file.
    put(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    for (at, value) in [
        (80, base),
        (88, base),
        (96, size),
        (104, size),
        (112, 0x1000),
    ] {
        put(at, &value.to_le_bytes());
    }
    [file, code, names].concat()
}

/// The guest of `tests/guest`, built by this process when it is first asked for.
pub fn tiny_guest() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let out = programs::scratch().join("guest");
        let script = programs::root().join("tests/guest/build.sh");
        let built = std::process::Command::new(&script).arg(&out).status();
        assert!(built.is_ok_and(|status| status.success()), "{script:?}");
        out.join("tiny")
    };
    BUILT.get_or_init(build).clone()
}
