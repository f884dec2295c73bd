//! The locations of a group's fields, for problems that are found after parsing: conflicts with other groups, the host or its settings.
//! Out of scope: problems of the text.

use std::collections::BTreeMap;

use super::keys::{Mapping, alternatives};
use super::problem::Location;
use super::section::{Reader, Section};
use super::yaml::{Node, Value};

/// The fields that are set in `config:`, by path.
pub type Inherited = BTreeMap<String, Location>;

/// The fields of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locations {
    /// The path of the group, such as `config.host_groups[0]`.
    group: String,
    /// The location of its name.
    name: Location,
    /// Its fields, by path within the group, such as `count` or `network.range`.
    own: BTreeMap<String, Location>,
    /// The fields of `config:` that it inherits.
    inherited: Inherited,
}

/// The fields of `config:` that groups inherit.
pub fn inherited(reader: &Reader, config: &Section) -> Inherited {
    let keys = Mapping::Config.keys().filter(|key| key.is_inherited());
    let set = keys.filter_map(|key| Some((key.name, config.get(key.name)?)));
    set.map(|(name, field)| (name.to_owned(), reader.location(field.node.at)))
        .collect()
}

impl Locations {
    /// Of a group.
    pub fn new(reader: &Reader, group: &Section, inherited: &Inherited) -> Self {
        let mut own = BTreeMap::new();
        for name in Mapping::HostGroup.names() {
            if let Some(field) = group.get(name) {
                collect(reader, name, field.node, &mut own);
            }
        }
        let name = group.get("name").map_or(group.at, |field| field.node.at);
        Self {
            group: group.path.clone(),
            name: reader.location(name),
            own,
            inherited: inherited.clone(),
        }
    }

    /// Of a group that is not defined by a text: all its fields are at `name`.
    pub fn nowhere(group: String, name: Location) -> Self {
        Self {
            group,
            name,
            own: BTreeMap::new(),
            inherited: Inherited::new(),
        }
    }

    /// The location of the group's name.
    pub fn of_name(&self) -> &Location {
        &self.name
    }

    /// The path of the group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Whether the group itself sets this field.
    pub fn has(&self, field: &str) -> bool {
        self.own.contains_key(field)
    }

    /// The location and the full path of a field, such as `network.range` or `disks[0].path`: where it is set, be it by another key for
    /// the same property or in `config:`; else where the field that contains it is set; else at the name of the group.
    pub fn find(&self, field: &str) -> (Location, String) {
        let mut names = vec![field];
        for alternative in alternatives(field) {
            names.push(alternative);
        }
        let find_in = |fields: &BTreeMap<String, Location>| {
            let mut set = names
                .iter()
                .filter_map(|name| Some((fields.get(*name)?.clone(), *name)));
            set.next()
        };
        let own = find_in(&self.own).map(|(at, name)| (at, &*self.group, name));
        let inherited = || find_in(&self.inherited).map(|(at, name)| (at, "config", name));
        match own.or_else(inherited) {
            Some((at, parent, name)) => (at, format!("{parent}.{name}")),
            None => {
                let mut containing = ancestors(field);
                let at = containing.find_map(|ancestor| self.own.get(ancestor));
                (
                    at.unwrap_or(&self.name).clone(),
                    format!("{}.{field}", self.group),
                )
            }
        }
    }
}

/// Adds the location of `node` and of the fields in it. Items of a list of values have none: no problem refers to them later.
fn collect(reader: &Reader, path: &str, node: &Node, into: &mut BTreeMap<String, Location>) {
    into.insert(path.to_owned(), reader.location(node.at));
    match &node.value {
        Value::Map(members) => {
            for member in members {
                let path = format!("{path}.{}", member.key);
                collect(reader, &path, &member.value, into);
            }
        }
        Value::List(items) => {
            for (at, item) in items.iter().enumerate() {
                if matches!(item.value, Value::Map(_)) {
                    collect(reader, &format!("{path}[{at}]"), item, into);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => {}
    }
}

/// `a.b[0]`, `a.b` and `a` of `a.b[0].c`.
fn ancestors(field: &str) -> impl Iterator<Item = &str> {
    let mut rest = field;
    std::iter::from_fn(move || {
        rest = rest.get(..rest.rfind(['.', '['])?)?;
        Some(rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ancestors_of_a_field_are_its_parents() {
        let all = |field| ancestors(field).collect::<Vec<_>>();
        assert_eq!(all("a.b[0].c"), ["a.b[0]", "a.b", "a"]);
        assert_eq!(all("count"), [""; 0]);
    }
}
