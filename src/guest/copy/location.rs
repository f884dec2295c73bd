//! `VM:PATH`, a path of the host, or `-`.
//! Out of scope: whether any of it exists.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A source or a destination on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A path in a VM.
    Guest {
        /// The VM, as it was written: `NAME` or `vm/NAME`.
        vm: String,
        /// The path.
        path: GuestPath,
    },
    /// A path of the host.
    Host(PathBuf),
    /// Standard input or output.
    Stdio,
}

/// A path in a guest: absolute, or with `~` at its begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPath(String);

impl FromStr for Location {
    type Err = std::convert::Infallible;

    /// A text with a `:` is a path in a VM, unless it begins like a path: `./a:b` is a file.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-" {
            return Ok(Self::Stdio);
        }
        let guest = text.split_once(':').filter(|(vm, _)| {
            let name = vm.strip_prefix("vm/").unwrap_or(vm);
            !name.is_empty() && !name.contains('/') && !name.starts_with('.')
        });
        Ok(match guest {
            Some((vm, path)) => Self::Guest {
                vm: vm.to_owned(),
                path: GuestPath::new(path),
            },
            None => Self::Host(PathBuf::from(text)),
        })
    }
}

impl GuestPath {
    /// A path that is not absolute is one in the home directory, as with scp(1).
    pub fn new(text: &str) -> Self {
        let is_home = text == "~" || text.starts_with("~/");
        Self(match text {
            "" => "~".to_owned(),
            _ if is_home || text.starts_with('/') => text.to_owned(),
            _ => format!("~/{text}"),
        })
    }

    /// As in requests.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a copy, see [`name`]. A home directory has none: its path is known to the guest only.
    pub fn name(&self) -> Option<&str> {
        let name = name(Path::new(&self.0))?.to_str()?;
        (self.0.trim_end_matches('/') != "~").then_some(name)
    }
}

/// The name of a copy of a file or a directory. `None` for `/`, and for paths that end in `.` or `..`: of these, cp(1) copies the contents.
pub fn name(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let is_contents = bytes == b"." || bytes.ends_with(b"/.") || bytes.ends_with(b"/./");
    path.file_name().filter(|_| !is_contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_in_a_vm_if_a_name_is_before_a_colon() {
        for (text, vm, path) in [
            ("a-1:/x", "a-1", "/x"),
            ("vm/a-1:/x", "vm/a-1", "/x"),
            ("a-1:", "a-1", "~"),
            ("a-1:~", "a-1", "~"),
            ("a-1:x/y", "a-1", "~/x/y"),
            ("a-1:~x", "a-1", "~/~x"),
            ("a-1:/x:y", "a-1", "/x:y"),
        ] {
            let expected = Location::Guest {
                vm: vm.to_owned(),
                path: GuestPath(path.to_owned()),
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["a", "./a:b", "/a:b", "dir/a:b", ":x", "../a:b", "vm/x"] {
            assert_eq!(text.parse(), Ok(Location::Host(text.into())), "{text}");
        }
        assert_eq!("-".parse(), Ok(Location::Stdio));
    }

    #[test]
    fn paths_of_which_the_contents_are_copied_have_no_name() {
        for (path, expected) in [
            ("/a/b", Some("b")),
            ("/a/b/", Some("b")),
            ("/a/b/.", None),
            ("/a/b/./", None),
            ("/a/..", None),
            ("/", None),
            ("~", None),
            ("~/", None),
            ("~/x", Some("x")),
            ("~/~", Some("~")),
            ("/a/~", Some("~")),
        ] {
            assert_eq!(GuestPath::new(path).name(), expected, "{path}");
        }
        assert_eq!(name(Path::new(".")), None);
        assert_eq!(name(Path::new("..")), None);
    }
}
