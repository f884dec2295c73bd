//! Detects whether a program is statically linked.
//! Out of scope: running it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// The type of the segment that names the dynamic linker (elf(5)).
const PT_INTERP: u32 = 3;
/// Maximum number of segments that is accepted.
const MOST_SEGMENTS: u16 = 256;

/// Whether this is a 64-bit ELF program that is statically linked: it needs no dynamic linker and no libraries (elf(5)).
pub fn is_static(mut file: &File) -> io::Result<bool> {
    let mut header = [0_u8; 64];
    match file.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    // Bytes 4 and 5 are the class (64 bits) and the byte order (little-endian).
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(false);
    }
    let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (size, count) = (short(54), short(56));
    if size < 4 || count > MOST_SEGMENTS {
        return Ok(false);
    }
    let offset = u64::from_le_bytes(header[32..40].try_into().unwrap_or_default());
    file.seek(SeekFrom::Start(offset))?;
    let mut segment = vec![0_u8; usize::from(size)];
    for _ in 0..count {
        file.read_exact(&mut segment)?;
        if segment[..4] == PT_INTERP.to_le_bytes() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_and_a_script_are_not_static() {
        // The test binary: the Rust toolchain links dynamically by default.
        assert!(!is_static(&File::open("/proc/self/exe").unwrap()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        for bytes in [
            &b""[..],
            b"#!/bin/sh\necho a text that is longer than the header of a program is\n",
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(!is_static(&File::open(&path).unwrap()).unwrap());
        }
        let mut header = [0_u8; 64 + 56];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (header[32], header[54], header[56]) = (64, 56, 1);
        header[64] = 1;
        std::fs::write(&path, header).unwrap();
        assert!(is_static(&File::open(&path).unwrap()).unwrap());
        header[64] = 3;
        std::fs::write(&path, header).unwrap();
        assert!(!is_static(&File::open(&path).unwrap()).unwrap());
        std::fs::write(&path, &header[..70]).unwrap();
        assert!(
            is_static(&File::open(&path).unwrap()).is_err(),
            "it ends too early"
        );
    }
}
