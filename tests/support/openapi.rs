//! The OpenAPI document of the daemon, as a check of answers: the status, the content type and the body are as it declares them.
//! Out of scope: whether the document has all requests.

use std::sync::LazyLock;

use serde_json::{Value, json};

/// The document.
pub static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_slice(&slicectl::wire::openapi()).expect("JSON"));

/// What was answered to a request.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    pub status: u16,
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
}

/// The path of the document that a request has; `None`: none.
pub fn template(path: &str) -> Option<&'static str> {
    let path = path.split('?').next().unwrap_or_default();
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let fits = |template: &&String| {
        let (parts, others) = (path.split('/'), template.split('/'));
        parts.clone().count() == others.clone().count()
            && parts
                .zip(others)
                .all(|(part, other)| part == other || (other.starts_with('{') && !part.is_empty()))
    };
    // A path without parameters wins.
    let found = paths.keys().filter(fits);
    found
        .min_by_key(|template| template.matches('{').count())
        .map(String::as_str)
}

/// What differs from the document. Requests that it does not have differ in nothing.
///
/// # Errors
/// The first difference.
pub fn check(method: &str, path: &str, answer: Answer) -> Result<(), String> {
    let Some(template) = template(path) else {
        return Ok(());
    };
    let is_head = method == "HEAD";
    let method = if is_head {
        "get"
    } else {
        &method.to_lowercase()
    };
    let operation = &DOCUMENT["paths"][template][method];
    if operation.is_null() {
        return Ok(());
    }
    let of = format!("{method} {template} {}", answer.status);
    let response = &operation["responses"][answer.status.to_string()];
    if response.is_null() {
        return Err(format!("{of}: the status is not declared"));
    }
    if is_head || answer.status == 101 {
        return Ok(());
    }
    let Some(content) = response.get("content") else {
        return match answer.body.is_empty() {
            true => Ok(()),
            false => Err(format!("{of}: no body is declared, found {answer:?}")),
        };
    };
    let found = answer.content_type.unwrap_or_default();
    let found = found.split(';').next().unwrap_or_default();
    let media = &content[found];
    if media.is_null() {
        return Err(format!("{of}: the content type {found:?} is not declared"));
    }
    bodies(found, answer.body)?
        .iter()
        .try_for_each(|body| check_schema(&media["schema"], body))
        .map_err(|error| format!("{of}: {error}"))
}

/// The values of a body that a schema describes.
fn bodies(content_type: &str, body: &[u8]) -> Result<Vec<Value>, String> {
    let text = String::from_utf8_lossy(body);
    let values: Vec<&str> = match content_type {
        "application/json" => vec![&text],
        "application/x-ndjson" => text.lines().collect(),
        "text/event-stream" => text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect(),
        _ => return Ok(vec![text.into()]),
    };
    let parsed = values.iter().map(|value| serde_json::from_str(value));
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{error}: {text}"))
}

fn check_schema(schema: &Value, value: &Value) -> Result<(), String> {
    let whole = json!({"allOf": [schema], "components": DOCUMENT["components"]});
    let validator = jsonschema::validator_for(&whole).map_err(|error| error.to_string())?;
    validator.validate(value).map_err(|error| {
        format!(
            "{} at {:?}: {value}",
            error,
            error.instance_path().to_string()
        )
    })
}
