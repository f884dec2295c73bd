//! Finds the VMMs' programs, and asks for their versions.
//! Not here: which version knows what (the recipes).

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::{Program, Version};
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
        let places = std::env::var_os("PATH").unwrap_or_default();
        let (path, stamp) = find(hypervisor, named, &places.to_string_lossy())?;
        let known = self.lock().get(&path).copied();
        if let Some((_, version)) = known.filter(|(known, _)| *known == stamp) {
            return Ok(Program { path, version });
        }
        let version = ask(&path).await?;
        tracing::info!(program = %path.display(), %version, "found a VMM");
        self.lock().insert(path.clone(), (stamp, version));
        Ok(Program { path, version })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Stamp, Version)>> {
        // Each entry is true by itself, whatever its last user died of.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(
    hypervisor: Hypervisor,
    named: Option<&Path>,
    places: &str,
) -> Result<(PathBuf, Stamp), String> {
    let kind = kind(hypervisor).ok_or("hypervisor none needs no program")?;
    let Kind { name, key, install } = kind;
    if let Some(path) = named {
        return match stamp(path) {
            Some(stamp) => Ok((path.to_owned(), stamp)),
            None => Err(format!(
                "`{key}` names {}, and there is no program: correct it, or {install}",
                path.display()
            )),
        };
    }
    let mut paths = std::env::split_paths(places)
        .filter(|place| place.is_absolute())
        .map(|place| place.join(name));
    paths
        .find_map(|path| stamp(&path).map(|stamp| (path, stamp)))
        .ok_or_else(|| {
            format!(
                "hypervisor {hypervisor} needs the program {name}, which is not in {places}: {install}, or name it with `{key}`"
            )
        })
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

    #[test]
    fn a_missing_program_is_told_with_where_it_was_looked_for_and_how_to_come_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display().to_string();
        let places = format!("relative:{place}");
        let look = |named: Option<&Path>| find(Hypervisor::Firecracker, named, &places);
        let why = look(None).unwrap_err();
        for word in ["firecracker", place.as_str(), "releases", "firecracker_bin"] {
            assert!(why.contains(word), "{why}");
        }
        let path = dir.path().join("firecracker");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(look(None).is_err(), "it cannot be run");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(look(None).unwrap().0, path);
        let why = look(Some(Path::new("/nowhere/fc"))).unwrap_err();
        assert!(
            why.contains("/nowhere/fc") && why.contains("firecracker_bin"),
            "{why}"
        );
    }

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
