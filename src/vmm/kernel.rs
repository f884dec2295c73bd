//! A minimal kernel for testing KVM. Pure.
//! Out of scope: booting it (`machine`).
//!
//! # What it does
//! It switches to 64-bit mode with paging, as Linux does, and executes what a processor supports and KVM's instruction emulator does not
//! (arch/x86/kvm/emulate.c): an exception with a return by IRETQ, an SSE2 addition, CMPXCHG16B. Where KVM has no hardware support the guest
//! is emulated and fails here, as Linux would. With these instructions it computes a result from a number in its image and writes it to
//! the first serial port: a program that does not execute it cannot produce the result.
//!
//! # Format
//! An ELF file with one segment and the note that contains the entry point of the PVH boot protocol (Xen, docs/misc/pvh.pandoc): 32-bit
//! protected mode, no paging. QEMU boots it without firmware.

/// Load address.
const BASE: u64 = 0x20_1000;
/// ELF header and two program headers (elf(5)).
const HEADERS: u64 = 64 + 2 * 56;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const ENTRY_NOTE: u32 = 18;
/// Constant in the computation of the result.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Page tables are made at 0x300000 (one to one, 1 GiB), the stack is below 0x310000.
#[rustfmt::skip]
const CODE: [u8; CODE_BYTES] = [
    0xfa, // cli
    0xfc, // cld
    0xbf, 0x00, 0x00, 0x30, 0x00, // mov $0x300000,%edi
    0xb9, 0x00, 0x0c, 0x00, 0x00, // mov $0xc00,%ecx
    0x31, 0xc0, // xor %eax,%eax
    0xf3, 0xab, // rep stos %eax,%es:(%edi)
    0xc7, 0x05, 0x00, 0x00, 0x30, 0x00, 0x03, 0x10, 0x30, 0x00, // movl $0x301003,0x300000
    0xc7, 0x05, 0x00, 0x10, 0x30, 0x00, 0x03, 0x20, 0x30, 0x00, // movl $0x302003,0x301000
    0xbf, 0x00, 0x20, 0x30, 0x00, // mov $0x302000,%edi
    0xb8, 0x83, 0x00, 0x00, 0x00, // mov $0x83,%eax
    0xb9, 0x00, 0x02, 0x00, 0x00, // mov $0x200,%ecx
    0x89, 0x07, // mov %eax,(%edi)
    0x83, 0xc7, 0x08, // add $0x8,%edi
    0x05, 0x00, 0x00, 0x20, 0x00, // add $0x200000,%eax
    0xe2, 0xf4, // loop 0x201033
    0x0f, 0x20, 0xe0, // mov %cr4,%eax
    0x0d, 0x20, 0x06, 0x00, 0x00, // or $0x620,%eax
    0x0f, 0x22, 0xe0, // mov %eax,%cr4
    0xb8, 0x00, 0x00, 0x30, 0x00, // mov $0x300000,%eax
    0x0f, 0x22, 0xd8, // mov %eax,%cr3
    0xb9, 0x80, 0x00, 0x00, 0xc0, // mov $0xc0000080,%ecx
    0x0f, 0x32, // rdmsr
    0x0d, 0x00, 0x01, 0x00, 0x00, // or $0x100,%eax
    0x0f, 0x30, // wrmsr
    0x0f, 0x20, 0xc0, // mov %cr0,%eax
    0x83, 0xe0, 0xfb, // and $0xfffffffb,%eax
    0x0d, 0x03, 0x00, 0x00, 0x80, // or $0x80000003,%eax
    0x0f, 0x22, 0xc0, // mov %eax,%cr0
    0x0f, 0x01, 0x15, 0x50, 0x11, 0x20, 0x00, // lgdtl 0x201150
    0xea, 0x7c, 0x10, 0x20, 0x00, 0x08, 0x00, // ljmp $0x8,$0x20107c
    0xb8, 0x10, 0x00, 0x00, 0x00, // mov $0x10,%eax
    0x8e, 0xd8, // mov %eax,%ds
    0x8e, 0xc0, // mov %eax,%es
    0x8e, 0xd0, // mov %eax,%ss
    0xbc, 0x00, 0x00, 0x31, 0x00, // mov $0x310000,%esp
    0x0f, 0x01, 0x1c, 0x25, 0x56, 0x11, 0x20, 0x00, // lidt 0x201156
    0x4c, 0x8b, 0x04, 0x25, 0x20, 0x11, 0x20, 0x00, // mov 0x201120,%r8
    0x45, 0x31, 0xc9, // xor %r9d,%r9d
    0xcc, // int3
    0x66, 0x49, 0x0f, 0x6e, 0xc0, // movq %r8,%xmm0
    0x66, 0x0f, 0xd4, 0xc0, // paddq %xmm0,%xmm0
    0x66, 0x49, 0x0f, 0x7e, 0xc2, // movq %xmm0,%r10
    0x4c, 0x89, 0x14, 0x25, 0x10, 0x11, 0x20, 0x00, // mov %r10,0x201110
    0x4c, 0x89, 0xd0, // mov %r10,%rax
    0x31, 0xd2, // xor %edx,%edx
    0x48, 0xbb, 0x15, 0x7c, 0x4a, 0x7f, 0xb9, 0x79, 0x37, 0x9e, // movabs $0x9e3779b97f4a7c15,%rbx
    0x4c, 0x31, 0xd3, // xor %r10,%rbx
    0x31, 0xc9, // xor %ecx,%ecx
    0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x10, 0x11, 0x20, 0x00, // lock cmpxchg16b 0x201110
    0x75, 0x2b, // jne 0x201101
    0x4c, 0x8b, 0x04, 0x25, 0x10, 0x11, 0x20, 0x00, // mov 0x201110,%r8
    0x4d, 0x01, 0xc8, // add %r9,%r8
    0xb9, 0x10, 0x00, 0x00, 0x00, // mov $0x10,%ecx
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov $0x3f8,%edx
    0x49, 0xc1, 0xc0, 0x04, // rol $0x4,%r8
    0x44, 0x89, 0xc0, // mov %r8d,%eax
    0x83, 0xe0, 0x0f, // and $0xf,%eax
    0x8a, 0x80, 0x28, 0x11, 0x20, 0x00, // mov 0x201128(%rax),%al
    0xee, // out %al,(%dx)
    0xe2, 0xed, // loop 0x2010eb
    0xb0, 0x0a, // mov $0xa,%al
    0xee, // out %al,(%dx)
    0xf4, // hlt
    0xeb, 0xfd, // jmp 0x201101
    0x49, 0xff, 0xc1, // inc %r9
    0x48, 0xcf, // iretq
];
const CODE_BYTES: usize = 265;
/// Address of the data: the code is padded to a multiple of 16 bytes.
const DATA: u64 = BASE + 272;

/// An image and the output that is expected when it boots.
pub(super) struct TestKernel {
    /// An ELF file.
    pub(super) image: Vec<u8>,
    /// The expected line, without a line break.
    pub(super) answer: String,
}

/// The image for this number, which must be random.
pub(super) fn test_kernel(number: u64) -> TestKernel {
    let answer = (number.wrapping_add(number) ^ MULTIPLIER).wrapping_add(1);
    TestKernel {
        image: image(number),
        answer: format!("{answer:016x}"),
    }
}

fn image(number: u64) -> Vec<u8> {
    let note: Vec<u8> = [4_u32, 8, ENTRY_NOTE]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(*b"Xen\0")
        .chain(BASE.to_le_bytes())
        .collect();
    let segment = segment(number);
    let start = HEADERS + note.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // ET_EXEC, EM_X86_64, version, entry, program headers, no sections.
    push_u16(&mut file, &[2, 62]);
    push_u32(&mut file, &[1]);
    push_u64(&mut file, &[BASE, 64, 0]);
    push_u32(&mut file, &[0]);
    push_u16(&mut file, &[64, 56, 2, 0, 0, 0]);
    // PT_LOAD, readable, writable and executable; PT_NOTE.
    push_u32(&mut file, &[1, 7]);
    let length = segment.len() as u64;
    push_u64(&mut file, &[start, BASE, BASE, length, length, 1]);
    push_u32(&mut file, &[4, 4]);
    let length = note.len() as u64;
    push_u64(&mut file, &[HEADERS, 0, 0, length, length, 4]);
    [file, note, segment].concat()
}

/// Code, then data: operand of CMPXCHG16B, number, digits, segment descriptors, pointers to the descriptor tables, interrupt descriptors.
fn segment(number: u64) -> Vec<u8> {
    let mut bytes = CODE.to_vec();
    bytes.resize(272, 0);
    push_u64(&mut bytes, &[0, 0, number]);
    bytes.extend(b"0123456789abcdef");
    // Null descriptor; 64-bit code; data.
    push_u64(
        &mut bytes,
        &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff],
    );
    // Limit and address of the segment descriptors, then of the interrupt descriptors.
    push_u16(&mut bytes, &[23]);
    push_u32(&mut bytes, &[(DATA + 40) as u32]);
    push_u16(&mut bytes, &[63]);
    push_u64(&mut bytes, &[DATA + 80]);
    // Gates of the exceptions 0 to 3; the last one is the breakpoint's, an interrupt gate to the end of the code.
    let handler = BASE + 260;
    push_u64(&mut bytes, &[0; 6]);
    push_u64(
        &mut bytes,
        &[
            (handler & 0xffff) | 0x8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48,
            0,
        ],
    );
    bytes
}

fn push_u16(to: &mut Vec<u8>, values: &[u16]) {
    to.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn push_u32(to: &mut Vec<u8>, values: &[u32]) {
    to.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn push_u64(to: &mut Vec<u8>, values: &[u64]) {
    to.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_a_different_answer_that_is_not_in_the_image() {
        let [one, other] = [1, 0x1122_3344_5566_7788].map(test_kernel);
        assert_eq!(other.answer, "bc731f31d5869306");
        assert_ne!(one.answer, other.answer);
        assert_eq!(one.image.len(), other.image.len());
        let shown = String::from_utf8_lossy(&other.image);
        assert!(!shown.contains(&other.answer));
    }
}
