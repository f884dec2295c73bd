//! YAML to objects, or errors that name file, line and field.
//! Out of scope: reading files, comparing groups with each other (see [`super::validate`]).
//!
//! A manifest is one or more YAML documents, each with one `config:`. All that is wrong with a file is said at once; a file
//! with a problem yields no group at all, so that half an edit is never acted on.

mod dns;
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

/// Whether a manifest may have no groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Groups {
    /// None, too: `host_groups: []`.
    AnyNumber,
    /// There must be one in each document.
    AtLeastOne,
}

/// The groups of a manifest, in its order, or all that is wrong with it. A text without content, comments alone included, is an
/// error: a full disk or a crash may leave an empty file. `host_groups: []` specifies that there are no groups.
///
/// # Errors
/// All that is wrong.
pub fn parse(source: &Source) -> Result<Vec<Draft>, Vec<Problem>> {
    read(source, Groups::AnyNumber)
}

/// The same of a manifest that is applied: one without groups would do nothing.
///
/// # Errors
/// All that is wrong.
pub fn parse_some(source: &Source) -> Result<Vec<Draft>, Vec<Problem>> {
    read(source, Groups::AtLeastOne)
}

fn read(source: &Source, number: Groups) -> Result<Vec<Draft>, Vec<Problem>> {
    let documents = yaml::read(&source.text).map_err(|fault| {
        vec![Problem {
            at: Location::new(&source.name, fault.at),
            field: String::new(),
            message: fault.message,
        }]
    })?;
    let mut reader = Reader::new(&source.name);
    let mut drafts = Vec::new();
    // Comments alone, or a `---` at the end.
    let documents: Vec<_> = documents
        .iter()
        .filter(|document| document.value != Value::Null)
        .collect();
    if documents.is_empty() {
        let message = "is missing: the manifest is empty; `config: {host_groups: []}` specifies that there are no groups";
        reader.refuse_at(Place::START, "config", message);
    }
    for document in documents {
        let root = Field {
            path: String::new(),
            node: document,
        };
        let problems = reader.problem_count();
        let groups = group::read_document(&mut reader, &root);
        if groups.is_empty() && number == Groups::AtLeastOne && reader.problem_count() == problems {
            let at = document.member("config").member("host_groups").at;
            let message =
                "found no groups, expected at least one; `slicectl delete` removes groups";
            reader.refuse_at(at, "config.host_groups", message);
        }
        drafts.extend(groups);
    }
    let problems = reader.into_problems();
    match problems.is_empty() {
        true => Ok(drafts),
        false => Err(problems),
    }
}
