//! The supported versions of the CNI specification, and the features of each.
//! Out of scope: which version a configuration requests.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of the specification. A later version is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Version {
    /// Chains of plugins and results with interfaces.
    #[serde(rename = "0.3.0")]
    V0_3_0,
    /// Like 0.3.0; only examples in the text of the spec were corrected.
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// CHECK, and `prevResult` on DEL.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// `ips` of a result have no `version`.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// GC, STATUS, `cniVersions`, more keys of interfaces and routes.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All supported versions, the oldest first.
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The latest supported version.
    pub const LATEST: Self = Self::V1_1_0;

    /// As in JSON: `1.0.0`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Parses a version; `None` if it is not supported.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
    }

    /// Whether the version defines CHECK, and `prevResult` of DEL.
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether every entry of `ips` of a result has `"version": "4"` or `"6"`.
    pub fn has_ip_version(self) -> bool {
        self < Self::V1_0_0
    }

    /// Whether the version defines GC and STATUS.
    pub fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
