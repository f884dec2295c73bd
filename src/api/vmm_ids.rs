//! The users that VMMs run as: a range of the host's uids (and gids with the same numbers), one for each VM.
//! Out of scope: the assignment to VMs (the store); switching to the user ([`crate::host::process`]).
//!
//! # Why 2013265920 to 2080374783
//! No other software assigns these ids: regular and system users end at 65535 (including systemd's dynamic users), subordinate ids of
//! containers at 600100000 (login.defs(5)), those of systemd-nspawn at 1879048191 (systemd's UIDS-GIDS), and generated ids of
//! directory services (FreeIPA, sssd) at 2000200000. Some programs interpret numbers from 2147483648 as negative. Each daemon starts at a
//! different id in the range, so that two daemons on one host do not use the same ids.

use std::fmt;
use std::str::FromStr;

/// A range of uids, both ends included. It does not contain root; [`IdRange::next_free`] skips the ids that represent no user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    first: u32,
    last: u32,
}

/// The lowest valid id: lower ids belong to system users.
const MIN_ID: u32 = 1000;
/// The id of `nobody`, and the id that 16-bit programs interpret as "no user".
const NOBODY: [u32; 2] = [65534, 65535];
/// The distance between the start ids of daemons. A daemon that needs more ids continues beyond it.
const STRIDE: u32 = 1 << 16;

impl Default for IdRange {
    fn default() -> Self {
        Self {
            first: 0x7800_0000,
            last: 0x7bff_ffff,
        }
    }
}

impl IdRange {
    /// The first id that a daemon assigns, derived from its instance id.
    pub fn start(&self, instance: &str) -> u32 {
        // FNV-1a, 32 bits: the same in every version of this program.
        let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let length = self.last - self.first;
        match length / STRIDE {
            0 => self.first + hash % length.saturating_add(1),
            strides => self.first + hash % (strides + 1) * STRIDE,
        }
    }

    /// The first id that is not `taken`, from `start` to the end of the range and then from its beginning.
    pub fn next_free(&self, start: u32, taken: impl Fn(u32) -> bool) -> Option<u32> {
        let start = match self.contains(start) {
            true => start,
            false => self.first,
        };
        (start..=self.last)
            .chain(self.first..start)
            .find(|id| !NOBODY.contains(id) && !taken(*id))
    }

    /// The first and the last id.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        [self.first, self.last].into_iter()
    }

    /// Whether the range contains an id.
    pub fn contains(&self, id: u32) -> bool {
        (self.first..=self.last).contains(&id)
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for IdRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || {
            format!(
                "invalid range of user ids `{text}`, expected FIRST-LAST such as 2013265920-2013331455"
            )
        };
        let (first, last) = text.split_once('-').ok_or_else(shape)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| shape());
        let (first, last) = (number(first)?, number(last)?);
        if first < MIN_ID || last == u32::MAX || first > last {
            return Err(format!(
                "invalid range of user ids `{text}`: the first must be at least {MIN_ID}, the last at least the first and below {}",
                u32::MAX
            ));
        }
        Ok(Self { first, last })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_parsed_and_those_with_system_ids_refused() {
        let range: IdRange = "65530-65540".parse().unwrap();
        assert_eq!(range.to_string(), "65530-65540");
        assert_eq!(range.next_free(65534, |_| false), Some(65536), "nobody");
        for invalid in ["0-10", "5", "9000-8000", "1000-4294967295", "a-b", ""] {
            assert!(invalid.parse::<IdRange>().is_err(), "{invalid}");
        }
        assert_eq!(
            IdRange::default().to_string().parse::<IdRange>(),
            Ok(IdRange::default())
        );
    }

    #[test]
    fn daemons_start_at_different_ids() {
        let range = IdRange::default();
        let starts: BTreeSet<u32> = ["abcde", "abcdf", "zzzzz", "qrstu"]
            .map(|instance| range.start(instance))
            .into();
        assert_eq!(starts.len(), 4);
    }

    proptest! {
        /// For any order of assigning and releasing ids: all are unique and in the range, and an id is missing only if the range is full.
        #[test]
        fn ids_of_existing_vms_are_unique(
            length in 1_u32..12,
            instance in "[a-z]{5}",
            steps in prop::collection::vec(prop::option::of(0_usize..12), 1..60),
        ) {
            let range: IdRange = format!("70000-{}", 69_999 + length).parse().unwrap();
            let mut next = range.start(&instance);
            prop_assert!(range.contains(next));
            let mut assigned: Vec<u32> = Vec::new();
            for step in steps {
                match step {
                    Some(which) if which < assigned.len() => {
                        assigned.remove(which);
                    }
                    Some(_) => {}
                    None => match range.next_free(next, |id| assigned.contains(&id)) {
                        Some(id) => {
                            prop_assert!(range.contains(id));
                            prop_assert!(!assigned.contains(&id));
                            assigned.push(id);
                            next = id.saturating_add(1);
                        }
                        None => prop_assert_eq!(assigned.len(), length as usize),
                    },
                }
            }
        }
    }
}
