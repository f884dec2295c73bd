//! Formats a rule.
//! Out of scope: parsing.

use std::collections::BTreeSet;
use std::fmt;

use super::{FOREIGN, LinkGroup, Match, Reject, Rule, Target, TcpFlags, Test};

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known { when, then } => write!(f, "{when}-j {then}"),
            Self::Foreign(text) => write!(f, "{FOREIGN}{text}"),
        }
    }
}

/// Each condition is followed by a space.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        option(f, "-i", &self.in_if)?;
        option(f, "-o", &self.out_if)?;
        option(f, "-s", &self.src)?;
        option(f, "-d", &self.dst)?;
        if let Some(protocol) = self.protocol {
            write!(f, "-p {protocol} ")?;
            if self.dport.is_some() || self.icmp_type.is_some() || self.tcp_flags.is_some() {
                write!(f, "-m {protocol} ")?;
            }
        }
        match self
            .dport
            .as_ref()
            .map(|ports| (ports.start(), ports.end()))
        {
            None => {}
            Some((first, last)) if first == last => write!(f, "--dport {first} ")?,
            Some((first, last)) => write!(f, "--dport {first}:{last} ")?,
        }
        if let Some(kind) = self.icmp_type {
            write!(f, "--icmp-type {kind} ")?;
        }
        if let Some(TcpFlags::Syn) = self.tcp_flags {
            f.write_str("--tcp-flags SYN,RST SYN ")?;
        }
        if let Some(test) = self.mac_source {
            f.write_str("-m mac ")?;
            option(f, "--mac-source", &Some(test.map(MacText)))?;
        }
        list(f, "-m conntrack --ctstate", &self.ctstate)?;
        if self.unconfirmed {
            f.write_str("-m conntrack ! --ctstatus CONFIRMED ")?;
        }
        list(f, "-m addrtype --dst-type", &self.dst_type)?;
        shown(f, &self.connlimit)?;
        shown(f, &self.rate)?;
        shown(f, &self.source_rate)?;
        shown(f, &self.destination_limit)?;
        if self.in_group.is_some() || self.out_group.is_some() {
            f.write_str("-m devgroup ")?;
        }
        option(f, "--src-group", &self.in_group.map(Test::Is))?;
        option(f, "--dst-group", &self.out_group.map(Test::Is))?;
        match &self.comment {
            None => Ok(()),
            Some(text) => write!(f, "-m comment --comment {} ", Quoted(text)),
        }
    }
}

fn shown<T: fmt::Display>(f: &mut fmt::Formatter<'_>, value: &Option<T>) -> fmt::Result {
    value.as_ref().map_or(Ok(()), |value| value.fmt(f))
}

fn option<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    flag: &str,
    test: &Option<Test<T>>,
) -> fmt::Result {
    match test {
        None => Ok(()),
        Some(Test::Is(value)) => write!(f, "{flag} {value} "),
        Some(Test::Not(value)) => write!(f, "! {flag} {value} "),
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, flag: &str, set: &BTreeSet<T>) -> fmt::Result {
    for (index, value) in set.iter().enumerate() {
        match index {
            0 => write!(f, "{flag} {value}")?,
            _ => write!(f, ",{value}")?,
        }
    }
    match set.is_empty() {
        true => Ok(()),
        false => f.write_str(" "),
    }
}

impl fmt::Display for LinkGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.value)?;
        match self.mask {
            u32::MAX => Ok(()),
            mask => write!(f, "/{mask:#x}"),
        }
    }
}

struct MacText([u8; 6]);

impl fmt::Display for MacText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// `iptables-restore` treats `\` in quotes as an escape (`libxtables`, `xtables_save_string`).
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("\"")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "ACCEPT",
            Self::Drop => "DROP",
            Self::Return => "RETURN",
            Self::Jump(chain) => chain,
            Self::Reject(Reject::TcpReset) => "REJECT --reject-with tcp-reset",
            Self::Reject(Reject::IcmpAdminProhibited) => {
                "REJECT --reject-with icmp-admin-prohibited"
            }
            Self::Masquerade => "MASQUERADE",
            Self::ClampMss => "TCPMSS --clamp-mss-to-pmtu",
            Self::Translate(text) => text,
            Self::Timeout(policy) => return write!(f, "CT --timeout {policy}"),
        })
    }
}
