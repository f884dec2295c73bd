//! The daemon's settings file, `/etc/slice/sliced.yaml`.
//! Out of scope: settings that are arguments of `sliced` alone.

use std::path::PathBuf;
use std::time::Duration;

use super::super::allowed::directory;
use super::Source;
use super::keys::Mapping;
use super::keys::limits::MAX_REMOVAL_GRACE;
use super::problem::{Location, Problem};
use super::section::{Field, Reader, Section};
use super::yaml::{self, Value};

pub use super::keys::limits::MIN_REMOVAL_GRACE;

/// Parses a removal grace in humantime format, such as `2s`.
///
/// # Errors
/// The text is not a valid time, or the time is not from 150ms to 1day.
pub fn parse_removal_grace(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (MIN_REMOVAL_GRACE..=MAX_REMOVAL_GRACE).contains(&time) {
        true => Ok(time),
        false => Err("it must be from 150ms to 1day".to_owned()),
    }
}

/// The settings; `None` for a setting that is not in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The directories below which programs may be used.
    pub programs: Option<Vec<PathBuf>>,
    /// The directories below which kernels, initrds, images and disks may be used.
    pub images: Option<Vec<PathBuf>>,
    /// How long a file must be missing from the config directory before its groups are removed.
    pub removal_grace: Option<Duration>,
}

/// Parses the settings file.
///
/// # Errors
/// All problems of the file.
pub fn parse(source: &Source) -> Result<Settings, Vec<Problem>> {
    let documents = yaml::read(&source.text).map_err(|fault| {
        vec![Problem {
            at: Location::new(&source.name, fault.at),
            field: String::new(),
            message: fault.message,
        }]
    })?;
    let mut reader = Reader::new(&source.name);
    let mut settings = Settings::default();
    for (at, document) in documents.iter().enumerate() {
        // A document is null if it has comments only, or after a `---` at the end.
        if document.value == Value::Null {
            continue;
        }
        if at > 0 {
            reader.refuse_at(document.at, "", "found a second document, expected one");
            continue;
        }
        let root = Field {
            path: String::new(),
            node: document,
        };
        let Some(section) = reader.section(&root, Mapping::Settings) else {
            continue;
        };
        settings.programs = directories(&mut reader, &section, "programs");
        settings.images = directories(&mut reader, &section, "images");
        settings.removal_grace = section.get("removal_grace").and_then(|field| {
            const EXPECTED: &str = "a time such as 2s";
            let text = reader.text(field, EXPECTED)?;
            let result = parse_removal_grace(text);
            if let Err(why) = &result {
                reader.unexpected(field, &format!("{EXPECTED} ({why})"));
            }
            result.ok()
        });
    }
    let problems = reader.into_problems();
    match problems.is_empty() {
        true => Ok(settings),
        false => Err(problems),
    }
}

fn directories(reader: &mut Reader, section: &Section, key: &str) -> Option<Vec<PathBuf>> {
    const EXPECTED: &str = "a list of directories";
    let field = section.get(key)?;
    let items = reader.list(field, EXPECTED);
    let mut dirs = Vec::new();
    for item in &items {
        let Some(text) = reader.text(item, "the absolute path of a directory") else {
            continue;
        };
        match directory(text) {
            Ok(dir) => dirs.push(dir),
            Err(message) => reader.refuse(item, message),
        }
    }
    Some(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Settings, String> {
        let source = Source {
            name: "sliced.yaml".to_owned(),
            text: text.to_owned(),
        };
        parse(&source).map_err(|problems| problems[0].to_string())
    }

    #[test]
    fn both_lists_are_read_and_missing_settings_are_none() {
        let settings = parsed("images:\n  - /srv/images\n  - /dev/vg0/\n").unwrap();
        assert_eq!(settings.programs, None);
        let images = settings.images.unwrap();
        assert_eq!(images, [PathBuf::from("/srv/images"), "/dev/vg0".into()]);
        assert_eq!(parsed("# nothing\n"), Ok(Settings::default()));
        let grace = parsed("removal_grace: 1m\n").unwrap().removal_grace;
        assert_eq!(grace, Some(Duration::from_secs(60)));
        assert_eq!(parsed("images: []\n").unwrap().images, Some(vec![]));
    }

    #[test]
    fn problems_are_reported_with_their_position() {
        for (text, place) in [
            ("images: /srv\n", "sliced.yaml:1:9: images: found"),
            (
                "images:\n  - srv\n",
                "sliced.yaml:2:5: images[0]: found \"srv\"",
            ),
            (
                "images:\n  - /\n",
                "sliced.yaml:2:5: images[0]: found \"/\"",
            ),
            ("images:\n  - /a/../b\n", "sliced.yaml:2:5: images[0]"),
            (
                "programs:\n  - 7\n",
                "sliced.yaml:2:5: programs[0]: found 7",
            ),
            ("image: []\n", "sliced.yaml:1:1: unknown key"),
            (
                "removal_grace: 0s\n",
                "sliced.yaml:1:16: removal_grace: found \"0s\", expected a time such as 2s (it must be",
            ),
            ("removal_grace: 2\n", "removal_grace: found 2"),
            (
                "images: []\nimages: []\n",
                "sliced.yaml:2:1: images: duplicate key",
            ),
            ("[", "sliced.yaml:"),
            ("images: []\n---\nimages: []\n", "expected one"),
        ] {
            let message = parsed(text).unwrap_err();
            assert!(message.contains(place), "{text}: {message}");
        }
    }
}
