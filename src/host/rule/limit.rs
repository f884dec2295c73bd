//! Stateful matches: the number of flows of a source, their rate, and their number of destinations.
//! Out of scope: the values of the limits.
//!
//! # Why these matches
//! - `connlimit` (`nf_conncount`) counts the conntrack entries of a source or destination, except closed TCP connections.
//!   Its state belongs to the rule: a rule that is written again counts from 0.
//! - `hashlimit` keeps a token bucket for each key. The table is identified by its name and keeps its first configuration
//!   (`htable_find_get`), so the name must change with the parameters.
//! - A full hashlimit table drops the packet (`hotdrop` in `hashlimit_mt_common`), independent of the rate: with the
//!   destination as the key, the table's size limits the number of distinct destinations within its expiry time.

use std::collections::BTreeMap;
use std::fmt;

use super::{Match, Target};

/// The address of a flow by which flows are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// Matches if more than `above` flows have the same first `prefix` bits of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnLimit {
    /// The maximum number of flows that does not match.
    pub above: u32,
    /// The prefix length of the key, in bits.
    pub prefix: u8,
    /// The address that is counted.
    pub side: Side,
}

/// A rate that `XT_LIMIT_SCALE`, `XT_HASHLIMIT_SCALE_v2` and the nf_tables expression `limit` represent exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    per_second: u32,
    burst: u32,
}

impl Rate {
    /// Packets per second that divide 10,000: x_tables stores 10,000 divided by the rate.
    const EXACT_RATES: [u32; 25] = [
        1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 80, 100, 125, 200, 250, 400, 500, 625, 1000, 1250,
        2000, 2500, 5000, 10_000,
    ];

    /// The highest exact rate not above `per_second`, at least 1; `burst` is clamped to 1 to 10,000 packets.
    pub fn at_most(per_second: u32, burst: u32) -> Self {
        let exact = Self::EXACT_RATES
            .iter()
            .rev()
            .find(|rate| **rate <= per_second);
        Self {
            per_second: exact.copied().unwrap_or(1),
            burst: burst.clamp(1, 10_000),
        }
    }

    /// The rate with exactly these values; `None` if it cannot be represented exactly.
    pub fn exactly(per_second: u32, burst: u32) -> Option<Self> {
        let rate = Self::at_most(per_second, burst);
        (rate.per_second == per_second && rate.burst == burst).then_some(rate)
    }

    /// Packets per second.
    pub fn per_second(self) -> u32 {
        self.per_second
    }

    /// Burst, in packets.
    pub fn burst(self) -> u32 {
        self.burst
    }
}

/// Matches if a source exceeds the rate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceRate {
    /// The name of the kernel's table.
    pub name: String,
    /// The rate of one key.
    pub rate: Rate,
    /// The prefix length of the key, in bits of the source address.
    pub prefix: u8,
    /// The time after the last packet after which a bucket expires, in milliseconds.
    pub expire: u32,
}

/// Limits the number of distinct destinations within the expiry time: the match itself drops packets to further ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Distinct {
    /// The name of the kernel's table.
    pub name: String,
    /// The maximum number of destinations.
    pub max: u32,
}

impl SourceRate {
    /// [`SourceRate::expire`] of a limit, in milliseconds: after this time the bucket is full again.
    pub const EXPIRE: u32 = 20_000;
    /// The number of hash buckets of the kernel's table, which holds eight times as many sources (`htable_create`).
    pub const SIZE: u32 = 1024;
}

impl Distinct {
    /// How long a destination counts after its last packet, in milliseconds: a neighbour that does not answer is probed for 3 s
    /// (`mcast_solicit` times `retrans_time_ms`), and may be removed 5 s after its last change (`neigh_forced_gc`).
    pub const EXPIRE: u32 = 5000;
    /// The rate has no effect: the rule's target does the same as the end of the chain.
    pub const RATE: u32 = 1;
    /// The burst has no effect either.
    pub const BURST: u32 = 1;
}

impl fmt::Display for ConnLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Source => "saddr",
            Side::Destination => "daddr",
        };
        let Self { above, prefix, .. } = self;
        write!(
            f,
            "-m connlimit --connlimit-above {above} --connlimit-mask {prefix} --connlimit-{side} "
        )
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { per_second, burst } = self;
        write!(
            f,
            "-m limit --limit {per_second}/sec --limit-burst {burst} "
        )
    }
}

impl fmt::Display for SourceRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            rate,
            prefix,
            expire,
        } = self;
        write!(
            f,
            "-m hashlimit --hashlimit-above {}/sec --hashlimit-burst {} --hashlimit-mode srcip --hashlimit-name {name} \
             --hashlimit-htable-size {} --hashlimit-htable-expire {expire} --hashlimit-srcmask {prefix} ",
            rate.per_second,
            rate.burst,
            Self::SIZE,
        )
    }
}

impl fmt::Display for Distinct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, max: most } = self;
        write!(
            f,
            "-m hashlimit --hashlimit-upto {}/sec --hashlimit-burst {} --hashlimit-mode dstip --hashlimit-name {name} \
             --hashlimit-htable-size {most} --hashlimit-htable-max {most} --hashlimit-htable-expire {} ",
            Self::RATE,
            Self::BURST,
            Self::EXPIRE
        )
    }
}

/// The options of one `-m hashlimit` during parsing.
#[derive(Default)]
pub(super) struct HashOptions(BTreeMap<String, String>);

impl HashOptions {
    /// Adds an option of the match, without its prefix `--hashlimit-`.
    pub(super) fn take(&mut self, option: &str, value: String) {
        self.0.insert(option.to_owned(), value);
    }

    /// Adds the condition to the match. Fails if the options are neither [`SourceRate`] nor [`Distinct`].
    pub(super) fn finish(mut self, mut when: Match) -> Result<Match, String> {
        if self.0.is_empty() {
            return Ok(when);
        }
        let name = self.0.remove("name").unwrap_or_default();
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
        match self.0.remove("above") {
            Some(above) => {
                // Some versions of iptables do not print defaults.
                for (option, default) in [
                    ("burst", "5"),
                    ("srcmask", "32"),
                    ("htable-expire", "10000"),
                ] {
                    let slot = self.0.entry(option.to_owned());
                    slot.or_insert_with(|| default.to_owned());
                }
                let per_second = number(above.strip_suffix("/sec").map(str::to_owned));
                let burst = number(self.0.get("burst").cloned());
                when.source_rate = Some(SourceRate {
                    name: name.clone(),
                    rate: Rate::exactly(per_second, burst).ok_or("the rate must divide 10000")?,
                    prefix: number(self.0.get("srcmask").cloned()) as u8,
                    expire: number(self.0.get("htable-expire").cloned()),
                });
                self.0.insert("above".to_owned(), above);
            }
            None => {
                when.destination_limit = Some(Distinct {
                    name: name.clone(),
                    max: number(self.0.get("htable-max").cloned()),
                });
            }
        }
        self.0.insert("name".to_owned(), name);
        // The formatted match must have exactly the options that were parsed.
        let formatted = when.clone().then(Target::Return).to_string();
        let tokens: Vec<&str> = formatted.split_whitespace().collect();
        let same = self.0.iter().all(|(option, value)| {
            let flag = format!("--hashlimit-{option}");
            let at = tokens.iter().position(|word| *word == flag);
            at.is_some_and(|at| tokens.get(at + 1) == Some(&value.as_str()))
        });
        match same {
            true => Ok(when),
            false => Err("unsupported hashlimit options".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_rounded_down_to_an_exact_one() {
        for (asked, given) in [(0, 1), (1, 1), (3, 2), (25, 25), (26, 25), (99_999, 10_000)] {
            assert_eq!(Rate::at_most(asked, 5).per_second(), given, "{asked}");
        }
        for rate in Rate::EXACT_RATES {
            assert_eq!(10_000 / (10_000 / rate), rate);
            assert_eq!(1_000_000 / (1_000_000 / rate), rate);
        }
    }
}
