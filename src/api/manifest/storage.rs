//! Reads the keys of a VM's disks.
//! Out of scope: whether the files exist and their sizes, which the daemon checks on the host.

use std::path::PathBuf;

use super::super::storage::{AdditionalDisk, Storage};
use super::keys::Mapping;
use super::keys::limits::{MAX_DISK_SIZE, SIZE_UNITS};
use super::section::{Field, Reader, Section};
use super::yaml::Value;

const EXPECTED_SIZE: &str = "a size such as \"10G\" or \"512M\" (G is GiB), at most 16T";

/// The settings that a group may inherit from `config:` or override.
#[derive(Clone, Default)]
pub struct RootDiskFields {
    image: Option<PathBuf>,
    /// Whether `image` is set, even to an invalid value.
    is_image_set: bool,
    size_bytes: Option<u64>,
    persistent: Option<bool>,
}

/// Reads `image`, `storage_size` and `persistent`.
pub fn read_root(
    reader: &mut Reader,
    section: &Section,
    default: RootDiskFields,
) -> RootDiskFields {
    let image = section.get("image").and_then(|f| reader.path(f));
    let size = section
        .get("storage_size")
        .and_then(|f| read_size(reader, f));
    let persistent = section.get("persistent").and_then(|f| reader.flag(f));
    RootDiskFields {
        image: image.or(default.image),
        is_image_set: default.is_image_set || section.has("image"),
        size_bytes: size.or(default.size_bytes),
        persistent: persistent.or(default.persistent),
    }
}

/// The disks of a VM of a group with `count` VMs.
pub fn read(reader: &mut Reader, group: &Section, root: RootDiskFields, count: u32) -> Storage {
    if !root.is_image_set {
        for key in ["storage_size", "persistent"] {
            if let Some(field) = group.get(key) {
                reader.refuse(
                    field,
                    "has no effect without `image:`, here or under config",
                );
            }
        }
    }
    let disks = read_disks(reader, group, &root, count);
    match root.image {
        None => Storage {
            disks,
            ..Storage::default()
        },
        Some(image) => Storage {
            image: Some(image),
            size_bytes: root.size_bytes,
            persistent: root.persistent.unwrap_or(false),
            disks,
        },
    }
}

fn read_disks(
    reader: &mut Reader,
    group: &Section,
    root: &RootDiskFields,
    count: u32,
) -> Vec<AdditionalDisk> {
    let Some(field) = group.get("disks") else {
        return Vec::new();
    };
    let items = reader.list(field, "a list of disks, each with a path");
    let mut disks: Vec<AdditionalDisk> = Vec::new();
    for item in &items {
        let Some(section) = reader.section(item, Mapping::Disk) else {
            continue;
        };
        let Some(path_field) = section.get("path") else {
            reader.refuse_at(section.at, &format!("{}.path", section.path), "is missing");
            continue;
        };
        let read_only_field = section.get("read_only");
        let read_only = read_only_field.map_or(Some(true), |flag| reader.flag(flag));
        let (Some(path), Some(read_only)) = (reader.path(path_field), read_only) else {
            continue;
        };
        if disks.iter().any(|disk| disk.path == path) {
            reader.refuse(path_field, "duplicate disk");
        }
        if let (Some(flag), false) = (read_only_field, read_only) {
            check_writable(reader, flag, &path, root, count);
        }
        disks.push(AdditionalDisk { path, read_only });
    }
    disks
}

/// Refuses a writable disk that more than one VM would use: two writers corrupt the file system.
fn check_writable(
    reader: &mut Reader,
    field: &Field,
    path: &PathBuf,
    root: &RootDiskFields,
    count: u32,
) {
    if root.image.as_ref() == Some(path) {
        reader.refuse(
            field,
            "found false, expected true: the path is also the image, from which disks are created",
        );
    }
    if count > 1 {
        let message = format!(
            "found false, expected true, or count: 1: at most one VM may write to a disk, and the group has {count}"
        );
        reader.refuse(field, message);
    }
}

fn read_size(reader: &mut Reader, field: &Field) -> Option<u64> {
    let size = match &field.node.value {
        Value::Text(text) => parse_size(text).filter(|size| (1..=MAX_DISK_SIZE).contains(size)),
        _ => None,
    };
    if size.is_none() {
        reader.unexpected(field, EXPECTED_SIZE);
    }
    size
}

/// Parses `10G`, `10Gi` or `10GiB`. `GB` is refused because it may also mean 10^9 bytes.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, shift) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("512M", Some(512 << 20)),
            ("10G", Some(10 << 30)),
            ("10GiB", Some(10 << 30)),
            ("2Ti", Some(2 << 40)),
            ("10GB", None),
            ("10g", None),
            ("10 G", None),
            ("G", None),
            ("10", None),
            ("1.5G", None),
            ("-1G", None),
            ("99999999999999999999G", None),
            ("18446744073709551615G", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }
}
