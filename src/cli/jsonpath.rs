//! JSONPath templates in the syntax of kubectl: text, `{EXPRESSION}`, `{"\n"}` and `{range EXPRESSION}…{end}`.
//! Out of scope: evaluating an expression (RFC 9535), which is done by `serde_json_path`.

use std::str::FromStr;

use serde_json::Value;
use serde_json_path::JsonPath;

/// A template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    /// The selected values, separated by blanks.
    Values(JsonPath),
    /// The parts for each selected value.
    Range(JsonPath, Vec<Part>),
}

/// The error for a text that is not a valid template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// A brace is not closed.
    #[error("missing \"}}\" after \"{{{0}\"")]
    Open(String),
    /// A range has no end.
    #[error("missing {{end}} of a {{range}}")]
    NoEnd,
    /// An end has no range.
    #[error("{{end}} without {{range}}")]
    NoRange,
    /// The text in quotes is invalid.
    #[error("invalid text {0}")]
    Text(String),
    /// The expression is invalid.
    #[error("invalid expression \"{expression}\": {why}")]
    Expression {
        /// The expression.
        expression: String,
        /// The reason.
        why: String,
    },
}

impl FromStr for Template {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        if !text.contains('{') {
            return Ok(Self(vec![Part::Values(path(text)?)]));
        }
        let mut rest = text;
        let parts = parts(&mut rest, false)?;
        Ok(Self(parts))
    }
}

fn parts(rest: &mut &str, in_range: bool) -> Result<Vec<Part>, InvalidTemplate> {
    let mut parts = Vec::new();
    loop {
        let (before, after) = match rest.split_once('{') {
            Some(found) => found,
            None if in_range => return Err(InvalidTemplate::NoEnd),
            None => {
                parts.push(Part::Text((*rest).to_owned()));
                return Ok(parts);
            }
        };
        parts.push(Part::Text(before.to_owned()));
        let end = closing(after).ok_or_else(|| InvalidTemplate::Open(after.to_owned()))?;
        let expression = after[..end].trim();
        *rest = &after[end + 1..];
        match expression {
            "end" if in_range => return Ok(parts),
            "end" => return Err(InvalidTemplate::NoRange),
            _ if expression.starts_with(['"', '\'']) => parts.push(Part::Text(quoted(expression)?)),
            _ => match expression.strip_prefix("range ") {
                Some(each) => {
                    let each = path(each.trim())?;
                    parts.push(Part::Range(each, self::parts(rest, true)?));
                }
                None => parts.push(Part::Values(path(expression)?)),
            },
        }
    }
}

/// The position of the brace that closes an expression; those in quotes do not.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if is_escaped => is_escaped = false,
            (Some(_), '\\') => is_escaped = true,
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Some(at),
            (None, _) => {}
        }
    }
    None
}

fn quoted(text: &str) -> Result<String, InvalidTemplate> {
    let invalid = || InvalidTemplate::Text(text.to_owned());
    let inner = match text
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''))
    {
        Some(inner) => format!("\"{}\"", inner.replace("\\'", "'").replace('"', "\\\"")),
        None => text.to_owned(),
    };
    serde_json::from_str(&inner).map_err(|_| invalid())
}

/// An expression; kubectl accepts one without `$` for the root, and `@` for it.
fn path(expression: &str) -> Result<JsonPath, InvalidTemplate> {
    let rooted = match expression.chars().next() {
        Some('$') => expression.to_owned(),
        Some('@') => format!("${}", &expression[1..]),
        Some('.') if expression == "." => "$".to_owned(),
        Some('.' | '[') => format!("${expression}"),
        _ => format!("$.{expression}"),
    };
    JsonPath::parse(&rooted).map_err(|error| InvalidTemplate::Expression {
        expression: expression.to_owned(),
        why: error.to_string(),
    })
}

impl Template {
    /// The text for a value.
    pub fn evaluate(&self, value: &Value) -> String {
        let mut text = String::new();
        evaluate(&self.0, value, &mut text);
        text
    }

    /// The first value that the only expression of the template selects, for sorting.
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.0.iter().find_map(|part| match part {
            Part::Values(path) => path.query(value).first(),
            Part::Text(_) | Part::Range(..) => None,
        })
    }
}

fn evaluate(parts: &[Part], value: &Value, text: &mut String) {
    for part in parts {
        match part {
            Part::Text(constant) => text.push_str(constant),
            Part::Values(path) => {
                let values = path.query(value).all().into_iter().map(display);
                text.push_str(&values.collect::<Vec<_>>().join(" "));
            }
            Part::Range(path, inner) => {
                for each in path.query(value).all() {
                    evaluate(inner, each, text);
                }
            }
        }
    }
}

/// Strings without quotes, all else as JSON.
fn display(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list() -> Value {
        json!({"items": [
            {"metadata": {"name": "a-1"}, "status": {"ready": true, "vmm": {"pid": 7}}},
            {"metadata": {"name": "a-2"}, "status": {"ready": false, "vmm": {"pid": null}}},
        ]})
    }

    #[test]
    fn templates_of_kubectl_are_evaluated() {
        for (template, expected) in [
            ("{.items[*].metadata.name}", "a-1 a-2"),
            (".items[*].metadata.name", "a-1 a-2"),
            ("items[0].metadata.name", "a-1"),
            ("{$.items[0].metadata.name}", "a-1"),
            ("{.items[-1:].metadata.name}", "a-2"),
            ("{.items[0]['metadata']['name']}", "a-1"),
            ("{..name}", "a-1 a-2"),
            ("{.items[?(@.status.ready==true)].metadata.name}", "a-1"),
            ("{.items[?(@.metadata.name=='a-2')].status.ready}", "false"),
            ("{.items[0].status.vmm}", "{\"pid\":7}"),
            ("{.none.such}", ""),
            ("names: {.items[*].metadata.name}!", "names: a-1 a-2!"),
            (
                "{range .items[*]}{.metadata.name}{\"\\t\"}{.status.ready}{'\\n'}{end}",
                "a-1\ttrue\na-2\tfalse\n",
            ),
            ("{range .items[*]}{@.metadata.name}{\"}\"}{end}", "a-1}a-2}"),
        ] {
            let parsed: Template = template.parse().unwrap();
            assert_eq!(parsed.evaluate(&list()), expected, "{template}");
        }
    }

    #[test]
    fn an_invalid_template_is_an_error() {
        for (template, reason) in [
            ("{.items", "missing \"}\""),
            ("{range .items[*]}{.x}", "missing {end}"),
            ("{end}", "without {range}"),
            ("{.items[}", "invalid expression"),
            ("{\"\\x\"}", "invalid text"),
            ("", "invalid expression"),
        ] {
            let error = template.parse::<Template>().unwrap_err().to_string();
            assert!(error.contains(reason), "{template}: {error}");
        }
    }
}
