//! Parses YAML to objects, or to errors with file, line and field.
//! Out of scope: reading files, comparing groups with each other (see [`super::validate`]).
//!
//! A manifest is one or more YAML documents, each with one `config:`. All problems of a file are reported together. A file with a
//! problem yields no groups, so an incomplete edit has no effect.

mod count;
mod dns;
mod file_name;
mod group;
mod guest_access;
pub mod keys;
mod labels;
mod life;
mod locations;
mod network;
mod placement;
mod problem;
mod provision;
mod section;
pub mod settings;
mod storage;
mod yaml;

use super::host_group::HostGroupSpec;
use super::meta::Name;
use super::placement::FleetPart;

pub use count::{count_problems, fleet_count_problems};
pub use file_name::{is_manifest, resembles_manifest};
pub use locations::Locations;
pub use problem::{Location, MAX_SHOWN, Position, Problem, excerpt, shown};
pub use section::Scope;
pub use yaml::{MAX_BYTES, MAX_DEPTH, MAX_VALUES};

use section::{Field, Reader};
use yaml::Value;

/// The text of a manifest and its name in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as the user specified it, or `-` for standard input.
    pub name: String,
    /// YAML.
    pub text: String,
}

/// A group as specified by a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The group's name.
    pub name: Name,
    /// The desired state.
    pub spec: HostGroupSpec,
    /// `placement` and `replacement`; `None` if it has neither.
    pub fleet: Option<Box<FleetPart>>,
    /// The location of its name.
    pub at: Location,
    /// The locations of its fields.
    pub locations: Locations,
    /// Valid settings that are probably a mistake, each with its location.
    pub warnings: Vec<String>,
}

impl Draft {
    /// A group that was not read from a manifest, to check it. The locations of its problems have no meaning.
    pub fn without_source(name: Name, spec: HostGroupSpec) -> Self {
        let at = Location::new("", Position::START);
        Self {
            locations: Locations::nowhere(format!("hostgroup/{name}"), at.clone()),
            name,
            spec,
            fleet: None,
            at,
            warnings: Vec::new(),
        }
    }

    /// A problem of one of its fields, such as `network.range`, located where the field is set: [`Locations::find`].
    pub fn problem(&self, field: &str, message: String) -> Problem {
        let (at, field) = self.locations.find(field);
        Problem { at, field, message }
    }

    /// The problems of a group that is defined on one host: settings that only a fleet has.
    pub fn fleet_only(&self) -> Vec<Problem> {
        let fields = ["placement", "replacement"];
        let set = fields.into_iter().filter(|key| self.locations.has(key));
        set.map(|key| self.problem(key, ONLY_IN_FLEET.to_owned()))
            .collect()
    }
}

/// The problem of a setting that only a fleet has.
const ONLY_IN_FLEET: &str = "has no effect on one host: apply it with --fleet";

/// Whether a manifest may have no groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GroupCount {
    /// `host_groups: []` is valid.
    AnyNumber,
    /// Each document must have a group.
    AtLeastOne,
}

/// The groups of a manifest, in its order, or all its problems. A text without content, or with comments only, is an
/// error: a full disk or a crash may leave an empty file. `host_groups: []` specifies that there are no groups.
///
/// # Errors
/// All problems of the manifest.
pub fn parse(source: &Source) -> Result<Vec<Draft>, Vec<Problem>> {
    read(source, GroupCount::AnyNumber, Scope::Host)
}

/// As [`parse`], for a manifest that is applied: a document without groups is an error because applying it has no effect.
///
/// # Errors
/// All problems of the manifest.
pub fn parse_nonempty(source: &Source, scope: Scope) -> Result<Vec<Draft>, Vec<Problem>> {
    read(source, GroupCount::AtLeastOne, scope)
}

/// Whether a text contains no values: only blanks, comments and document markers. Another text that is not valid YAML contains some.
pub fn is_empty(text: &str) -> bool {
    // Tabs in blank lines are not valid YAML.
    let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(is_blank) {
        return true;
    }
    let is_null = |document: &yaml::Node| document.value == Value::Null;
    yaml::read(text).is_ok_and(|documents| documents.iter().all(is_null))
}

fn read(source: &Source, required: GroupCount, scope: Scope) -> Result<Vec<Draft>, Vec<Problem>> {
    let documents = yaml::read(&source.text).map_err(|fault| {
        vec![Problem {
            at: Location::new(&source.name, fault.at),
            field: String::new(),
            message: fault.message,
        }]
    })?;
    let mut reader = Reader::new(&source.name);
    reader.scope = scope;
    let mut drafts = Vec::new();
    // A document is null if it has comments only, or after a `---` at the end.
    let documents: Vec<_> = documents
        .iter()
        .filter(|document| document.value != Value::Null)
        .collect();
    if documents.is_empty() {
        let message = "is missing: the manifest is empty; `config: {host_groups: []}` specifies that there are no groups";
        reader.refuse_at(Position::START, "config", message);
    }
    for document in documents {
        let root = Field {
            path: String::new(),
            node: document,
        };
        let problems = reader.problem_count();
        let groups = group::read_document(&mut reader, &root);
        if groups.is_empty()
            && required == GroupCount::AtLeastOne
            && reader.problem_count() == problems
        {
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
