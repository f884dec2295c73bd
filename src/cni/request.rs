//! The standard input and the environment of a plugin, derived from the configuration (spec, section 3).
//! Out of scope: starting the plugin.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;

use super::attachment::{Attachment, ValidAttachment};
use super::command::Command;
use super::json;
use super::network::{Network, Plugin};
use super::result::CniResult;

/// The prefix of keys that are reserved for the runtime: those in a configuration are not passed on.
const RESERVED_PREFIX: &str = "cni.dev/";

/// The keys of the list of valid attachments for GC. The tagged text of spec 1.1.0 and the current text use different keys. If the key
/// that a plugin reads is missing, the plugin removes all attachments.
const VALID_ATTACHMENTS_KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// The subject of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    /// ADD, DEL, CHECK.
    Attachment {
        attachment: &'a Attachment,
        previous: Option<&'a CniResult>,
    },
    /// GC.
    Valid(&'a [ValidAttachment]),
    /// STATUS.
    Network,
}

/// The execution configuration, which the plugin reads from standard input.
pub(super) fn stdin(network: &Network, plugin: &Plugin, subject: Subject<'_>) -> String {
    let mut object = plugin.object();
    object.retain(|key, _| !key.starts_with(RESERVED_PREFIX) && key != "prevResult");
    let mut insert = |key: &str, value| object.insert(key.to_owned(), value);
    insert("name", json::raw(&network.name));
    insert("cniVersion", json::raw(&network.cni_version));
    match subject {
        Subject::Attachment {
            attachment,
            previous,
        } => {
            if let Some(previous) = previous {
                insert("prevResult", previous.to_raw());
            }
            let given = attachment.capability_args.iter();
            let supported: serde_json::Map<String, Value> = given
                .filter(|(capability, _)| plugin.capabilities.contains(*capability))
                .map(|(capability, value)| (capability.clone(), value.clone()))
                .collect();
            if !supported.is_empty() {
                insert("runtimeConfig", json::raw(&supported));
            }
            object.remove("capabilities");
        }
        Subject::Valid(valid) => {
            for key in VALID_ATTACHMENTS_KEYS {
                insert(key, json::raw(valid));
            }
        }
        Subject::Network => {}
    }
    json::text(&object)
}

/// The environment in addition to what is inherited (spec, section 2, Parameters). The variables of an attachment are all set, even if
/// they are empty, or all absent if the operation has no attachment.
pub(super) fn environment(
    command: Command,
    subject: Subject<'_>,
    dirs: &[PathBuf],
) -> Vec<(&'static str, OsString)> {
    let mut environment = vec![
        ("CNI_COMMAND", command.as_str().into()),
        ("CNI_PATH", search_path(dirs)),
    ];
    if let Subject::Attachment { attachment, .. } = subject {
        let netns = attachment.netns.clone().unwrap_or_default();
        environment.extend([
            ("CNI_CONTAINERID", attachment.container_id.clone().into()),
            ("CNI_NETNS", netns.into()),
            ("CNI_IFNAME", attachment.ifname.clone().into()),
            ("CNI_ARGS", attachment.args_text().into()),
        ]);
    }
    environment
}

/// The value of `CNI_PATH`.
pub(super) fn search_path(dirs: &[PathBuf]) -> OsString {
    let paths: Vec<OsString> = dirs.iter().map(|dir| dir.into()).collect();
    paths.join(std::ffi::OsStr::new(":"))
}
