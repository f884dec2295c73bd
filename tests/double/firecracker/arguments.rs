//! What Firecracker is called with. A word that it does not know is an error.
//! Out of scope: what follows from them.

use std::path::PathBuf;

#[derive(Default)]
pub struct Arguments {
    pub version: bool,
    pub id: String,
    pub api_sock: Option<PathBuf>,
    pub config_file: Option<PathBuf>,
}

impl Arguments {
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let mut arguments = Self {
            id: "anonymous-instance".to_owned(),
            ..Self::default()
        };
        let (mut api, mut words) = (true, words.iter());
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next();
                value.ok_or_else(|| format!("The argument '{word}' requires a value."))
            };
            match word.as_str() {
                "--version" => arguments.version = true,
                "--id" => arguments.id = instance_id(value()?)?,
                "--api-sock" => arguments.api_sock = Some(value()?.into()),
                "--config-file" => arguments.config_file = Some(value()?.into()),
                "--level" => level(value()?)?,
                // What its jailer tells it.
                "--start-time-us" | "--start-time-cpu-us" | "--parent-cpu-time-us" => {
                    let text = value()?;
                    text.parse::<u64>()
                        .map_err(|_| format!("'{word}' parameter expected to be of 'u64' type."))?;
                }
                "--no-api" => api = false,
                _ => return Err(format!("Found argument '{word}' which wasn't expected.")),
            }
        }
        match (api, &arguments.config_file) {
            (false, None) => Err("'--no-api' requires '--config-file'.".to_owned()),
            (false, Some(_)) => {
                arguments.api_sock = None;
                Ok(arguments)
            }
            (true, _) => {
                let usual = || "/run/firecracker.socket".into();
                arguments.api_sock = Some(arguments.api_sock.unwrap_or_else(usual));
                Ok(arguments)
            }
        }
    }
}

fn instance_id(id: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match (1..=64).contains(&id.len()) && id.chars().all(valid) {
        true => Ok(id.to_owned()),
        false => Err(format!("Invalid instance ID: {id}")),
    }
}

fn level(level: &str) -> Result<(), String> {
    let known = ["off", "trace", "debug", "info", "warn", "warning", "error"];
    match known.contains(&level.to_lowercase().as_str()) {
        true => Ok(()),
        false => Err(format!("Failed to parse log level {level}")),
    }
}
