//! `KIND NAME`, `KIND/NAME`: parses references to objects.
//! Out of scope: whether the objects exist.

use std::fmt;
use std::str::FromStr;

use super::failure::Failure;
use crate::api::meta::Name;
use crate::api::view::Kind;

/// Reference to an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: Name,
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

/// All objects of a kind, or a list of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All objects of this kind.
    All(Kind),
    /// These objects, in the given order.
    Some(Vec<Target>),
}

/// Parses `KIND`, `KIND NAME…` or `KIND/NAME…`.
pub fn selection(args: &[String]) -> Result<Selection, Failure> {
    let usage_error = |error: String| Failure::Usage(error);
    match args {
        [] => Err(usage_error(
            "expected a kind (hostgroup, vm, lease) or KIND/NAME".into(),
        )),
        words if words.iter().any(|word| word.contains('/')) => words
            .iter()
            .map(|word| word.parse().map_err(usage_error))
            .collect::<Result<_, _>>()
            .map(Selection::Some),
        [kind] => kind
            .parse()
            .map(Selection::All)
            .map_err(|e| usage_error(format!("{e}"))),
        [kind, names @ ..] => {
            let kind: Kind = kind.parse().map_err(|e| usage_error(format!("{e}")))?;
            let target = |name: &String| {
                let name = name.parse().map_err(|e| usage_error(format!("{e}")))?;
                Ok(Target { kind, name })
            };
            names
                .iter()
                .map(target)
                .collect::<Result<_, _>>()
                .map(Selection::Some)
        }
    }
}

/// The same as [`selection`], for commands that require names.
pub fn targets(args: &[String]) -> Result<Vec<Target>, Failure> {
    match selection(args)? {
        Selection::Some(targets) => Ok(targets),
        Selection::All(kind) => Err(Failure::Usage(format!(
            "missing name of the {kind}: expected `{kind} NAME` or `{kind}/NAME`"
        ))),
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
            assert_eq!(all, Selection::All(Kind::HostGroup));
        }
        let two = targets(&words("vm/a-1 lease/b-2")).unwrap();
        assert_eq!(two[1].to_string(), "lease/b-2");
    }

    #[test]
    fn an_invalid_target_is_a_usage_error() {
        for text in ["", "pod", "vm/", "vm/A", "vm a_b", "vm/a hg", "/x"] {
            let result = selection(&words(text));
            assert!(matches!(result, Err(Failure::Usage(_))), "{text}");
        }
    }
}
