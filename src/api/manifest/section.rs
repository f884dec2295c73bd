//! Reads typed values from the tree, and reports the found and the expected value otherwise.
//! Out of scope: which keys exist.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::problem::{Location, Position, Problem};
use super::yaml::{Node, Value};

/// A value and its path, such as `config.host_groups[0].name`.
#[derive(Clone)]
pub struct Field<'a> {
    pub path: String,
    pub node: &'a Node,
}

/// A mapping with known keys and without duplicates.
pub struct Section<'a> {
    pub path: String,
    pub at: Position,
    fields: Vec<(&'a str, Field<'a>)>,
}

impl<'a> Section<'a> {
    pub fn get(&self, key: &str) -> Option<&Field<'a>> {
        self.fields
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, field)| field)
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// An empty mapping in place of a missing field, with the position of this section.
    pub fn empty_subsection(&self, key: &str) -> Self {
        Self {
            path: format!("{}.{key}", self.path),
            at: self.at,
            fields: Vec::new(),
        }
    }
}

/// The maximum number of problems that are reported.
const MAX_PROBLEMS: usize = 200;

/// The first [`MAX_PROBLEMS`], followed by the number of the others.
fn limit_problems(mut problems: Vec<Problem>) -> Vec<Problem> {
    let omitted = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if let (Some(last), true) = (problems.last(), omitted > 0) {
        problems.push(Problem {
            at: last.at.clone(),
            field: String::new(),
            message: format!("and {omitted} more problems"),
        });
    }
    problems
}

/// Reads fields and collects problems.
pub struct Reader<'a> {
    file: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a str) -> Self {
        Self {
            file,
            problems: Vec::new(),
        }
    }

    /// The problems, in the order of the file.
    pub fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|p| (p.at.line, p.at.column));
        // A section may be read twice. Uses of an alias are kept: they have the same position, but another path.
        self.problems.dedup();
        limit_problems(self.problems)
    }

    pub fn problem_count(&self) -> usize {
        self.problems.len()
    }

    pub fn location(&self, at: Position) -> Location {
        Location::new(self.file, at)
    }

    pub fn refuse_at(&mut self, at: Position, path: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            at: Location::new(self.file, at),
            field: path.to_owned(),
            message: message.into(),
        });
    }

    pub fn refuse(&mut self, field: &Field, message: impl Into<String>) {
        self.refuse_at(field.node.at, &field.path, message);
    }

    /// Refuses a field that must not be set, and removes the problems of its value, which are irrelevant then.
    pub fn refuse_and_discard_others(&mut self, field: &Field, message: impl Into<String>) {
        self.problems.retain(|problem| problem.field != field.path);
        self.refuse(field, message);
    }

    pub fn unexpected(&mut self, field: &Field, expected: &str) {
        self.refuse(
            field,
            format!("found {}, expected {expected}", field.node.value),
        );
    }

    /// Reads a mapping and refuses unknown and duplicate keys.
    pub fn section<'n>(&mut self, field: &Field<'n>, known: &[&str]) -> Option<Section<'n>> {
        let Value::Map(members) = &field.node.value else {
            self.unexpected(field, &format!("a mapping with {}", known.join(", ")));
            return None;
        };
        let mut fields: Vec<(&str, Field)> = Vec::new();
        let mut first_lines: Vec<(&str, usize)> = Vec::new();
        for member in members {
            let path = match field.path.is_empty() {
                true => member.key.clone(),
                false => format!("{}.{}", field.path, member.key),
            };
            if !known.contains(&member.key.as_str()) {
                let message = unknown_key(&member.key, known);
                self.refuse_at(member.key_position, &field.path, message);
                continue;
            }
            if let Some((_, line)) = first_lines.iter().find(|(key, _)| *key == member.key) {
                let message = format!("duplicate key, first on line {line}");
                self.refuse_at(member.key_position, &path, message);
                continue;
            }
            first_lines.push((&member.key, member.key_position.line));
            let node = &member.value;
            fields.push((&member.key, Field { path, node }));
        }
        Some(Section {
            path: field.path.clone(),
            at: field.node.at,
            fields,
        })
    }

    pub fn list<'n>(&mut self, field: &Field<'n>, expected: &str) -> Vec<Field<'n>> {
        let Value::List(items) = &field.node.value else {
            self.unexpected(field, expected);
            return Vec::new();
        };
        let item = |(index, node)| Field {
            path: format!("{}[{index}]", field.path),
            node,
        };
        items.iter().enumerate().map(item).collect()
    }

    pub fn text<'n>(&mut self, field: &Field<'n>, expected: &str) -> Option<&'n str> {
        match &field.node.value {
            Value::Text(text) => Some(text),
            _ => {
                self.unexpected(field, expected);
                None
            }
        }
    }

    pub fn flag(&mut self, field: &Field) -> Option<bool> {
        match field.node.value {
            Value::Bool(flag) => Some(flag),
            _ => {
                self.unexpected(field, "true or false");
                None
            }
        }
    }

    pub fn whole(&mut self, field: &Field, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match field.node.value {
            Value::Int(number) => u64::try_from(number).ok().filter(|n| range.contains(n)),
            _ => None,
        };
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.unexpected(field, &format!("a whole number from {least} to {most}"));
        }
        number
    }

    /// One of `words`; `None` if it was refused.
    pub fn one_of<T: Copy>(&mut self, field: &Field, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        // YAML reads a plain `null` or `~` as null, never as a text.
        let found = match &field.node.value {
            Value::Text(text) => choices.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if found.is_none() {
            let suggestion = match &field.node.value {
                Value::Text(text) => closest(text, &names),
                _ => None,
            };
            let hint =
                suggestion.map_or(String::new(), |word| format!("; did you mean \"{word}\"?"));
            self.unexpected(field, &format!("{}{hint}", names.join(" or ")));
        }
        found.map(|(_, value)| *value)
    }

    /// An absolute path. Whether the file exists is not checked.
    pub fn path(&mut self, field: &Field) -> Option<PathBuf> {
        const EXPECTED: &str = "the absolute path of a file";
        const EXPECTED_WITHOUT_DOT_DOT: &str = "the absolute path of a file, without \"..\"";
        let text = self.text(field, EXPECTED)?;
        // A NUL cannot be part of a VMM's command line, and a line end cannot be shown on one line.
        let is_plain = !text.ends_with('/') && !text.contains(char::is_control);
        // A VMM opens its files by the same paths in a file system that lacks most directories, so `..` may not resolve.
        let has_no_dot_dot = !text.split('/').any(|part| part == "..");
        let expected = match (text.starts_with('/') && is_plain, has_no_dot_dot) {
            (true, true) => return Some(PathBuf::from(text)),
            (true, false) => EXPECTED_WITHOUT_DOT_DOT,
            (false, _) => EXPECTED,
        };
        self.unexpected(field, expected);
        None
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    if key == "<<" {
        return "merge keys are not supported; use an alias for the whole value".to_owned();
    }
    let displayed = Value::Text(key.to_owned());
    match closest(key, known) {
        Some(suggestion) => format!("unknown key {displayed}; did you mean \"{suggestion}\"?"),
        None => format!(
            "unknown key {displayed}, expected one of {}",
            known.join(", ")
        ),
    }
}

/// The known key closest to `found`: one that starts with it, or that differs in at most a third of its characters.
fn closest<'k>(found: &str, known: &[&'k str]) -> Option<&'k str> {
    // No known key is half as long, and the cost of the distance is the product of the lengths.
    const LONGEST: usize = 40;
    let normalize = |text: &str| text.replace('-', "_").to_ascii_lowercase();
    let found = normalize(&found.chars().take(LONGEST).collect::<String>());
    let distance = |word: &str| match found.len() >= 3 && word.starts_with(&found) {
        true => 0,
        false => strsim::damerau_levenshtein(&found, word),
    };
    known
        .iter()
        .map(|word| (distance(&normalize(word)), *word))
        .filter(|(distance, word)| *distance <= word.len().max(found.len()).div_ceil(3))
        .min()
        .map(|(_, word)| word)
}
