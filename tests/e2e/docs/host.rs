//! A host on which the commands of a page run: a private kernel with the directories, images and networks that pages name, a LAN and an
//! internet, and a process that all of its processes end with.
//! Out of scope: the commands.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use test_support::kernel::{self, Neighbour};
use test_support::programs;

/// The host, inside of which the calling thread is.
pub struct Host {
    /// The working directory of the commands.
    pub work: tempfile::TempDir,
    /// The directory of `sliced` and `slicectl`.
    pub bin: PathBuf,
    _neighbours: [Neighbour; 2],
}

/// Calls `test` on a host of its own.
pub fn on_host<T: Send>(test: impl FnOnce(&Host) -> T + Send) -> T {
    kernel::private_sync(|| test(&Host::new()))
}

impl Host {
    fn new() -> Self {
        cover_directories();
        let neighbours = [
            Neighbour::join("wan0", "203.0.113.1/24", "203.0.113.10/24"),
            Neighbour::join("lan0", "192.168.1.1/24", "192.168.1.10/24"),
        ];
        kernel::run("ip route add default via 203.0.113.10");
        let work = tempfile::tempdir().expect("a directory");
        let bin = work.path().join("bin");
        fs::create_dir(&bin).expect("a directory");
        for program in ["sliced", "slicectl"] {
            symlink(programs::built(program), bin.join(program)).expect("a link");
        }
        symlink(
            programs::root().join("manifests"),
            work.path().join("manifests"),
        )
        .expect("a link");
        install_files();
        Self {
            work,
            bin,
            _neighbours: neighbours,
        }
    }
}

/// What is written below `/etc` and `/var` ends with the private kernel. The directories of `sliced` are file systems of their own, as
/// overlayfs reports no changes and maps no ids.
fn cover_directories() {
    for part in ["etc", "var"] {
        kernel::run(&format!(
            "mkdir -p /run/over/{part} /run/over/{part}.work
             mount -t overlay overlay -o lowerdir=/{part},upperdir=/run/over/{part},workdir=/run/over/{part}.work /{part}"
        ));
    }
    kernel::run(
        "mkdir -p /etc/slice /etc/cni/net.d /var/lib/slice
         mount -t tmpfs tmpfs /etc/slice
         mount -t tmpfs tmpfs /var/lib/slice
         mkdir -p /etc/slice/groups.d /var/lib/slice/images",
    );
}

/// The networks of `manifests/cni` and the guest of `examples/guest`, where pages expect them.
fn install_files() {
    let networks = programs::root().join("manifests/cni");
    kernel::run(&format!(
        "cp {}/*.conflist /etc/cni/net.d",
        networks.display()
    ));
    let built = programs::root().join("target/guest");
    let guest = std::env::var_os("SLICE_GUEST_DIR").map_or(built, PathBuf::from);
    let images = Path::new("/var/lib/slice/images");
    for (from, to) in [("vmlinuz", "vmlinuz"), ("initrd", "initrd.img")] {
        let from = guest.join(from);
        fs::copy(&from, images.join(to))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
}
