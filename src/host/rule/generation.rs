//! The generation of a namespace's nf_tables rules.
//! Out of scope: the rules; reading them.

/// Counts the nf_tables transactions of a namespace: each one increments it (`base_seq`; messages contain its lower half in
/// `res_id` of `nfgenmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u16);

impl Generation {
    /// From the full number (`NFTA_GEN_ID`).
    pub fn of_id(id: u32) -> Self {
        Self(id as u16)
    }

    /// From an nf_tables message without its `nlmsghdr`.
    pub fn of(body: &[u8]) -> Option<Self> {
        let bytes = body.get(2..4)?.try_into().ok()?;
        Some(Self(u16::from_be_bytes(bytes)))
    }

    /// Whether this generation equals `other` or is later, so that a read at this one includes the changes of `other`.
    pub fn covers(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) < 1 << 15
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_covers_itself_and_earlier_ones_also_after_wraparound() {
        for (generation, other, covers) in [
            (5, 5, true),
            (5, 4, true),
            (5, 6, false),
            (2, u16::MAX, true),
            (u16::MAX, 2, false),
        ] {
            assert_eq!(
                Generation(generation).covers(Generation(other)),
                covers,
                "{generation} {other}"
            );
        }
    }
}
