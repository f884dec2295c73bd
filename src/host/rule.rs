//! One packet filter rule, as iptables writes it and the kernel holds it.
//! Out of scope: the desired state; writing rules to the kernel or reading them back.
//!
//! # Why
//! The rule that is meant, the text that `iptables-restore` gets and the rule that the kernel is found to hold are one
//! type, so "the rules are in force" is `==`. Whatever the kernel holds beyond the shapes written here is [`Rule::Foreign`]:
//! never equal to a rule of ours, never skipped, so that it shows as a difference.

mod generation;
mod limit;
mod parse;
pub mod routing;
mod ruleset;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

pub use generation::Generation;
pub use limit::{ConnLimit, Distinct, Rate, Side, SourceRate};
pub use parse::NotARule;
pub use routing::RoutingRule;
pub use ruleset::{Chain, Policy, Ruleset, Table, TableName};

/// What a [`Rule::Foreign`] starts with when written, so that no text is both.
const FOREIGN: &str = "foreign: ";

/// The longest comment that the `comment` match holds, in bytes (`XT_MAX_COMMENT_LEN` less its NUL).
const COMMENT_LEN: usize = 255;

/// A rule: which packets, and what becomes of them. Written and read (also by serde) in the syntax of `iptables-save`
/// without the leading `-A CHAIN`: `-i tap0 ! -s 169.254.100.2/32 -j DROP`.
///
/// ```
/// use slicectl::host::rule::{Rule, Target};
/// let rule = Rule::when().in_if("tap0").not_src("169.254.100.2/32".parse().unwrap()).then(Target::Drop);
/// assert_eq!(rule.to_string(), "-i tap0 ! -s 169.254.100.2/32 -j DROP");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rule {
    /// A rule of the shapes written here.
    Known {
        /// Which packets.
        when: Box<Match>,
        /// What becomes of them.
        then: Target,
    },
    /// A rule of another shape, in words that only serve to show it.
    Foreign(String),
}

impl Rule {
    /// Starts a rule: add conditions, end with [`Match::then`].
    pub fn when() -> Match {
        Match::default()
    }

    /// The comment on the rule.
    pub fn comment(&self) -> Option<&str> {
        match self {
            Self::Known { when, .. } => when.comment.as_deref(),
            Self::Foreign(_) => None,
        }
    }

    /// The chain that the rule jumps to.
    pub fn jump(&self) -> Option<&str> {
        match self {
            Self::Known {
                then: Target::Jump(chain),
                ..
            } => Some(chain),
            Self::Known { .. } | Self::Foreign(_) => None,
        }
    }
}

/// A condition or its opposite (`!`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Test<T> {
    /// It is so.
    Is(T),
    /// It is not so.
    Not(T),
}

/// Which packets: those that meet every condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    /// `-i`: the link a packet came by; a trailing `+` stands for any ending.
    pub in_if: Option<Test<String>>,
    /// `-o`: the link a packet leaves by.
    pub out_if: Option<Test<String>>,
    /// `-s`.
    pub src: Option<Test<Ipv4Network>>,
    /// `-d`.
    pub dst: Option<Test<Ipv4Network>>,
    /// `-p`.
    pub protocol: Option<Protocol>,
    /// `--dport`: destination ports, both ends included. Needs TCP or UDP.
    pub dport: Option<RangeInclusive<u16>>,
    /// `--icmp-type`, with any code. Needs ICMP.
    pub icmp_type: Option<u8>,
    /// `--tcp-flags`. Needs TCP.
    pub tcp_flags: Option<TcpFlags>,
    /// `--ctstate`: any of these; empty: not asked.
    pub ctstate: BTreeSet<CtState>,
    /// `! --ctstatus CONFIRMED`: the packet makes a new entry in the connection tracking table. Excludes `ctstate`.
    pub unconfirmed: bool,
    /// `-m connlimit`.
    pub connlimit: Option<ConnLimit>,
    /// `-m limit`: the rate is not exceeded.
    pub rate: Option<Rate>,
    /// `-m hashlimit`, packets per second of a source.
    pub source_rate: Option<SourceRate>,
    /// `-m hashlimit`, number of distinct destinations. Excludes `source_rate`.
    pub distinct: Option<Distinct>,
    /// `--mac-source`.
    pub mac_source: Option<Test<[u8; 6]>>,
    /// `-m addrtype --dst-type`: any of these; empty: not asked.
    pub dst_type: BTreeSet<AddrType>,
    /// `-m devgroup --src-group`: the group of the link a packet came by.
    pub in_group: Option<LinkGroup>,
    /// `-m devgroup --dst-group`: the group of the link a packet leaves by.
    pub out_group: Option<LinkGroup>,
    /// `--comment`: says something to people, matches everything.
    pub comment: Option<String>,
}

/// Groups of links (`IFLA_GROUP`): those whose number under `mask` is `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkGroup {
    /// No bits beyond the mask.
    pub value: u32,
    /// The bits that are compared.
    pub mask: u32,
}

impl LinkGroup {
    /// This group alone.
    pub fn only(value: u32) -> Self {
        Self {
            value,
            mask: u32::MAX,
        }
    }

    /// All groups that share these bits.
    pub fn under(value: u32, mask: u32) -> Self {
        Self {
            value: value & mask,
            mask,
        }
    }
}

/// `-p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IP protocol 1.
    Icmp,
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

/// `--tcp-flags MASK COMPARE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpFlags {
    /// `SYN,RST SYN`: a segment that opens a connection, in either direction.
    Syn,
}

/// `--ctstate` (`linux/netfilter/xt_conntrack.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtState {
    /// Belongs to no flow and can start none.
    Invalid,
    /// Starts a flow.
    New,
    /// Starts a flow that a known one announced, or is an error about one.
    Related,
    /// Belongs to a flow that was answered.
    Established,
    /// Its destination was rewritten.
    Dnat,
    /// A rule in `raw` took it out of connection tracking: nothing is translated.
    Untracked,
}

/// `--dst-type`: what the routing tables say about an address (`RTN_*`, `linux/rtnetlink.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddrType {
    /// Another host's.
    Unicast,
    /// This host's own.
    Local,
    /// Everybody's on a link.
    Broadcast,
    /// Accepted like a broadcast, sent as unicast.
    Anycast,
    /// A group's.
    Multicast,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// It passes this table.
    Accept,
    /// It is gone.
    Drop,
    /// Back to the calling chain, or to the policy.
    Return,
    /// On to another chain, and back here if that one has no verdict.
    Jump(String),
    /// It is dropped and its sender is notified.
    Reject(Reject),
    /// Its source becomes the address of the link it leaves by.
    Masquerade,
    /// `TCPMSS --clamp-mss-to-pmtu`.
    ClampMss,
    /// Its destination becomes another: `DNAT --to-destination 10.0.0.1:80`, `REDIRECT`, `NETMAP`, as far as it is known to what. No rule of
    /// ours says so.
    Translate(String),
    /// `CT --timeout NAME`: the entry that the packet makes has the timeouts of that policy. Needs TCP.
    Timeout(String),
}

/// How a sender is notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// A TCP RST (RFC 9293 section 3.5.3). Needs TCP.
    TcpReset,
    /// ICMP 3/13 (RFC 1812 section 5.2.7.1).
    IcmpAdminProhibited,
}

/// Each condition may be asked once; the last word counts. Names of links and chains are the kernel's: no white space.
impl Match {
    /// `-i link`; `+` at its end stands for any ending, `+` alone asks nothing.
    pub fn in_if(mut self, link: impl Into<String>) -> Self {
        self.in_if = Some(Test::Is(link.into())).filter(|test| !is_any_link(test));
        self
    }

    /// `! -i link`.
    pub fn not_in_if(mut self, link: impl Into<String>) -> Self {
        self.in_if = Some(Test::Not(link.into()));
        self
    }

    /// `-o link`.
    pub fn out_if(mut self, link: impl Into<String>) -> Self {
        self.out_if = Some(Test::Is(link.into())).filter(|test| !is_any_link(test));
        self
    }

    /// `! -o link`.
    pub fn not_out_if(mut self, link: impl Into<String>) -> Self {
        self.out_if = Some(Test::Not(link.into()));
        self
    }

    /// `-s network`; its host bits are cleared, as iptables does; /0 asks nothing.
    pub fn src(mut self, network: Ipv4Network) -> Self {
        self.src = Some(Test::Is(canonical(network))).filter(|test| !is_any_network(test));
        self
    }

    /// `! -s network`.
    pub fn not_src(mut self, network: Ipv4Network) -> Self {
        self.src = Some(Test::Not(canonical(network)));
        self
    }

    /// `-d network`; like [`Match::src`].
    pub fn dst(mut self, network: Ipv4Network) -> Self {
        self.dst = Some(Test::Is(canonical(network))).filter(|test| !is_any_network(test));
        self
    }

    /// `! -d network`.
    pub fn not_dst(mut self, network: Ipv4Network) -> Self {
        self.dst = Some(Test::Not(canonical(network)));
        self
    }

    /// `-p protocol`. What was asked of another protocol's packets is asked no longer.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        if self.protocol.replace(protocol) != Some(protocol) {
            self.dport = None;
            self.icmp_type = None;
            self.tcp_flags = None;
        }
        self
    }

    /// `-p protocol --dport from:to`, protocol being TCP or UDP; 0 to 65535 asks nothing about ports.
    pub fn dport(mut self, protocol: Protocol, ports: RangeInclusive<u16>) -> Self {
        self = self.protocol(protocol);
        self.dport = Some(ports).filter(|ports| *ports != (0..=u16::MAX));
        self
    }

    /// `-p icmp --icmp-type 8`.
    pub fn echo_request(mut self) -> Self {
        self = self.protocol(Protocol::Icmp);
        self.icmp_type = Some(8);
        self
    }

    /// `-p tcp --tcp-flags SYN,RST SYN`.
    pub fn tcp_syn(mut self) -> Self {
        self = self.protocol(Protocol::Tcp);
        self.tcp_flags = Some(TcpFlags::Syn);
        self
    }

    /// `-m conntrack --ctstate a,b`.
    pub fn ctstate(mut self, states: impl IntoIterator<Item = CtState>) -> Self {
        self.ctstate = states.into_iter().collect();
        self
    }

    /// `-m conntrack ! --ctstatus CONFIRMED`.
    pub fn unconfirmed(mut self) -> Self {
        self.unconfirmed = true;
        self
    }

    /// `-m connlimit --connlimit-above N --connlimit-mask PREFIX --connlimit-saddr|--connlimit-daddr`.
    pub fn connlimit(mut self, limit: ConnLimit) -> Self {
        self.connlimit = Some(limit);
        self
    }

    /// `-m limit --limit N/sec --limit-burst M`.
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }

    /// `-m hashlimit --hashlimit-above N/sec --hashlimit-mode srcip`.
    pub fn source_rate(mut self, rate: SourceRate) -> Self {
        self.source_rate = Some(rate);
        self
    }

    /// `-m hashlimit --hashlimit-mode dstip --hashlimit-htable-max N`.
    pub fn distinct(mut self, distinct: Distinct) -> Self {
        self.distinct = Some(distinct);
        self
    }

    /// `-m mac --mac-source mac`.
    pub fn mac_source(mut self, mac: [u8; 6]) -> Self {
        self.mac_source = Some(Test::Is(mac));
        self
    }

    /// `-m mac ! --mac-source mac`.
    pub fn not_mac_source(mut self, mac: [u8; 6]) -> Self {
        self.mac_source = Some(Test::Not(mac));
        self
    }

    /// `-m addrtype --dst-type a,b`.
    pub fn dst_type(mut self, types: impl IntoIterator<Item = AddrType>) -> Self {
        self.dst_type = types.into_iter().collect();
        self
    }

    /// `-m devgroup --src-group group`.
    pub fn in_group(mut self, group: LinkGroup) -> Self {
        self.in_group = Some(group);
        self
    }

    /// `-m devgroup --dst-group group`.
    pub fn out_group(mut self, group: LinkGroup) -> Self {
        self.out_group = Some(group);
        self
    }

    /// `-m comment --comment "text"`, cut to what the kernel holds (255 bytes); control characters become spaces, and a
    /// leading `-` goes, because `iptables-restore` would take the text for an option. An empty one is none.
    pub fn comment(mut self, text: impl AsRef<str>) -> Self {
        let text = text.as_ref().replace(char::is_control, " ");
        let text = text.trim_start_matches('-');
        let end = text
            .char_indices()
            .map(|(at, c)| at + c.len_utf8())
            .take_while(|end| *end <= COMMENT_LEN)
            .last();
        self.comment = end.map(|end| text[..end].to_owned());
        self
    }

    /// Makes the rule.
    pub fn then(self, target: Target) -> Rule {
        Rule::Known {
            when: Box::new(self),
            then: target,
        }
    }

    /// [`Match::then`] with a jump.
    pub fn jump(self, chain: impl Into<String>) -> Rule {
        self.then(Target::Jump(chain.into()))
    }
}

fn canonical(network: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(network.network(), network.prefix()).unwrap_or(network)
}

fn is_any_link(test: &Test<String>) -> bool {
    matches!(test, Test::Is(link) if link == "+")
}

fn is_any_network(test: &Test<Ipv4Network>) -> bool {
    matches!(test, Test::Is(network) if network.prefix() == 0)
}

impl<T> Test<T> {
    /// The same test of another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Test<U> {
        match self {
            Self::Is(value) => Test::Is(f(value)),
            Self::Not(value) => Test::Not(f(value)),
        }
    }
}

/// The words of an enum, both ways.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),* })
            }
        }

        impl $type {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value that is written so.
            pub fn of_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.to_string() == word)
            }
        }
    };
}
use words;

words!(Protocol { Icmp = "icmp", Tcp = "tcp", Udp = "udp" });
words!(CtState {
    Invalid = "INVALID",
    New = "NEW",
    Related = "RELATED",
    Established = "ESTABLISHED",
    Dnat = "DNAT",
    Untracked = "UNTRACKED",
});
words!(AddrType {
    Unicast = "UNICAST",
    Local = "LOCAL",
    Broadcast = "BROADCAST",
    Anycast = "ANYCAST",
    Multicast = "MULTICAST",
});
