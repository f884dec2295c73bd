//! Completion of command lines for shells: the script, and the candidates for kinds and names of objects.
//! Out of scope: subcommands, options and files, which clap completes from the definitions of the arguments.
//!
//! The script runs `slicectl` again for each completion. Names are those of the daemon; without one there are none, and no error.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use clap::Command;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};

use super::failure::Failure;
use super::print;
use super::remote::RemoteArgs;
use super::target::KINDS;
use crate::api::view::Kind;
use crate::wire::Client;

/// Set by the script to the name of the shell.
const VARIABLE: &str = "SLICECTL_COMPLETE";

/// How long the shell may wait for the names of objects.
const PATIENCE: Duration = Duration::from_millis(500);

/// The examples in the help of `completion`.
pub const EXAMPLES: &str = "\
Examples:
  slicectl completion bash > /etc/bash_completion.d/slicectl
  slicectl completion zsh > ~/.zfunc/_slicectl
  slicectl completion fish > ~/.config/fish/completions/slicectl.fish";

/// Prints the completion script for `shell`.
pub fn script(shell: Shell) -> Result<(), Failure> {
    let shells = Shells::builtins();
    let Some(completer) = shells.completer(&shell.to_string()) else {
        return Err(Failure::one(format!("{shell} is not supported")));
    };
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "slicectl", "slicectl", "slicectl", &mut script)?;
    print::bytes(&script)
}

/// The definition of the command line, for the candidates: clap passes them the current word only.
static COMMAND: OnceLock<fn() -> Command> = OnceLock::new();

/// Answers a shell that completes a command line, and exits. Returns if this is another run. There must be no other threads yet.
pub fn answer(command: fn() -> Command) {
    let command = COMMAND.get_or_init(|| command);
    let factory = || match shell_words().1.starts_with('-') {
        true => command(),
        false => hide_options(command()),
    };
    CompleteEnv::with_factory(factory).var(VARIABLE).complete();
}

/// Hidden candidates are offered only if there are no others: options, unless the current word is the beginning of one.
fn hide_options(mut command: Command) -> Command {
    command.build();
    command
        .mut_args(|arg| {
            let is_option = !arg.is_positional();
            arg.hide(is_option)
        })
        .mut_subcommands(hide_options)
}

/// The words before the current one, without the program, and the current one. The shell passes the command line after `--`, and the
/// index of the current word in a variable or at the end.
fn shell_words() -> (Vec<String>, String) {
    let args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let words: Vec<String> = args.skip_while(|arg| arg != "--").skip(1).collect();
    let index = std::env::var("_CLAP_COMPLETE_INDEX");
    let index = index.ok().and_then(|index| index.parse().ok());
    let index: usize = index.unwrap_or(words.len().saturating_sub(1));
    let before = words.get(1..index).unwrap_or_default().to_vec();
    (before, words.get(index).cloned().unwrap_or_default())
}

/// Candidates for `KIND`, `KIND NAME…` and `KIND/NAME…`; kinds in the singular.
pub fn objects(current: &OsStr) -> Vec<CompletionCandidate> {
    let kinds = KINDS.map(|kind| kind.to_string());
    candidates(current, &kinds, &[])
}

/// As [`objects`], with kinds in the plural, and what else `get` lists.
pub fn listed(current: &OsStr) -> Vec<CompletionCandidate> {
    let kinds = KINDS.map(|kind| format!("{kind}s"));
    candidates(current, &kinds, &["all", "events", "nodes"])
}

/// As [`objects`], and what else has events.
pub fn event_objects(current: &OsStr) -> Vec<CompletionCandidate> {
    let kinds = KINDS.map(|kind| kind.to_string());
    candidates(current, &kinds, &["host", "manifest/"])
}

/// Candidates for the name of a VM.
pub fn vms(current: &OsStr) -> Vec<CompletionCandidate> {
    names(current, Kind::Vm)
}

/// Candidates for the name of a group.
pub fn groups(current: &OsStr) -> Vec<CompletionCandidate> {
    names(current, Kind::HostGroup)
}

/// Candidates for the name of a node of the fleet.
pub fn nodes(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let line = Line::of_shell();
    matching(current, line.nodes(), &line.positionals)
}

/// Candidates for the name of a secret.
pub fn secrets(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let line = Line::of_shell();
    matching(current, line.secrets(), &line.positionals)
}

fn candidates(current: &OsStr, kinds: &[String], others: &[&str]) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let line = Line::of_shell();
    let texts: Vec<String> = match (current.split_once('/'), line.positionals.first()) {
        (Some((kind, _)), _) => {
            let of_kind = line.names_of(kind).into_iter();
            of_kind.map(|name| format!("{kind}/{name}")).collect()
        }
        (None, None) => {
            let short = ["hg"].iter().filter(|short| current.starts_with(**short));
            let others = others.iter().chain(short).map(ToString::to_string);
            kinds.iter().cloned().chain(others).collect()
        }
        (None, Some(first)) if first.contains('/') => {
            KINDS.iter().map(|kind| format!("{kind}/")).collect()
        }
        (None, Some(first)) => {
            let kinds = first.split(',');
            kinds.flat_map(|kind| line.names_of(kind)).collect()
        }
    };
    matching(current, texts, &line.positionals)
}

/// `NAME`, or `KIND/NAME` if the kind has been typed.
fn names(current: &OsStr, kind: Kind) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let line = Line::of_shell();
    let prefix = match current.split_once('/') {
        Some((typed, _)) if typed.parse() == Ok(kind) => format!("{typed}/"),
        _ => String::new(),
    };
    let names = line.names(kind).into_iter();
    let texts = names.map(|name| prefix.clone() + &name).collect();
    matching(current, texts, &line.positionals)
}

/// The candidates that continue the current word, without those that have been typed already.
fn matching(current: &str, texts: Vec<String>, typed: &[String]) -> Vec<CompletionCandidate> {
    let is_new = |text: &String| text.starts_with(current) && !typed.contains(text);
    let new = texts.into_iter().filter(is_new);
    new.map(CompletionCandidate::new).collect()
}

/// The command line before the word that is completed.
struct Line {
    socket: PathBuf,
    remote: RemoteArgs,
    positionals: Vec<String>,
}

impl Line {
    /// The command line that the shell passes.
    fn of_shell() -> Self {
        let command = COMMAND.get().map(|command| command());
        Self::parse(command.unwrap_or_default(), &shell_words().0)
    }

    fn parse(mut root: Command, words: &[String]) -> Self {
        root.build();
        let mut command = &root;
        let (mut socket, mut url, mut token_file, mut ca) = (None, None, None, None);
        let mut positionals = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if let Some(option) = word.strip_prefix('-') {
                let (name, value) = match option.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (option, None),
                };
                if let Some(id) = option_with_value(command, name) {
                    let value = value.or_else(|| next_value(&mut words));
                    match id {
                        "socket" => socket = value,
                        "url" => url = value,
                        "token_file" => token_file = value,
                        "ca" => ca = value,
                        _ => {}
                    }
                }
            } else if let Some(found) = command.find_subcommand(word) {
                command = found;
            } else {
                positionals.push(word.clone());
            }
        }
        let is_url = url.is_some() || socket.is_none();
        let or_default = |value: Option<String>, id| {
            let value = value.map(Into::into);
            value.or_else(|| default_value(&root, id))
        };
        let file = |value, id| or_default(value, id).map(PathBuf::from);
        let url = or_default(url, "url").filter(|_| is_url);
        Self {
            socket: file(socket, "socket").unwrap_or_default(),
            remote: RemoteArgs {
                url: url.and_then(|url| url.to_str()?.parse().ok()),
                token_file: file(token_file, "token_file"),
                ca: file(ca, "ca"),
            },
            positionals,
        }
    }

    /// The names of the objects of the kind of this spelling; none for an unknown one.
    fn names_of(&self, kind: &str) -> Vec<String> {
        match kind.parse() {
            Ok(kind) => self.names(kind),
            Err(_) if super::fleet::is_node(&[kind.to_owned()]) => self.nodes(),
            Err(_) => Vec::new(),
        }
    }

    /// The names of the objects of a kind.
    fn names(&self, kind: Kind) -> Vec<String> {
        let list = self.request(async |client| client.get(kind, None).await);
        let items = list.map(|list| list.items).unwrap_or_default();
        let name = |object: &crate::api::view::Object| object.metadata().name.to_string();
        items.iter().map(name).collect()
    }

    /// The names of the nodes of the fleet.
    fn nodes(&self) -> Vec<String> {
        let list = self.request(async |client| client.fleet_nodes(None).await);
        let nodes = list.map(|list| list.items).unwrap_or_default();
        nodes.iter().map(|node| node.name.to_string()).collect()
    }

    /// The names of the secrets of the host.
    fn secrets(&self) -> Vec<String> {
        let list = self.request(async |client| client.secrets().await);
        let secrets = list.unwrap_or_default().into_iter();
        secrets.map(|secret| secret.name.to_string()).collect()
    }

    /// The response of the daemon; `None`: there is none.
    fn request<T, E>(&self, request: impl AsyncFnOnce(&Client) -> Result<T, E>) -> Option<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let client = self.remote.quiet_client(&self.socket).ok()?.without_retry();
        let response = runtime.ok()?.block_on(async {
            let response = request(&client);
            tokio::time::timeout(PATIENCE, response).await
        });
        response.ok()?.ok()
    }
}

/// The id of the option with this name (`-socket` for `--socket`, `o` for `-o`), if its value is a word of its own.
fn option_with_value<'c>(command: &'c Command, name: &str) -> Option<&'c str> {
    let is_named = |arg: &&clap::Arg| match name.strip_prefix('-') {
        Some(long) => arg
            .get_long_and_visible_aliases()
            .is_some_and(|all| all.contains(&long)),
        None => name.chars().count() == 1 && arg.get_short() == name.chars().next(),
    };
    let option = command.get_arguments().find(is_named)?;
    let takes_value = option
        .get_num_args()
        .is_some_and(|range| range.min_values() > 0);
    takes_value.then(|| option.get_id().as_str())
}

/// The next word; bash passes `--socket=PATH` as three words.
fn next_value<'w>(words: &mut impl Iterator<Item = &'w String>) -> Option<String> {
    let value = words.next()?;
    match value == "=" {
        true => words.next().cloned(),
        false => Some(value.clone()),
    }
}

/// The value of an option that the command line does not have.
fn default_value(command: &Command, id: &str) -> Option<OsString> {
    let option = command.get_arguments().find(|arg| arg.get_id() == id)?;
    let of_environment = option.get_env().and_then(std::env::var_os);
    let default = || option.get_default_values().first();
    of_environment.or_else(|| default().map(|value| value.to_os_string()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::args::Args;
    use super::*;

    fn line(text: &str) -> Line {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Line::parse(Args::command(), &words)
    }

    #[test]
    fn options_and_their_values_are_not_positionals() {
        for text in [
            "get -o wide vms a",
            "get vms -l x=1 a",
            "get --watch vms a --output json",
            "get --output=json vms a",
            "--socket /x get vms a",
            "list vms a -w",
        ] {
            assert_eq!(line(text).positionals, ["vms", "a"], "{text}");
        }
        assert_eq!(line("vm stop a --wait b").positionals, ["a", "b"]);
        assert_eq!(line("vm stop --timeout 5s a").positionals, ["a"]);
    }

    #[test]
    fn the_socket_is_that_of_the_command_line() {
        for text in [
            "--socket /x get vms",
            "get --socket=/x vms",
            "get vms --socket = /x",
        ] {
            assert_eq!(line(text).socket, PathBuf::from("/x"), "{text}");
            assert_eq!(line(text).positionals, ["vms"], "{text}");
        }
    }
}
