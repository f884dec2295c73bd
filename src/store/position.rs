//! The log position of a database: a number that grows with every batch, a digest of the whole content and a hash chain over all batches.
//! Out of scope: where positions are stored ([`super::integrity`], and the database itself).
//!
//! # Why
//! sled 0.34 recovers to the last position of its log that it can read and reports nothing, so a damaged database looks like
//! an older one. The position is therefore compared with records outside the log, and the content with its digest.

use std::fmt;

/// Bytes of an encoded position.
pub(super) const LENGTH: usize = 72;

/// A position in the log of a database, with digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogPosition {
    /// The id of the database: chosen at random when it is created.
    pub id: [u8; 16],
    /// Grows with every batch that is attempted; a failed batch leaves a gap.
    pub seq: u64,
    /// The value of the chain before this batch.
    pub before: u128,
    /// The digest of all keys and values after this batch.
    pub content: ContentDigest,
    /// The value of the chain: the hash of all fields above. It also verifies an encoded position.
    pub chain: u128,
}

/// The database id and the batch number: a [`LogPosition`] without digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchId {
    /// [`LogPosition::id`].
    pub id: [u8; 16],
    /// [`LogPosition::seq`].
    pub seq: u64,
}

impl BatchId {
    /// Parses the text form. `None`: the text is not a valid position.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, seq) = text.split_once(' ')?;
        let (id, seq) = (u128::from_str_radix(id, 16).ok()?, seq.parse().ok()?);
        let position = Self {
            id: id.to_be_bytes(),
            seq,
        };
        (position.to_string() == text).then_some(position)
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x} {}", u128::from_be_bytes(self.id), self.seq)
    }
}

impl LogPosition {
    /// The position before the first batch. `content` is empty, unless the database is converted from an earlier format.
    pub fn first(id: [u8; 16], content: ContentDigest) -> Self {
        Self::linked(id, 0, 0, content)
    }

    /// The position after one more batch.
    pub fn next(&self, seq: u64, content: ContentDigest) -> Self {
        Self::linked(self.id, seq, self.chain, content)
    }

    /// Whether this position is exactly one batch after `earlier`.
    pub fn follows(&self, earlier: &Self) -> bool {
        self.id == earlier.id && self.seq > earlier.seq && self.before == earlier.chain
    }

    fn linked(id: [u8; 16], seq: u64, before: u128, content: ContentDigest) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("slicectl store: chain of batches");
        hasher.update(&id);
        hasher.update(&seq.to_le_bytes());
        hasher.update(&before.to_le_bytes());
        hasher.update(&content.0.to_le_bytes());
        Self {
            id,
            seq,
            before,
            content,
            chain: short_hash(&hasher),
        }
    }

    /// Encodes the position for storage.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..16].copy_from_slice(&self.id);
        bytes[16..24].copy_from_slice(&self.seq.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.before.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.content.0.to_le_bytes());
        bytes[56..].copy_from_slice(&self.chain.to_le_bytes());
        bytes
    }

    /// Decodes a stored position. `None`: the bytes are not a position, or are damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let number = |from: usize| {
            let mut number = [0; 16];
            number.copy_from_slice(&bytes[from..from + 16]);
            u128::from_le_bytes(number)
        };
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[..16]);
        let mut seq = [0; 8];
        seq.copy_from_slice(&bytes[16..24]);
        let seq = u64::from_le_bytes(seq);
        let position = Self::linked(id, seq, number(24), ContentDigest(number(40)));
        (position.chain == number(56)).then_some(position)
    }
}

/// A digest of a set of keys with their values that does not depend on their order: the sum of the hashes of all pairs. A batch
/// updates it with the pairs that it changes; when the database is opened, it is computed over all pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ContentDigest(u128);

impl ContentDigest {
    /// Adds a key with its new value.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_add(hash(key, value));
    }

    /// Removes a key with its old value.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_sub(hash(key, value));
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new_derive_key("slicectl store: key and value");
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    short_hash(&hasher)
}

/// The first half of a hash. It protects against accidents, not against an adversary, who would need to be root.
pub(super) fn short_hash(hasher: &blake3::Hasher) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(half)
}

#[cfg(test)]
mod tests {
    use super::{BatchId, ContentDigest, LogPosition};

    #[test]
    fn a_position_with_digests_is_read_back_and_any_flipped_bit_is_detected() {
        let mut content = ContentDigest::default();
        content.add(b"key", b"value");
        let position = LogPosition::first([7; 16], ContentDigest::default()).next(3, content);
        let bytes = position.encode();
        assert_eq!(LogPosition::decode(&bytes), Some(position));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(LogPosition::decode(&damaged), None, "bit {bit}");
        }
        assert_eq!(LogPosition::decode(&bytes[1..]), None);
    }

    #[test]
    fn a_digest_depends_on_the_content_and_not_on_the_order_of_changes() {
        let mut straight = ContentDigest::default();
        straight.add(b"a", b"1");
        straight.add(b"b", b"2");
        let mut around = ContentDigest::default();
        for (key, value) in [(b"b", b"2"), (b"c", b"3"), (b"a", b"0")] {
            around.add(key, value);
        }
        assert_ne!(straight, around);
        around.remove(b"c", b"3");
        around.remove(b"a", b"0");
        around.add(b"a", b"1");
        assert_eq!(straight, around);
        let (mut long_key, mut long_value) = (ContentDigest::default(), ContentDigest::default());
        long_key.add(b"ab", b"c");
        long_value.add(b"a", b"bc");
        assert_ne!(long_key, long_value);
    }

    #[test]
    fn a_position_is_parsed_and_any_other_text_is_refused() {
        for (id, seq) in [([0; 16], 0), ([7; 16], 12), ([255; 16], u64::MAX)] {
            let position = BatchId { id, seq };
            assert_eq!(BatchId::parse(&position.to_string()), Some(position));
        }
        let short = "07 3";
        let signed = format!("{} +3", "0".repeat(32));
        for other in ["", "3", short, &signed, &format!("{} ", "0".repeat(32))] {
            assert_eq!(BatchId::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_position_follows_only_its_predecessor() {
        let first = LogPosition::first([7; 16], ContentDigest::default());
        let second = first.next(1, ContentDigest::default());
        let other = first.next(2, ContentDigest::default());
        assert!(second.follows(&first) && other.follows(&first));
        assert!(!first.follows(&second) && !second.follows(&second));
        assert!(!other.next(3, ContentDigest::default()).follows(&second));
        assert!(!LogPosition::first([8; 16], ContentDigest::default()).follows(&first));
    }
}
