//! Decodes the kernel's traffic control messages.
//! Out of scope: encoding (`write`).

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcBpfFlags, TcFilterBpfOption, TcFilterU32Option, TcMessage, TcMirrorActionType, TcOption,
    TcU32SelectorFlags,
};

use super::{Filter, Insn, U32_NODE, What};

// Missing in `libc`: attributes of `include/uapi/linux/pkt_cls.h`.
pub(super) const TCA_BPF_OPS_LEN: u16 = 4;
pub(super) const TCA_BPF_OPS: u16 = 5;

/// `None` for messages that are not filters: a priority in use, and the tables of `u32`.
pub(super) fn filter(message: TcMessage) -> Option<Filter> {
    let mut kind = String::new();
    let mut options = Vec::new();
    let mut chain = 0;
    for attribute in message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind = name,
            TcAttribute::Options(nested) => options = nested,
            TcAttribute::Chain(number) => chain = number,
            _ => {}
        }
    }
    let handle = u32::from(message.header.handle);
    let is_table = kind == "u32" && handle & U32_NODE == 0;
    if handle == 0 || is_table {
        return None;
    }
    let action = match kind.as_str() {
        "bpf" => program(&options).map(What::Program),
        "u32" => redirect(&options).map(What::Redirect),
        _ => None,
    };
    let info = message.header.info;
    Some(Filter {
        priority: (info >> 16) as u16,
        protocol: u16::from_be(info as u16),
        chain,
        handle,
        action: action.unwrap_or(What::Other(kind)),
    })
}

/// `None` for an extended program, and for one without direct action.
fn program(options: &[TcOption]) -> Option<Vec<Insn>> {
    let mut code = None;
    let mut direct = false;
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::Other(nla)) if nla.kind() == TCA_BPF_OPS => {
                code = Some(value(nla));
            }
            TcOption::Bpf(TcFilterBpfOption::Flags(flags)) => {
                direct = flags.contains(TcBpfFlags::DirectAction);
            }
            _ => {}
        }
    }
    let code = code.filter(|_| direct)?;
    let length = size_of::<libc::sock_filter>();
    Some(code.chunks_exact(length).map(insn).collect())
}

/// `struct sock_filter { u16 code; u8 jt, jf; u32 k; }`.
fn insn(bytes: &[u8]) -> Insn {
    Insn {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    }
}

/// The target link, if the filter redirects every frame and has no other action.
fn redirect(options: &[TcOption]) -> Option<u32> {
    let mut to = None;
    let mut matches_all = false;
    for option in options {
        match option {
            TcOption::U32(TcFilterU32Option::Selector(selector)) => {
                matches_all = selector.flags == TcU32SelectorFlags::Terminal
                    && selector.keys.iter().all(|key| key.mask == 0);
            }
            TcOption::U32(TcFilterU32Option::Action(actions)) => match actions.as_slice() {
                [action] => to = mirred(action),
                _ => return None,
            },
            // Limited to a link or a packet mark (fwmark), or with another action.
            TcOption::U32(
                TcFilterU32Option::Indev(_)
                | TcFilterU32Option::Mark(_)
                | TcFilterU32Option::Link(_)
                | TcFilterU32Option::Police(_),
            ) => return None,
            _ => {}
        }
    }
    to.filter(|_| matches_all)
}

fn mirred(action: &TcAction) -> Option<u32> {
    let options = action.attributes.iter().find_map(|a| match a {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir
                && mirror.generic.action == TcActionType::Stolen =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
    })
}

fn value(nla: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    bytes
}
