//! Finds the programs of the VMMs and their versions.
//! Out of scope: the features of each version (the recipes).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use super::{ConfinedBy, FileAccess, Program, Version};
use crate::api::allowed::Purpose;
use crate::api::vm::Hypervisor;
use crate::host::named::Named;
use crate::host::process::{self, Query};

/// Deadline for a program to print its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(2);

/// Maximum number of cached programs: a host has a few, and each upgrade adds one.
const MAX_PROGRAMS: usize = 256;

/// A kind of program.
struct Kind {
    /// Its usual name.
    name: &'static str,
    /// The manifest's key that names it.
    key: &'static str,
    /// How to install it.
    install: &'static str,
}

const JAILER: Kind = Kind {
    name: "jailer",
    key: "jailer_bin",
    install: "download the one of the same release as firecracker to that place",
};
/// Since this version a jailer starts programs with any name; earlier ones require a name that contains `firecracker`.
const ANY_NAME: Version = Version::new(1, 13);

/// `None` for a hypervisor without a program.
fn kind(hypervisor: Hypervisor) -> Option<Kind> {
    match hypervisor {
        Hypervisor::None => None,
        Hypervisor::Qemu => Some(Kind {
            name: "qemu-system-x86_64",
            key: "qemu_bin",
            install: "install it with `apt-get install qemu-system-x86`",
        }),
        Hypervisor::Firecracker => Some(Kind {
            name: "firecracker",
            key: "firecracker_bin",
            install: "download a release from https://github.com/firecracker-microvm/firecracker/releases to that place",
        }),
        Hypervisor::CloudHypervisor => Some(Kind {
            name: "cloud-hypervisor",
            key: "cloud_hypervisor_bin",
            install: "download a release from https://github.com/cloud-hypervisor/cloud-hypervisor/releases to that place",
        }),
    }
}

/// Finds programs and caches their versions.
#[derive(Debug, Default)]
pub struct Programs {
    places: FileAccess,
    /// Version of each file, identified by device, inode, length and times.
    known: Mutex<HashMap<Stamp, Version>>,
    /// Whether each file is linked statically.
    is_static: Mutex<HashMap<Stamp, bool>>,
}

/// See [`Named::stamp`].
type Stamp = [i128; 5];

impl Programs {
    /// Creates an empty cache.
    pub fn new(places: FileAccess) -> Self {
        Self {
            places,
            ..Self::default()
        }
    }

    /// Opens a program that was found before.
    ///
    /// # Errors
    /// It does not exist or is not allowed any more. For users.
    pub fn open(&self, program: &Program) -> Result<Named, String> {
        let opened = self.places.open(Purpose::Program, &program.path);
        opened.map_err(|why| why.to_string())
    }

    /// The program of `hypervisor`: `named`, else the one in `PATH`. Its version is queried only once until its file changes.
    ///
    /// # Errors
    /// Which program was not found, where it was searched and how to install it; or why it cannot be used. For users.
    pub async fn get(
        &self,
        hypervisor: Hypervisor,
        named: Option<&Path>,
    ) -> Result<Program, String> {
        let needed = || format!("hypervisor {hypervisor} needs the program");
        let kind = kind(hypervisor).ok_or("hypervisor none needs no program")?;
        let (path, file) = self.find(&kind, named, &search_path())?.ok_or_else(|| {
            let Kind { name, key, install } = kind;
            let (needed, places) = (needed(), search_path());
            format!("{needed} {name}, which is not in {places}: {install}, or name it with `{key}`")
        })?;
        self.version_of(path, &file).await
    }

    /// Whether there is no program of `hypervisor` in `PATH`. One that cannot be used is there.
    pub fn is_absent(&self, hypervisor: Hypervisor) -> bool {
        let kind = kind(hypervisor);
        kind.is_none_or(|kind| matches!(self.find(&kind, None, &search_path()), Ok(None)))
    }

    /// What confines this Firecracker: the jailer `named`, else a usable one in `PATH`, else this daemon.
    ///
    /// # Errors
    /// Why `named` cannot be used. For users.
    pub async fn confinement(
        &self,
        named: Option<&Path>,
        firecracker: &Program,
    ) -> Result<ConfinedBy, String> {
        let usable = async || {
            let Some((path, file)) = self.find(&JAILER, named, &search_path())? else {
                return Ok(None);
            };
            let jailer = self.version_of(path, &file).await?;
            self.check_jailer(&jailer, firecracker)?;
            Ok(Some(jailer))
        };
        match (usable().await, named) {
            (Ok(Some(jailer)), _) => Ok(ConfinedBy::Jailer(jailer)),
            (Ok(None), _) => Ok(ConfinedBy::default()),
            (Err(why), Some(_)) => Err(why),
            (Err(why), None) => Ok(ConfinedBy::Sliced { why: Some(why) }),
        }
    }

    /// Checks whether this jailer can start this program.
    fn check_jailer(&self, jailer: &Program, firecracker: &Program) -> Result<(), String> {
        let shown = jailer.path.display();
        let program = firecracker.path.display();
        if jailer.version != firecracker.version {
            return Err(format!(
                "{shown} has version {}, {program} has version {}: both must be of the same release",
                jailer.version, firecracker.version
            ));
        }
        let file = self.open(firecracker)?;
        let real = file.real();
        let name = real.file_name().unwrap_or_default().to_string_lossy();
        if jailer.version < ANY_NAME && !name.contains("firecracker") {
            return Err(format!(
                "{shown} {} starts only programs with `firecracker` in their name: rename {}",
                jailer.version,
                real.display()
            ));
        }
        match self.is_static(&file)? {
            true => Ok(()),
            false => Err(format!(
                "{program} is linked dynamically, but a jail contains no libraries: use an official release, which is linked statically"
            )),
        }
    }

    fn is_static(&self, program: &Named) -> Result<bool, String> {
        let known = self.is_static.lock().get(&program.stamp()).copied();
        if let Some(is_static) = known {
            return Ok(is_static);
        }
        let is_static = program.open().and_then(|file| process::is_static(&file));
        let is_static = is_static
            .map_err(|error| format!("{} cannot be read: {error}", program.real().display()))?;
        self.is_static.lock().insert(program.stamp(), is_static);
        Ok(is_static)
    }

    async fn version_of(&self, path: PathBuf, file: &Named) -> Result<Program, String> {
        let known = self.known.lock().get(&file.stamp()).copied();
        if let Some(version) = known {
            return Ok(Program { path, version });
        }
        let version = query_version(&path, file).await?;
        tracing::info!(program = %path.display(), %version, "found a program");
        let mut known = self.known.lock();
        if known.len() >= MAX_PROGRAMS {
            known.clear();
        }
        known.insert(file.stamp(), version);
        Ok(Program { path, version })
    }

    /// `None`: `named` is `None`, and there is none in `places`.
    fn find(
        &self,
        kind: &Kind,
        named: Option<&Path>,
        search_path: &str,
    ) -> Result<Option<(PathBuf, Named)>, String> {
        let Kind { name, key, install } = kind;
        let open = |path: &Path| self.places.open(Purpose::Program, path);
        if let Some(path) = named {
            return match open(path) {
                Ok(file) => Ok(Some((path.to_owned(), file))),
                Err(why) if why.is_absent() => Err(format!(
                    "`{key}`: {} not found: correct the path, or {install}",
                    path.display()
                )),
                Err(why) => Err(format!("`{key}`: {why}")),
            };
        }
        let mut refused = None;
        let places = std::env::split_paths(search_path).filter(|place| place.is_absolute());
        for path in places.map(|place| place.join(name)) {
            match open(&path) {
                Ok(file) => return Ok(Some((path, file))),
                // A program that is refused is reported only if no other is found.
                Err(why) if path.exists() => refused = refused.or(Some(why.to_string())),
                Err(_) => {}
            }
        }
        refused.map_or(Ok(None), Err)
    }
}

fn search_path() -> String {
    let places = std::env::var_os("PATH").unwrap_or_default();
    places.to_string_lossy().into_owned()
}

/// Queries the version. The program is confined, because a manifest may specify any.
async fn query_version(path: &Path, file: &Named) -> Result<Version, String> {
    let shown = path.display().to_string();
    let installed = installed_dirs(file.real());
    let query = Query {
        program: file,
        args: &["--version"],
        beside: &installed,
        input: None,
        kvm: false,
    };
    let has_line = |line: &str| line.contains('\n');
    let outcome = process::query(&query, VERSION_DEADLINE, has_line).await;
    let output = outcome.map_err(|error| error.to_string())?.output;
    Version::parse_output(&output).ok_or_else(|| {
        let first = output.lines().next().unwrap_or_default().chars();
        let first: String = first.take(80).collect();
        format!("`{shown} --version` printed {first:?}, which contains no version")
    })
}

/// Directories that were installed with a program and that it may need: `/opt/qemu/lib` and `/opt/qemu/share/qemu` for
/// `/opt/qemu/bin/qemu-system-x86_64`. The system directories of the host are visible to every VMM anyway. `real`: the resolved path of
/// the program; only root can write to its directories.
pub(crate) fn installed_dirs(real: &Path) -> Vec<PathBuf> {
    const SUBDIRS: [&str; 4] = ["lib", "lib64", "libexec", "share/qemu"];
    let bin = real
        .parent()
        .filter(|dir| dir.file_name().is_some_and(|name| name == "bin"));
    let prefix = bin
        .and_then(Path::parent)
        .filter(|dir| dir.parent().is_some());
    let dirs = prefix.map(|prefix| SUBDIRS.map(|part| prefix.join(part)));
    let beside = dirs.into_iter().flatten();
    beside.filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_error_for_a_missing_program_contains_the_searched_path_and_how_to_install_it() {
        // Not in /tmp, where every user could replace the program: it would be refused.
        let own = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(own.parent().unwrap()).unwrap();
        let mut places = FileAccess::default();
        places.allowed.programs.push(dir.path().to_owned());
        let programs = Programs::new(places);
        // It is not in the PATH of a test machine.
        let why = programs.get(Hypervisor::CloudHypervisor, None).await;
        let why = why.unwrap_err();
        for word in [search_path().as_str(), "releases", "cloud_hypervisor_bin"] {
            assert!(why.contains(word), "{why}");
        }
        let place = dir.path().display().to_string();
        let kind = kind(Hypervisor::Firecracker).unwrap();
        let look = |named: Option<&Path>| {
            let found = programs.find(&kind, named, &format!("relative:{place}"));
            found.map(|found| found.map(|(path, _)| path))
        };
        assert_eq!(look(None), Ok(None));
        let path = dir.path().join("firecracker");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        let why = look(None).unwrap_err();
        assert!(why.contains("not executable"), "{why}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(look(None).unwrap().unwrap(), path);
        let why = look(Some(&dir.path().join("nowhere"))).unwrap_err();
        assert!(
            why.contains("nowhere") && why.contains("firecracker_bin"),
            "{why}"
        );
    }

    #[test]
    fn installed_finds_the_directories_installed_with_a_program_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let opt = root.join("opt/qemu");
        for part in ["bin", "share/qemu", "share/keys", "lib"] {
            std::fs::create_dir_all(opt.join(part)).unwrap();
        }
        let seen = [opt.join("lib"), opt.join("share/qemu")];
        assert_eq!(installed_dirs(&opt.join("bin/qemu")), seen);
        assert_eq!(
            installed_dirs(&opt.join("sbin/qemu")),
            Vec::<PathBuf>::new()
        );
        assert_eq!(
            installed_dirs(Path::new("/bin/qemu")),
            Vec::<PathBuf>::new()
        );
    }
}
