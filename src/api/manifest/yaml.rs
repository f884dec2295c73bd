//! Parses YAML to a tree in which every node has a line and a column. The only file of the manifest parser that uses `serde_yaml`.
//! Out of scope: the meaning of the keys.
//!
//! # Why
//! `serde_yaml::Value` has no positions, and a second parser for the positions could interpret a text differently. The errors of
//! `serde_yaml` do have positions. [`NodeVisitor`] therefore stores every scalar and returns an error; at this point `serde_yaml` has
//! consumed the scalar, and it adds the position to the error. The reader parses the position from the error and continues. Lists and
//! mappings are deserialized without an error and have the position of their key or of their first item. This depends on the behaviour
//! of `serde_yaml` 0.9.34, which is its last release; the tests in this file verify it.
//!
//! Four limits bound the cost of a hostile text: bytes, brackets, depth, and values (each use of an alias counts).

mod tags;

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, Visitor};

use super::problem::Position;

/// The maximum size of a manifest, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// The maximum nesting depth of lists and mappings.
pub const MAX_DEPTH: usize = 32;
/// The maximum number of values of a manifest; each use of an alias counts.
pub const MAX_VALUES: usize = 200_000;
/// The maximum number of open brackets. The time of the scanner of `serde_yaml` is quadratic in it, before any visitor is called.
const MAX_BRACKETS: usize = 256;

/// A value and its position.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub at: Position,
    pub value: Value,
}

/// A value of YAML's core schema.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Member>),
}

impl Node {
    /// The value of a key, or this node if the key is missing.
    pub fn member(&self, key: &str) -> &Self {
        let Value::Map(members) = &self.value else {
            return self;
        };
        let found = members.iter().find(|member| member.key == key);
        found.map_or(self, |member| &member.value)
    }
}

/// A `key: value` pair; a mapping keeps duplicate keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub key: String,
    pub key_position: Position,
    pub value: Node,
}

/// The error for a text that is not valid YAML, or that uses unsupported YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    pub at: Position,
    pub message: String,
}

/// The documents of `text`; an empty text is one document without a value.
pub fn read(text: &str) -> Result<Vec<Node>, ParseError> {
    if text.len() > MAX_BYTES {
        let found = text.len();
        return Err(ParseError {
            at: Position::START,
            message: format!("the file has {found} bytes, expected at most {MAX_BYTES}"),
        });
    }
    check_brackets(text)?;
    tags::check(text)?;
    let mut remaining = MAX_VALUES;
    serde_yaml::Deserializer::from_str(text)
        .map(|document| {
            let mut root = None;
            let visitor = NodeVisitor {
                into: &mut root,
                left: &mut remaining,
                depth: 0,
                near: Position::START,
            };
            let result = visitor.deserialize(document);
            taken(result, root).map_err(|error| fault(&error))
        })
        .collect()
}

fn check_brackets(text: &str) -> Result<(), ParseError> {
    let mut open = 0_usize;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAX_BRACKETS {
            let before = &text.as_bytes()[..index];
            let line_start = before
                .iter()
                .rposition(|&b| b == b'\n')
                .map_or(0, |at| at + 1);
            return Err(ParseError {
                at: Position {
                    line: before.iter().filter(|&&b| b == b'\n').count() + 1,
                    column: String::from_utf8_lossy(&before[line_start..])
                        .chars()
                        .count()
                        + 1,
                },
                message: format!("more than {MAX_BRACKETS} brackets are open here"),
            });
        }
    }
    Ok(())
}

/// Converts an error and removes the position from its message, because a [`ParseError`] contains the position.
fn fault(error: &serde_yaml::Error) -> ParseError {
    let position = error
        .location()
        .map_or(Position::START, |location| Position {
            line: location.line(),
            column: location.column(),
        });
    let text = error.to_string();
    let position_text = format!(" at line {} column {}", position.line, position.column);
    let text = text.replacen(&position_text, "", 1);
    // `serde_yaml` prefixes the message with a path, in another format than that of problems.
    let message = match text.find(FINAL_ERROR) {
        Some(start) => text[start + FINAL_ERROR.len()..].to_owned(),
        // The limit of `serde_yaml` for the expansion of aliases; this error has no position.
        None if text == "repetition limit exceeded" => {
            "the aliases of the file expand to too many values".to_owned()
        }
        None => format!("invalid YAML: {text}"),
    };
    ParseError {
        at: position,
        message,
    }
}

/// The prefix of errors of this reader that are final, in contrast to the errors that return a scalar.
const FINAL_ERROR: &str = "refused: ";

/// Stores one value in `into`. Returns `Ok` for a list or mapping, an error with `into` set for a scalar, and an error with `into`
/// unset for an invalid value.
struct NodeVisitor<'a> {
    into: &'a mut Option<Node>,
    left: &'a mut usize,
    depth: usize,
    /// The position to use if the value has none.
    near: Position,
}

/// Distinguishes a scalar from an error, and parses the position of the scalar from its error.
fn taken<E: fmt::Display>(result: Result<(), E>, output: Option<Node>) -> Result<Node, E> {
    match (result, output) {
        (Err(error), Some(node)) => Ok(Node {
            at: position_in(&error.to_string()).unwrap_or(Position::START),
            ..node
        }),
        (Err(error), None) => Err(error),
        // An empty document is null.
        (Ok(()), node) => Ok(node.unwrap_or(Node {
            at: Position::START,
            value: Value::Null,
        })),
    }
}

/// The position in the message of an error, `… at line 3 column 7`: a visitor has no other access to it because the error is a generic
/// `de::Error`. `None` for the first character of a text, for which the message is `… at position 0`.
fn position_in(error: &str) -> Option<Position> {
    let (_, tail) = error.rsplit_once(" at line ")?;
    let (line, column) = tail.split_once(" column ")?;
    Some(Position {
        line: line.parse().ok()?,
        column: column.parse().ok()?,
    })
}

impl NodeVisitor<'_> {
    fn scalar<E: de::Error>(self, value: Value) -> Result<(), E> {
        self.count()?;
        *self.into = Some(Node {
            at: self.near,
            value,
        });
        Err(E::custom("here"))
    }

    fn count<E: de::Error>(&self) -> Result<(), E> {
        match *self.left {
            0 => Err(E::custom(format_args!(
                "{FINAL_ERROR}the file has more than {MAX_VALUES} values (each use of an alias counts)"
            ))),
            _ => Ok(()),
        }
    }

    fn inner<'b>(
        &'b mut self,
        output: &'b mut Option<Node>,
        fallback: Position,
    ) -> NodeVisitor<'b> {
        *self.left = self.left.saturating_sub(1);
        NodeVisitor {
            into: output,
            left: self.left,
            depth: self.depth + 1,
            near: fallback,
        }
    }

    fn enter<E: de::Error>(&self) -> Result<(), E> {
        self.count()?;
        match self.depth < MAX_DEPTH {
            true => Ok(()),
            false => Err(E::custom(format_args!(
                "{FINAL_ERROR}lists and mappings are nested more than {MAX_DEPTH} levels deep"
            ))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for NodeVisitor<'_> {
    type Value = ();
    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.scalar(Value::Null)
    }
    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.scalar(Value::Null)
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(Value::Bool(value))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(Value::Int(value.into()))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(Value::Int(value.into()))
    }
    fn visit_i128<E: de::Error>(self, value: i128) -> Result<(), E> {
        self.scalar(Value::Int(value))
    }
    fn visit_u128<E: de::Error>(self, value: u128) -> Result<(), E> {
        self.scalar(i128::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(Value::Float(value))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.scalar(Value::Text(value.to_owned()))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<(), A::Error> {
        let (tag, _) = access.variant_seed(std::marker::PhantomData::<Tag>)?;
        Err(de::Error::custom(format_args!(
            "{FINAL_ERROR}found the tag !{}, expected a plain value",
            tag.0.escape_debug()
        )))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<(), A::Error> {
        self.enter()?;
        let mut items = Vec::new();
        loop {
            let (mut slot, fallback) = (None, self.near);
            let result = match access.next_element_seed(self.inner(&mut slot, fallback)) {
                Ok(None) => break,
                Ok(Some(())) => Ok(()),
                Err(error) => Err(error),
            };
            items.push(taken(result, slot)?);
        }
        let at = items.first().map_or(self.near, |item| item.at);
        *self.into = Some(Node {
            at,
            value: Value::List(items),
        });
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<(), A::Error> {
        self.enter()?;
        let mut members: Vec<Member> = Vec::new();
        loop {
            let (mut slot, fallback) = (None, self.near);
            let result = match access.next_key_seed(self.inner(&mut slot, fallback)) {
                Ok(None) => break,
                Ok(Some(())) => Ok(()),
                Err(error) => Err(error),
            };
            let key = taken(result, slot)?;
            let mut slot = None;
            let result = access.next_value_seed(self.inner(&mut slot, key.at));
            let mut value = taken(result, slot)?;
            if matches!(value.value, Value::List(_) | Value::Map(_)) {
                value.at = key.at;
            }
            members.push(Member {
                key_position: key.at,
                key: key.value.as_key(),
                value,
            });
        }
        let at = members
            .first()
            .map_or(self.near, |member| member.key_position);
        *self.into = Some(Node {
            at,
            value: Value::Map(members),
        });
        Ok(())
    }
}

/// A tag, without the `!`.
struct Tag(String);

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl Value {
    fn as_key(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            other => other.to_string(),
        }
    }
}

/// The value as shown in messages: one line of limited length.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 60;
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Text(text) if text.chars().count() > LONGEST => {
                let start: String = text.chars().take(LONGEST).collect();
                write!(f, "\"{}…\"", start.escape_debug())
            }
            Self::Text(text) => write!(f, "\"{}\"", text.escape_debug()),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod agreement {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_reader_never_panics_and_agrees_with_serde_yaml(
            text in "([\\[\\]{}:,&*!|>'\"%@`?~#a-c0-2 \n\t.-]|- |: |\n  ){0,60}"
        ) {
            let Ok(all) = read(&text) else { return Ok(()) };
            for (actual, document) in all.iter().zip(serde_yaml::Deserializer::from_str(&text)) {
                // `serde_yaml::Value` refuses duplicate keys, which this reader keeps.
                if let Ok(reference) = serde_yaml::Value::deserialize(document) {
                    prop_assert!(same(&actual.value, &reference), "{actual:?} {reference:?}");
                }
            }
        }
    }

    fn same(actual: &Value, reference: &serde_yaml::Value) -> bool {
        use serde_yaml::Value as Theirs;
        match (actual, reference) {
            (Value::Null, Theirs::Null) => true,
            (Value::Bool(a), Theirs::Bool(b)) => a == b,
            (Value::Int(a), Theirs::Number(b)) => b.to_string() == a.to_string(),
            (Value::Float(a), Theirs::Number(b)) => b
                .as_f64()
                .is_some_and(|b| *a == b || a.is_nan() && b.is_nan()),
            (Value::Text(a), Theirs::String(b)) => a == b,
            (Value::List(a), Theirs::Sequence(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(&a.value, b))
            }
            (Value::Map(a), Theirs::Mapping(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .zip(b.values())
                        .all(|(a, b)| same(&a.value.value, b))
            }
            _ => false,
        }
    }
}
