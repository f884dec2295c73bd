//! A disk that can lose its power: what a machine would find on it if that happened now.
//! Out of scope: tests.
//!
//! # Why
//! The disk is an ext4 image in a loop device, and its backing file lies on a second ext4 image in a second loop device. What a
//! program has written but nobody has flushed is in the page cache of the lower file system: a copy of the lower image is a disk
//! whose volatile cache was lost, a copy of the upper image is one whose cache was written in time. Both must hold everything
//! that was acknowledged. `mount -o loop` gives the devices back with the mount namespace, whatever becomes of the test.

use std::path::{Path, PathBuf};

use super::kernel::run;

/// Where images lie: in the private `/run`.
const HOME: &str = "/run/power";

/// A disk, mounted.
pub struct Disk;

/// What a power failure leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// What was written and not flushed is gone.
    Lost,
    /// What was written is there.
    Written,
}

/// What a power failure has left.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    cache: Cache,
}

impl Disk {
    /// Mounts one at `at`. In a private kernel only.
    pub fn mount(at: &Path) -> Self {
        let at = at.display();
        run(&format!(
            "mkdir -p {HOME}/lower {at} && cd {HOME} && truncate -s 96M lower.img && \
             mkfs.ext4 -q -F -m 0 lower.img && mount -o loop lower.img lower && \
             dd if=/dev/zero of=lower/upper.img bs=1M count=48 status=none && \
             mkfs.ext4 -q -F -m 0 -E lazy_itable_init=0,lazy_journal_init=0 lower/upper.img && \
             mount -o loop lower/upper.img {at} && sync -f lower && sync -f {at}"
        ));
        Self
    }

    /// Cuts the power, in another world: here everything goes on.
    pub fn cut(&self, name: &str, cache: Cache) -> Image {
        let from = match cache {
            Cache::Lost => "lower.img",
            Cache::Written => "lower/upper.img",
        };
        let path = PathBuf::from(format!("{HOME}/{name}-{cache:?}.img"));
        run(&format!(
            "cp --sparse=always {HOME}/{from} {}",
            path.display()
        ));
        Image { path, cache }
    }
}

impl Image {
    /// What the next boot finds, at a directory of its own as long as `look` looks.
    pub fn boot<T>(self, look: impl FnOnce(&Path) -> T) -> T {
        let (image, at) = (self.path.display(), format!("{HOME}/boot"));
        let upper = match self.cache {
            Cache::Written => image.to_string(),
            Cache::Lost => {
                run(&format!(
                    "mkdir -p {HOME}/under && mount -o loop {image} {HOME}/under"
                ));
                format!("{HOME}/under/upper.img")
            }
        };
        run(&format!("mkdir -p {at} && mount -o loop {upper} {at}"));
        let found = look(Path::new(&at));
        run(&format!("umount {at}"));
        if self.cache == Cache::Lost {
            run(&format!("umount {HOME}/under"));
        }
        run(&format!("rm {image}"));
        found
    }
}
