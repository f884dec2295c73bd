//! A packet filter rule, independent of its text and kernel formats.
//! Out of scope: the desired state; writing rules to the kernel or reading them back.
//!
//! # Why
//! The desired rule, the input of `iptables-restore` and the rule read from the kernel have the same type, so `==` shows whether the
//! rules are in force. A kernel rule in any other form is [`Rule::Foreign`]: never equal to a desired rule and never skipped, so that
//! it shows as a difference.

mod generation;
mod limit;
mod parse;
pub mod routing;
mod ruleset;
mod saved;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

pub use generation::Generation;
pub use limit::{ConnLimit, Distinct, Rate, Side, SourceRate};
pub use parse::ParseRuleError;
pub use routing::RoutingRule;
pub use ruleset::{Chain, Policy, Ruleset, Table, TableName};

/// The text prefix of a [`Rule::Foreign`], which no other rule has.
const FOREIGN: &str = "foreign: ";

/// The longest comment that the `comment` match holds, in bytes (`XT_MAX_COMMENT_LEN` less its NUL).
const COMMENT_LEN: usize = 255;

/// A rule: conditions and a target. Formatted and parsed (also by serde) in the syntax of `iptables-save`
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
    /// A rule in a supported form.
    Known {
        /// The conditions.
        when: Box<Match>,
        /// The target.
        then: Target,
    },
    /// A rule in another form, with a text for display only.
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

/// A condition, possibly inverted (`!`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Test<T> {
    /// The value matches.
    Is(T),
    /// Any other value matches.
    Not(T),
}

/// The conditions of a rule: it matches packets that meet all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    /// `-i`: the input link; a trailing `+` matches any suffix.
    pub in_if: Option<Test<String>>,
    /// `-o`: the output link.
    pub out_if: Option<Test<String>>,
    /// `-s`.
    pub src: Option<Test<Ipv4Network>>,
    /// `-d`.
    pub dst: Option<Test<Ipv4Network>>,
    /// `-p`.
    pub protocol: Option<Protocol>,
    /// `--dport`: destination ports, inclusive. Needs TCP or UDP.
    pub dport: Option<RangeInclusive<u16>>,
    /// `--icmp-type`, with any code. Needs ICMP.
    pub icmp_type: Option<u8>,
    /// `--tcp-flags`. Needs TCP.
    pub tcp_flags: Option<TcpFlags>,
    /// `--ctstate`: any of these; empty: no condition.
    pub ctstate: BTreeSet<CtState>,
    /// `! --ctstatus CONFIRMED`: the packet creates a new connection tracking entry. Excludes `ctstate`.
    pub unconfirmed: bool,
    /// `-m connlimit`.
    pub connlimit: Option<ConnLimit>,
    /// `-m limit`: the rate is not exceeded.
    pub rate: Option<Rate>,
    /// `-m hashlimit`, packets per second per source.
    pub source_rate: Option<SourceRate>,
    /// `-m hashlimit`, number of distinct destinations. Excludes `source_rate`.
    pub destination_limit: Option<Distinct>,
    /// `--mac-source`.
    pub mac_source: Option<Test<[u8; 6]>>,
    /// `-m addrtype --dst-type`: any of these; empty: no condition.
    pub dst_type: BTreeSet<AddrType>,
    /// `-m devgroup --src-group`: the group of the input link.
    pub in_group: Option<LinkGroup>,
    /// `-m devgroup --dst-group`: the group of the output link.
    pub out_group: Option<LinkGroup>,
    /// `--comment`: a text for users; has no effect on matching.
    pub comment: Option<String>,
}

/// Groups of links (`IFLA_GROUP`): those whose number under `mask` is `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkGroup {
    /// The group number; has no bits outside the mask.
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
    /// `SYN,RST SYN`: a SYN segment, in either direction.
    Syn,
}

/// `--ctstate` (`linux/netfilter/xt_conntrack.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtState {
    /// Belongs to no flow and cannot start one.
    Invalid,
    /// Starts a flow.
    New,
    /// Starts a flow that an existing one expects, or is an ICMP error for one.
    Related,
    /// Belongs to a flow with packets in both directions.
    Established,
    /// Its destination was translated.
    Dnat,
    /// A rule in `raw` excludes it from connection tracking: it is not translated.
    Untracked,
}

/// `--dst-type`: the type of an address according to the routing tables (`RTN_*`, `linux/rtnetlink.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddrType {
    /// An address of another host.
    Unicast,
    /// An address of this host.
    Local,
    /// A broadcast address.
    Broadcast,
    /// Accepted like a broadcast, sent as unicast.
    Anycast,
    /// A multicast group.
    Multicast,
}

/// The target of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Accepts the packet in this table.
    Accept,
    /// Drops the packet.
    Drop,
    /// Returns to the calling chain, or to the policy.
    Return,
    /// Continues in another chain, and returns here if that one has no verdict.
    Jump(String),
    /// Drops the packet and notifies its sender.
    Reject(Reject),
    /// Translates the source to the address of the output link.
    Masquerade,
    /// `TCPMSS --clamp-mss-to-pmtu`.
    ClampMss,
    /// Translates the destination: `DNAT --to-destination 10.0.0.1:80`, `REDIRECT`, `NETMAP`; the new destination is included if it is
    /// known. sliced never creates such a rule.
    Translate(String),
    /// `CT --timeout NAME`: the connection tracking entry gets the timeouts of that policy. Needs TCP.
    Timeout(String),
}

/// How the sender is notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// A TCP RST (RFC 9293 section 3.5.3). Needs TCP.
    TcpReset,
    /// ICMP 3/13 (RFC 1812 section 5.2.7.1).
    IcmpAdminProhibited,
}

/// Each condition can be set once; the last value applies. Link and chain names must not contain white space.
impl Match {
    /// `-i link`; a trailing `+` matches any suffix, `+` alone sets no condition.
    pub fn in_if(mut self, link: impl Into<String>) -> Self {
        self.in_if = Some(Test::Is(link.into())).filter(|test| !matches_any_link(test));
        self
    }

    /// `! -i link`.
    pub fn not_in_if(mut self, link: impl Into<String>) -> Self {
        self.in_if = Some(Test::Not(link.into()));
        self
    }

    /// `-o link`.
    pub fn out_if(mut self, link: impl Into<String>) -> Self {
        self.out_if = Some(Test::Is(link.into())).filter(|test| !matches_any_link(test));
        self
    }

    /// `! -o link`.
    pub fn not_out_if(mut self, link: impl Into<String>) -> Self {
        self.out_if = Some(Test::Not(link.into()));
        self
    }

    /// `-s network`; its host bits are cleared, as in iptables; /0 sets no condition.
    pub fn src(mut self, network: Ipv4Network) -> Self {
        self.src = Some(Test::Is(canonical(network))).filter(|test| !matches_any_network(test));
        self
    }

    /// `! -s network`.
    pub fn not_src(mut self, network: Ipv4Network) -> Self {
        self.src = Some(Test::Not(canonical(network)));
        self
    }

    /// `-d network`; like [`Match::src`].
    pub fn dst(mut self, network: Ipv4Network) -> Self {
        self.dst = Some(Test::Is(canonical(network))).filter(|test| !matches_any_network(test));
        self
    }

    /// `! -d network`.
    pub fn not_dst(mut self, network: Ipv4Network) -> Self {
        self.dst = Some(Test::Not(canonical(network)));
        self
    }

    /// `-p protocol`. Removes conditions that belong to another protocol.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        if self.protocol.replace(protocol) != Some(protocol) {
            self.dport = None;
            self.icmp_type = None;
            self.tcp_flags = None;
        }
        self
    }

    /// `-p protocol --dport from:to`, with protocol TCP or UDP; 0 to 65535 sets no condition on ports.
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
        self.destination_limit = Some(distinct);
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

    /// `-m comment --comment "text"`, truncated to the kernel's limit (255 bytes). Control characters become spaces, and leading
    /// `-` are removed, because `iptables-restore` would parse the text as an option. An empty text sets no comment.
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

    /// Completes the rule.
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

fn matches_any_link(test: &Test<String>) -> bool {
    matches!(test, Test::Is(link) if link == "+")
}

fn matches_any_network(test: &Test<Ipv4Network>) -> bool {
    matches!(test, Test::Is(network) if network.prefix() == 0)
}

impl<T> Test<T> {
    /// The same test with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Test<U> {
        match self {
            Self::Is(value) => Test::Is(f(value)),
            Self::Not(value) => Test::Not(f(value)),
        }
    }
}

/// Implements conversion of an enum to and from keywords.
macro_rules! keywords {
    ($type:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),* })
            }
        }

        impl $type {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value with this keyword.
            pub fn of_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.to_string() == word)
            }
        }
    };
}
use keywords;

keywords!(Protocol { Icmp = "icmp", Tcp = "tcp", Udp = "udp" });
keywords!(CtState {
    Invalid = "INVALID",
    New = "NEW",
    Related = "RELATED",
    Established = "ESTABLISHED",
    Dnat = "DNAT",
    Untracked = "UNTRACKED",
});
keywords!(AddrType {
    Unicast = "UNICAST",
    Local = "LOCAL",
    Broadcast = "BROADCAST",
    Anycast = "ANYCAST",
    Multicast = "MULTICAST",
});
