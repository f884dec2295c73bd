//! Matches that count: how many flows a source has, how fast it opens them, to how many destinations.
//! Out of scope: which limits apply.
//!
//! # Why these
//! - `connlimit` (`nf_conncount`) counts the entries of a source or destination that are in the table, without those that TCP has
//!   closed. Its state belongs to the rule: a rule that is written again counts from 0.
//! - `hashlimit` keeps a token bucket for each key. The table is found by its name and keeps its first configuration
//!   (`htable_find_get`), so a name must change with the numbers.
//! - A hashlimit table that is full drops the packet (`hotdrop` in `hashlimit_mt_common`), whatever the rate: with the
//!   destination as the key, the table's size is a bound on the number of distinct destinations within its expiry time.

use std::collections::BTreeMap;
use std::fmt;

use super::{Match, Target};

/// Which end of a flow is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Its source.
    Source,
    /// Its destination.
    Destination,
}

/// More than `above` flows whose address has the same first `prefix` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnLimit {
    /// So many are within the limit.
    pub above: u32,
    /// How many bits of the address are the key.
    pub prefix: u8,
    /// Which address.
    pub of: Side,
}

/// A rate that both units of the kernel (`XT_LIMIT_SCALE`, `XT_HASHLIMIT_SCALE_v2`) and nf_tables' `limit` hold exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    per_second: u32,
    burst: u32,
}

impl Rate {
    /// Packets per second that divide 10,000: x_tables keeps 10,000 divided by the rate.
    const EXACT: [u32; 25] = [
        1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 80, 100, 125, 200, 250, 400, 500, 625, 1000, 1250,
        2000, 2500, 5000, 10_000,
    ];

    /// The highest rate that is exact and not above `per_second`, at least 1; after so many packets at once (1 to 10,000).
    pub fn at_most(per_second: u32, burst: u32) -> Self {
        let exact = Self::EXACT.iter().rev().find(|rate| **rate <= per_second);
        Self {
            per_second: exact.copied().unwrap_or(1),
            burst: burst.clamp(1, 10_000),
        }
    }

    /// The rate that the kernel holds, if it is one of these.
    pub fn exactly(per_second: u32, burst: u32) -> Option<Self> {
        let rate = Self::at_most(per_second, burst);
        (rate.per_second == per_second && rate.burst == burst).then_some(rate)
    }

    /// Packets per second.
    pub fn per_second(self) -> u32 {
        self.per_second
    }

    /// Packets at once.
    pub fn burst(self) -> u32 {
        self.burst
    }
}

/// A source exceeds the rate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceRate {
    /// The name of the kernel's table.
    pub name: String,
    /// Packets of one key.
    pub rate: Rate,
    /// How many bits of the source are the key.
    pub prefix: u8,
    /// How long a source's bucket is kept after its last packet, in milliseconds.
    pub expire: u32,
}

/// Passes at most so many distinct destinations within the expiry time: the packet to one more is dropped by the match itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Distinct {
    /// The name of the kernel's table.
    pub name: String,
    /// Destinations.
    pub most: u32,
}

impl SourceRate {
    /// [`SourceRate::expire`] of a limit, in milliseconds: by then the bucket is full again.
    pub const EXPIRE: u32 = 20_000;
    /// Buckets of the kernel's table, which holds eight times as many sources (`htable_create`).
    pub const SIZE: u32 = 1024;
}

impl Distinct {
    /// How long a destination counts after its last packet, in milliseconds: a neighbour that does not answer is asked for for 3 s
    /// (`mcast_solicit` times `retrans_time_ms`), and may be forgotten 5 s after it was last changed (`neigh_forced_gc`).
    pub const EXPIRE: u32 = 5000;
    /// The rate says nothing here: the rule's target does the same as its end.
    pub const RATE: u32 = 1;
    /// And so does the burst.
    pub const BURST: u32 = 1;
}

impl fmt::Display for ConnLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.of {
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
        let Self { name, most } = self;
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

/// The options of one `-m hashlimit` while they are read.
#[derive(Default)]
pub(super) struct HashOptions(BTreeMap<String, String>);

impl HashOptions {
    /// Takes an option of the match, without its `--hashlimit-`.
    pub(super) fn take(&mut self, option: &str, value: String) {
        self.0.insert(option.to_owned(), value);
    }

    /// Gives the match its condition. Fails when the options make none of the two shapes above.
    pub(super) fn finish(mut self, mut when: Match) -> Result<Match, String> {
        if self.0.is_empty() {
            return Ok(when);
        }
        let name = self.0.remove("name").unwrap_or_default();
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
        match self.0.remove("above") {
            Some(above) => {
                let per_second = number(above.strip_suffix("/sec").map(str::to_owned));
                let burst = number(self.0.get("burst").cloned());
                when.source_rate = Some(SourceRate {
                    name: name.clone(),
                    rate: Rate::exactly(per_second, burst).ok_or("not an exact rate")?,
                    prefix: number(self.0.get("srcmask").cloned()) as u8,
                    expire: number(self.0.get("htable-expire").cloned()),
                });
                self.0.insert("above".to_owned(), above);
            }
            None => {
                when.distinct = Some(Distinct {
                    name: name.clone(),
                    most: number(self.0.get("htable-max").cloned()),
                });
            }
        }
        self.0.insert("name".to_owned(), name);
        // What is written for it must hold exactly the options that were read.
        let written = when.clone().then(Target::Return).to_string();
        let words: Vec<&str> = written.split_whitespace().collect();
        let same = self.0.iter().all(|(option, value)| {
            let flag = format!("--hashlimit-{option}");
            let at = words.iter().position(|word| *word == flag);
            at.is_some_and(|at| words.get(at + 1) == Some(&value.as_str()))
        });
        match same {
            true => Ok(when),
            false => Err("another hashlimit than those written here".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_rounded_down_to_one_that_every_unit_holds_exactly() {
        for (asked, given) in [(0, 1), (1, 1), (3, 2), (25, 25), (26, 25), (99_999, 10_000)] {
            assert_eq!(Rate::at_most(asked, 5).per_second(), given, "{asked}");
        }
        for rate in Rate::EXACT {
            assert_eq!(10_000 / (10_000 / rate), rate);
            assert_eq!(1_000_000 / (1_000_000 / rate), rate);
        }
    }
}
