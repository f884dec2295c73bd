//! A file system of a small size, a VM that nobody else has, the loop.
//! Out of scope: assertions.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags};
use slicectl::api::meta::{Name, Uid};
use slicectl::host::image::{self, Found};
use slicectl::host::named::{self, Named};
use slicectl::owner::Instance;
use slicectl::reconcile::disk::{Desired, DiskSpec, Disks};
use slicectl::reconcile::{Convergence, Error, converge, no_probe};

/// Runs `body` in a thread with mounts of its own, with a runtime whose threads share them; what it mounts goes with it.
pub fn in_private_mounts<F: Future<Output = ()>>(body: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        #[allow(deprecated)]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS)
            .expect("these tests need root, or a user namespace in which they are root");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body());
    };
    std::thread::spawn(run).join().unwrap();
}

pub fn mount_tmpfs(dir: &Path, size: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let options = std::ffi::CString::new(format!("size={size},mode=755")).unwrap();
    rustix::mount::mount("t", dir, "tmpfs", MountFlags::empty(), Some(&*options)).unwrap();
}

pub fn enlarge_tmpfs(dir: &Path, size: &str) {
    let options = std::ffi::CString::new(format!("size={size}")).unwrap();
    rustix::mount::mount_remount(dir, MountFlags::empty(), &*options).unwrap();
}

/// A VM called `web-1`, with a disk made from that image.
pub fn some_vm(dir: &Path, image: &Path, at_least: u64, persistent: bool) -> Desired {
    let name: Name = "web-1".parse().unwrap();
    let edition = match image::inspect(image).unwrap() {
        Found::File(edition) => Some(edition),
        Found::Absent | Found::Device | Found::Other(_) => None,
    };
    Desired {
        user: None,
        label: Instance::of(dir).vm_label(&name, Uid::random()),
        dir: dir.to_owned(),
        name,
        boot: "this boot".into(),
        spec: Some(DiskSpec {
            image: image.to_owned(),
            edition,
            at_least,
            persistent,
        }),
    }
}

/// The next VM of the same name.
pub fn replacement_of(desired: &Desired) -> Desired {
    let instance = &desired.label.instance;
    Desired {
        label: instance.vm_label(&desired.name, Uid::random()),
        ..desired.clone()
    }
}

pub fn gone(desired: &Desired) -> Desired {
    Desired {
        spec: None,
        ..desired.clone()
    }
}

/// With the directory of its image as the one that is allowed.
pub fn hands(desired: &Desired) -> Disks {
    let image = desired.spec.as_ref().map(|want| want.image.clone());
    let dir = image.and_then(|image| image.parent().map(Path::to_owned));
    let mut hands = Disks::default();
    hands.places.allowed.images.extend(dir);
    hands
}

/// What a test has put there, as it is opened for use.
pub fn named(path: &Path) -> Named {
    let dir = path.parent().unwrap();
    named::open(path, dir, &[dir.to_owned()], named::Kind::Image).unwrap()
}

/// The steps taken, or the words of the condition.
pub async fn meet(desired: &Desired) -> Result<Vec<String>, String> {
    let Convergence {
        actions: taken,
        result,
        ..
    } = converge(&hands(desired), desired, &no_probe()).await;
    let words = |error: Error| error.to_string();
    result.map_err(words).map(|_| taken)
}

/// What lies in the disk directory.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(listed) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = listed
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// 1 MiB of data, a hole of 6 MiB, 1 MiB of data.
pub fn image_with_a_hole(dir: &Path) -> PathBuf {
    use std::os::unix::fs::FileExt;
    let path = dir.join("image");
    let file = std::fs::File::create(&path).unwrap();
    file.write_all_at(&[7; 1 << 20], 0).unwrap();
    file.write_all_at(&[8; 1 << 20], 7 << 20).unwrap();
    path
}
