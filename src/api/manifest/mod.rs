//! YAML to objects, or errors that name file, line and field.
//! Not here: reading files, comparing groups with each other (see [`super::validate`]).
//!
//! A manifest is one or more YAML documents, each with one `config:`. All that is wrong with a file is said at once; a file
//! with a problem yields no group at all, so that half an edit is never acted on.

mod group;
mod life;
mod network;
mod problem;
mod section;
pub mod settings;
mod storage;
mod yaml;

use std::collections::BTreeMap;

use super::host_group::HostGroupSpec;
use super::meta::Name;

pub use network::{entry_objection, list_objection};
pub use problem::{Location, Place, Problem};
pub use yaml::{MAX_BYTES, MAX_DEPTH, MAX_VALUES};

use section::{Field, Reader};
use yaml::Value;

/// A manifest's text and what to call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as people know it, or `-` for standard input.
    pub name: String,
    /// YAML.
    pub text: String,
}

/// A group as a manifest wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The group's name.
    pub name: Name,
    /// What is wanted.
    pub spec: HostGroupSpec,
    /// Where its name stands.
    pub at: Location,
    /// `config.host_groups[0]`.
    pub field: String,
    /// Where `count` and the fields of its network (`network.range`) stand, those that are written.
    pub places: BTreeMap<String, Location>,
    /// What is allowed but surely not meant, each with its place.
    pub warnings: Vec<String>,
}

impl Draft {
    /// Something wrong with one of its fields (`network.range`); it is said of the group's name when the field is not written.
    pub fn problem(&self, field: &str, message: String) -> Problem {
        Problem {
            at: self.places.get(field).unwrap_or(&self.at).clone(),
            field: format!("{}.{field}", self.field),
            message,
        }
    }
}

/// The groups of a manifest, in its order, or all that is wrong with it. An empty text has no groups.
pub fn parse(source: &Source) -> Result<Vec<Draft>, Vec<Problem>> {
    let documents = yaml::read(&source.text).map_err(|fault| {
        vec![Problem {
            at: Location::new(&source.name, fault.at),
            field: String::new(),
            message: fault.message,
        }]
    })?;
    let mut reader = Reader::new(&source.name);
    let mut drafts = Vec::new();
    for document in &documents {
        // Comments alone, or a `---` at the end.
        if document.value == Value::Null {
            continue;
        }
        let root = Field {
            path: String::new(),
            node: document,
        };
        drafts.extend(group::read_document(&mut reader, &root));
    }
    let problems = reader.into_problems();
    match problems.is_empty() {
        true => Ok(drafts),
        false => Err(problems),
    }
}
