//! Numbers of nf_tables and x_tables under their kernel names.
//! Out of scope: numbers that `libc` has with a suitable type.
//!
//! Headers: linux/netfilter/nf_tables.h, nf_tables_compat.h, nf_conntrack_common.h, nf_nat.h and xt_*.h, linux/netfilter.h, linux/icmp.h,
//! netinet/tcp.h.

/// `NFNL_SUBSYS_NFTABLES << 8` of linux/netfilter/nfnetlink.h.
pub const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;

/// A message type of nf_tables (`enum nf_tables_msg_types`).
const fn message(kind: libc::c_int) -> u16 {
    NFTABLES | kind as u16
}

pub const NFT_MSG_NEWTABLE: u16 = message(libc::NFT_MSG_NEWTABLE);
pub const NFT_MSG_GETTABLE: u16 = message(libc::NFT_MSG_GETTABLE);
pub const NFT_MSG_NEWCHAIN: u16 = message(libc::NFT_MSG_NEWCHAIN);
pub const NFT_MSG_GETCHAIN: u16 = message(libc::NFT_MSG_GETCHAIN);
pub const NFT_MSG_GETRULE: u16 = message(libc::NFT_MSG_GETRULE);
pub const NFT_MSG_DELRULE: u16 = message(libc::NFT_MSG_DELRULE);
pub const NFT_MSG_GETSET: u16 = message(libc::NFT_MSG_GETSET);
pub const NFT_MSG_GETSETELEM: u16 = message(libc::NFT_MSG_GETSETELEM);
pub const NFT_MSG_GETGEN: u16 = message(libc::NFT_MSG_GETGEN);

// `enum nft_gen_attributes`.
pub const NFTA_GEN_ID: u16 = 1;

// `enum nft_table_attributes`, `enum nft_table_flags`.
pub const NFTA_TABLE_NAME: u16 = 1;
pub const NFTA_TABLE_FLAGS: u16 = 2;
pub const NFTA_TABLE_USE: u16 = 3;
pub const NFTA_TABLE_HANDLE: u16 = 4;
pub const NFT_TABLE_F_DORMANT: u32 = 1;

// `enum nft_chain_attributes`, `enum nft_hook_attributes`.
pub const NFTA_CHAIN_TABLE: u16 = 1;
pub const NFTA_CHAIN_NAME: u16 = 3;
pub const NFTA_CHAIN_HOOK: u16 = 4;
pub const NFTA_CHAIN_POLICY: u16 = 5;
pub const NFTA_CHAIN_TYPE: u16 = 7;
pub const NFTA_HOOK_HOOKNUM: u16 = 1;
pub const NFTA_HOOK_PRIORITY: u16 = 2;

// `enum nft_rule_attributes`.
pub const NFTA_RULE_TABLE: u16 = 1;
pub const NFTA_RULE_CHAIN: u16 = 2;
pub const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub const NFTA_RULE_USERDATA: u16 = 7;

// `enum nft_expr_attributes`.
pub const NFTA_EXPR_NAME: u16 = 1;
pub const NFTA_EXPR_DATA: u16 = 2;

// `enum nft_data_attributes`, `enum nft_verdict_attributes`.
pub const NFTA_DATA_VALUE: u16 = 1;
pub const NFTA_DATA_VERDICT: u16 = 2;
pub const NFTA_VERDICT_CODE: u16 = 1;
pub const NFTA_VERDICT_CHAIN: u16 = 2;

// `enum nft_registers`; `NFT_REG_1` to `_4` have `NFT_REG_SIZE` bytes, the others `NFT_REG32_SIZE`.
pub const NFT_REG_1: u32 = libc::NFT_REG_1 as u32;
pub const NFT_REG_4: u32 = libc::NFT_REG_4 as u32;
pub const NFT_REG32_00: u32 = libc::NFT_REG32_00 as u32;
pub const NFT_REG_SIZE: u32 = libc::NFT_REG_SIZE as u32;
pub const NFT_REG32_SIZE: u32 = libc::NFT_REG32_SIZE as u32;

// `enum nft_immediate_attributes`, `enum nft_counter_attributes`.
pub const NFTA_IMMEDIATE_DREG: u16 = 1;
pub const NFTA_IMMEDIATE_DATA: u16 = 2;
pub const NFTA_COUNTER_PACKETS: u16 = 2;

// `enum nft_meta_attributes`, `enum nft_meta_keys`.
pub const NFTA_META_DREG: u16 = 1;
pub const NFTA_META_KEY: u16 = 2;
pub const NFTA_META_SREG: u16 = 3;
pub const NFT_META_PROTOCOL: u32 = libc::NFT_META_PROTOCOL as u32;
pub const NFT_META_MARK: u32 = libc::NFT_META_MARK as u32;
pub const NFT_META_IIF: u32 = libc::NFT_META_IIF as u32;
pub const NFT_META_OIF: u32 = libc::NFT_META_OIF as u32;
pub const NFT_META_IIFNAME: u32 = libc::NFT_META_IIFNAME as u32;
pub const NFT_META_OIFNAME: u32 = libc::NFT_META_OIFNAME as u32;
pub const NFT_META_IIFTYPE: u32 = libc::NFT_META_IIFTYPE as u32;
pub const NFT_META_OIFTYPE: u32 = libc::NFT_META_OIFTYPE as u32;
pub const NFT_META_NFPROTO: u32 = libc::NFT_META_NFPROTO as u32;
pub const NFT_META_L4PROTO: u32 = libc::NFT_META_L4PROTO as u32;
pub const NFT_META_PKTTYPE: u32 = libc::NFT_META_PKTTYPE as u32;

// `enum nft_ct_attributes`, `enum nft_ct_keys`.
pub const NFTA_CT_DREG: u16 = 1;
pub const NFTA_CT_KEY: u16 = 2;
pub const NFTA_CT_DIRECTION: u16 = 3;
pub const NFTA_CT_SREG: u16 = 4;
pub const NFT_CT_STATE: u32 = libc::NFT_CT_STATE as u32;
pub const NFT_CT_DIRECTION: u32 = libc::NFT_CT_DIRECTION as u32;
pub const NFT_CT_STATUS: u32 = libc::NFT_CT_STATUS as u32;
pub const NFT_CT_MARK: u32 = libc::NFT_CT_MARK as u32;

// `enum nft_payload_attributes`, `enum nft_payload_bases`.
pub const NFTA_PAYLOAD_DREG: u16 = 1;
pub const NFTA_PAYLOAD_BASE: u16 = 2;
pub const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub const NFTA_PAYLOAD_LEN: u16 = 4;
pub const NFTA_PAYLOAD_SREG: u16 = 5;
pub const NFT_PAYLOAD_LL_HEADER: u32 = libc::NFT_PAYLOAD_LL_HEADER as u32;
pub const NFT_PAYLOAD_NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
pub const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;

// `enum nft_bitwise_attributes`, `enum nft_bitwise_ops` (newer headers: `NFT_BITWISE_MASK_XOR`), `enum nft_byteorder_attributes`.
pub const NFTA_BITWISE_SREG: u16 = 1;
pub const NFTA_BITWISE_DREG: u16 = 2;
pub const NFTA_BITWISE_MASK: u16 = 4;
pub const NFTA_BITWISE_XOR: u16 = 5;
pub const NFTA_BITWISE_OP: u16 = 6;
pub const NFT_BITWISE_BOOL: u32 = 0;
pub const NFTA_BYTEORDER_DREG: u16 = 2;

// `enum nft_cmp_attributes`, `enum nft_cmp_ops`.
pub const NFTA_CMP_SREG: u16 = 1;
pub const NFTA_CMP_OP: u16 = 2;
pub const NFTA_CMP_DATA: u16 = 3;
pub const NFT_CMP_EQ: u32 = libc::NFT_CMP_EQ as u32;
pub const NFT_CMP_NEQ: u32 = libc::NFT_CMP_NEQ as u32;
pub const NFT_CMP_LT: u32 = libc::NFT_CMP_LT as u32;
pub const NFT_CMP_LTE: u32 = libc::NFT_CMP_LTE as u32;
pub const NFT_CMP_GT: u32 = libc::NFT_CMP_GT as u32;
pub const NFT_CMP_GTE: u32 = libc::NFT_CMP_GTE as u32;

// `enum nft_range_attributes`, `enum nft_range_ops`.
pub const NFTA_RANGE_SREG: u16 = 1;
pub const NFTA_RANGE_OP: u16 = 2;
pub const NFTA_RANGE_FROM_DATA: u16 = 3;
pub const NFTA_RANGE_TO_DATA: u16 = 4;
pub const NFT_RANGE_EQ: u32 = libc::NFT_RANGE_EQ as u32;

// `enum nft_lookup_attributes`, `enum nft_lookup_flags`.
pub const NFTA_LOOKUP_SET: u16 = 1;
pub const NFTA_LOOKUP_SREG: u16 = 2;
pub const NFTA_LOOKUP_DREG: u16 = 3;
pub const NFTA_LOOKUP_FLAGS: u16 = 5;
pub const NFT_LOOKUP_F_INV: u32 = libc::NFT_LOOKUP_F_INV as u32;

// `enum nft_limit_attributes`, `enum nft_limit_type`, `enum nft_limit_flags`.
pub const NFTA_LIMIT_RATE: u16 = 1;
pub const NFTA_LIMIT_UNIT: u16 = 2;
pub const NFTA_LIMIT_BURST: u16 = 3;
pub const NFTA_LIMIT_TYPE: u16 = 4;
pub const NFTA_LIMIT_FLAGS: u16 = 5;
pub const NFT_LIMIT_PKTS: u32 = libc::NFT_LIMIT_PKTS as u32;
pub const NFT_LIMIT_F_INV: u32 = libc::NFT_LIMIT_F_INV as u32;

// `enum nft_nat_attributes`, `enum nft_nat_types`, `enum nft_masq_attributes`.
pub const NFTA_NAT_TYPE: u16 = 1;
pub const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
pub const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
pub const NFTA_MASQ_FLAGS: u16 = 1;
pub const NFT_NAT_DNAT: u32 = libc::NFT_NAT_DNAT as u32;

// `enum nft_reject_attributes`, `enum nft_reject_types`, linux/icmp.h.
pub const NFTA_REJECT_TYPE: u16 = 1;
pub const NFTA_REJECT_ICMP_CODE: u16 = 2;
pub const NFT_REJECT_ICMP_UNREACH: u32 = libc::NFT_REJECT_ICMP_UNREACH as u32;
pub const NFT_REJECT_TCP_RST: u32 = libc::NFT_REJECT_TCP_RST as u32;
pub const ICMP_PKT_FILTERED: u8 = 13;

// `enum nft_match_attributes`, `enum nft_target_attributes`.
pub const NFTA_MATCH_NAME: u16 = 1;
pub const NFTA_MATCH_REV: u16 = 2;
pub const NFTA_MATCH_INFO: u16 = 3;
pub const NFTA_TARGET_NAME: u16 = 1;
pub const NFTA_TARGET_REV: u16 = 2;
pub const NFTA_TARGET_INFO: u16 = 3;

// `enum nft_set_attributes`, `enum nft_set_flags`, `enum nft_set_elem_list_attributes`.
pub const NFTA_SET_TABLE: u16 = 1;
pub const NFTA_SET_NAME: u16 = 2;
pub const NFTA_SET_FLAGS: u16 = 3;
pub const NFT_SET_INTERVAL: u32 = libc::NFT_SET_INTERVAL as u32;
pub const NFT_SET_CONCAT: u32 = 0x80;
pub const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

// `enum nft_set_elem_attributes`, `enum nft_set_elem_flags`.
pub const NFTA_SET_ELEM_KEY: u16 = 1;
pub const NFTA_SET_ELEM_DATA: u16 = 2;
pub const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub const NFT_SET_ELEM_INTERVAL_END: u32 = libc::NFT_SET_ELEM_INTERVAL_END as u32;
pub const NFT_SET_ELEM_CATCHALL: u32 = 2;

// linux/netfilter.h.
pub const NF_DROP: u32 = 0;
pub const NF_ACCEPT: u32 = 1;
pub const NF_INET_PRE_ROUTING: u32 = 0;
pub const NF_INET_LOCAL_IN: u32 = 1;
pub const NF_INET_FORWARD: u32 = 2;
pub const NF_INET_LOCAL_OUT: u32 = 3;
pub const NF_INET_POST_ROUTING: u32 = 4;
pub const NFPROTO_INET: u8 = libc::NFPROTO_INET as u8;
pub const NFPROTO_IPV4: u8 = libc::NFPROTO_IPV4 as u8;

/// `NF_CT_STATE_BIT` of linux/netfilter/nf_conntrack_common.h, `XT_CONNTRACK_STATE_BIT` of xt_conntrack.h, of `enum ip_conntrack_info`
/// in the original direction.
const fn state_bit(ctinfo: u32) -> u32 {
    1 << (ctinfo + 1)
}

const IP_CT_ESTABLISHED: u32 = 0;
const IP_CT_RELATED: u32 = 1;
const IP_CT_NEW: u32 = 2;
const IP_CT_NUMBER: u32 = 5;
pub const XT_CONNTRACK_STATE_INVALID: u32 = 1 << 0;
pub const XT_CONNTRACK_STATE_ESTABLISHED: u32 = state_bit(IP_CT_ESTABLISHED);
pub const XT_CONNTRACK_STATE_RELATED: u32 = state_bit(IP_CT_RELATED);
pub const XT_CONNTRACK_STATE_NEW: u32 = state_bit(IP_CT_NEW);
pub const XT_CONNTRACK_STATE_DNAT: u32 = 1 << (IP_CT_NUMBER + 2);
pub const XT_CONNTRACK_STATE_UNTRACKED: u32 = 1 << (IP_CT_NUMBER + 3);

// `enum ip_conntrack_status`.
pub const IPS_SEEN_REPLY: u32 = 1 << 1;
pub const IPS_ASSURED: u32 = 1 << 2;
pub const IPS_CONFIRMED: u32 = 1 << 3;
pub const IPS_SRC_NAT: u32 = 1 << 4;

// linux/netfilter/xt_conntrack.h: `match_flags` and `invert_flags`.
pub const XT_CONNTRACK_STATE: u16 = 1 << 0;
pub const XT_CONNTRACK_STATUS: u16 = 1 << 6;
pub const XT_CONNTRACK_STATE_ALIAS: u16 = 1 << 13;

// linux/netfilter/xt_devgroup.h, xt_connlimit.h, xt_limit.h, xt_hashlimit.h (`XT_HASHLIMIT_SCALE_v2`), xt_TCPMSS.h.
pub const XT_DEVGROUP_MATCH_SRC: u32 = 0x1;
pub const XT_DEVGROUP_MATCH_DST: u32 = 0x4;
pub const XT_CONNLIMIT_DADDR: u32 = 1 << 1;
pub const XT_LIMIT_SCALE: u32 = 10_000;
pub const XT_HASHLIMIT_SCALE_V2: u64 = 1_000_000;
pub const XT_HASHLIMIT_HASH_DIP: u32 = 1 << 0;
pub const XT_HASHLIMIT_HASH_SIP: u32 = 1 << 2;
pub const XT_HASHLIMIT_INVERT: u32 = 1 << 4;
pub const XT_TCPMSS_CLAMP_PMTU: u16 = 0xffff;

// linux/netfilter_ipv4/ipt_REJECT.h, linux/netfilter/nf_nat.h.
pub const IPT_TCP_RESET: u32 = 7;
pub const IPT_ICMP_ADMIN_PROHIBITED: u32 = 8;
pub const NF_NAT_RANGE_MAP_IPS: u32 = 1 << 0;
pub const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 1 << 1;

// netinet/tcp.h: flags in byte 13 of the TCP header.
pub const TH_SYN: u8 = 0x02;
pub const TH_RST: u8 = 0x04;
pub const TH_ACK: u8 = 0x10;
