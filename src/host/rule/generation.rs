//! Which state of a namespace's rules was seen.
//! Out of scope: the rules; seeing them.

/// Counts the transactions of a namespace's nf_tables: each leaves another behind (`base_seq`, of which messages carry the
/// lower half in `nfgenmsg`'s `res_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u16);

impl Generation {
    /// Of the whole number (`NFTA_GEN_ID`).
    pub fn of_id(id: u32) -> Self {
        Self(id as u16)
    }

    /// Of a message of nf_tables, without its `nlmsghdr`.
    pub fn of(body: &[u8]) -> Option<Self> {
        let bytes = body.get(2..4)?.try_into().ok()?;
        Some(Self(u16::from_be_bytes(bytes)))
    }

    /// Whether whoever saw this one saw `other`, too: it is the same, or came later.
    pub fn covers(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) < 1 << 15
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_covers_itself_and_those_before_it_past_the_end_of_the_numbers_too() {
        for (seen, other, covers) in [
            (5, 5, true),
            (5, 4, true),
            (5, 6, false),
            (2, u16::MAX, true),
            (u16::MAX, 2, false),
        ] {
            assert_eq!(
                Generation(seen).covers(Generation(other)),
                covers,
                "{seen} {other}"
            );
        }
    }
}
