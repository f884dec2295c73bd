//! `schema`: prints the JSON Schema of manifests, or of the settings file, for editors.
//! Out of scope: its content.

use clap::ValueEnum;

use super::failure::Failure;
use super::print;
use crate::api::manifest::keys::{self, Mapping};

/// Files that have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Kind {
    /// Manifests of host groups
    #[default]
    Manifest,
    /// The settings file of sliced, /etc/slice/sliced.yaml
    Settings,
}

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The schema is JSON Schema, draft 2020-12. Rules about several keys are not part of it: `slicectl validate` checks them. \
`make install` installs it as share/slicectl/schema.json; an editor with yaml-language-server uses it for files with this first line:

  # yaml-language-server: $schema=/usr/local/share/slicectl/schema.json

Examples:
  slicectl schema > schema.json
  slicectl schema settings")]
pub struct SchemaArgs {
    /// The kind of file
    #[arg(value_name = "FILE", value_enum, default_value_t)]
    pub kind: Kind,
}

/// `schema`.
pub fn schema(args: &SchemaArgs) -> Result<(), Failure> {
    let root = match args.kind {
        Kind::Manifest => Mapping::Document,
        Kind::Settings => Mapping::Settings,
    };
    print::json(&keys::schema(root))
}
