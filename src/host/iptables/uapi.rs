//! Numbers of nf_tables under their kernel names: linux/netfilter/nf_tables.h, and linux/netfilter.h.
//! Out of scope: numbers that `libc` has with a suitable type.

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

// `enum nft_set_attributes`, `enum nft_set_elem_list_attributes`.
pub const NFTA_SET_TABLE: u16 = 1;
pub const NFTA_SET_NAME: u16 = 2;
pub const NFTA_SET_FLAGS: u16 = 3;
pub const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

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
