//! Refuses unknown tags.
//! Out of scope: the values.
//!
//! # Why
//! `serde_yaml` reports a local tag (`!x`) and ignores all other unknown tags: it reads `!!python/object/apply:os.system` as a
//! plain list. The author of such a tag expects it to have an effect. The events of `serde_yaml` do not contain tags, so a text with an
//! exclamation mark is scanned a second time, by a parser with events that contain them.

use saphyr_parser::{Event, Parser, Tag};

use super::ParseError;
use crate::api::manifest::problem::Position;

/// The tags of the core schema (YAML 1.2.2, chapter 10). They do not change the type of the value.
const KNOWN: [&str; 7] = ["null", "bool", "int", "float", "str", "seq", "map"];

/// The prefix that `!!` abbreviates.
const CORE: &str = "tag:yaml.org,2002:";

/// Refuses the first tag that is not known. A text that is not YAML is reported by the reader.
pub fn check(text: &str) -> Result<(), ParseError> {
    if !text.contains('!') {
        return Ok(());
    }
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else {
            return Ok(());
        };
        let tag = match &event {
            Event::Scalar(_, _, _, tag)
            | Event::SequenceStart(_, tag)
            | Event::MappingStart(_, tag) => tag.as_deref(),
            _ => None,
        };
        if let Some(tag) = tag.filter(|tag| !is_known(tag)) {
            let at = Position {
                line: span.start.line(),
                column: span.start.col() + 1,
            };
            let displayed: String = shown(tag).chars().take(80).collect();
            let message = format!(
                "found the tag {}, expected a plain value",
                displayed.escape_debug()
            );
            return Err(ParseError {
                at: tag_position(text, at),
                message,
            });
        }
    }
    Ok(())
}

fn is_known(tag: &Tag) -> bool {
    let tag_uri = format!("{}{}", tag.handle, tag.suffix);
    let core = tag_uri.strip_prefix(CORE).or(tag_uri.strip_prefix("!!"));
    core.is_some_and(|name| KNOWN.contains(&name))
}

fn shown(tag: &Tag) -> String {
    match tag.handle.as_str() {
        CORE => format!("!!{}", tag.suffix),
        "" => format!("!<{}>", tag.suffix),
        handle => format!("{handle}{}", tag.suffix),
    }
}

/// The position of the tag: the parser reports the position of the value after it, which may be on a later line.
fn tag_position(text: &str, value: Position) -> Position {
    let lines: Vec<&str> = text.lines().take(value.line).collect();
    for (number, line) in lines.iter().enumerate().rev() {
        let end = match number + 1 == value.line {
            true => line
                .char_indices()
                .nth(value.column)
                .map_or(line.len(), |(at, _)| at),
            false => line.len(),
        };
        if let Some(at) = line[..end].rfind('!') {
            let separator = line[..at].rfind(|c: char| c.is_whitespace() || "[{,".contains(c));
            let start = separator.map_or(0, |before| before + 1);
            let column = line[..start].chars().count() + 1;
            let is_tag = line[start..].starts_with('!');
            let line = number + 1;
            return match is_tag {
                true => Position { line, column },
                false => value,
            };
        }
    }
    value
}
