//! What the decoders of the parts of a rule share.
//! Out of scope: the parts (`decode`, `limits`).

/// Something that no supported rule contains.
#[derive(Debug)]
pub struct Unknown;

/// The result of decoding a part of a rule.
pub type Decoded = Result<(), Unknown>;

/// Sets a condition that was not set before: a rule with the same condition twice is not supported.
pub fn once<T>(slot: &mut Option<T>, value: T) -> Decoded {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Unknown),
    }
}

/// `N` bytes at an offset.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Unknown> {
    bytes
        .get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(Unknown)
}
