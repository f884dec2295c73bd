//! `KIND NAME`, `KIND/NAME`: which objects a person means.
//! Out of scope: whether they exist.

use std::fmt;
use std::str::FromStr;

use super::failure::Failure;
use crate::api::meta::Name;
use crate::api::view::Kind;

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
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
            .ok_or_else(|| format!("`{text}` is no KIND/NAME"))?;
        Ok(Self {
            kind: kind.parse().map_err(|e| format!("{e}"))?,
            name: name.parse().map_err(|e| format!("{e}"))?,
        })
    }
}

/// All of a kind, or some objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every object of this kind.
    All(Kind),
    /// These, in the order given.
    Some(Vec<Target>),
}

/// Reads `KIND`, `KIND NAME…` or `KIND/NAME…`.
pub fn selection(words: &[String]) -> Result<Selection, Failure> {
    let usage = |error: String| Failure::Usage(error);
    match words {
        [] => Err(usage(
            "name a kind (hostgroup, vm, lease) or KIND/NAME".into(),
        )),
        words if words.iter().any(|word| word.contains('/')) => words
            .iter()
            .map(|word| word.parse().map_err(usage))
            .collect::<Result<_, _>>()
            .map(Selection::Some),
        [kind] => kind
            .parse()
            .map(Selection::All)
            .map_err(|e| usage(format!("{e}"))),
        [kind, names @ ..] => {
            let kind: Kind = kind.parse().map_err(|e| usage(format!("{e}")))?;
            let named = |name: &String| {
                let name = name.parse().map_err(|e| usage(format!("{e}")))?;
                Ok(Target { kind, name })
            };
            names
                .iter()
                .map(named)
                .collect::<Result<_, _>>()
                .map(Selection::Some)
        }
    }
}

/// As [`selection`], for verbs that want names.
pub fn targets(words: &[String]) -> Result<Vec<Target>, Failure> {
    match selection(words)? {
        Selection::Some(targets) => Ok(targets),
        Selection::All(kind) => Err(Failure::Usage(format!(
            "name the {kind}: `{kind} NAME` or `{kind}/NAME`"
        ))),
    }
}

/// One VM, written `NAME` or `vm/NAME`.
pub fn vm(text: &str) -> Result<Name, String> {
    of_kind(text, Kind::Vm, "VM")
}

/// One group, written `NAME` or `hostgroup/NAME`.
pub fn group(text: &str) -> Result<Name, String> {
    of_kind(text, Kind::HostGroup, "host group")
}

fn of_kind(text: &str, kind: Kind, words: &str) -> Result<Name, String> {
    if !text.contains('/') {
        return text.parse().map_err(|e| format!("{e}"));
    }
    let target: Target = text.parse()?;
    match target.kind == kind {
        true => Ok(target.name),
        false => Err(format!("`{target}` is no {words}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn kinds_and_names_may_be_written_in_every_documented_way() {
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
    fn what_names_nothing_is_wrong_usage() {
        for text in ["", "pod", "vm/", "vm/A", "vm a_b", "vm/a hg", "/x"] {
            let outcome = selection(&words(text));
            assert!(matches!(outcome, Err(Failure::Usage(_))), "{text}");
        }
    }
}
