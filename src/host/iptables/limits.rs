//! Kernel formats of the stateful matches and of the target that sets timeouts.
//! Out of scope: their meaning ([`crate::host::rule`]).
//!
//! Formats: linux/netfilter/xt_connlimit.h, xt_hashlimit.h, xt_limit.h, xt_CT.h; native byte order.

use super::draft::{Decoded, Unknown, array, once};
use super::netlink::{attr, be32, text};
use super::uapi::*;
use crate::host::rule::{ConnLimit, Distinct, Match, Rate, Side, SourceRate};

/// `struct xt_connlimit_info { union { nf_inet_addr mask; }; u32 limit; u32 flags; ... }`.
pub fn connlimit(draft: &mut Match, info: &[u8]) -> Decoded {
    let mask = u32::from_be_bytes(array(info, 0)?);
    let above = u32::from_ne_bytes(array(info, 16)?);
    let side = match u32::from_ne_bytes(array(info, 20)?) {
        0 => Side::Source,
        XT_CONNLIMIT_DADDR => Side::Destination,
        _ => return Err(Unknown),
    };
    let prefix = mask.leading_ones();
    if mask.checked_shl(prefix).unwrap_or(0) != 0 {
        return Err(Unknown);
    }
    let prefix = prefix as u8;
    once(
        &mut draft.connlimit,
        ConnLimit {
            above,
            prefix,
            side,
        },
    )
}

/// `struct xt_rateinfo { u32 avg; u32 burst; ... }`, `XT_LIMIT_SCALE` divided by the rate.
pub fn limit(draft: &mut Match, info: &[u8]) -> Decoded {
    let average = u32::from_ne_bytes(array(info, 0)?);
    let burst = u32::from_ne_bytes(array(info, 4)?);
    let per_second = XT_LIMIT_SCALE.checked_div(average).ok_or(Unknown)?;
    if per_second.saturating_mul(average) != XT_LIMIT_SCALE {
        return Err(Unknown);
    }
    let rate = Rate::exactly(per_second, burst).ok_or(Unknown)?;
    once(&mut draft.rate, rate)
}

/// The nf_tables expression `limit`: rate and unit in seconds (be64), burst, type, flags.
pub fn nft_limit(draft: &mut Match, data: &[u8]) -> Decoded {
    let wide = |kind| {
        let bytes = attr(data, kind).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or(Unknown)
    };
    let number = |kind| attr(data, kind).and_then(be32).unwrap_or(0);
    let (rate, unit) = (wide(NFTA_LIMIT_RATE)?, wide(NFTA_LIMIT_UNIT)?);
    let (kind, flags) = (number(NFTA_LIMIT_TYPE), number(NFTA_LIMIT_FLAGS));
    if unit != 1 || kind != NFT_LIMIT_PKTS || flags != 0 {
        return Err(Unknown);
    }
    let per_second = u32::try_from(rate).map_err(|_| Unknown)?;
    let rate = Rate::exactly(per_second, number(NFTA_LIMIT_BURST)).ok_or(Unknown)?;
    once(&mut draft.rate, rate)
}

/// `struct xt_hashlimit_mtinfo3 { char name[255]; struct hashlimit_cfg3 cfg; ... }`, `struct hashlimit_cfg3 { u64 avg, burst; u32 mode,
/// size, max, gc_interval, expire, interval; u8 srcmask, dstmask; }`.
pub fn hashlimit(draft: &mut Match, info: &[u8]) -> Decoded {
    const CONFIG: usize = 256;
    const SOURCE_ABOVE: u32 = XT_HASHLIMIT_HASH_SIP | XT_HASHLIMIT_INVERT;
    /// The default of iptables.
    const COLLECT_EVERY: u32 = 1000;
    let name = text(info.get(..255).ok_or(Unknown)?);
    let wide = |at| array(info, CONFIG + at).map(u64::from_ne_bytes);
    let number = |at| array(info, CONFIG + at).map(u32::from_ne_bytes);
    let (average, burst) = (wide(0)?, wide(8)?);
    let (mode, size, max) = (number(16)?, number(20)?, number(24)?);
    let (every, expire, interval) = (number(28)?, number(32)?, number(36)?);
    let [source_mask, destination_mask] = array(info, CONFIG + 40)?;
    let per_second = XT_HASHLIMIT_SCALE_V2.checked_div(average).ok_or(Unknown)?;
    let burst = u32::try_from(burst).map_err(|_| Unknown)?;
    if every != COLLECT_EVERY
        || interval != 0
        || per_second.checked_mul(average) != Some(XT_HASHLIMIT_SCALE_V2)
    {
        return Err(Unknown);
    }
    let rate = Rate::exactly(per_second as u32, burst).ok_or(Unknown)?;
    match (mode, destination_mask) {
        (SOURCE_ABOVE, 32) => {
            if (size, max) != (SourceRate::SIZE, 0) {
                return Err(Unknown);
            }
            let found = SourceRate {
                name,
                rate,
                prefix: source_mask,
                expire,
            };
            once(&mut draft.source_rate, found)
        }
        (XT_HASHLIMIT_HASH_DIP, 32) => {
            let fixed = (rate.per_second(), burst, expire, source_mask);
            if fixed != (Distinct::RATE, Distinct::BURST, Distinct::EXPIRE, 32) || size != max {
                return Err(Unknown);
            }
            once(&mut draft.destination_limit, Distinct { name, max })
        }
        _ => Err(Unknown),
    }
}

/// `struct xt_ct_target_info_v1 { u16 flags; u16 zone; u32 ct_events; u32 exp_events; char helper[16]; char timeout[32]; ... }`. The
/// kernel returns only four bytes of the timeout's name (`usersize` in xt_CT.c is that of the structure's first version).
pub fn timeout(info: &[u8]) -> Result<String, Unknown> {
    let rest: [u8; 28] = array(info, 0)?;
    let name = text(info.get(28..32).ok_or(Unknown)?);
    match rest.iter().all(|byte| *byte == 0) && !name.is_empty() {
        true => Ok(name),
        false => Err(Unknown),
    }
}
