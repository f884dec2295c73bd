//! `--sort-by`: the order of objects in a list.
//! Out of scope: the order of the daemon, by name.

use std::cmp::Ordering;
use std::convert::Infallible;
use std::str::FromStr;

use serde_json::Value;

use super::failure::Failure;
use super::jsonpath::Template;
use super::rows::{self, Columns};
use crate::api::meta::Timestamp;
use crate::api::view::{Kind, Object};

/// The value of `--sort-by`.
#[derive(Clone, Debug, PartialEq)]
pub enum SortBy {
    /// A column of the wide table.
    Column(String),
    /// A field of the JSON of an object.
    Field(Box<Template>),
}

impl FromStr for SortBy {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let field = text.starts_with(['.', '{', '$']).then(|| text.parse().ok());
        Ok(match field.flatten() {
            Some(template) => Self::Field(Box::new(template)),
            None => Self::Column(text.to_ascii_uppercase()),
        })
    }
}

impl SortBy {
    /// Fails unless each kind has the column.
    pub fn check(&self, kind: Kind) -> Result<(), Failure> {
        let Self::Column(column) = self else {
            return Ok(());
        };
        let columns = rows::header(kind, Columns::Wide);
        match columns.contains(&column.as_str()) {
            true => Ok(()),
            false => Err(Failure::Usage(format!(
                "--sort-by: a {kind} has no column \"{column}\": expected {} or a field such as .metadata.created_at",
                columns.join(", ")
            ))),
        }
    }

    /// Sorts objects; those without a value are last, and equal ones keep their order.
    pub fn sort(&self, objects: &mut [Object], now: Timestamp) {
        objects.sort_by_cached_key(|object| Key(self.key(object, now)));
    }

    fn key(&self, object: &Object, now: Timestamp) -> Option<Value> {
        match self {
            Self::Column(column) if column == rows::AGE => {
                let created_at = object.metadata().created_at;
                Some(
                    now.as_millisecond()
                        .saturating_sub(created_at.as_millisecond())
                        .into(),
                )
            }
            Self::Column(column) => {
                let columns = rows::header(object.kind(), Columns::Wide);
                let at = columns.iter().position(|title| title == column)?;
                let row = rows::row(object, Columns::Wide, now);
                let text = row.get(at)?.text();
                (text != "<none>").then(|| text.into())
            }
            Self::Field(field) => {
                let value = serde_json::to_value(object).ok()?;
                field
                    .first(&value)
                    .filter(|found| !found.is_null())
                    .cloned()
            }
        }
    }
}

/// A value to sort by.
#[derive(PartialEq)]
struct Key(Option<Value>);

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => compare(one, other),
            (one, other) => other.is_some().cmp(&one.is_some()),
        }
    }
}

fn compare(one: &Value, other: &Value) -> Ordering {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let numbers = (one.as_f64(), other.as_f64());
            numbers.0.partial_cmp(&numbers.1).unwrap_or(Ordering::Equal)
        }
        (Value::String(one), Value::String(other)) => natural(one, other),
        _ => natural(&one.to_string(), &other.to_string()),
    }
}

/// Compares runs of digits as numbers: `web-2` is before `web-10`, 10.0.0.2 before 10.0.0.10.
fn natural(one: &str, other: &str) -> Ordering {
    let (mut left, mut right) = (one, other);
    loop {
        let (a, b) = (run(&mut left), run(&mut right));
        let order = match (a.parse::<u128>(), b.parse::<u128>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            _ => a.cmp(b),
        };
        if order != Ordering::Equal || (a.is_empty() && b.is_empty()) {
            return order.then_with(|| one.cmp(other));
        }
    }
}

/// Takes the first run of digits or of others.
fn run<'t>(text: &mut &'t str) -> &'t str {
    let is_number = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != is_number);
    let (run, rest) = text.split_at(end.unwrap_or(text.len()));
    *text = rest;
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_sorted_naturally_and_missing_ones_are_last() {
        let keys = |texts: &[&str]| -> Vec<Key> {
            let texts = texts.iter();
            texts
                .map(|text| Key(serde_json::from_str(text).ok()))
                .collect()
        };
        for sorted in [
            &["\"web-2\"", "\"web-10\"", "\"web-10a\"", "\"x\"", "-"][..],
            &["\"10.0.0.2\"", "\"10.0.0.10\"", "\"10.0.1.1\""],
            &["2", "10", "10.5", "-"],
            &["\"0/2\"", "\"1/2\"", "\"10/10\""],
            &["\"a\"", "\"a1\"", "\"ab\""],
        ] {
            let mut reversed = keys(sorted);
            reversed.reverse();
            reversed.sort();
            assert!(reversed == keys(sorted), "{sorted:?}");
        }
    }
}
