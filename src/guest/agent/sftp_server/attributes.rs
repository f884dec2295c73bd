//! Attributes of files, and the lines of `ls -l` that go with names.
//! Out of scope: applying them to open handles (`files`).

use jiff::Timestamp;
use rustix::fs::{FileType, Stat};

use super::packet::{Malformed, Reader, Writer};

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 0x8000_0000;

/// The attributes that a request sets, or a response contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The size in bytes.
    pub size: Option<u64>,
    /// User and group.
    pub owner: Option<(u32, u32)>,
    /// The mode, with the type of the file in responses.
    pub mode: Option<u32>,
    /// The times of access and modification, in seconds.
    pub times: Option<(u32, u32)>,
}

impl Attributes {
    /// Reads them from a request. Attributes of extensions are ignored.
    pub fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let flags = reader.u32()?;
        let mut attributes = Self::default();
        if flags & SIZE != 0 {
            attributes.size = Some(reader.u64()?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some((reader.u32()?, reader.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            attributes.mode = Some(reader.u32()?);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((reader.u32()?, reader.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..reader.u32()? {
                reader.string()?;
                reader.string()?;
            }
        }
        Ok(attributes)
    }

    /// Those of a file.
    pub fn of(stat: &Stat) -> Self {
        let seconds = |seconds: i64| u32::try_from(seconds).unwrap_or_default();
        Self {
            size: u64::try_from(stat.st_size).ok(),
            owner: Some((stat.st_uid, stat.st_gid)),
            mode: Some(stat.st_mode),
            times: Some((seconds(stat.st_atime), seconds(stat.st_mtime))),
        }
    }

    /// Writes them to a response.
    pub fn write(&self, writer: &mut Writer) {
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        writer.u32(
            flag(self.size.is_some(), SIZE)
                | flag(self.owner.is_some(), OWNER)
                | flag(self.mode.is_some(), PERMISSIONS)
                | flag(self.times.is_some(), TIMES),
        );
        if let Some(size) = self.size {
            writer.u64(size);
        }
        for (one, other) in [self.owner, self.mode.map(|mode| (mode, 0)), self.times]
            .into_iter()
            .enumerate()
            .filter_map(|(at, pair)| pair.map(|(a, b)| (a, (at != 1).then_some(b))))
        {
            writer.u32(one);
            if let Some(other) = other {
                writer.u32(other);
            }
        }
    }
}

/// The line of `ls -ln` for a file, with the date in UTC.
pub fn line(name: &[u8], stat: &Stat) -> Vec<u8> {
    let time = Timestamp::from_second(stat.st_mtime).unwrap_or_default();
    let head = format!(
        "{} {:>3} {:<8} {:<8} {:>8} {} ",
        mode(stat.st_mode),
        stat.st_nlink,
        stat.st_uid,
        stat.st_gid,
        stat.st_size,
        time.strftime("%b %e %Y"),
    );
    [head.as_bytes(), name].concat()
}

/// As `ls -l` writes a mode: `drwxr-sr-t`.
fn mode(mode: u32) -> String {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::BlockDevice => 'b',
        FileType::CharacterDevice => 'c',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_ls() {
        for (bits, expected) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o041_777, "drwxrwxrwt"),
            (0o120_777, "lrwxrwxrwx"),
            (0o104_644, "-rwSr--r--"),
            (0o102_755, "-rwxr-sr-x"),
        ] {
            assert_eq!(mode(bits), expected);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for attributes in [
            Attributes::default(),
            Attributes {
                size: Some(1 << 40),
                owner: Some((1, 2)),
                mode: Some(0o644),
                times: Some((3, 4)),
            },
            Attributes {
                mode: Some(0o600),
                ..Attributes::default()
            },
        ] {
            let mut writer = Writer::new(0);
            attributes.write(&mut writer);
            let packet = writer.finish();
            assert_eq!(
                Attributes::read(&mut Reader::new(&packet[5..])),
                Ok(attributes)
            );
        }
    }
}
