//! The table of keys (`src/api/manifest/keys`) and what is made of it agree with the parser.
//! Out of scope: messages of the parser (`manifests`).

mod fixture;
mod locations;
mod schema;

use slicectl::api::allowed::AllowedDirectories;
use slicectl::api::manifest::keys::{self, Change, Default, Key, Mapping};
use slicectl::api::manifest::settings;
use slicectl::intake::REMOVAL_GRACE;

use super::source::assert_text;
use fixture::{Place, drafts, places};

#[test]
fn the_reference_is_generated_from_the_table() {
    assert_text("docs/reference/yaml.md", &keys::reference());
}

#[test]
fn a_default_of_the_table_is_the_value_of_a_missing_key() {
    let mut compared = 0;
    for place in places() {
        let default = match place.key.default {
            Default::Whole(number) => number.to_string(),
            Default::Flag(flag) => flag.to_string(),
            Default::Word(word) => word.to_owned(),
            Default::Required | Default::Text(_) => continue,
        };
        let spec = |text: &str| {
            drafts(text).unwrap_or_else(|e| panic!("{text}: {e:?}"))[0]
                .spec
                .clone()
        };
        let set = place.manifest(&default);
        assert_eq!(
            spec(&set),
            spec(&place.without()),
            "{}\n{set}",
            place.key.name
        );
        compared += 1;
    }
    assert!(compared > 10, "{compared}");
}

#[test]
fn defaults_of_the_settings_file_are_those_of_the_daemon() {
    let text = |name: &str| {
        let key = Mapping::Settings.keys().find(|key| key.name == name);
        match key.map(|key| key.default) {
            Some(Default::Text(text) | Default::Word(text)) => text.replace('`', ""),
            other => panic!("{name}: {other:?}"),
        }
    };
    let default = AllowedDirectories::default();
    for (name, dirs) in [("programs", default.programs), ("images", default.images)] {
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        assert_eq!(text(name), dirs.join(", "));
    }
    let grace = settings::parse_removal_grace(&text("removal_grace"));
    assert_eq!(grace, Ok(REMOVAL_GRACE));
}

/// Whether a change of the key is live, as the table says; `None` if it depends on the VM.
fn is_live(key: &Key) -> Option<bool> {
    match key.change {
        Change::Live | Change::Scales => Some(true),
        Change::Replaces => Some(false),
        Change::None | Change::ReplacesReaddressed | Change::AnotherGroup => None,
    }
}

#[test]
fn a_change_of_a_key_has_the_effect_that_the_table_names() {
    let mut compared = 0;
    for place in places() {
        // A manifest without one of two limits is invalid.
        let is_complete =
            place.mapping != Mapping::Bandwidth && !matches!(place.key.default, Default::Required);
        let Some(live) = is_live(place.key).filter(|_| is_complete) else {
            continue;
        };
        let template = |text: &str| {
            let drafts = drafts(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            drafts[0].spec.template.clone()
        };
        let text = place.manifest(place.key.example);
        let (set, unset) = (template(&text), template(&place.without()));
        assert_eq!(
            unset.can_change_live_to(&set),
            live,
            "{}\n{text}",
            place.key.name
        );
        compared += 1;
    }
    assert!(compared > 30, "{compared}");
}

#[test]
fn every_key_has_a_place_in_these_tests() {
    let covered: Vec<&str> = places()
        .iter()
        .map(|place: &Place| place.key.name)
        .collect();
    for key in keys::all() {
        let is_setting = |m: &Mapping| m.is_setting();
        let is_covered = covered.contains(&key.name) || key.mappings.iter().any(is_setting);
        assert!(is_covered, "{}", key.name);
    }
}
