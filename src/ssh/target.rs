//! The user name that a client logs in with: which VM, and what of it.
//! Out of scope: whether the VM exists.

use crate::api::meta::Name;

/// The prefix of the serial console.
const CONSOLE: &str = "console";

/// The maximum length of a user name of a guest (useradd(8)).
const MAX_USER: usize = 32;

/// What a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `VM` or `USER+VM`: the guest, through its agent.
    Guest {
        /// The VM.
        vm: Name,
        /// The user of the guest, a name or a number; `None`: the agent's default.
        user: Option<String>,
    },
    /// `console+VM`.
    Console(Name),
    /// The name cannot be that of a VM, and no `+` says that it should be one.
    Menu,
    /// The part of the name that is not valid.
    Invalid(String),
}

impl Target {
    /// Parses a user name.
    pub fn parse(text: &str) -> Self {
        let Some((prefix, vm)) = text.rsplit_once('+') else {
            return match text.parse() {
                Ok(vm) => Self::Guest { vm, user: None },
                Err(_) => Self::Menu,
            };
        };
        match vm.parse() {
            Ok(vm) if prefix == CONSOLE => Self::Console(vm),
            Ok(vm) if is_user(prefix) => Self::Guest {
                vm,
                user: Some(prefix.to_owned()),
            },
            Ok(_) => Self::Invalid(prefix.to_owned()),
            Err(_) => Self::Invalid(vm.to_owned()),
        }
    }

    /// Whether a name without a VM is that of a user of the client, which `ssh` sends by default, and not a mistyped VM: the
    /// VMs of groups end in a number.
    pub fn may_be_a_user(name: &Name) -> bool {
        let number = name.as_str().rsplit_once('-').map(|(_, number)| number);
        number.is_none_or(|number| !number.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

/// Whether this may be the name of a user: printable, and nothing that has a meaning in `/etc/passwd`.
fn is_user(text: &str) -> bool {
    let is_permitted =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=MAX_USER).contains(&text.len()) && text.bytes().all(is_permitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_is_a_vm_with_an_optional_prefix() {
        let guest = |vm: &str, user: Option<&str>| Target::Guest {
            vm: vm.parse().unwrap(),
            user: user.map(str::to_owned),
        };
        let invalid = |text: &str| Target::Invalid(text.to_owned());
        let long = "u".repeat(33);
        for (text, expected) in [
            ("sandbox-1", guest("sandbox-1", None)),
            ("alice", guest("alice", None)),
            ("root+sandbox-1", guest("sandbox-1", Some("root"))),
            ("1000+sandbox-1", guest("sandbox-1", Some("1000"))),
            ("a.b_c-d+x", guest("x", Some("a.b_c-d"))),
            ("console+x", Target::Console("x".parse().unwrap())),
            ("", Target::Menu),
            ("Alice", Target::Menu),
            ("a b", Target::Menu),
            ("../x", Target::Menu),
            ("+x", invalid("")),
            ("a:b+x", invalid("a:b")),
            ("console+", invalid("")),
            ("console+a+X", invalid("X")),
            ("a+b+x", invalid("a+b")),
            (&format!("{long}+x"), invalid(&long)),
        ] {
            assert_eq!(Target::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn names_that_end_in_a_number_are_those_of_vms() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        for (text, expected) in [("alice", true), ("web-x", true), ("web-1", false)] {
            assert_eq!(Target::may_be_a_user(&name(text)), expected, "{text}");
        }
    }
}
