//! The log filter of `sliced`.
//! Out of scope: writing the log.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

/// A valid filter in the syntax of [`EnvFilter`], which cannot be cloned itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// The levels of a directive.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl LogFilter {
    /// The filter.
    pub fn env_filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An empty variable is not set.
        let text = match text.trim() {
            "" => "info",
            text => text,
        };
        let directives: Vec<&str> = text.split(',').map(str::trim).collect();
        directives
            .iter()
            .try_for_each(|text| check_directive(text))?;
        let text = directives.join(",");
        match EnvFilter::try_new(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(format!("{error}: {EXPECTED}")),
        }
    }
}

const EXPECTED: &str =
    "expected a level (error, warn, info, debug, trace, off) or MODULE=LEVEL, separated by commas";

/// Refuses what [`EnvFilter`] ignores or takes for the name of a module. Directives for spans (`[…]`) are left to it.
fn check_directive(directive: &str) -> Result<(), String> {
    if directive.contains(['[', '{']) {
        return Ok(());
    }
    let (module, level) = match directive.split_once('=') {
        Some((module, level)) => (Some(module), level),
        // A module alone has all its levels.
        None if directive.contains("::") => (Some(directive), "trace"),
        None => (None, directive),
    };
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    if let Some(module) = module
        && (module.is_empty() || !module.chars().all(is_word))
    {
        return Err(format!("invalid module \"{module}\": {EXPECTED}"));
    }
    let is_level = |name: &&str| name.eq_ignore_ascii_case(level);
    match LEVELS.iter().any(is_level) {
        true => Ok(()),
        false => Err(format!("unknown level \"{level}\": {EXPECTED}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_modules_are_valid() {
        for text in [
            "info",
            "WARN",
            "off",
            "debug,sled=warn",
            "info, slicectl::engine=trace",
            "slicectl::host",
            "slicectl[run{key=x}]=debug",
            "",
            " ",
        ] {
            assert!(text.parse::<LogFilter>().is_ok(), "{text}");
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for text in [
            "bogus===",
            "bogus",
            "inof",
            "info,",
            ",",
            "=",
            "=debug",
            "sled=",
            "sled=loud",
            "sled=warn=info",
            "info debug",
            "sled =warn",
            "slicectl[=debug",
            "7",
        ] {
            let error = text.parse::<LogFilter>().expect_err(text);
            assert!(error.contains("expected a level"), "{text}: {error}");
        }
    }
}
