//! `KIND NAME`, `KIND/NAME`: parses references to objects.
//! Out of scope: whether the objects exist.

use std::fmt;
use std::str::FromStr;

use super::failure::Failure;
use crate::api::meta::Name;
use crate::api::view::{Kind, Object};

/// Reference to an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: Name,
}

impl Target {
    /// The reference to an object.
    pub fn of(object: &Object) -> Self {
        Self {
            kind: object.kind(),
            name: object.metadata().name.clone(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text
            .split_once('/')
            .ok_or_else(|| format!("invalid target \"{text}\": expected KIND/NAME"))?;
        Ok(Self {
            kind: kind.parse().map_err(|e| format!("{e}"))?,
            name: name.parse().map_err(|e| format!("{e}"))?,
        })
    }
}

/// All kinds, in the order in which `get all` lists them.
pub const KINDS: [Kind; 3] = [Kind::HostGroup, Kind::Vm, Kind::Lease];

/// All objects of some kinds, or a list of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All objects of these kinds: at least one kind, each once.
    All(Vec<Kind>),
    /// These objects, in the given order.
    Some(Vec<Target>),
}

/// Parses `KIND[,KIND]…`, `all`, `KIND[,KIND]… NAME…` or `KIND/NAME…`.
pub fn selection(args: &[String]) -> Result<Selection, Failure> {
    parse_selection(args).map_err(Failure::Usage)
}

fn parse_selection(args: &[String]) -> Result<Selection, String> {
    match args {
        [] => Err("expected a kind (hostgroup, vm, lease) or KIND/NAME".into()),
        words if words.iter().any(|word| word.contains('/')) => {
            let targets = words.iter().map(|word| word.parse());
            targets.collect::<Result<_, _>>().map(Selection::Some)
        }
        [kinds] => parse_kinds(kinds).map(Selection::All),
        [kinds, names @ ..] => {
            let kinds = parse_kinds(kinds)?;
            let mut targets = Vec::new();
            for name in names {
                let name: Name = name.parse().map_err(|e| format!("{e}"))?;
                let of_kind = |kind: &Kind| Target {
                    kind: *kind,
                    name: name.clone(),
                };
                targets.extend(kinds.iter().map(of_kind));
            }
            Ok(Selection::Some(targets))
        }
    }
}

fn parse_kinds(text: &str) -> Result<Vec<Kind>, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(KINDS.to_vec());
    }
    let mut kinds = Vec::new();
    for word in text.split(',') {
        let kind = word.parse().map_err(|e| format!("{e}"))?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// The same as [`selection`], for commands that require names.
pub fn targets(args: &[String]) -> Result<Vec<Target>, Failure> {
    match selection(args)? {
        Selection::Some(targets) => Ok(targets),
        Selection::All(kinds) => {
            let kinds: Vec<String> = kinds.iter().map(Kind::to_string).collect();
            let kind = kinds.join(",");
            Err(Failure::Usage(format!(
                "missing name of the {kind}: expected `{kind} NAME` or `KIND/NAME`"
            )))
        }
    }
}

/// Parses a VM, written `NAME` or `vm/NAME`.
pub fn vm(text: &str) -> Result<Name, String> {
    of_kind(text, Kind::Vm, "VM")
}

/// Parses a group, written `NAME` or `hostgroup/NAME`.
pub fn group(text: &str) -> Result<Name, String> {
    of_kind(text, Kind::HostGroup, "host group")
}

fn of_kind(text: &str, kind: Kind, noun: &str) -> Result<Name, String> {
    if !text.contains('/') {
        return text.parse().map_err(|e| format!("{e}"));
    }
    let target: Target = text.parse()?;
    match target.kind == kind {
        true => Ok(target.name),
        false => Err(format!("`{target}` is not a {noun}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn all_documented_spellings_of_kinds_and_names_are_parsed() {
        for text in ["vm a-1", "vms a-1", "vm/a-1", "VM/a-1", "vms/a-1"] {
            let targets = targets(&words(text)).unwrap();
            assert_eq!(targets.len(), 1);
            assert_eq!(targets[0].to_string(), "vm/a-1", "{text}");
        }
        for text in ["hg", "hostgroup", "hostgroups"] {
            let all = selection(&words(text)).unwrap();
            assert_eq!(all, Selection::All(vec![Kind::HostGroup]));
        }
        let two = targets(&words("vm/a-1 lease/b-2")).unwrap();
        assert_eq!(two[1].to_string(), "lease/b-2");
    }

    #[test]
    fn several_kinds_are_separated_by_commas_and_all_means_every_kind() {
        for (text, kinds) in [
            ("all", &KINDS[..]),
            ("ALL", &KINDS[..]),
            ("vm,hg", &[Kind::Vm, Kind::HostGroup]),
            ("vms,vm,lease", &[Kind::Vm, Kind::Lease]),
        ] {
            let all = selection(&words(text)).unwrap();
            assert_eq!(all, Selection::All(kinds.to_vec()), "{text}");
        }
        let two = targets(&words("vm,lease a-1 b-2")).unwrap();
        let texts: Vec<String> = two.iter().map(Target::to_string).collect();
        assert_eq!(texts, ["vm/a-1", "lease/a-1", "vm/b-2", "lease/b-2"]);
        for text in ["vm,", ",", "vm,pod", "all,vm", "all", "vm,hg"] {
            assert!(targets(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_kind_that_resembles_a_known_one_is_corrected() {
        for (text, suggestion) in [
            ("vmz", "\"vms\""),
            ("hostgruop/a", "\"hostgroup\""),
            ("host-groups", "\"hostgroups\""),
            ("leese a", "\"lease\""),
            ("vm,leas", "\"lease\""),
        ] {
            let Err(Failure::Usage(error)) = selection(&words(text)) else {
                panic!("{text} is valid");
            };
            let expected = format!("did you mean {suggestion}?");
            assert!(error.contains(&expected), "{text}: {error}");
        }
        let Err(Failure::Usage(error)) = selection(&words("pods")) else {
            panic!("it is valid");
        };
        assert!(error.contains("expected hostgroup (hg), vm or lease"));
    }

    #[test]
    fn an_invalid_target_is_a_usage_error() {
        for text in ["", "pod", "vm/", "vm/A", "vm a_b", "vm/a hg", "/x"] {
            let result = selection(&words(text));
            assert!(matches!(result, Err(Failure::Usage(_))), "{text}");
        }
    }
}
