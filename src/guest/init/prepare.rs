//! Prepares the guest before its programs start: file systems, console, modules, host name, name servers.
//! Out of scope: the network; programs.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::parameters::Parameters;

/// The file systems: type, directory, options, flags.
const FILE_SYSTEMS: [(&str, &str, &str, MountFlags); 7] = [
    ("proc", "/proc", "", SAFE),
    ("sysfs", "/sys", "", SAFE),
    ("devtmpfs", "/dev", "mode=755", MountFlags::NOSUID),
    (
        "devpts",
        "/dev/pts",
        "mode=620,ptmxmode=666",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
    ),
    ("tmpfs", "/dev/shm", "mode=1777", NO_DEVICES),
    ("tmpfs", "/run", "mode=755", NO_DEVICES),
    ("tmpfs", "/tmp", "mode=1777", NO_DEVICES),
];
/// The number of them that only show the state of the kernel: the first ones.
const KERNEL: usize = 3;
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const SAFE: MountFlags = NO_DEVICES.union(MountFlags::NOEXEC);

/// Kernel modules that are loaded in the order of their names.
const MODULES: &str = "/modules";

/// Mounts what is not mounted yet. Failures are reported on the console and do not stop the boot: a guest that boots without `/dev/shm`
/// can be repaired.
pub fn file_systems() {
    mount_all(&FILE_SYSTEMS);
}

/// Mounts `/proc`, `/sys` and `/dev` only.
pub fn kernel_file_systems() {
    mount_all(&FILE_SYSTEMS[..KERNEL]);
}

fn mount_all(file_systems: &[(&str, &str, &str, MountFlags)]) {
    for (kind, directory, options, flags) in file_systems {
        if let Err(error) = mount(kind, directory, options, *flags) {
            report(&format!("mount {directory}: {error}"));
        }
    }
}

fn mount(kind: &str, directory: &str, options: &str, flags: MountFlags) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    if is_mount_point(Path::new(directory))? {
        return Ok(());
    }
    let options = CString::new(options)?;
    rustix::mount::mount(kind, directory, kind, flags, options.as_c_str())?;
    Ok(())
}

/// The root of a mount has another device than its parent directory.
fn is_mount_point(directory: &Path) -> io::Result<bool> {
    let device = |path: &Path| rustix::fs::stat(path).map(|found| found.st_dev);
    let parent = directory.parent().unwrap_or(directory);
    Ok(device(directory)? != device(parent)?)
}

/// Makes the console the standard streams: the kernel opens none if `/dev/console` does not exist in the initramfs.
pub fn console() {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console");
    let Ok(console) = opened else {
        return;
    };
    let fd = console.as_fd();
    // A failure leaves the streams as they are.
    let _ = rustix::stdio::dup2_stdin(fd);
    let _ = rustix::stdio::dup2_stdout(fd);
    let _ = rustix::stdio::dup2_stderr(fd);
}

/// Loads the modules of the initramfs. A module that the kernel has already is not an error.
pub fn modules() {
    let mut paths: Vec<PathBuf> = fs::read_dir(MODULES)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths {
        let loaded = File::open(&path).and_then(|file| {
            rustix::system::finit_module(&file, c"", 0)?;
            Ok(())
        });
        match loaded {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::EXIST.raw_os_error()) => {
                report(&format!("load {}: {error}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Sets the host name and the name servers.
pub fn identity(parameters: &Parameters) {
    for word in &parameters.invalid {
        report(&format!("invalid kernel parameter {word}"));
    }
    if let Some(name) = &parameters.hostname
        && let Err(error) = rustix::system::sethostname(name.as_bytes())
    {
        report(&format!("set the host name {name}: {error}"));
    }
    let servers = parameters.network.iter().flat_map(|network| &network.dns);
    let lines: String = servers.map(|ip| format!("nameserver {ip}\n")).collect();
    if !lines.is_empty() {
        let written =
            fs::create_dir_all("/etc").and_then(|()| fs::write("/etc/resolv.conf", lines));
        if let Err(error) = written {
            report(&format!("write /etc/resolv.conf: {error}"));
        }
    }
}

/// Prints a line on the console.
pub fn report(text: &str) {
    eprintln!("slice-agent: {text}");
}
