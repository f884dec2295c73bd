//! YAML to objects, or errors that name file, line and field.
//! Not here: reading files, comparing groups with each other (see [`super::validate`]).
