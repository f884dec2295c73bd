//! Parses a rule that `iptables-save` prints, and refuses one of which something would be lost.
//! Out of scope: the lines around a rule.
//!
//! # Why the rule is written again
//! [`Rule`] has fewer options than iptables, and the parser accepts an option twice or a match without options (`-m tcp`, which excludes
//! fragments). So the parsed rule is written again and must have exactly the options that iptables printed. The order of the
//! conditions is not compared, because all of them must hold.

use super::{Rule, Target, parse};

/// Options that iptables does not print, or that we do not write, if they have their default value.
const DEFAULTS: [(&str, &str); 4] = [
    ("--limit-burst", "5"),
    ("--hashlimit-burst", "5"),
    ("--hashlimit-srcmask", "32"),
    ("--hashlimit-htable-expire", "10000"),
];

/// Names of link groups, which iptables prints if it finds them.
const GROUP_NAMES: &str = "/etc/iproute2/group";

impl Rule {
    /// A rule from the tokens after `-A CHAIN`. `is_chain`: whether a target is a user-defined chain and not an extension. `None`: no
    /// supported rule has exactly these options.
    pub fn of_saved(tokens: Vec<String>, is_chain: impl Fn(&str) -> bool) -> Option<Self> {
        let tokens = canonical(tokens);
        let rule = parse::rule(tokens.clone().into_iter()).ok()?;
        if let Self::Known {
            then: Target::Jump(chain),
            ..
        } = &rule
            && !is_chain(chain)
        {
            return None;
        }
        let written = parse::tokenize(&rule.to_string()).ok()?;
        (options(tokens) == options(canonical(written))).then(|| with_first_destination(rule))
    }
}

/// The rule with the first address and port of a new destination alone, as the rules of nf_tables are decoded.
fn with_first_destination(rule: Rule) -> Rule {
    match rule {
        Rule::Known {
            when,
            then: Target::Translate(text),
        } => Rule::Known {
            when,
            then: Target::Translate(first_destination(&text)),
        },
        rule => rule,
    }
}

fn first_destination(text: &str) -> String {
    let mut tokens = text.split(' ');
    let name = tokens.next().unwrap_or_default();
    let to = match (name, tokens.next(), tokens.next()) {
        ("DNAT", Some("--to-destination"), Some(to)) => to,
        _ => return name.to_owned(),
    };
    let (addresses, ports) = to.split_once(':').unwrap_or((to, ""));
    let first = |range: &str| {
        range
            .split(['-', '/'])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    match ports {
        "" => format!("{name} --to-destination {}", first(addresses)),
        ports => format!(
            "{name} --to-destination {}:{}",
            first(addresses),
            first(ports)
        ),
    }
}

/// Replaces spellings that iptables chooses by those that [`Rule`] writes.
fn canonical(mut tokens: Vec<String>) -> Vec<String> {
    for at in 1..tokens.len() {
        let (before, rest) = tokens.split_at_mut(at);
        let (option, value) = (&mut before[at - 1], &mut rest[0]);
        match option.as_str() {
            // The alias of conntrack has no effect on matching (`XT_CONNTRACK_STATE_ALIAS`).
            "-m" if value == "state" => *value = "conntrack".to_owned(),
            "--state" => *option = "--ctstate".to_owned(),
            "--src-group" | "--dst-group" if !value.starts_with("0x") => {
                if let Some(number) = group_number(value) {
                    *value = format!("{number:#x}");
                }
            }
            _ => {}
        }
    }
    tokens
}

/// The number of a named link group; lines are `NUMBER NAME`, decimal or hexadecimal.
fn group_number(name: &str) -> Option<u32> {
    let names = std::fs::read_to_string(GROUP_NAMES).ok()?;
    names.lines().find_map(|line| {
        let (number, found) = line.trim().split_once(char::is_whitespace)?;
        let parsed = match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        };
        parsed.ok().filter(|_| found.trim() == name)
    })
}

/// The options in a comparable order, each with its values and its `!`; the target, which is last, with its options.
fn options(tokens: Vec<String>) -> (Vec<Vec<String>>, Vec<String>) {
    let mut conditions: Vec<Vec<String>> = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    let mut target = Vec::new();
    while let Some(token) = tokens.next() {
        if token == "-j" {
            target.extend(tokens);
            break;
        }
        let mut option = vec![token];
        if option == ["!"] {
            option.extend(tokens.next());
        }
        match option.last().map(String::as_str) {
            // A comment may be any text.
            Some("--comment") => option.extend(tokens.next()),
            _ => {
                while let Some(value) =
                    tokens.next_if(|token| token != "!" && !token.starts_with('-'))
                {
                    option.push(value);
                }
            }
        }
        sort_list(&mut option);
        let is_default =
            matches!(option.as_slice(), [option, value] if DEFAULTS.contains(&(option, value)));
        if !is_default {
            conditions.push(option);
        }
    }
    conditions.sort();
    (conditions, target)
}

/// The order of a list of alternatives, and the case of an address, have no meaning.
fn sort_list(option: &mut [String]) {
    match option {
        [option, value] if ["--ctstate", "--dst-type"].contains(&option.as_str()) => {
            let mut values: Vec<&str> = value.split(',').collect();
            values.sort_unstable();
            *value = values.join(",");
        }
        [.., option, value] if option == "--mac-source" => value.make_ascii_lowercase(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(text: &str) -> Option<String> {
        let tokens = parse::tokenize(text).expect("tokens");
        Rule::of_saved(tokens, |_| true).map(|rule| rule.to_string())
    }

    /// As the rules of nf_tables are decoded: `explain` compares the first address with those of the host.
    #[test]
    fn a_new_destination_is_reduced_to_its_first_address_and_port() {
        for (to, first) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1:80-90", "10.0.0.1:80"),
            ("10.0.0.1-10.0.0.5", "10.0.0.1"),
            ("10.0.0.1-10.0.0.5:80-90/8000 --persistent", "10.0.0.1:80"),
            (":80 --random", ":80"),
        ] {
            let rule = saved(&format!("-j DNAT --to-destination {to}"));
            let expected = format!("-j DNAT --to-destination {first}");
            assert_eq!(rule, Some(expected), "{to}");
        }
        assert_eq!(
            saved("-j REDIRECT --to-ports 8080").as_deref(),
            Some("-j REDIRECT")
        );
    }

    #[test]
    fn an_alias_of_an_option_is_replaced_and_a_comment_is_not_changed() {
        let alias = saved("-m state --state NEW -j DROP");
        assert_eq!(alias.as_deref(), Some("-m conntrack --ctstate NEW -j DROP"));
        let rule = "-m comment --comment \"state\" -j DROP";
        assert_eq!(saved(rule).as_deref(), Some(rule));
        // The parser refuses a comment that could be an option.
        assert_eq!(saved("-m comment --comment \"--state\" -j DROP"), None);
    }
}
