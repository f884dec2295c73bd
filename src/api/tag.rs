//! Tags of VMs, in the syntax of Kubernetes labels, and selectors.
//! Out of scope: which VMs have tags.
//!
//! Syntax: `[PREFIX/]NAME=VALUE` (Kubernetes, "Labels and Selectors": NAME and VALUE at most 63 of `A-Za-z0-9-_.`, starting and
//! ending with a letter or a digit; VALUE may be empty; PREFIX a DNS subdomain of at most 253 characters).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::meta::Name;

/// Tags by key.
pub type Tags = BTreeMap<TagKey, TagValue>;

/// The maximum number of tags of a VM: they are part of every response that contains the VM.
pub const MAX_TAGS: usize = 64;

/// The maximum length of a name, and of a value.
const LONGEST: usize = 63;
/// The maximum length of a prefix (RFC 1123).
const MAX_PREFIX_LEN: usize = 253;

/// The key of a tag: `team` or `example.com/team`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TagKey(String);

/// The value of a tag, such as `blue`; may be empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TagValue(String);

/// The error for a text that is not a valid tag or selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found \"{}\", expected {expected}: {why}", .found.escape_debug())]
pub struct InvalidTag {
    found: String,
    expected: &'static str,
    why: String,
}

impl InvalidTag {
    fn new(found: &str, expected: &'static str, reason: impl Into<String>) -> Self {
        Self {
            found: found.to_owned(),
            expected,
            why: reason.into(),
        }
    }
}

impl InvalidTag {
    /// The error for a change of the friendly name together with other tags.
    pub fn fixed_name(found: &str) -> Self {
        let why = "the name of a VM is changed with the field name only";
        Self::new(found, "another tag", why)
    }
}

impl FromStr for TagKey {
    type Err = InvalidTag;
    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let name = match text.split_once('/') {
            None => text,
            Some((prefix, name)) => {
                check_prefix(prefix)
                    .map_err(|reason| InvalidTag::new(text, "a tag's key", reason))?;
                name
            }
        };
        match check_word(name) {
            Ok(()) if name.is_empty() => Err("it is empty".to_owned()),
            other => other,
        }
        .map_err(|why| InvalidTag::new(text, "a tag's key", why))?;
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for TagValue {
    type Err = InvalidTag;
    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        check_word(text).map_err(|reason| InvalidTag::new(text, "a tag's value", reason))?;
        Ok(Self(text.to_owned()))
    }
}

fn check_prefix(prefix: &str) -> Result<(), String> {
    if prefix.len() > MAX_PREFIX_LEN {
        return Err(format!("its prefix is longer than {MAX_PREFIX_LEN}"));
    }
    prefix.split('.').try_for_each(|label| {
        let checked = Name::new(label);
        checked
            .map(drop)
            .map_err(|error| format!("its prefix is not a valid DNS subdomain: {error}"))
    })
}

fn check_word(text: &str) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = [text.bytes().next(), text.bytes().last()];
    if text.len() > LONGEST {
        Err(format!("it is longer than {LONGEST} characters"))
    } else if !text.bytes().all(inner) {
        Err("use A-Z, a-z, 0-9, `-`, `_` and `.`".to_owned())
    } else if !ends.iter().flatten().all(u8::is_ascii_alphanumeric) {
        Err("it must start and end with a letter or a digit".to_owned())
    } else {
        Ok(())
    }
}

/// Parses `KEY=VALUE`.
///
/// # Errors
/// [`InvalidTag`].
pub fn parse(text: &str) -> Result<(TagKey, TagValue), InvalidTag> {
    let expected = "KEY=VALUE";
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| InvalidTag::new(text, expected, "there is no `=`"))?;
    Ok((key.parse()?, value.parse()?))
}

/// A selector: `env=ci,team!=blue,owner,!hold`. All terms must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Is(TagKey, TagValue),
    NotEquals(TagKey, TagValue),
    Has(TagKey),
    NotExists(TagKey),
}

impl Selector {
    /// Whether the selector matches these tags. As in Kubernetes, `team!=blue` matches if there is no `team`.
    pub fn selects(&self, tags: &Tags) -> bool {
        self.0.iter().all(|term| match term {
            Term::Is(key, value) => tags.get(key) == Some(value),
            Term::NotEquals(key, value) => tags.get(key) != Some(value),
            Term::Has(key) => tags.contains_key(key),
            Term::NotExists(key) => !tags.contains_key(key),
        })
    }
}

impl FromStr for Selector {
    type Err = InvalidTag;
    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        text.split(',')
            .map(|term| match (term.split_once("!="), term.split_once('=')) {
                (Some((key, value)), _) => Ok(Term::NotEquals(key.parse()?, value.parse()?)),
                (None, Some((key, value))) => {
                    let value = value.strip_prefix('=').unwrap_or(value);
                    Ok(Term::Is(key.parse()?, value.parse()?))
                }
                (None, None) => match term.strip_prefix('!') {
                    Some(key) => Ok(Term::NotExists(key.parse()?)),
                    None => Ok(Term::Has(term.parse()?)),
                },
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// A tag that is no `KEY=VALUE`: one line of text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlainTag(String);

/// The maximum length of a [`PlainTag`], in bytes: that of a key and a value.
const MAX_PLAIN_LEN: usize = MAX_PREFIX_LEN + 2 * LONGEST + 2;

impl FromStr for PlainTag {
    type Err = InvalidTag;
    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let invalid = |why: &str| {
            let found: String = text.chars().take(LONGEST).collect();
            Err(InvalidTag::new(&found, "a tag", why))
        };
        if text.is_empty() {
            invalid("it is empty")
        } else if text.len() > MAX_PLAIN_LEN {
            invalid("it is longer than 381 bytes")
        } else if text.chars().any(char::is_control) {
            invalid("it contains a control character")
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

/// The key of the tag that is the friendly name of a VM.
pub const NAME_KEY: &str = "name";

/// All tags of a VM, as the REST API has them: a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagSet {
    /// Those that are `KEY=VALUE`, each key once.
    pub tags: Tags,
    /// All others.
    pub plain: Vec<PlainTag>,
}

impl TagSet {
    /// The tags in this list. The tag `name=` must be a DNS label.
    ///
    /// # Errors
    /// A text is no tag, or there are two names.
    pub fn of(texts: &[String]) -> Result<Self, InvalidTag> {
        let mut set = Self::default();
        texts.iter().try_for_each(|text| set.add(text))?;
        Ok(set)
    }

    /// Adds a tag; one that exists is not added again.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn add(&mut self, text: &str) -> Result<(), InvalidTag> {
        if let Some(label) = name_of(text) {
            let label = Name::new(label)
                .map_err(|error| InvalidTag::new(text, "name=LABEL", error.why()))?;
            let value: TagValue = label.as_str().parse()?;
            let before = self.tags.insert(TagKey(NAME_KEY.to_owned()), value.clone());
            return match before.is_none_or(|before| before == value) {
                true => Ok(()),
                false => Err(InvalidTag::new(text, "one name", "there are two")),
            };
        }
        if let Ok((key, value)) = parse(text) {
            match self.tags.get(&key) {
                None => {
                    self.tags.insert(key, value);
                    return Ok(());
                }
                Some(known) if *known == value => return Ok(()),
                // A second value of a key is text only.
                Some(_) => {}
            }
        }
        let plain = text.parse()?;
        if !self.plain.contains(&plain) {
            self.plain.push(plain);
        }
        Ok(())
    }

    /// Removes a tag; one that does not exist is removed already.
    pub fn remove(&mut self, text: &str) {
        if let Ok((key, value)) = parse(text)
            && self.tags.get(&key) == Some(&value)
        {
            self.tags.remove(&key);
        }
        self.plain.retain(|known| known.0 != text);
    }

    /// The friendly name.
    pub fn name(&self) -> Option<&TagValue> {
        self.tags.get(&TagKey(NAME_KEY.to_owned()))
    }

    /// Sets the friendly name; `None` removes it.
    pub fn set_name(&mut self, name: Option<TagValue>) {
        let key = TagKey(NAME_KEY.to_owned());
        match name {
            Some(name) => self.tags.insert(key, name),
            None => self.tags.remove(&key),
        };
    }

    /// The number of tags.
    pub fn len(&self) -> usize {
        self.tags.len() + self.plain.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tags as texts: those with a key in the order of their keys, then the others.
    pub fn texts(&self) -> Vec<String> {
        let keyed = self
            .tags
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let plain = self.plain.iter().map(ToString::to_string);
        keyed.chain(plain).collect()
    }
}

/// The label of a tag that is the friendly name.
pub fn name_of(text: &str) -> Option<&str> {
    text.strip_prefix(NAME_KEY)?.strip_prefix('=')
}

macro_rules! text {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl From<$type> for String {
            fn from(text: $type) -> Self {
                text.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidTag;
            fn try_from(text: String) -> Result<Self, InvalidTag> {
                text.parse()
            }
        }
    };
}

text!(TagKey);
text!(TagValue);
text!(PlainTag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_the_syntax_of_kubernetes_labels() {
        let long = "x".repeat(63);
        for good in [
            "env=ci",
            "env=",
            "a.B_c-9=A.b_c-D",
            "example.com/team=blue",
            &format!("{long}={long}"),
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, message) in [
            ("env", "no `=`"),
            ("=x", "it is empty"),
            ("-env=x", "start and end"),
            ("env=x-", "start and end"),
            ("env=a b", "use A-Z"),
            ("env=a=b", "use A-Z"),
            ("é=x", "use A-Z"),
            ("Example.com/team=x", "prefix"),
            ("/team=x", "prefix"),
            ("a/b/c=x", "use A-Z"),
            (&format!("{long}x=1"), "longer than 63"),
            (&format!("a={long}x"), "longer than 63"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(message), "{bad}: {error}");
        }
    }

    #[test]
    fn a_set_of_tags_keeps_each_text_that_was_added() {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let set = TagSet::of(&texts(&[
            "k3s", "env=ci", "env=dev", "env=ci", "k3s", "name=web",
        ]));
        let mut set = set.unwrap();
        assert_eq!(set.texts(), ["env=ci", "name=web", "k3s", "env=dev"]);
        assert_eq!(set.name().map(ToString::to_string).as_deref(), Some("web"));
        for text in ["k3s", "env=dev", "env=other", "unknown"] {
            set.remove(text);
        }
        assert_eq!(set.texts(), ["env=ci", "name=web"]);
        set.set_name(None);
        assert_eq!(set.texts(), ["env=ci"]);
        let long = "x".repeat(382);
        for bad in [
            "", "a\nb", "name=", "name=a b", "name=Web", "name=-x", &long,
        ] {
            assert!(TagSet::of(&texts(&[bad])).is_err(), "{bad:?}");
        }
        assert!(TagSet::of(&texts(&["name=a", "name=b"])).is_err());
        assert!(TagSet::of(&texts(&["name=a", "name=a"])).is_ok());
    }

    #[test]
    fn a_selector_matches_if_all_terms_match() {
        let tags: Tags = ["env=ci", "team=blue"]
            .into_iter()
            .map(|tag| parse(tag).unwrap())
            .collect();
        for (text, selected) in [
            ("env=ci", true),
            ("env==ci", true),
            ("env=ci,team=blue", true),
            ("env=ci,team=red", false),
            ("team!=red", true),
            ("team!=blue", false),
            ("owner!=me", true),
            ("env", true),
            ("owner", false),
            ("!owner", true),
            ("!env", false),
            ("env=", false),
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.selects(&tags), selected, "{text}");
        }
        for bad in ["", "env=ci,", "=ci", "!", "a b", "env=ci;x"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
    }
}
