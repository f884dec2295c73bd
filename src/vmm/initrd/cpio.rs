//! The archive with `slice-agent`, as the kernel unpacks it. Pure.
//! Out of scope: the archives of users.

use super::INIT;

/// The archive with the agent, padded to 4 bytes. `/dev/console` and `/dev/null` are what a program expects that the kernel starts; an
/// initrd may contain them, too.
pub fn archive(program: &[u8]) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const DEVICE: u32 = 0o020_000;
    let mut cpio = Cpio::default();
    cpio.entry("dev", DIRECTORY, (0, 0), &[]);
    cpio.entry("dev/console", DEVICE | 0o600, (5, 1), &[]);
    cpio.entry("dev/null", DEVICE | 0o666, (1, 3), &[]);
    cpio.entry(".slice", DIRECTORY, (0, 0), &[]);
    cpio.entry(INIT.trim_start_matches('/'), 0o100_755, (0, 0), program);
    cpio.entry("TRAILER!!!", 0, (0, 0), &[]);
    cpio.bytes
}

/// An archive in the format `newc`.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // Inode, mode, user, group, links, modification time, size, device of the file, device, size of the name, checksum.
        let (major, minor) = device;
        let links = 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// What cpio(1) lists of an archive.
    fn listed(archive: &[u8]) -> String {
        let mut cpio = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio");
        let mut input = cpio.stdin.take().expect("a pipe");
        input.write_all(archive).expect("written");
        drop(input);
        let output = cpio.wait_with_output().expect("its output");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn cpio_reads_the_archive() {
        let program = b"#!program".as_slice();
        let archive = archive(program);
        assert_eq!(archive.len() % 4, 0);
        let listed = listed(&archive);
        let lines: Vec<Vec<&str>> = listed
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let found: Vec<(&str, &str)> = lines
            .iter()
            .map(|words| (words[0], *words.last().expect("a name")))
            .collect();
        let expected = [
            ("drwxr-xr-x", "dev"),
            ("crw-------", "dev/console"),
            ("crw-rw-rw-", "dev/null"),
            ("drwxr-xr-x", ".slice"),
            ("-rwxr-xr-x", ".slice/init"),
        ];
        assert_eq!(found, expected, "{listed}");
        assert!(listed.contains("5,") && listed.contains("1,"), "{listed}");
    }
}
