//! Finds the VMMs' programs, and asks for their versions.
//! Not here: which version knows what (the recipes).

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::{ConfinedBy, Program, Version};
use crate::api::vm::Hypervisor;
use crate::host::process;

/// For a program to tell its version.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of one kind of program.
struct Kind {
    /// Its usual name.
    name: &'static str,
    /// The manifest's key that names it.
    key: &'static str,
    /// How to come by it.
    install: &'static str,
}

const JAILER: Kind = Kind {
    name: "jailer",
    key: "jailer_bin",
    install: "take the one of the same release as firecracker and put it there",
};
/// Since this version a jailer starts programs of any name; before, of one with `firecracker` in it.
const ANY_NAME: Version = Version::new(1, 13);

/// `None` where nothing is run.
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
            install: "take a release from https://github.com/firecracker-microvm/firecracker/releases and put it there",
        }),
        Hypervisor::CloudHypervisor => Some(Kind {
            name: "cloud-hypervisor",
            key: "cloud_hypervisor_bin",
            install: "take a release from https://github.com/cloud-hypervisor/cloud-hypervisor/releases and put it there",
        }),
    }
}

/// The programs that have been asked.
#[derive(Debug, Default)]
pub struct Programs {
    known: Mutex<HashMap<PathBuf, (Stamp, Version)>>,
    /// Whether they need libraries.
    linked: Mutex<HashMap<PathBuf, (Stamp, bool)>>,
}

/// A file that has not been written to since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

impl Programs {
    /// The program of `hypervisor`: the one named, else the one in `PATH`. Asked for its version once as long as its file
    /// stays the same.
    ///
    /// # Errors
    /// What was looked for and where, and how to come by it; or what is wrong with it. For people.
    pub async fn get(
        &self,
        hypervisor: Hypervisor,
        named: Option<&Path>,
    ) -> Result<Program, String> {
        let needed = || format!("hypervisor {hypervisor} needs the program");
        let kind = kind(hypervisor).ok_or("hypervisor none needs no program")?;
        let (path, stamp) = find(&kind, named, &places())?.ok_or_else(|| {
            let Kind { name, key, install } = kind;
            let (needed, places) = (needed(), places());
            format!("{needed} {name}, which is not in {places}: {install}, or name it with `{key}`")
        })?;
        self.asked(path, stamp).await
    }

    /// What is to confine this Firecracker: the jailer that is named, else the one in `PATH`, if it can be used; else ourselves.
    ///
    /// # Errors
    /// Why the one that is named cannot be used. For people.
    pub async fn confinement(
        &self,
        named: Option<&Path>,
        firecracker: &Program,
    ) -> Result<ConfinedBy, String> {
        let usable = async || {
            let Some((path, stamp)) = find(&JAILER, named, &places())? else {
                return Ok(None);
            };
            let jailer = self.asked(path, stamp).await?;
            self.fits(&jailer, firecracker)?;
            Ok(Some(jailer))
        };
        match (usable().await, named) {
            (Ok(Some(jailer)), _) => Ok(ConfinedBy::Jailer(jailer)),
            (Ok(None), _) => Ok(ConfinedBy::default()),
            (Err(why), Some(_)) => Err(why),
            (Err(why), None) => Ok(ConfinedBy::Sliced { why: Some(why) }),
        }
    }

    /// Whether this jailer can start this program; else why not.
    fn fits(&self, jailer: &Program, firecracker: &Program) -> Result<(), String> {
        let shown = jailer.path.display();
        let program = firecracker.path.display();
        if jailer.version != firecracker.version {
            return Err(format!(
                "{shown} is of version {}, {program} of {}: both must be of one release",
                jailer.version, firecracker.version
            ));
        }
        let real = firecracker.path.canonicalize();
        let real = real.map_err(|error| format!("{program}: {error}"))?;
        let name = real.file_name().unwrap_or_default().to_string_lossy();
        if jailer.version < ANY_NAME && !name.contains("firecracker") {
            return Err(format!(
                "{shown} {} starts no program whose name has no `firecracker` in it: rename {}",
                jailer.version,
                real.display()
            ));
        }
        match self.is_static(&real)? {
            true => Ok(()),
            false => Err(format!(
                "{program} is linked dynamically, and there are no libraries in a jail: take a release, which is static"
            )),
        }
    }

    fn is_static(&self, program: &Path) -> Result<bool, String> {
        let stamp = stamp(program).ok_or_else(|| format!("{} is gone", program.display()))?;
        // Each entry is true by itself, whatever its last user died of.
        let lock = || self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(program).copied();
        if let Some((_, is_static)) = known.filter(|(known, _)| *known == stamp) {
            return Ok(is_static);
        }
        let is_static = process::is_static(program)
            .map_err(|error| format!("{} cannot be read: {error}", program.display()))?;
        lock().insert(program.to_owned(), (stamp, is_static));
        Ok(is_static)
    }

    async fn asked(&self, path: PathBuf, stamp: Stamp) -> Result<Program, String> {
        let known = self.lock().get(&path).copied();
        if let Some((_, version)) = known.filter(|(known, _)| *known == stamp) {
            return Ok(Program { path, version });
        }
        let version = ask(&path).await?;
        tracing::info!(program = %path.display(), %version, "found a program");
        self.lock().insert(path.clone(), (stamp, version));
        Ok(Program { path, version })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Stamp, Version)>> {
        // Each entry is true by itself, whatever its last user died of.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn places() -> String {
    let places = std::env::var_os("PATH").unwrap_or_default();
    places.to_string_lossy().into_owned()
}

/// `None`: none is named, and none is there.
fn find(
    kind: &Kind,
    named: Option<&Path>,
    places: &str,
) -> Result<Option<(PathBuf, Stamp)>, String> {
    let Kind { name, key, install } = kind;
    if let Some(path) = named {
        return match stamp(path) {
            Some(stamp) => Ok(Some((path.to_owned(), stamp))),
            None => Err(format!(
                "`{key}` names {}, and there is no program: correct it, or {install}",
                path.display()
            )),
        };
    }
    let mut paths = std::env::split_paths(places)
        .filter(|place| place.is_absolute())
        .map(|place| place.join(name));
    Ok(paths.find_map(|path| stamp(&path).map(|stamp| (path, stamp))))
}

/// `None`: no file that could be run.
fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    let runs = found.is_file() && found.permissions().mode() & 0o111 != 0;
    runs.then(|| Stamp {
        modified: found.modified().ok(),
        bytes: found.len(),
    })
}

async fn ask(path: &Path) -> Result<Version, String> {
    let shown = path.display().to_string();
    let a_line = |said: &str| said.contains('\n');
    let outcome = process::run_until(&[&shown, "--version"], PATIENCE, a_line).await;
    let said = outcome
        .map_err(|error| format!("{error}: {}", error.source))?
        .output;
    Version::said(&said).ok_or_else(|| {
        let first: String = said
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(80)
            .collect();
        format!("`{shown} --version` says {first:?}, which tells no version")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_program_is_told_with_where_it_was_looked_for_and_how_to_come_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::default();
        // No machine of ours has it in its PATH.
        let why = programs.get(Hypervisor::CloudHypervisor, None).await;
        let why = why.unwrap_err();
        for word in [places().as_str(), "releases", "cloud_hypervisor_bin"] {
            assert!(why.contains(word), "{why}");
        }
        let place = dir.path().display().to_string();
        let kind = kind(Hypervisor::Firecracker).unwrap();
        let look = |named: Option<&Path>| find(&kind, named, &format!("relative:{place}"));
        assert_eq!(look(None), Ok(None));
        let path = dir.path().join("firecracker");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert_eq!(look(None), Ok(None), "it cannot be run");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(look(None).unwrap().unwrap().0, path);
        let why = look(Some(Path::new("/nowhere/fc"))).unwrap_err();
        assert!(
            why.contains("/nowhere/fc") && why.contains("firecracker_bin"),
            "{why}"
        );
    }

    #[tokio::test]
    async fn a_jailer_that_was_named_must_do_and_one_that_is_only_there_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let [fc, jailer] = ["firecracker", "jailer"].map(|name| dir.path().join(name));
        let programs = Programs::default();
        let named = async |version| {
            make(&jailer, version);
            let firecracker = Program {
                path: fc.clone(),
                version: Version::new(1, 12),
            };
            let found = programs.confinement(Some(&jailer), &firecracker).await;
            found.map(|by| by.to_string())
        };
        make(&fc, "Firecracker v1.12.0");
        let why = named("Jailer v1.9.0").await.unwrap_err();
        assert!(why.contains("1.9") && why.contains("1.12"), "{why}");
        let why = named("Jailer v1.12.1").await.unwrap_err();
        assert!(why.contains("dynamically"), "{why}");
        std::fs::write(&fc, STATIC).unwrap();
        assert_eq!(named("Jailer v1.12.1").await, Ok("jailer 1.12".to_owned()));
        std::fs::rename(&fc, dir.path().join("fc")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("fc"), &fc).unwrap();
        let why = named("Jailer v1.12.1").await.unwrap_err();
        assert!(why.contains("rename"), "{why}");
        std::fs::remove_file(&jailer).unwrap();
        let gone = Program {
            path: fc.clone(),
            version: Version::new(1, 12),
        };
        let why = programs.confinement(Some(&jailer), &gone).await;
        assert!(why.unwrap_err().contains("jailer_bin"));
    }

    /// The header of an ELF program without segments.
    const STATIC: [u8; 64] = {
        let mut header = [0; 64];
        (header[0], header[1], header[2], header[3]) = (0x7f, b'E', b'L', b'F');
        (header[4], header[5], header[54]) = (2, 1, 56);
        header
    };

    #[tokio::test]
    async fn a_program_is_asked_again_when_its_file_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fc");
        let programs = Programs::default();
        for (text, minor) in [("Firecracker v1.9.0", 9), ("Firecracker v1.15.1", 15)] {
            make(&path, text);
            let got = programs.get(Hypervisor::Firecracker, Some(&path)).await;
            assert_eq!(got.unwrap().version, Version::new(1, minor));
        }
        make(&path, "nonsense here");
        let why = programs.get(Hypervisor::Firecracker, Some(&path)).await;
        assert!(why.unwrap_err().contains("nonsense"));
    }

    /// By another process: what this one holds open for writing, any child of it may hold, too, and then it cannot be run.
    fn make(path: &Path, says: &str) {
        let script = "printf '#!/bin/sh\\necho %s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\"";
        let made = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(path)
            .arg(says)
            .status();
        assert!(made.unwrap().success());
    }
}
