//! UUIDs and labels of file systems (ext2, ext3, ext4, XFS, Btrfs) and of partitions (GPT, MBR). Pure.
//! Out of scope: reading devices. The content is not trusted: it may be anything.

/// What a device can be named by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The UUID of the file system, in lower case.
    pub uuid: Option<String>,
    /// The label of the file system.
    pub label: Option<String>,
    /// The UUID of the partition, in lower case.
    pub partition_uuid: Option<String>,
    /// The name of the partition.
    pub partition_label: Option<String>,
}

/// Where a file system has its magic number, UUID and label.
struct Layout {
    /// The start of the superblock in bytes.
    start: u64,
    magic: (usize, &'static [u8]),
    uuid: usize,
    /// Position and maximum length.
    label: (usize, usize),
}

/// ext2, ext3, ext4: `struct ext4_super_block`. XFS: `struct xfs_dsb`. Btrfs: `struct btrfs_super_block`.
const LAYOUTS: [Layout; 3] = [
    Layout {
        start: 1024,
        magic: (0x38, b"\x53\xef"),
        uuid: 0x68,
        label: (0x78, 16),
    },
    Layout {
        start: 0,
        magic: (0, b"XFSB"),
        uuid: 32,
        label: (108, 12),
    },
    Layout {
        start: 64 << 10,
        magic: (64, b"_BHRfS_M"),
        uuid: 32,
        label: (299, 256),
    },
];
/// The part of a superblock that is read.
const SUPERBLOCK: usize = 1024;
/// Sizes of a sector with which a GPT may have been written.
const SECTORS: [u64; 2] = [512, 4096];
/// The size of a GPT header that is read, and of an entry (UEFI 2.10, 5.3).
const GPT_HEADER: usize = 92;
const GPT_ENTRY: u64 = 128;
/// The maximum number of GPT entries.
const GPT_ENTRIES: u32 = 1024;

/// The names of the file system on a device; `read` returns so many bytes at an offset.
pub fn file_system(read: impl Fn(u64, usize) -> Option<Vec<u8>>) -> Names {
    for layout in LAYOUTS {
        let Some(block) = read(layout.start, SUPERBLOCK) else {
            continue;
        };
        let (at, magic) = layout.magic;
        if block.get(at..at + magic.len()) != Some(magic) {
            continue;
        }
        let bytes = block.get(layout.uuid..layout.uuid + 16);
        let (at, length) = layout.label;
        let label = block.get(at..at + length).map(until_nul);
        return Names {
            uuid: bytes.and_then(|bytes| bytes.try_into().ok()).map(uuid),
            label: label.filter(|label| !label.is_empty()),
            ..Names::default()
        };
    }
    Names::default()
}

/// The names of a partition of a disk, by its number from 1 on.
pub fn partition(read: impl Fn(u64, usize) -> Option<Vec<u8>>, number: u32) -> Names {
    for sector in SECTORS {
        if let Some(names) = gpt_entry(&read, sector, number) {
            return names;
        }
    }
    // The MBR: the signature of the disk, and the number.
    let signature = read(440, 72)
        .filter(|bytes| bytes.ends_with(b"\x55\xaa"))
        .and_then(|bytes| bytes.first_chunk::<4>().copied());
    Names {
        partition_uuid: signature
            .map(|bytes| format!("{:08x}-{number:02x}", u32::from_le_bytes(bytes))),
        ..Names::default()
    }
}

fn gpt_entry(
    read: &impl Fn(u64, usize) -> Option<Vec<u8>>,
    sector: u64,
    number: u32,
) -> Option<Names> {
    let header = read(sector, GPT_HEADER)?;
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let u32_at = |at: usize| {
        let bytes = header.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let first = u64::from_le_bytes(*header.get(72..)?.first_chunk::<8>()?);
    let (count, size) = (u32_at(80)?, u64::from(u32_at(84)?));
    if number == 0 || number > count.min(GPT_ENTRIES) || !(GPT_ENTRY..=4096).contains(&size) {
        return Some(Names::default());
    }
    let offset = first
        .checked_mul(sector)?
        .checked_add(size * u64::from(number - 1))?;
    let entry = read(offset, 128)?;
    let mut id: [u8; 16] = *entry.get(16..)?.first_chunk::<16>()?;
    // The first three fields are little-endian.
    id[..4].reverse();
    id[4..6].reverse();
    id[6..8].reverse();
    let units = entry.get(56..)?.chunks_exact(2);
    let units = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let name: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    let label = String::from_utf16_lossy(&name);
    Some(Names {
        partition_uuid: Some(uuid(id)),
        partition_label: (!label.is_empty()).then_some(label),
        ..Names::default()
    })
}

fn until_nul(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads from these bytes, and nothing behind their end.
    fn disk(bytes: Vec<u8>) -> impl Fn(u64, usize) -> Option<Vec<u8>> {
        move |offset, length| {
            let offset = usize::try_from(offset).ok()?;
            Some(bytes.get(offset..offset.checked_add(length)?)?.to_vec())
        }
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    const UUID: [u8; 16] = [
        0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff,
    ];
    const TEXT: &str = "00112233-4455-6677-8899-aabbccddeeff";

    #[test]
    fn file_systems_have_their_uuid_and_label() {
        for layout in LAYOUTS {
            let mut bytes = vec![0; (64 << 10) + 2048];
            let start = usize::try_from(layout.start).expect("small");
            put(&mut bytes, start + layout.magic.0, layout.magic.1);
            put(&mut bytes, start + layout.uuid, &UUID);
            put(&mut bytes, start + layout.label.0, b"root\0old");
            let names = file_system(disk(bytes.clone()));
            assert_eq!(names.uuid.as_deref(), Some(TEXT));
            assert_eq!(names.label.as_deref(), Some("root"));
            put(&mut bytes, start + layout.label.0, b"\0");
            assert_eq!(file_system(disk(bytes)).label, None);
        }
        for other in [vec![], vec![0; 4096], vec![0xff; 128 << 10]] {
            assert_eq!(file_system(disk(other)), Names::default());
        }
    }

    #[test]
    fn a_real_ext4_has_the_uuid_and_label_that_mke2fs_has_given_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        let made = std::process::Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-L", "root-fs", "-U", TEXT])
            .arg(&image)
            .arg("1M")
            .output()
            .expect("mke2fs");
        assert!(made.status.success(), "{made:?}");
        let names = file_system(disk(std::fs::read(image).expect("read")));
        assert_eq!(names.uuid.as_deref(), Some(TEXT));
        assert_eq!(names.label.as_deref(), Some("root-fs"));
    }

    /// A disk with a GPT of one entry at the second place.
    fn gpt(sector: usize) -> Vec<u8> {
        let mut bytes = vec![0; sector * 4];
        put(&mut bytes, 510, b"\x55\xaa");
        put(&mut bytes, sector, b"EFI PART");
        put(&mut bytes, sector + 72, &2_u64.to_le_bytes());
        put(&mut bytes, sector + 80, &4_u32.to_le_bytes());
        put(&mut bytes, sector + 84, &128_u32.to_le_bytes());
        let entry = sector * 2 + 128;
        put(&mut bytes, entry + 16, &UUID);
        let name: Vec<u8> = "Root".encode_utf16().flat_map(u16::to_le_bytes).collect();
        put(&mut bytes, entry + 56, &name);
        bytes
    }

    #[test]
    fn partitions_have_their_uuid_and_name() {
        for sector in [512, 4096] {
            let names = partition(disk(gpt(sector)), 2);
            let expected = "33221100-5544-7766-8899-aabbccddeeff";
            assert_eq!(names.partition_uuid.as_deref(), Some(expected));
            assert_eq!(names.partition_label.as_deref(), Some("Root"));
            for outside in [0, 5, u32::MAX] {
                assert_eq!(partition(disk(gpt(sector)), outside), Names::default());
            }
        }
        let mut mbr = vec![0; 512];
        put(&mut mbr, 440, &[0xef, 0xbe, 0xad, 0xde]);
        assert_eq!(partition(disk(mbr.clone()), 1), Names::default());
        put(&mut mbr, 510, b"\x55\xaa");
        let names = partition(disk(mbr), 11);
        assert_eq!(names.partition_uuid.as_deref(), Some("deadbeef-0b"));
    }

    #[test]
    fn a_hostile_table_is_no_panic() {
        for (at, value) in [(72, [0xff; 8]), (80, [0xff; 8]), (80, [0; 8])] {
            let mut bytes = gpt(512);
            put(&mut bytes, 512 + at, &value);
            for number in [0, 1, 2, 1024, u32::MAX] {
                let _ = partition(disk(bytes.clone()), number);
            }
        }
    }
}
