//! Reads `userdata`, `userdata_file`, `ssh_keys` and `secrets`: what a guest gets from the host.
//! Out of scope: whether secrets and files exist, which the daemon reports in the condition `Agent`.

use super::super::provision::{MAX_KEYS, MAX_SECRETS, Provision, Userdata};
use super::super::secret::SecretName;
use super::super::ssh_key::SshKey;
use super::section::{Field, Reader, Section};
use super::yaml::Value;

/// The keys, for settings that exclude them.
pub const KEYS: [&str; 4] = ["userdata", "userdata_file", "ssh_keys", "secrets"];

/// The settings that a group may inherit from `config:` or override.
#[derive(Clone, Default)]
pub struct ProvisionFields {
    /// `Some(None)`: a group overrides that of `config:` with none.
    userdata: Option<Option<Userdata>>,
    ssh_keys: Option<Vec<SshKey>>,
    secrets: Option<Vec<SecretName>>,
}

impl ProvisionFields {
    /// What a guest with these settings gets.
    pub fn into_provision(self) -> Provision {
        Provision {
            userdata: self.userdata.flatten(),
            ssh_keys: self.ssh_keys.unwrap_or_default(),
            secrets: self.secrets.unwrap_or_default(),
        }
    }
}

/// The settings of this section, with `default` for those that are missing.
pub fn read(reader: &mut Reader, section: &Section, default: ProvisionFields) -> ProvisionFields {
    let keys = section
        .get("ssh_keys")
        .map(|field| read_list(reader, field, "public keys of OpenSSH", MAX_KEYS, parse_key));
    let secrets = section.get("secrets").map(|field| {
        read_list(reader, field, "names of secrets", MAX_SECRETS, |text| {
            let name: SecretName = text.parse().map_err(|error| format!("{error}"))?;
            Ok((name.to_string(), name))
        })
    });
    ProvisionFields {
        userdata: read_userdata(reader, section).or(default.userdata),
        ssh_keys: keys.or(default.ssh_keys),
        secrets: secrets.or(default.secrets),
    }
}

/// The key, and what makes it the same as another.
fn parse_key(text: &str) -> Result<(String, SshKey), String> {
    let key: SshKey = text.parse()?;
    Ok((key.fingerprint(), key))
}

fn read_userdata(reader: &mut Reader, section: &Section) -> Option<Option<Userdata>> {
    let (inline, file) = (section.get("userdata"), section.get("userdata_file"));
    if let (Some(_), Some(file)) = (inline, file) {
        let message = "only one of userdata and userdata_file may be given";
        reader.refuse_and_discard_others(file, message);
        return None;
    }
    if let Some(field) = file {
        return Some(reader.path(field).map(Userdata::File));
    }
    let field = inline?;
    let text = reader.text(field, "a script")?;
    match text.parse() {
        Ok(_) if text.is_empty() => Some(None),
        Ok(script) => Some(Some(Userdata::Script(script))),
        Err(error) => {
            let error: super::super::provision::InvalidScript = error;
            reader.refuse(field, error.to_string());
            None
        }
    }
}

/// A list without duplicates. A value that is invalid is not repeated in the message: it may be a secret or a private key by mistake.
fn read_list<T>(
    reader: &mut Reader,
    field: &Field,
    what: &str,
    most: usize,
    parse: impl Fn(&str) -> Result<(String, T), String>,
) -> Vec<T> {
    let items = reader.list(field, &format!("a list of {what} ([] for none)"));
    if let Some(excess) = items.get(most) {
        let message = format!("found {} {what}, expected at most {most}", items.len());
        reader.refuse(excess, message);
    }
    let mut seen: Vec<(String, usize)> = Vec::new();
    let mut found = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let Value::Text(text) = &item.node.value else {
            reader.unexpected(item, &format!("one of the {what}"));
            continue;
        };
        match parse(text) {
            Err(why) => reader.refuse(item, why),
            Ok((identity, value)) => {
                match seen.iter().find(|(other, _)| *other == identity) {
                    Some((_, first)) => {
                        let message = format!("duplicate of {}[{first}]", field.path);
                        reader.refuse(item, message);
                    }
                    None => found.push(value),
                }
                seen.push((identity, at));
            }
        }
    }
    found
}
