//! A VMM's program and its version. Pure.
//! Out of scope: finding and running it (`program`).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::api::vm::Hypervisor;

/// A program that runs VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Absolute path.
    pub path: PathBuf,
    /// The version that it reports.
    pub version: Version,
}

/// Major and minor version, which determine the arguments of a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The oldest supported version.
    pub const fn oldest_supported(hypervisor: Hypervisor) -> Option<Self> {
        match hypervisor {
            Hypervisor::None => None,
            Hypervisor::Qemu => Some(Self::new(7, 2)),
            Hypervisor::Firecracker => Some(Self::new(1, 10)),
            Hypervisor::CloudHypervisor => Some(Self::new(38, 0)),
        }
    }

    /// Parses the output of `--version`: the first word of the first line that is a version, optionally with the prefix `v`.
    pub fn parse_output(output: &str) -> Option<Self> {
        let words = output.lines().next()?.split_whitespace();
        words.map(str::parse).find_map(Result::ok)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The text is not a valid version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid version")]
pub struct InvalidVersion;

impl FromStr for Version {
    type Err = InvalidVersion;

    /// Parses e.g. `v53.0-246-gae44c29`, `1.17.0-dev`, `7.2.22`; everything after the first two numbers is ignored.
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let text = text.trim();
        let mut numbers = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let major = numbers.next().and_then(|text| text.parse().ok());
        let minor = numbers.next().and_then(|text| {
            let end = text.find(|c: char| !c.is_ascii_digit());
            text[..end.unwrap_or(text.len())].parse().ok()
        });
        let both = major.zip(minor);
        both.map(|(major, minor)| Self { major, minor })
            .ok_or(InvalidVersion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_from_the_output_of_each_program() {
        for (version_output, version) in [
            ("Firecracker v1.17.0-dev\n\n2026 [x] exit\n", (1, 17)),
            ("Firecracker v1.10.1\n", (1, 10)),
            (
                "cloud-hypervisor v53.0-246-gae44c2971-dirty\nx 9.9",
                (53, 0),
            ),
            ("cloud-hypervisor v38.0\n", (38, 0)),
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n",
                (7, 2),
            ),
        ] {
            let version = Some(Version::new(version.0, version.1));
            assert_eq!(
                Version::parse_output(version_output),
                version,
                "{version_output}"
            );
        }
        for version_output in [
            "",
            "\n1.2",
            "sleep (GNU coreutils)",
            "v1 v.2 v1.x 1",
            "99999999999.1",
        ] {
            assert_eq!(
                Version::parse_output(version_output),
                None,
                "{version_output}"
            );
        }
    }

    #[test]
    fn versions_are_ordered_numerically() {
        assert!(Version::new(1, 10) > Version::new(1, 9));
    }
}
