//! Encodes traffic control messages.
//! Out of scope: decoding responses (`read`).

use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcBpfFlags, TcFilterBpfOption, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Selector, TcU32SelectorFlags,
};

use super::{Filter, Insn, NUMBER, PRIORITY, What, read};

/// The position of `clsact` and `ingress`.
pub(super) fn hook(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message
}

/// The position of ingress filters.
pub(super) fn ingress(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: TcHandle::MIN_INGRESS,
    };
    message
}

pub(super) fn program(index: u32, program: &[Insn]) -> TcMessage {
    // At most `LONGEST`.
    let length = (program.len() as u16).to_ne_bytes().to_vec();
    let code = program.iter().flat_map(|insn| to_bytes(*insn)).collect();
    let options = vec![
        TcFilterBpfOption::Other(DefaultNla::new(read::TCA_BPF_OPS_LEN, length)),
        TcFilterBpfOption::Other(DefaultNla::new(read::TCA_BPF_OPS, code)),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    filter(
        index,
        "bpf",
        options.into_iter().map(TcOption::Bpf).collect(),
    )
}

pub(super) fn redirect(index: u32, to: u32) -> TcMessage {
    // No key: with one, `u32` does not match frames that are too short for it.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    let mut mirror = TcMirror::default();
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.generic.action = TcActionType::Stolen;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let options = vec![
        TcFilterU32Option::Selector(selector),
        TcFilterU32Option::Action(vec![action]),
    ];
    filter(
        index,
        "u32",
        options.into_iter().map(TcOption::U32).collect(),
    )
}

/// The position of a filter.
pub(super) fn position(index: u32, filter: &Filter) -> TcMessage {
    let mut message = ingress(index);
    message.header.handle = filter.handle.into();
    message.header.info = info(filter.priority, filter.protocol);
    let kind = match &filter.action {
        What::Program(_) => "bpf",
        What::Redirect(_) => "u32",
        What::Other(kind) => kind,
    };
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    if filter.chain != 0 {
        message.attributes.push(TcAttribute::Chain(filter.chain));
    }
    message
}

fn filter(index: u32, kind: &str, options: Vec<TcOption>) -> TcMessage {
    let mut message = ingress(index);
    message.header.handle = NUMBER.into();
    message.header.info = info(PRIORITY, libc::ETH_P_ALL as u16);
    message.attributes = vec![
        TcAttribute::Kind(kind.to_owned()),
        TcAttribute::Options(options),
    ];
    message
}

/// `tcm_info`: the priority, and the EtherType in network order.
fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

/// `struct sock_filter` of `include/uapi/linux/filter.h`.
fn to_bytes(insn: Insn) -> [u8; 8] {
    let [a, b] = insn.code.to_ne_bytes();
    let [c, d, e, f] = insn.k.to_ne_bytes();
    [a, b, insn.jt, insn.jf, c, d, e, f]
}
