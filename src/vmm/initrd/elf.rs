//! What matters of an ELF file: whether it runs without a dynamic linker. Pure.
//! Out of scope: reading the file.

/// `e_machine` of the guests: that of this program.
pub const MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    183
} else {
    62
};
/// `PT_INTERP`.
pub const INTERPRETER: u32 = 3;

/// What matters of an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elf {
    /// `e_machine`.
    pub machine: u16,
    /// Whether it needs a dynamic linker.
    pub is_dynamic: bool,
}

/// Reads the headers of a 64-bit little-endian ELF file.
pub fn elf(head: &[u8]) -> Option<Elf> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*head.get(at..)?.first_chunk()?));
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64_at(32)?).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    let mut is_dynamic = false;
    for at in 0..count {
        is_dynamic |= u32_at(table.checked_add(at * size)?)? == INTERPRETER;
    }
    Some(Elf {
        machine: u16_at(18)?,
        is_dynamic,
    })
}
