//! Finds the device of the root file system that `root=` names.
//! Out of scope: names of network file systems; reading superblocks (`superblock`).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::parameters::Parameters;
use super::superblock::{self, Names};
use crate::clock;
use std::time::Duration;

/// How long a device is waited for, without `rootwait`.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between checks.
const STEP: Duration = Duration::from_millis(20);

/// What `root=` names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Root {
    /// The name of a device, relative to `/dev`.
    Device(String),
    /// `UUID=` of the file system, in lower case.
    Uuid(String),
    /// `LABEL=` of the file system.
    Label(String),
    /// `PARTUUID=` of the partition, in lower case.
    PartitionUuid(String),
    /// `PARTLABEL=` of the partition.
    PartitionLabel(String),
}

impl Root {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("/dev/") {
            return Ok(match name.split_once('/') {
                Some(("disk", link)) => match link.split_once('/') {
                    Some(("by-uuid", uuid)) => Self::Uuid(uuid.to_ascii_lowercase()),
                    Some(("by-label", label)) => Self::Label(label.to_owned()),
                    Some(("by-partuuid", uuid)) => Self::PartitionUuid(uuid.to_ascii_lowercase()),
                    Some(("by-partlabel", label)) => Self::PartitionLabel(label.to_owned()),
                    _ => Self::Device(name.to_owned()),
                },
                _ => Self::Device(name.to_owned()),
            });
        }
        match text.split_once('=') {
            Some(("UUID", uuid)) => Ok(Self::Uuid(uuid.to_ascii_lowercase())),
            Some(("LABEL", label)) => Ok(Self::Label(label.to_owned())),
            Some(("PARTUUID", uuid)) => Ok(Self::PartitionUuid(uuid.to_ascii_lowercase())),
            Some(("PARTLABEL", label)) => Ok(Self::PartitionLabel(label.to_owned())),
            _ => Err(format!(
                "invalid root={text}: expected /dev/NAME, UUID=, LABEL=, PARTUUID= or PARTLABEL=; other root devices need an initrd"
            )),
        }
    }

    fn is(&self, name: &str, names: &Names) -> bool {
        match self {
            Self::Device(device) => device == name,
            Self::Uuid(uuid) => names.uuid.as_ref() == Some(uuid),
            Self::Label(label) => names.label.as_ref() == Some(label),
            Self::PartitionUuid(uuid) => names.partition_uuid.as_ref() == Some(uuid),
            Self::PartitionLabel(label) => names.partition_label.as_ref() == Some(label),
        }
    }
}

/// Waits until the device exists.
///
/// # Errors
/// The value is not understood, or the device does not appear.
pub fn wait_for(root: &str, parameters: &Parameters) -> Result<PathBuf, String> {
    let desired = Root::parse(root)?;
    std::thread::sleep(parameters.delay);
    let begin = clock::monotonic();
    loop {
        let devices = devices();
        let found = devices
            .iter()
            .find(|name| desired.is(name, &names_of(&desired, name)));
        if let Some(name) = found {
            return Ok(Path::new("/dev").join(name));
        }
        if begin.elapsed() > TIMEOUT && !parameters.waits_for_ever {
            let found = match devices.is_empty() {
                true => "no disk: the kernel may need drivers that are in an initrd".to_owned(),
                false => devices.join(", "),
            };
            return Err(format!(
                "root device {root} not found within {} s: found {found}",
                TIMEOUT.as_secs()
            ));
        }
        std::thread::sleep(STEP);
    }
}

/// The names of all block devices: disks and partitions.
fn devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten();
    // `/` in the name of a device is `!` in sysfs.
    let names = entries.map(|entry| entry.file_name().to_string_lossy().replace('!', "/"));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// What a device contains, as far as it is needed. A device that cannot be read has no names.
fn names_of(desired: &Root, name: &str) -> Names {
    let read = |device: &str, offset: u64, length: usize| -> Option<Vec<u8>> {
        let file = File::open(Path::new("/dev").join(device)).ok()?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    };
    match desired {
        Root::Device(_) => Names::default(),
        Root::Uuid(_) | Root::Label(_) => {
            superblock::file_system(|offset, length| read(name, offset, length))
        }
        Root::PartitionUuid(_) | Root::PartitionLabel(_) => {
            let sysfs = Path::new("/sys/class/block").join(name.replace('/', "!"));
            let number = fs::read_to_string(sysfs.join("partition")).ok();
            let number = number.and_then(|number| number.trim().parse().ok());
            // A partition is in the directory of its disk.
            let disk = fs::canonicalize(&sysfs).ok().and_then(|path| {
                let disk = path.parent()?.file_name()?;
                Some(disk.to_string_lossy().replace('!', "/"))
            });
            match (disk, number) {
                (Some(disk), Some(number)) => {
                    superblock::partition(|offset, length| read(&disk, offset, length), number)
                }
                _ => Names::default(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_root_is_understood() {
        for (text, expected) in [
            ("/dev/vda", Root::Device("vda".to_owned())),
            ("/dev/mapper/x", Root::Device("mapper/x".to_owned())),
            ("UUID=AB-1", Root::Uuid("ab-1".to_owned())),
            ("LABEL=Root", Root::Label("Root".to_owned())),
            ("PARTUUID=AB", Root::PartitionUuid("ab".to_owned())),
            ("PARTLABEL=Root", Root::PartitionLabel("Root".to_owned())),
            ("/dev/disk/by-uuid/AB", Root::Uuid("ab".to_owned())),
            ("/dev/disk/by-label/Root", Root::Label("Root".to_owned())),
            (
                "/dev/disk/by-partuuid/AB",
                Root::PartitionUuid("ab".to_owned()),
            ),
        ] {
            assert_eq!(Root::parse(text), Ok(expected), "{text}");
        }
        for text in ["", "vda", "nfs:x", "ID=1", "/dev"] {
            let message = Root::parse(text).expect_err(text);
            assert!(message.starts_with("invalid root="), "{message}");
        }
    }
}
