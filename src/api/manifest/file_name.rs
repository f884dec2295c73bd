//! Which file names are manifests.
//! Out of scope: reading them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Whether a file of this name is a manifest: `*.yaml` or `*.yml`, except dotfiles. Temporary files of editors (`.x.yaml.swp`, `4913`,
/// `x.yaml~`, `#x.yaml#`, `sedAbCdEf`) are not.
pub fn is_manifest(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let suffix = [&b".yaml"[..], b".yml"].iter().any(|s| name.ends_with(s));
    suffix && !name.starts_with(b".") && !name.starts_with(b"#")
}

/// Whether a file of this name may be mistaken for a manifest: upper case letters in the suffix, or JSON, which is valid YAML.
pub fn resembles_manifest(name: &OsStr) -> bool {
    let lower = name.as_bytes().to_ascii_lowercase();
    let json = lower.ends_with(b".json") && !lower.starts_with(b".") && !lower.starts_with(b"#");
    !is_manifest(name) && (json || is_manifest(OsStr::from_bytes(&lower)))
}
