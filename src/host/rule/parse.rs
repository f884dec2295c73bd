//! Parses a rule.
//! Out of scope: other iptables options than those of [`Rule`].

use std::str::FromStr;

use ipnetwork::Ipv4Network;

use super::limit::HashOptions;
use super::{
    ConnLimit, FOREIGN, LinkGroup, Match, Protocol, Rate, Reject, Rule, Side, Target, TcpFlags,
};

/// A text that is not a supported rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsupported rule \"{text}\": {reason}")]
pub struct ParseRuleError {
    text: String,
    reason: String,
}

impl FromStr for Rule {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, ParseRuleError> {
        if let Some(foreign) = text.strip_prefix(FOREIGN) {
            return Ok(Self::Foreign(foreign.to_owned()));
        }
        tokenize(text)
            .and_then(|tokens| rule(tokens.into_iter()))
            .map_err(|why| ParseRuleError {
                text: text.to_owned(),
                reason: why,
            })
    }
}

impl TryFrom<String> for Rule {
    type Error = ParseRuleError;
    fn try_from(text: String) -> Result<Self, ParseRuleError> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

type Tokens = std::vec::IntoIter<String>;

pub(super) fn rule(mut tokens: Tokens) -> Result<Rule, String> {
    let mut when = Match::default();
    let mut hash = HashOptions::default();
    while let Some(token) = tokens.next() {
        if let Some(option) = token.strip_prefix("--hashlimit-") {
            hash.take(option, next(&mut tokens, &token)?);
            continue;
        }
        match token.as_str() {
            "-j" => return Ok(hash.finish(when)?.then(target(tokens)?)),
            "!" => {
                let flag = next(&mut tokens, "!")?;
                when = parse_inverted_option(when, &flag, next(&mut tokens, &flag)?)?;
            }
            flag => when = plain(when, flag, &mut tokens)?,
        }
    }
    Err("no target (-j)".into())
}

fn plain(mut when: Match, flag: &str, tokens: &mut Tokens) -> Result<Match, String> {
    if let "--connlimit-saddr" | "--connlimit-daddr" = flag {
        let limit = when
            .connlimit
            .as_mut()
            .ok_or("--connlimit-above must come first")?;
        limit.side = match flag {
            "--connlimit-saddr" => Side::Source,
            _ => Side::Destination,
        };
        return Ok(when);
    }
    let value = next(tokens, flag)?;
    Ok(match flag {
        "-i" => when.in_if(value),
        "-o" => when.out_if(value),
        "-s" => when.src(network(&value)?),
        "-d" => when.dst(network(&value)?),
        "-p" => when.protocol(known(Protocol::of_word(&value), &value)?),
        // The extension of the next option; not needed here.
        "-m" => when,
        "--dport" => {
            let (first, last) = value.split_once(':').unwrap_or((&value, &value));
            let protocol = when.protocol.ok_or("--dport needs -p")?;
            when.dport(protocol, number(first)?..=number(last)?)
        }
        "--icmp-type" => {
            when.icmp_type = Some(match value.as_str() {
                "echo-request" => 8,
                digits => number(digits)?,
            });
            when
        }
        "--tcp-flags" => {
            let compare = next(tokens, flag)?;
            when.tcp_flags = match (value.as_str(), compare.as_str()) {
                ("SYN,RST", "SYN") => Some(TcpFlags::Syn),
                _ => return Err(format!("unsupported --tcp-flags {value} {compare}")),
            };
            when
        }
        "--mac-source" => when.mac_source(mac(&value)?),
        "--connlimit-above" => when.connlimit(ConnLimit {
            above: number(&value)?,
            prefix: 32,
            side: Side::Source,
        }),
        "--connlimit-mask" => {
            let limit = when
                .connlimit
                .as_mut()
                .ok_or("--connlimit-above must come first")?;
            limit.prefix = number(&value)?;
            when
        }
        "--limit" => {
            let per_second = value
                .strip_suffix("/sec")
                .ok_or("invalid rate, expected N/sec")?;
            let rate = Rate::exactly(number(per_second)?, 5).ok_or("the rate must divide 10000")?;
            when.rate(rate)
        }
        "--limit-burst" => {
            let rate = when.rate.ok_or("--limit must come first")?;
            let rate = Rate::exactly(rate.per_second(), number(&value)?);
            when.rate(rate.ok_or("burst out of range, expected 1 to 10000")?)
        }
        "--ctstate" => when.ctstate(set(&value, super::CtState::of_word)?),
        "--dst-type" => when.dst_type(set(&value, super::AddrType::of_word)?),
        "--src-group" => when.in_group(group(&value)?),
        "--dst-group" => when.out_group(group(&value)?),
        "--comment" => when.comment(value),
        other => return Err(format!("unsupported option {other}")),
    })
}

fn parse_inverted_option(when: Match, flag: &str, value: String) -> Result<Match, String> {
    Ok(match flag {
        "-i" => when.not_in_if(value),
        "-o" => when.not_out_if(value),
        "-s" => when.not_src(network(&value)?),
        "-d" => when.not_dst(network(&value)?),
        "--mac-source" => when.not_mac_source(mac(&value)?),
        "--ctstatus" if value == "CONFIRMED" => when.unconfirmed(),
        other => return Err(format!("unsupported inverted option ! {other}")),
    })
}

fn target(tokens: Tokens) -> Result<Target, String> {
    let texts: Vec<String> = tokens.collect();
    let tokens: Vec<&str> = texts.iter().map(String::as_str).collect();
    Ok(match tokens.as_slice() {
        ["ACCEPT"] => Target::Accept,
        ["DROP"] => Target::Drop,
        ["RETURN"] => Target::Return,
        ["MASQUERADE"] => Target::Masquerade,
        ["TCPMSS", "--clamp-mss-to-pmtu"] => Target::ClampMss,
        ["CT", "--timeout", policy] => Target::Timeout((*policy).to_owned()),
        ["REJECT", "--reject-with", "tcp-reset"] => Target::Reject(Reject::TcpReset),
        ["REJECT", "--reject-with", "icmp-admin-prohibited"] => {
            Target::Reject(Reject::IcmpAdminProhibited)
        }
        ["DNAT" | "REDIRECT" | "NETMAP", ..] => Target::Translate(tokens.join(" ")),
        [chain] if !chain.is_empty() => Target::Jump((*chain).to_owned()),
        other => return Err(format!("unsupported target {}", other.join(" "))),
    })
}

fn next(tokens: &mut Tokens, flag: &str) -> Result<String, String> {
    tokens
        .next()
        .ok_or_else(|| format!("missing value after {flag}"))
}

fn known<T>(value: Option<T>, text: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("unsupported value {text}"))
}

fn set<T>(list: &str, parse: fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    list.split(',')
        .map(|text| known(parse(text), text))
        .collect()
}

fn network(text: &str) -> Result<Ipv4Network, String> {
    text.parse()
        .map_err(|_| format!("invalid IPv4 network {text}"))
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("invalid number {text}"))
}

/// `VALUE` or `VALUE/MASK`, in hexadecimal.
fn group(text: &str) -> Result<LinkGroup, String> {
    let bits = |text: &str| {
        let digits = text.strip_prefix("0x");
        let bits = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        bits.ok_or_else(|| format!("invalid 32-bit hexadecimal number {text}"))
    };
    match text.split_once('/') {
        None => Ok(LinkGroup::only(bits(text)?)),
        Some((value, mask)) => {
            let group = LinkGroup::under(bits(value)?, bits(mask)?);
            let valid = bits(value)? == group.value && group.mask != 0;
            valid
                .then_some(group)
                .ok_or_else(|| format!("invalid group {text}: the value has bits outside the mask"))
        }
    }
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let mut mac = [0; 6];
    let parts: Vec<&str> = text.split(':').collect();
    let complete = parts.len() == mac.len()
        && parts.iter().zip(&mut mac).all(|(part, byte)| {
            u8::from_str_radix(part, 16)
                .map(|value| *byte = value)
                .is_ok()
        });
    match complete {
        true => Ok(mac),
        false => Err(format!("invalid MAC address {text}")),
    }
}

/// Splits at spaces outside double quotes; a backslash in quotes escapes the next character.
pub(super) fn tokenize(text: &str) -> Result<Vec<String>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            ' ' => drop(chars.next()),
            '"' => {
                chars.next();
                tokens.push(quoted(&mut chars)?);
            }
            _ => {
                let mut token = String::new();
                while let Some(c) = chars.next_if(|c| *c != ' ') {
                    token.push(c);
                }
                tokens.push(token);
            }
        }
    }
    Ok(tokens)
}

fn quoted(chars: &mut impl Iterator<Item = char>) -> Result<String, String> {
    let mut token = String::new();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(token),
            '\\' => token.extend(chars.next()),
            c => token.push(c),
        }
    }
    Err("unterminated quote".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formatted_rule_parses_to_the_same_rule() {
        for text in [
            "-i tap0 ! -s 169.254.100.2/32 -j DROP",
            "-i slabcde+ -m addrtype --dst-type LOCAL,BROADCAST -j DROP",
            r#"-d 1.2.3.4/32 -p tcp -m tcp --dport 80:90 -m comment --comment "allow[0] \"1.2.3.4:80-90\" \\" -j ACCEPT"#,
            "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
            "-i tap0 -p icmp -m icmp --icmp-type 8 -m mac ! --mac-source 02:00:00:00:00:0a -j SLICE-X",
            "! -o slabcde+ -s 10.0.0.0/8 -m conntrack --ctstate RELATED,ESTABLISHED -j MASQUERADE",
            "-j REJECT --reject-with icmp-admin-prohibited",
            "-d 198.18.0.10/32 -p udp -m udp --dport 53 -j DNAT --to-destination 192.168.1.10:5300",
            "-j REDIRECT",
            "-i slabcde+ -m devgroup --dst-group 0x736c0000/0xffff0000 -j DROP",
            "-o br0 -d 10.0.0.0/8 -m devgroup --src-group 0x736c0001 -j DROP",
            "-m devgroup --src-group 0x1 --dst-group 0x2/0xff -m comment --comment \"x\" -j DROP",
            "-m conntrack ! --ctstatus CONFIRMED -m connlimit --connlimit-above 512 --connlimit-mask 30 --connlimit-saddr -j DROP",
            "-m connlimit --connlimit-above 7 --connlimit-mask 32 --connlimit-daddr -j DROP",
            "-p tcp -m limit --limit 25/sec --limit-burst 256 -j RETURN",
            "-m hashlimit --hashlimit-above 25/sec --hashlimit-burst 256 --hashlimit-mode srcip --hashlimit-name sl-a \
             --hashlimit-htable-size 1024 --hashlimit-htable-expire 20000 --hashlimit-srcmask 30 -j DROP",
            "-m hashlimit --hashlimit-above 1/sec --hashlimit-burst 10000 --hashlimit-mode srcip --hashlimit-name sl-c \
             --hashlimit-htable-size 1024 --hashlimit-htable-expire 3600000 --hashlimit-srcmask 32 -m comment --comment \"x\" -j DROP",
            "-m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 1 --hashlimit-mode dstip --hashlimit-name sl-b \
             --hashlimit-htable-size 256 --hashlimit-htable-max 256 --hashlimit-htable-expire 5000 -j RETURN",
            "-p tcp -j CT --timeout slice-abcde",
            "foreign: [limit] #12345678",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn conditions_that_match_everything_are_not_written() {
        let any = "0.0.0.0/0".parse().unwrap();
        let rule = Rule::when()
            .in_if("+")
            .src(any)
            .dst(any)
            .comment("--\n")
            .then(Target::Return);
        assert_eq!(rule.to_string(), r#"-m comment --comment " " -j RETURN"#);
    }

    #[test]
    fn unsupported_rules_are_refused() {
        for text in [
            "",
            "-j",
            "-i",
            "-j A B",
            "-s 1.2.3.4/33 -j DROP",
            "--dport 1 -j DROP",
            "-m limit --limit 1/s -j DROP",
            "-m limit --limit 3/sec --limit-burst 5 -j DROP",
            "--connlimit-saddr -j DROP",
            "-m hashlimit --hashlimit-above 25/sec --hashlimit-burst 5 --hashlimit-mode dstip --hashlimit-name a -j DROP",
            "-m conntrack ! --ctstatus ASSURED -j DROP",
            "-j CT --notrack",
            r#"--comment "a -j DROP"#,
            "! -p tcp -j DROP",
            "-p gre -j DROP",
            "-m mac --mac-source 02:00 -j DROP",
            "-p tcp --dport 70000 -j DROP",
            "-m devgroup --src-group 1 -j DROP",
            "-m devgroup --src-group 0x1ff/0xff -j DROP",
            "-m devgroup --src-group 0x0/0x0 -j DROP",
            "-m devgroup ! --src-group 0x1 -j DROP",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }
}
