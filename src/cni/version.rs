//! The versions of the CNI specification that we speak, and what came with which.
//! Out of scope: which of them a configuration asks for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of the specification. They are ordered: a later one is greater.
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
    /// No `version` in the `ips` of a result any more.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// GC, STATUS, `cniVersions`, more about interfaces and routes.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All that we speak, the oldest first.
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest that we speak.
    pub const LATEST: Self = Self::V1_1_0;

    /// As it is written in JSON: `1.0.0`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// `None` for every other, be it well-formed or not.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
    }

    /// Whether a plugin knows CHECK, and expects a `prevResult` on DEL.
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether every entry of a result's `ips` says `"version": "4"` or `"6"`.
    pub fn names_family(self) -> bool {
        self < Self::V1_0_0
    }

    /// Whether a plugin knows GC and STATUS.
    pub fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
