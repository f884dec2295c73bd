//! `KIND NAME`, `KIND/NAME`: parses references to objects of the fleet.
//! Out of scope: objects of this host ([`super::super::target`]).

use std::fmt;

use super::super::failure::Failure;
use crate::api::meta::Name;
use crate::api::view::Kind;

/// A kind of objects of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetKind {
    /// `hostgroup`, `hg`.
    HostGroup,
    /// `vm`.
    Vm,
    /// `node`.
    Node,
}

impl fmt::Display for FleetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::HostGroup => "hostgroup",
            Self::Vm => "vm",
            Self::Node => "node",
        })
    }
}

/// Whether these targets are nodes, which only a fleet has.
pub fn is_node(args: &[String]) -> bool {
    let kind = args.first().map(|first| first.split('/').next());
    kind.flatten().is_some_and(is_node_kind)
}

fn is_node_kind(text: &str) -> bool {
    ["node", "nodes", "no"].contains(&text.to_ascii_lowercase().as_str())
}

impl FleetKind {
    fn parse(text: &str) -> Result<Self, Failure> {
        if is_node_kind(text) {
            return Ok(Self::Node);
        }
        match text.parse() {
            Ok(Kind::HostGroup) => Ok(Self::HostGroup),
            Ok(Kind::Vm) => Ok(Self::Vm),
            Ok(Kind::Lease) => Err(Failure::Usage(
                "leases are those of a host, without --fleet".to_owned(),
            )),
            Err(error) => Err(Failure::Usage(match text.eq_ignore_ascii_case("all") {
                true => "with --fleet, expected one kind: hostgroup (hg), vm or node".to_owned(),
                false => error.to_string().replace("vm or lease", "vm or node"),
            })),
        }
    }
}

/// Reference to an object of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetTarget {
    /// Kind.
    pub kind: FleetKind,
    /// Name.
    pub name: Name,
}

impl fmt::Display for FleetTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// All objects of a kind, or a list of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetSelection {
    /// All of this kind.
    All(FleetKind),
    /// These, in the given order.
    Some(Vec<FleetTarget>),
}

/// Parses `KIND`, `KIND NAME…` or `KIND/NAME…`.
pub fn selection(args: &[String]) -> Result<FleetSelection, Failure> {
    let name = |text: &str| {
        let name = text.parse::<Name>();
        name.map_err(|error| Failure::Usage(error.to_string()))
    };
    if args.iter().any(|word| word.contains('/')) {
        let targets = args.iter().map(|word| {
            let Some((kind, text)) = word.split_once('/') else {
                let usage = format!("invalid target \"{word}\": expected KIND/NAME");
                return Err(Failure::Usage(usage));
            };
            Ok(FleetTarget {
                kind: FleetKind::parse(kind)?,
                name: name(text)?,
            })
        });
        return targets.collect::<Result<_, _>>().map(FleetSelection::Some);
    }
    let Some((kind, names)) = args.split_first() else {
        let usage = "expected a kind (hostgroup, vm, node) or KIND/NAME".to_owned();
        return Err(Failure::Usage(usage));
    };
    let kind = FleetKind::parse(kind)?;
    if names.is_empty() {
        return Ok(FleetSelection::All(kind));
    }
    let targets = names.iter().map(|text| {
        Ok(FleetTarget {
            kind,
            name: name(text)?,
        })
    });
    targets.collect::<Result<_, _>>().map(FleetSelection::Some)
}

/// The same as [`selection`], for commands that require names.
pub fn targets(args: &[String]) -> Result<Vec<FleetTarget>, Failure> {
    match selection(args)? {
        FleetSelection::Some(targets) => Ok(targets),
        FleetSelection::All(kind) => Err(Failure::Usage(format!(
            "missing name of the {kind}: expected `{kind} NAME` or `KIND/NAME`"
        ))),
    }
}

/// Parses a node, written `NAME` or `node/NAME`.
pub fn node(text: &str) -> Result<Name, String> {
    let name = match text.split_once('/') {
        Some((kind, name)) if is_node_kind(kind) => name,
        _ => text,
    };
    name.parse()
        .map_err(|error: crate::api::meta::InvalidName| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FleetSelection, String> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        selection(&words).map_err(|failure| match failure {
            Failure::Usage(usage) => usage,
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn kinds_have_the_spellings_of_kubectl() {
        for (text, kind) in [
            ("nodes", FleetKind::Node),
            ("no", FleetKind::Node),
            ("vms", FleetKind::Vm),
            ("hg", FleetKind::HostGroup),
        ] {
            assert_eq!(parse(text), Ok(FleetSelection::All(kind)), "{text}");
        }
        let named = parse("node a b").unwrap();
        assert_eq!(named, parse("node/a nodes/b").unwrap());
    }

    #[test]
    fn what_is_no_object_of_a_fleet_is_refused() {
        for (text, expected) in [
            ("leases", "without --fleet"),
            ("all", "expected one kind"),
            ("pods", "hostgroup (hg), vm or node"),
            ("vm/A", "invalid name"),
            ("vm/a b", "expected KIND/NAME"),
            ("", "expected a kind"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(is_node(&["node/a".to_owned()]) && !is_node(&["vm/node".to_owned()]));
    }
}
