//! Builds initrds that contain `slice-agent`, for `agent: inject`.
//! Out of scope: what the agent does in the guest ([`crate::guest`]).
//!
//! # How
//! An initramfs may consist of several cpio archives, which the kernel unpacks one after the other
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The archive with the agent comes first, uncompressed, and the unchanged
//! initrd of the user follows, aligned to 4 bytes: something behind the user's archives, which the kernel would ignore there, does not
//! hide the agent. Without an initrd of the user it is the only archive.
//!
//! The path that a VMM is started with depends only on the VM, so that another initrd or another agent does not restart it; the file that
//! is visible there ([`crate::host::process::Reach`]) is in a cache, and its name contains the stamps of both files. VMs with the same
//! files share it.

mod cpio;
mod elf;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use self::cpio::archive;
use self::elf::{Elf, MACHINE, elf};

use crate::host::Error;
use crate::host::named::{self, Kind, Named};

/// The path of the agent in the initramfs, which the kernel executes as init: [`crate::guest`] has the same.
pub const INIT: &str = "/.slice/init";
/// The name of the initrd next to the run directory, where only its VMM sees it.
pub(super) const NAME: &str = "initrd";

/// The maximum size of `slice-agent`, and of an initrd, in bytes.
const MAX_AGENT: u64 = 64 << 20;
const MAX_INITRD: u64 = 2 << 30;
/// The number of files in the cache.
const CACHED: usize = 8;
/// How long a start waits for an initrd that another VM builds.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20);

/// Locked while a file of the cache is built and opened.
static BUILDING: Mutex<()> = Mutex::new(());

/// The file `slice-agent` of this host.
///
/// # Errors
/// There is none, or it cannot run in every guest. One sentence for users.
pub(super) fn agent(candidates: &[PathBuf]) -> Result<Named, String> {
    for path in candidates {
        let dir = path.parent().unwrap_or(Path::new("/"));
        match named::open(path, dir, &[], Kind::Internal) {
            Err(error) if error.is_absent() => {}
            Err(error) => {
                return Err(format!(
                    "agent is inject, but slice-agent cannot be used: {error}"
                ));
            }
            Ok(file) => {
                check_program(&file).map_err(|why| {
                    format!("agent is inject, but {} {why}", file.real().display())
                })?;
                return Ok(file);
            }
        }
    }
    let paths: Vec<String> = candidates
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Err(format!(
        "agent is inject, but slice-agent is not installed on this host: it is none of {}",
        paths.join(", ")
    ))
}

/// In an initramfs there is no dynamic linker.
fn check_program(file: &Named) -> Result<(), String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        file.open()?.take(64 << 10).read_to_end(&mut head)?;
        Ok(head)
    };
    let head = read().map_err(|error| format!("cannot be read: {error}"))?;
    match elf(&head) {
        _ if file.metadata().map_or(0, |found| found.len()) > MAX_AGENT => {
            Err(format!("is larger than {} MiB", MAX_AGENT >> 20))
        }
        None => Err("is not a program of 64-bit Linux".to_owned()),
        Some(Elf { machine, .. }) if machine != MACHINE => {
            Err("is a program for another architecture".to_owned())
        }
        Some(Elf {
            is_dynamic: true, ..
        }) => Err("is dynamically linked, expected a static program: make guest-agent".to_owned()),
        Some(Elf {
            is_dynamic: false, ..
        }) => Ok(()),
    }
}

/// Opens the initrd with the agent for a VM with this initrd, and builds it if it is not in the cache `dir`.
pub(super) fn open(
    dir: &Path,
    candidates: &[PathBuf],
    user: Option<&Named>,
) -> Result<Named, Error> {
    let fail = |why: String| Error::other("build", "the initrd with slice-agent", why);
    let agent = agent(candidates).map_err(fail)?;
    let name = cache_name(&agent, user);
    let Some(_building) = BUILDING.try_lock_for(BUILD_TIMEOUT) else {
        return Err(fail("another VM still builds one".to_owned()));
    };
    let open = || named::open(&dir.join(&name), dir, &[], Kind::Internal);
    match open() {
        Ok(found) => return Ok(found),
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(fail(error.to_string())),
    }
    let built = build(dir, &name, &agent, user);
    built.map_err(|error| Error::io("build", dir.join(&name).display().to_string(), error))?;
    remove_oldest(dir, &name);
    open().map_err(|error| fail(error.to_string()))
}

/// Identifies both files and their content.
fn cache_name(agent: &Named, user: Option<&Named>) -> String {
    let stamps = [Some(agent), user]
        .into_iter()
        .flatten()
        .flat_map(Named::stamp);
    let words: Vec<String> = stamps.map(|number| format!("{number:x}")).collect();
    words.join("-")
}

/// Writes the file under another name first: a crash leaves no part of it.
fn build(dir: &Path, name: &str, agent: &Named, user: Option<&Named>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    rustix::fs::chmod(dir, rustix::fs::Mode::from_bits_retain(0o700))?;
    let draft = dir.join(DRAFT);
    let _ = fs::remove_file(&draft);
    let written = (|| {
        let mut program = Vec::new();
        agent.open()?.take(MAX_AGENT).read_to_end(&mut program)?;
        // VMMs with other users read it.
        let mut out = File::options()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&draft)?;
        rustix::fs::fchmod(&out, rustix::fs::Mode::from_bits_retain(0o644))?;
        out.write_all(&archive(&program))?;
        if let Some(user) = user {
            let mut source = user.open()?.take(MAX_INITRD + 1);
            if io::copy(&mut source, &mut out)? > MAX_INITRD {
                let text = format!("the initrd is larger than {} GiB", MAX_INITRD >> 30);
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
            }
        }
        fs::rename(&draft, dir.join(name))
    })();
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

/// The name of a file that is not complete.
const DRAFT: &str = ".new";

/// Keeps the newest files. One that a VMM uses stays open until it ends.
fn remove_oldest(dir: &Path, kept: &str) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut others: Vec<(SystemTime, PathBuf)> = entries
        .filter(|entry| entry.file_name() != kept)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    others.sort();
    let surplus = others.len().saturating_sub(CACHED - 1);
    for (_, path) in others.iter().take(surplus) {
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(path = %path.display(), %error, "cannot remove an initrd from the cache");
        }
    }
}

/// Empties the cache: it may contain files that nothing uses any more. A VMM keeps its own open.
pub(super) fn clear(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::elf::INTERPRETER;
    use super::*;

    /// An ELF file with these program headers.
    fn program(machine: u16, headers: &[u32]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(64, 0);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(headers.len()).expect("few").to_le_bytes());
        for header in headers {
            let mut entry = vec![0; 56];
            entry[..4].copy_from_slice(&header.to_le_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    /// A cache in a directory, beside an agent and initrds.
    struct Fixture {
        dir: tempfile::TempDir,
        agents: Vec<PathBuf>,
    }

    impl Fixture {
        fn new(agent: &[u8]) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("slice-agent");
            fs::write(&path, agent).expect("written");
            let agents = vec![dir.path().join("missing"), path];
            Self { dir, agents }
        }

        fn cache(&self) -> PathBuf {
            self.dir.path().join("initrds")
        }

        /// Opens the initrd of a user with this content.
        fn open(&self, user: Option<(&str, &[u8])>) -> Result<Named, Error> {
            let user = user.map(|(name, content)| {
                let path = self.dir.path().join(name);
                fs::write(&path, content).expect("written");
                named::open(&path, self.dir.path(), &[], Kind::Internal).expect("a file")
            });
            open(&self.cache(), &self.agents, user.as_ref())
        }
    }

    #[test]
    fn only_a_static_program_of_this_architecture_is_injected() {
        let other = if MACHINE == 62 { 183 } else { 62 };
        for (content, expected) in [
            (program(MACHINE, &[1, 1]), None),
            (
                program(MACHINE, &[1, INTERPRETER]),
                Some("is dynamically linked"),
            ),
            (program(other, &[1]), Some("for another architecture")),
            (b"#!/bin/sh\n".to_vec(), Some("is not a program")),
            (Vec::new(), Some("is not a program")),
            (
                program(MACHINE, &[1])[..66].to_vec(),
                Some("is not a program"),
            ),
        ] {
            let why = agent(&Fixture::new(&content).agents).err();
            match (&why, expected) {
                (None, None) => {}
                (Some(why), Some(expected)) => assert!(why.contains(expected), "{why}"),
                _ => panic!("{why:?}, expected {expected:?}"),
            }
        }
        let why = agent(&["/nowhere/slice-agent".into()]).expect_err("missing");
        assert_eq!(
            why,
            "agent is inject, but slice-agent is not installed on this host: it is none of /nowhere/slice-agent"
        );
    }

    #[test]
    fn an_initrd_follows_the_agent_unchanged_and_is_built_once_for_each_content() {
        let fixture = Fixture::new(&program(MACHINE, &[1]));
        let content = [b"\x1f\x8bcompressed".as_slice(), &[0xff; 100]].concat();
        let built = fixture.open(Some(("user", &content))).expect("built");
        let mut bytes = Vec::new();
        built
            .open()
            .expect("opened")
            .read_to_end(&mut bytes)
            .expect("read");
        let archive = archive(&program(MACHINE, &[1]));
        assert_eq!(bytes, [archive.as_slice(), &content].concat());
        assert_eq!(built.mode(), 0o644);
        let user = fixture.dir.path().join("user");
        let user = named::open(&user, fixture.dir.path(), &[], Kind::Internal).expect("a file");
        let again = open(&fixture.cache(), &fixture.agents, Some(&user)).expect("cached");
        assert_eq!(again.stamp(), built.stamp(), "the same file");
        let alone = fixture.open(None).expect("built");
        assert_eq!(alone.metadata().expect("there").len(), archive.len() as u64);
        let other = fixture.open(Some(("user", b"other"))).expect("built");
        assert_ne!(other.real(), built.real());
        assert_eq!(fs::read(user.real()).expect("read"), b"other");
    }

    #[test]
    fn the_cache_is_bounded_and_a_build_that_fails_leaves_nothing() {
        let fixture = Fixture::new(&program(MACHINE, &[1]));
        for number in 0..CACHED + 3 {
            let name = format!("user-{number}");
            fixture.open(Some((&name, b"content"))).expect("built");
        }
        let cache = fixture.cache();
        let count = || fs::read_dir(&cache).expect("a directory").count();
        assert_eq!(count(), CACHED);
        clear(&cache).expect("cleared");
        clear(&cache).expect("nothing to do");
        assert!(!cache.exists());
        fs::write(&cache, "").expect("a file in its place");
        assert!(fixture.open(None).is_err());
    }
}
