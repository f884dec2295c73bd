//! Evaluates compiled rules for a packet as the kernel does: rules in order, jumps, the policy of the chain. Pure.
//! Out of scope: the order of tables and hooks, and what a decision means to users ([`super::explain`]).

use std::net::Ipv4Addr;

use crate::host::rule::{
    AddrType, Chain, CtState, LinkGroup, Match, Policy, Protocol, Rule, Target, Test,
};

/// The maximum depth of jumps, as in the kernel (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;

/// ICMP echo request.
const ECHO_REQUEST: u8 = 8;

/// A link, as rules match it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketLink {
    /// Its name.
    pub name: String,
    /// Its group (`IFLA_GROUP`).
    pub group: u32,
}

/// The first packet of a flow, at a hook. It exceeds no limit.
#[derive(Clone, Debug)]
pub struct HookPacket {
    /// The source address.
    pub source: Ipv4Addr,
    /// The source MAC; `None`: rules that match it cannot be decided.
    pub mac: Option<[u8; 6]>,
    /// The destination address.
    pub destination: Ipv4Addr,
    /// The type of the destination address in this namespace.
    pub destination_type: AddrType,
    /// The protocol; ICMP is an echo request.
    pub protocol: Protocol,
    /// The destination port; `None` for ICMP and for a fragment other than the first.
    pub port: Option<u16>,
    /// Where it arrived.
    pub in_link: PacketLink,
    /// Where it leaves; `None` before routing, and for a packet to the host itself.
    pub out_link: Option<PacketLink>,
    /// The host has translated its destination.
    pub translated: bool,
}

/// How a chain ends for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The packet continues at the next hook.
    Accepted,
    /// It is dropped or rejected.
    Dropped,
    /// Its destination is translated.
    Translated,
    /// No rule has decided.
    Returned,
}

/// The way of a packet through a builtin chain.
#[derive(Clone, Debug)]
pub struct Traversal<'a> {
    /// The result.
    pub end: End,
    /// The rules that led to it, each with its chain: jumps, then the rule that decided. Empty: the policy of the chain has decided.
    pub rules: Vec<(&'a str, &'a Rule)>,
    /// Number of rules on the way of which is not known whether they match; they were skipped.
    pub unknown: usize,
}

/// Evaluates a builtin chain and the chains that it jumps to.
pub fn traverse<'a>(chains: &'a [Chain], entry: &str, packet: &HookPacket) -> Traversal<'a> {
    let mut traversal = Traversal {
        end: End::Returned,
        rules: Vec::new(),
        unknown: 0,
    };
    let builtin = chains.iter().find(|chain| chain.name == entry);
    traversal.end = match traversal.chain(chains, entry, packet) {
        End::Returned if builtin.and_then(|chain| chain.policy) == Some(Policy::Drop) => {
            End::Dropped
        }
        end => end,
    };
    traversal
}

impl<'a> Traversal<'a> {
    fn chain(&mut self, chains: &'a [Chain], name: &str, packet: &HookPacket) -> End {
        let Some(chain) = chains.iter().find(|chain| chain.name == name) else {
            return End::Returned;
        };
        for rule in &chain.rules {
            let Rule::Known { when, then } = rule else {
                self.unknown += 1;
                continue;
            };
            match packet.matches(when) {
                Some(true) => {}
                Some(false) => continue,
                None => {
                    self.unknown += 1;
                    continue;
                }
            }
            self.rules.push((&chain.name, rule));
            let end = match then {
                Target::Return => {
                    self.rules.pop();
                    return End::Returned;
                }
                Target::Accept | Target::Masquerade => End::Accepted,
                Target::Drop | Target::Reject(_) => End::Dropped,
                Target::Translate(_) => End::Translated,
                Target::Jump(to) if self.rules.len() <= MAX_DEPTH => self.chain(chains, to, packet),
                Target::Jump(_) | Target::ClampMss | Target::Timeout(_) => End::Returned,
            };
            if end != End::Returned {
                return end;
            }
            self.rules.pop();
        }
        End::Returned
    }
}

impl HookPacket {
    /// Whether a rule with these conditions matches; `None` if this cannot be decided.
    fn matches(&self, when: &Match) -> Option<bool> {
        let port_matches = |ports: &std::ops::RangeInclusive<u16>| {
            self.port.is_some_and(|port| ports.contains(&port))
        };
        let out_name = self.out_link.as_ref().map(|link| link.name.as_str());
        let decided = test_holds(&when.in_if, |name| matches_link(name, &self.in_link.name))
            && test_holds(&when.out_if, |name| {
                out_name.is_some_and(|link| matches_link(name, link))
            })
            && test_holds(&when.src, |network| network.contains(self.source))
            && test_holds(&when.dst, |network| network.contains(self.destination))
            && when.protocol.is_none_or(|proto| proto == self.protocol)
            && when.dport.as_ref().is_none_or(port_matches)
            && when.icmp_type.is_none_or(|kind| kind == ECHO_REQUEST)
            && (when.ctstate.is_empty() || when.ctstate.iter().any(|state| self.has_state(*state)))
            && (when.dst_type.is_empty() || when.dst_type.contains(&self.destination_type))
            && group_holds(&when.in_group, Some(&self.in_link))
            && group_holds(&when.out_group, self.out_link.as_ref())
            // These match only packets beyond the limit.
            && when.connlimit.is_none()
            && when.source_rate.is_none();
        match (decided, when.mac_source, self.mac) {
            (false, _, _) => Some(false),
            (true, Some(_), None) => None,
            (true, test, Some(mac)) => Some(test_holds(&test, |expected| *expected == mac)),
            (true, None, None) => Some(true),
        }
    }

    fn has_state(&self, state: CtState) -> bool {
        match state {
            CtState::New => true,
            CtState::Dnat => self.translated,
            CtState::Invalid | CtState::Related | CtState::Established | CtState::Untracked => {
                false
            }
        }
    }
}

fn group_holds(group: &Option<LinkGroup>, link: Option<&PacketLink>) -> bool {
    group
        .as_ref()
        .is_none_or(|group| link.is_some_and(|link| link.group & group.mask == group.value))
}

fn test_holds<T>(test: &Option<Test<T>>, predicate: impl Fn(&T) -> bool) -> bool {
    match test {
        None => true,
        Some(Test::Is(value)) => predicate(value),
        Some(Test::Not(value)) => !predicate(value),
    }
}

fn matches_link(pattern: &str, link: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(beginning) => link.starts_with(beginning),
        None => pattern == link,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> HookPacket {
        let link = |name: &str, group| PacketLink {
            name: name.to_owned(),
            group,
        };
        HookPacket {
            source: Ipv4Addr::new(169, 254, 100, 2),
            mac: Some([2, 0, 0, 0, 0, 2]),
            destination: Ipv4Addr::new(10, 0, 0, 1),
            destination_type: AddrType::Unicast,
            protocol: Protocol::Tcp,
            port: Some(443),
            in_link: link("slabc", 0x736c_0001),
            out_link: Some(link("br0", 0x736c_0002)),
            translated: false,
        }
    }

    fn chain(name: &str, rules: &[&str]) -> Chain {
        Chain::user(
            name,
            rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        )
    }

    #[test]
    fn each_condition_is_decided_as_the_kernel_decides_it() {
        for (conditions, matches) in [
            ("", true),
            ("-i sl+", true),
            ("! -i sl+", false),
            ("-i slx", false),
            ("-o br0", true),
            ("! -o br0", false),
            ("-s 169.254.100.0/30", true),
            ("! -s 169.254.100.2/32", false),
            ("-d 10.0.0.0/8", true),
            ("! -d 10.0.0.0/8", false),
            ("-p udp", false),
            ("-p tcp --dport 443", true),
            ("-p tcp --dport 1:442", false),
            ("-p icmp --icmp-type 8", false),
            ("-p tcp --tcp-flags SYN,RST SYN", true),
            ("-m conntrack --ctstate RELATED,ESTABLISHED", false),
            ("-m conntrack --ctstate NEW", true),
            ("-m conntrack --ctstate DNAT", false),
            ("-m conntrack ! --ctstatus CONFIRMED", true),
            ("-m addrtype --dst-type LOCAL", false),
            ("-m addrtype --dst-type UNICAST", true),
            ("-m mac --mac-source 02:00:00:00:00:02", true),
            ("-m mac ! --mac-source 02:00:00:00:00:02", false),
            ("-m devgroup --src-group 0x736c0001", true),
            ("-m devgroup --src-group 0x1", false),
            ("-m devgroup --dst-group 0x736c0000/0xffff0000", true),
            ("-m limit --limit 5/sec --limit-burst 5", true),
            (
                "-m connlimit --connlimit-above 5 --connlimit-mask 32 --connlimit-saddr",
                false,
            ),
        ] {
            let rules = [format!("{conditions} -j DROP")];
            let chains = [chain("FORWARD", &rules.each_ref().map(String::as_str))];
            let found = traverse(&chains, "FORWARD", &packet());
            let expected = match matches {
                true => End::Dropped,
                false => End::Returned,
            };
            assert_eq!(found.end, expected, "{conditions}");
            assert_eq!(found.rules.len(), usize::from(matches), "{conditions}");
        }
    }

    #[test]
    fn rules_and_jumps_are_followed_in_order_and_what_cannot_be_decided_is_counted() {
        let chains = [
            chain(
                "PREROUTING",
                &["-j A", "foreign: a map", "-j B", "-j ACCEPT"],
            ),
            chain("A", &["-d 10.0.0.0/8 -j RETURN", "-j DROP"]),
            chain("B", &["-j NOWHERE", "-j DNAT --to-destination 10.0.0.9"]),
        ];
        let found = traverse(&chains, "PREROUTING", &packet());
        assert_eq!((found.end, found.unknown), (End::Translated, 1));
        let way: Vec<&str> = found.rules.iter().map(|(chain, _)| *chain).collect();
        assert_eq!(way, ["PREROUTING", "B"]);
        // A MAC is not known behind a router.
        let chains = [chain(
            "FORWARD",
            &["-m mac --mac-source 02:00:00:00:00:02 -j DROP"],
        )];
        let unknown = HookPacket {
            mac: None,
            ..packet()
        };
        let found = traverse(&chains, "FORWARD", &unknown);
        assert_eq!((found.end, found.unknown), (End::Returned, 1));
        // A chain that jumps to itself ends, as the kernel would refuse it.
        let chains = [chain("FORWARD", &["-j FORWARD"])];
        assert_eq!(traverse(&chains, "FORWARD", &packet()).end, End::Returned);
        let mut chains = [chain("FORWARD", &[])];
        chains[0].policy = Some(Policy::Drop);
        let found = traverse(&chains, "FORWARD", &packet());
        assert_eq!((found.end, found.rules.len()), (End::Dropped, 0));
    }
}
