//! The output formats of `get` and `events`.
//! Out of scope: the formats themselves.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParserFactory};
use clap::error::ErrorKind;
use clap::{Arg, Command, ValueEnum};

use super::jsonpath::Template;

/// What precedes a JSONPath expression.
const JSONPATH: &str = "jsonpath=";

/// An output format of `get`.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A table.
    Table,
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// The same as YAML.
    Yaml,
    /// `KIND/NAME`.
    Name,
    /// Host groups as YAML that `apply` accepts.
    Manifest,
    /// The values that JSONPath expressions select.
    JsonPath(Template),
}

/// Output formats of `events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum EventsFormat {
    /// A table
    #[default]
    Table,
    /// A table with the uid of each object
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

impl ValueParserFactory for Output {
    type Parser = OutputParser;

    fn value_parser() -> OutputParser {
        OutputParser
    }
}

/// Parses the value of `-o`.
#[derive(Clone, Debug)]
pub struct OutputParser;

const FORMATS: [(&str, &str); 7] = [
    ("table", "A table"),
    ("wide", "A table with more columns"),
    (
        "json",
        "The object, or {\"items\":[...]}; with -w one line per change",
    ),
    ("yaml", "The same as json, in YAML"),
    ("name", "KIND/NAME"),
    (
        "manifest",
        "Host groups as a manifest that apply accepts again",
    ),
    (
        "jsonpath=TEMPLATE",
        "Values of the JSON, such as {.items[*].metadata.name}, {range .items[*]}...{end}, {\"\\n\"}",
    ),
];

impl TypedValueParser for OutputParser {
    type Value = Output;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Output, clap::Error> {
        if let Some(template) = value.to_str().and_then(|text| text.strip_prefix(JSONPATH)) {
            return template.parse().map(Output::JsonPath).map_err(|error| {
                let message = format!("invalid JSONPath template: {error}\n");
                clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
            });
        }
        let known = FORMATS.map(|(name, _)| name);
        let parsed = PossibleValuesParser::new(known).parse_ref(command, arg, value)?;
        Ok(match parsed.as_str() {
            "wide" => Output::Wide,
            "json" => Output::Json,
            "yaml" => Output::Yaml,
            "name" => Output::Name,
            "manifest" => Output::Manifest,
            "table" => Output::Table,
            _ => {
                let message =
                    "jsonpath requires a template, such as jsonpath='{.items[*].metadata.name}'\n";
                return Err(clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command));
            }
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let values = FORMATS.map(|(name, help)| PossibleValue::new(name).help(help));
        Some(Box::new(values.into_iter()))
    }
}
