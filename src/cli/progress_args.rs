//! The arguments that the commands which change objects share: `--wait`, `--timeout`, `--quiet`.
//! Out of scope: waiting (`wait`).

use std::ffi::OsString;
use std::time::Duration;

use super::failure::Failure;
use super::print;

/// Arguments of commands that change objects. `SECONDS` is the timeout if `--timeout` is omitted.
#[derive(Debug, clap::Args)]
pub struct ProgressArgs<const SECONDS: u64 = 60> {
    /// Wait until the objects have the requested state
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after this time; requires --wait
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = humantime::parse_duration,
          help = format!("Give up waiting after this time ({} if omitted); requires --wait", humantime::format_duration(Duration::from_secs(SECONDS))))]
    timeout: Option<Duration>,
    /// Do not print what was done
    #[arg(short, long)]
    pub quiet: bool,
}

impl<const SECONDS: u64> ProgressArgs<SECONDS> {
    /// How long to wait; `None` without `--wait`.
    pub fn timeout(&self) -> Option<Duration> {
        let default = Duration::from_secs(SECONDS);
        self.wait.then(|| self.timeout.unwrap_or(default))
    }

    /// Prints what was done, unless `--quiet` is given.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        match self.quiet {
            true => Ok(()),
            false => print::out(text),
        }
    }
}

/// Replaces spellings of kubectl and of earlier versions, which the help does not mention: `--wait=TIME` is `--wait --timeout=TIME`,
/// `--wait=true|false` is `--wait` or nothing, `--wait=GOAL` is `--wait --for=GOAL`, and `-A` (`--all-namespaces`) is nothing, since there are no namespaces.
pub fn normalize(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut normal = Vec::new();
    let mut is_escaped = false;
    for arg in args {
        is_escaped |= arg == "--";
        match arg.to_str().filter(|_| !is_escaped) {
            Some("-A" | "--all-namespaces" | "--wait=false") => {}
            Some("--wait=true") => normal.push("--wait".into()),
            Some(text) => match text.strip_prefix("--wait=") {
                Some(goal @ ("ready" | "agent" | "userdata")) => {
                    let goal = format!("--for={goal}");
                    normal.extend(["--wait".into(), goal.into()]);
                }
                Some(time) => {
                    let timeout = format!("--timeout={time}");
                    normal.extend(["--wait".into(), timeout.into()]);
                }
                None => normal.push(arg),
            },
            None => normal.push(arg),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        progress: ProgressArgs<300>,
        words: Vec<String>,
    }

    fn parse(text: &str) -> Result<Command, clap::Error> {
        let words = text.split_whitespace().map(OsString::from);
        Command::try_parse_from(normalize(std::iter::once("x".into()).chain(words)))
    }

    #[test]
    fn every_spelling_of_wait_is_accepted() {
        let seconds = |text: &str| {
            let timeout = parse(text).map(|command| command.progress.timeout());
            timeout.unwrap().map(|time| time.as_secs())
        };
        assert_eq!(seconds(""), None);
        assert_eq!(seconds("--wait=false"), None);
        for text in ["--wait", "a --wait", "--wait=true", "-A --wait -q"] {
            assert_eq!(seconds(text), Some(300), "{text}");
        }
        for text in [
            "--wait=7s",
            "--wait --timeout 7s",
            "--timeout=7s --wait",
            "--wait --timeout=7s a b",
        ] {
            assert_eq!(seconds(text), Some(7), "{text}");
        }
    }

    #[test]
    fn wait_takes_no_word_and_a_timeout_requires_it() {
        let command = parse("a --wait 5s -- --wait=5s -A").unwrap();
        assert_eq!(command.words, ["a", "5s", "--wait=5s", "-A"]);
        for text in ["--timeout 5s", "--wait=soon", "--wait=", "--wait --timeout"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
