//! Checks that the directories of programs and images exist and are writable by root alone.
//! Out of scope: the content of the directories.

use std::path::PathBuf;

use super::{Host, ok, warn};
use crate::api::allowed::{AllowedDirectories, Purpose};
use crate::api::view::Check;
use crate::host::named::{self, Refusal};

pub(super) fn checks(cx: &Host) -> Vec<Check> {
    let check = |purpose| {
        let dirs = cx.allowed.of(purpose).iter();
        let observed = dirs.map(|dir| (dir.clone(), named::check_directory(dir)));
        evaluate(purpose, &observed.collect::<Vec<_>>())
    };
    [Purpose::Program, Purpose::Image].map(check).to_vec()
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Program => "directories of programs",
        Purpose::Image => "directories of images",
    }
}

/// Missing directories are accepted as long as one exists.
fn evaluate(purpose: Purpose, observed: &[(PathBuf, Result<(), Refusal>)]) -> Check {
    let (name, setting) = (name(purpose), purpose.setting());
    let mut refusals = observed.iter().filter_map(|(_, look)| look.as_ref().err());
    let refused = refusals.find(|refusal| !refusal.is_absent());
    if let Some(refusal) = refused {
        let remedy = format!(
            "Nothing below it is used: chown root and chmod go-w it and its parent directories, or remove it from `{setting}:` in /etc/slice/sliced.yaml (--{setting})."
        );
        return warn(name, refusal.to_string(), remedy);
    }
    let existing = observed.iter().filter(|(_, look)| look.is_ok());
    let there: Vec<String> = existing.map(|(dir, _)| dir.display().to_string()).collect();
    if !there.is_empty() {
        return ok(
            name,
            format!("{}, writable by root alone", there.join(", ")),
        );
    }
    let defaults = AllowedDirectories::default();
    let dirs = match observed.is_empty() {
        true => defaults.of(purpose).to_vec(),
        false => observed.iter().map(|(dir, _)| dir.clone()).collect(),
    };
    let first = dirs.first().cloned().unwrap_or_default();
    let found = match observed.is_empty() {
        true => format!("`{setting}:` is empty: manifests cannot name any"),
        false => format!("{} does not exist", first.display()),
    };
    let remedy = format!(
        "Create it with `install -d -m 755 {0}`, or specify others with `{setting}:` in /etc/slice/sliced.yaml (--{setting}).",
        first.display()
    );
    warn(name, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckStatus;

    #[test]
    fn a_directory_that_others_can_write_and_a_missing_directory_are_warnings() {
        let absent = |dir: &str| (PathBuf::from(dir), Err(Refusal::Absent(dir.into())));
        let fine = |dir: &str| (PathBuf::from(dir), Ok(()));
        let loose = Refusal::NotAccepted {
            path: "/srv/images".into(),
            found: "a directory owned by user 1000 with mode 0755".to_owned(),
            expected: "a directory that only root can write",
        };
        let loose = (PathBuf::from("/srv/images"), Err(loose));
        let evaluate_images = |looked: &[_]| evaluate(Purpose::Image, looked);
        assert_eq!(
            evaluate_images(&[fine("/a"), absent("/b")]).status,
            CheckStatus::Ok
        );
        let check = evaluate_images(&[fine("/a"), loose]);
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(check.found.contains("user 1000") && check.remedy.contains("--images"));
        let none = evaluate_images(&[absent("/b")]);
        assert_eq!(none.status, CheckStatus::Warn);
        assert!(none.found.contains("/b does not exist"));
        assert!(evaluate_images(&[]).found.contains("`images:` is empty"));
    }
}
