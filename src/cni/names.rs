//! The character sets and lengths that the spec defines: network names, container ids, interface and plugin names, arguments.
//! Out of scope: which names are in use.

use super::Error;

/// IFNAMSIZ without the terminating NUL, in bytes.
const MAX_INTERFACE_LEN: usize = 15;

const NAME_RULE: &str =
    "must start with a letter or a digit and contain only letters, digits, `_`, `.` and `-`";

/// Checks the name of a network (spec, section 1).
pub(super) fn network(name: &str) -> Result<(), Error> {
    check_name("network name", name)
}

/// Checks the id of a container (spec, section 2, `CNI_CONTAINERID`).
pub(super) fn check_container(id: &str) -> Result<(), Error> {
    check_name("container id", id)
}

fn check_name(what: &'static str, value: &str) -> Result<(), Error> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let is_valid =
        value.starts_with(|c: char| c.is_ascii_alphanumeric()) && value.chars().all(is_allowed);
    is_valid
        .then_some(())
        .ok_or(invalid(what, value, NAME_RULE))
}

/// Checks the name of an interface as Linux does (`dev_valid_name` in `net/core/dev.c`).
pub(super) fn check_interface(name: &str) -> Result<(), Error> {
    let reason = match name {
        "" => "must not be empty",
        "." | ".." => "must not be `.` or `..`",
        _ if name.len() > MAX_INTERFACE_LEN => "must not be longer than 15 bytes",
        _ if name.contains(|c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace()) => {
            "must not contain `/`, `:` or white space"
        }
        _ => return Ok(()),
    };
    Err(invalid("interface name", name, reason))
}

/// Whether a name is a valid name of a plugin: it is the name of a file.
pub(super) fn is_plugin(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0'])
}

/// Checks a pair of `CNI_ARGS`. The format is `KEY=VALUE;KEY=VALUE`, without quoting.
pub(super) fn check_argument(key: &str, value: &str) -> Result<(), Error> {
    let what = "CNI argument";
    if key.is_empty() || key.contains(['=', ';', '\0']) {
        return Err(invalid(
            what,
            key,
            "the key must not be empty or contain `=`, `;` or NUL",
        ));
    }
    match value.contains([';', '\0']) {
        true => Err(invalid(
            what,
            value,
            "the value must not contain `;` or NUL",
        )),
        false => Ok(()),
    }
}

fn invalid(what: &'static str, value: &str, reason: &'static str) -> Error {
    Error::InvalidArgument {
        what,
        value: value.to_owned(),
        why: reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_ascii_and_start_with_a_letter_or_a_digit() {
        for good in ["a", "0", "a.b_c-D", "9-", "a..b"] {
            assert!(
                check_container(good).is_ok() && network(good).is_ok(),
                "{good}"
            );
        }
        for bad in ["", ".a", "-a", "_a", "a/b", "a b", "ä", "a\n", "a:b", ".."] {
            assert!(
                check_container(bad).is_err() && network(bad).is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn interface_names_are_checked_as_linux_does() {
        for good in ["eth0", "a", "exactly15bytes_", "...", "ä"] {
            assert!(check_interface(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "a\u{2003}b",
            "sixteen_bytes_xx",
            "a\0",
        ] {
            assert!(check_interface(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn plugin_names_are_file_names() {
        assert!(is_plugin("bridge") && is_plugin("tc-redirect-tap"));
        for bad in ["", ".", "..", "../sh", "a/b", r"a\b", "a\0b"] {
            assert!(!is_plugin(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_argument_cannot_contain_another_argument() {
        assert!(check_argument("K8S_POD_NAME", "a=b").is_ok());
        for (key, value) in [
            ("", "v"),
            ("a=b", "v"),
            ("a;b", "v"),
            ("a", "v;w"),
            ("a", "\0"),
        ] {
            assert!(check_argument(key, value).is_err(), "{key}={value}");
        }
    }
}
