//! The directories below which manifests may specify programs and images. A setting of the daemon, not of manifests.
//! Out of scope: opening the files ([`crate::host::named`]).
//!
//! # Why
//! A client of the socket can specify any path in a manifest, and the daemon runs as root. The administrator therefore decides which
//! paths are allowed: programs that root installed, and images in directories that root controls.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::{Draft, Problem};
use super::vm::{Hypervisor, VmSpec};

/// Default directories of programs: where distributions and administrators install them.
const PROGRAMS: [&str; 10] = [
    "/usr/bin",
    "/usr/sbin",
    "/bin",
    "/sbin",
    "/usr/local",
    "/usr/lib",
    "/usr/libexec",
    "/opt",
    "/nix/store",
    "/run/current-system/sw/bin",
];
/// Default directory of images.
const IMAGES: &str = "/var/lib/slice/images";

/// The purpose of a path in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A program that is executed.
    Program,
    /// A kernel, an initrd, an image, a disk.
    Image,
}

impl Purpose {
    /// The name of the setting that lists the directories.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Program => "programs",
            Self::Image => "images",
        }
    }
}

/// The allowed directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedDirectories {
    /// Directories of programs.
    pub programs: Vec<PathBuf>,
    /// Directories of kernels, initrds, images and disks.
    pub images: Vec<PathBuf>,
}

impl Default for AllowedDirectories {
    fn default() -> Self {
        Self {
            programs: PROGRAMS.iter().map(PathBuf::from).collect(),
            images: vec![IMAGES.into()],
        }
    }
}

impl AllowedDirectories {
    /// The directories for this purpose.
    pub fn of(&self, purpose: Purpose) -> &[PathBuf] {
        match purpose {
            Purpose::Program => &self.programs,
            Purpose::Image => &self.images,
        }
    }

    /// The longest of the directories that contain `path`, without access to the file system; `None` if no directory contains it.
    pub fn directory_of(&self, purpose: Purpose, path: &Path) -> Option<&Path> {
        let contains = |dir: &&PathBuf| path.starts_with(dir) && path != dir.as_path();
        let dirs = self.of(purpose).iter().filter(|_| is_normalized(path));
        let longest = dirs
            .filter(contains)
            .max_by_key(|dir| dir.components().count());
        longest.map(PathBuf::as_path)
    }

    /// As [`Self::directory_of`], with an error message.
    ///
    /// # Errors
    /// `found …, expected …`.
    pub fn check(&self, purpose: Purpose, path: &Path) -> Result<&Path, String> {
        self.directory_of(purpose, path).ok_or_else(|| {
            let dirs: Vec<String> = self.of(purpose).iter().map(|d| d.display().to_string()).collect();
            let (found, dirs) = (path.display(), dirs.join(", "));
            format!(
                "found {found}, expected a path below one of the directories of sliced's setting `{}`: {dirs}",
                purpose.setting()
            )
        })
    }

    /// The problems of a draft with paths that are not allowed.
    pub fn objections(&self, draft: &Draft) -> Vec<Problem> {
        let paths = named(&draft.spec.template).into_iter();
        let refused = paths.filter_map(|(field, purpose, path)| {
            let message = self.check(purpose, &path).err()?;
            Some(draft.problem(&field, message))
        });
        refused.collect()
    }
}

/// Whether a path is absolute, without `.` and `..`.
pub fn is_normalized(path: &Path) -> bool {
    let is_normal = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    path.is_absolute() && path.components().all(is_normal)
}

/// The files of the host that a VM uses.
pub fn files_of(vm: &VmSpec) -> impl Iterator<Item = (Purpose, PathBuf)> {
    let files = named(vm).into_iter();
    files.map(|(_, purpose, path)| (purpose, path))
}

/// The same, with their fields.
fn named(vm: &VmSpec) -> Vec<(String, Purpose, PathBuf)> {
    let program = match vm.hypervisor {
        Hypervisor::Qemu => "qemu_bin",
        Hypervisor::Firecracker => "firecracker_bin",
        Hypervisor::CloudHypervisor => "cloud_hypervisor_bin",
        Hypervisor::None => "hypervisor",
    };
    let single = [
        (program, Purpose::Program, &vm.lifecycle.program),
        ("jailer_bin", Purpose::Program, &vm.lifecycle.jailer),
        ("kernel_file", Purpose::Image, &vm.kernel_file),
        ("initrd_file", Purpose::Image, &vm.initrd_file),
        ("image", Purpose::Image, &vm.storage.image),
        (
            "userdata_file",
            Purpose::Image,
            &vm.guest_access.provision.userdata_file(),
        ),
    ];
    let single = single
        .into_iter()
        .filter_map(|(field, purpose, path)| Some((field.to_owned(), purpose, path.clone()?)));
    let disks = vm.storage.disks.iter().enumerate().map(|(at, disk)| {
        let field = format!("disks[{at}].path");
        (field, Purpose::Image, disk.path.clone())
    });
    single.chain(disks).collect()
}

/// Parses the value of `--programs` and `--images`: `DIR[:DIR]`.
///
/// # Errors
/// The message of [`directory`] for the first invalid directory.
pub fn directories(text: &str) -> Result<Vec<PathBuf>, String> {
    text.split(':').map(directory).collect()
}

/// Parses the absolute path of a directory.
///
/// # Errors
/// `found …, expected …`.
pub fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let plain = !text.contains(char::is_control) && path.parent().is_some();
    match is_normalized(&path) && plain {
        true => Ok(path.components().collect()),
        false => Err(format!(
            "found {text:?}, expected the absolute path of a directory other than /, without \"..\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_allowed_below_an_allowed_directory_only() {
        let allowed = AllowedDirectories {
            programs: vec!["/usr/bin".into()],
            images: vec!["/srv/images".into(), "/srv/images/private".into()],
        };
        let dir = |path: &str| allowed.directory_of(Purpose::Image, Path::new(path));
        assert_eq!(dir("/srv/images/a/b"), Some(Path::new("/srv/images")));
        assert_eq!(
            dir("/srv/images/private/x"),
            Some(Path::new("/srv/images/private"))
        );
        for outside in [
            "/srv/images",
            "/srv/images/",
            "/srv/images-2/a",
            "/srv/images/../../etc/shadow",
            "/srv/images/a/../b",
            "srv/images/a",
            "/etc/shadow",
            "/usr/bin/x",
            "/",
            "",
        ] {
            assert_eq!(dir(outside), None, "{outside}");
        }
        let result = allowed.check(Purpose::Program, Path::new("/tmp/x.sh"));
        let message = result.unwrap_err();
        assert!(
            message.contains("/tmp/x.sh")
                && message.contains("/usr/bin")
                && message.contains("`programs`")
        );
    }

    #[test]
    fn directories_are_absolute_and_without_dot_dot() {
        let two = directories("/srv/a:/srv/b/").unwrap();
        assert_eq!(two, [Path::new("/srv/a"), Path::new("/srv/b")]);
        for bad in ["", "/", "a", "/a/../b", "/a::/b", "/a:", "/a\n"] {
            assert!(directories(bad).is_err(), "{bad:?}");
        }
    }
}
