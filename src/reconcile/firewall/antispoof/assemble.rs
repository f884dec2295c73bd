//! Assembles classic BPF: jump targets are labels.
//! Out of scope: what a program evaluates.

use crate::host::tc::{DROP, Insn, PASS};

/// Operations: `BPF_*` of `include/uapi/linux/bpf_common.h`, combined. `A` is the accumulator, `X` the index; offsets are in bytes from the
/// beginning of the frame.
pub(super) mod op {
    /// A = the four bytes at k.
    pub const LOAD_WORD: u16 = 0x20;
    /// A = the two bytes at k.
    pub const LOAD_HALF: u16 = 0x28;
    /// A = the byte at k.
    pub const LOAD_BYTE: u16 = 0x30;
    /// A = the two bytes at X + k.
    pub const LOAD_HALF_AT_X: u16 = 0x48;
    /// A = the frame's length.
    pub const LOAD_LENGTH: u16 = 0x80;
    /// X = the frame's length.
    pub const LENGTH_TO_X: u16 = 0x81;
    /// X = four times the lower half of the byte at k: the length of an IPv4 header.
    pub const HEADER_LENGTH_TO_X: u16 = 0xb1;
    /// A = X.
    pub const X_TO_A: u16 = 0x87;
    /// A = A + k.
    pub const ADD: u16 = 0x04;
    /// A = A & k.
    pub const AND: u16 = 0x54;
    /// Whether A = k.
    pub const EQUAL: u16 = 0x15;
    /// Whether A >= k.
    pub const AT_LEAST: u16 = 0x35;
    /// Whether A & k is not 0.
    pub const HAS_BITS: u16 = 0x45;
    /// Whether A > X.
    pub const MORE_THAN_X: u16 = 0x2d;
    /// Return k.
    pub const RETURN: u16 = 0x06;

    /// For [`LOAD_WORD`]: whether the frame's metadata contains a VLAN tag, where the kernel keeps the outermost one (`SKF_AD_OFF +
    /// SKF_AD_VLAN_TAG_PRESENT` of `include/uapi/linux/filter.h`).
    pub const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;
}

/// Where execution continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To<L> {
    /// The next line.
    Next,
    /// The line after [`Line::At`] with that label.
    Part(L),
    /// Return [`PASS`].
    Pass,
    /// Return [`DROP`].
    Drop,
}

/// A line of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<L> {
    /// A jump target.
    At(L),
    /// An operation and its operand.
    Do(u16, u32),
    /// A test and its operand; where execution continues if it holds, and if not.
    Test(u16, u32, To<L>, To<L>),
    /// Both return instructions, closer than those at the end. The line before it must jump.
    Returns,
}

/// Assembles a listing, and appends the two return instructions.
///
/// # Panics
/// If a label precedes the jump to it or is more than 255 instructions away: a mistake in the listing, whatever its operands.
pub(super) fn assemble<L: Copy + PartialEq>(lines: &[Line<L>]) -> Vec<Insn> {
    let size = |line: &Line<L>| match line {
        Line::At(_) => 0,
        Line::Do(..) | Line::Test(..) => 1,
        Line::Returns => 2,
    };
    let length: usize = lines.iter().map(size).sum();
    let mut exits = Vec::new();
    let mut at = 0;
    for line in lines {
        if *line == Line::Returns {
            exits.push(at);
        }
        at += size(line);
    }
    exits.push(length);
    let place = |label: L| {
        let before = lines
            .iter()
            .take_while(|line| !matches!(line, Line::At(l) if *l == label));
        before.map(size).sum()
    };
    let exit = |from: usize| {
        let ahead = exits.iter().find(|at| **at > from);
        ahead.copied().unwrap_or(length)
    };
    let skip = |from: usize, to: To<L>| {
        let target: usize = match to {
            To::Next => from + 1,
            To::Part(label) => place(label),
            To::Pass => exit(from),
            To::Drop => exit(from) + 1,
        };
        let distance = target.checked_sub(from + 1);
        let short = distance.and_then(|distance| u8::try_from(distance).ok());
        short.expect("a label at most 255 instructions ahead")
    };
    let mut program = Vec::with_capacity(length + 2);
    for line in lines {
        let from = program.len();
        match *line {
            Line::At(_) => {}
            Line::Returns => program.extend([insn(op::RETURN, PASS), insn(op::RETURN, DROP)]),
            Line::Do(code, k) => program.push(insn(code, k)),
            Line::Test(code, k, then, otherwise) => program.push(Insn {
                jt: skip(from, then),
                jf: skip(from, otherwise),
                ..insn(code, k)
            }),
        }
    }
    program.extend([insn(op::RETURN, PASS), insn(op::RETURN, DROP)]);
    program
}

fn insn(code: u16, k: u32) -> Insn {
    Insn {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}
