//! `fs`: lists, creates, removes and watches files in a VM.
//! Out of scope: contents of files (`cp`), the connection to the agent.

use clap::Subcommand;
use clap_complete::engine::ArgValueCompleter;
use futures::{StreamExt, stream};
use hyper::Method;
use serde::Serialize;

use super::age::seconds;
use super::failure::Failure;
use super::paint::Colors;
use super::print::{self, Format};
use super::table::{Field, Table};
use super::{complete, cp, sanitize};
use crate::api::meta::Name;
use crate::guest::copy::{GuestPath, RequestError, Requester};
use crate::guest::protocol::{FileInfo, FileType, Mkdir, RemoveQuery, WatchEvent, WatchQuery};
use crate::guest::server_sent::Events;

/// The commands for files in a VM.
#[derive(Debug, Subcommand)]
pub enum FsCommand {
    /// List the files of a directory
    Ls(ListArgs),
    /// Show a file; of a symbolic link, the link itself
    Stat(ListArgs),
    /// Create a directory
    Mkdir(MkdirArgs),
    /// Remove a file or a directory
    Rm(RmArgs),
    /// Print changes of files
    Watch(WatchArgs),
}

/// A path in a VM.
#[derive(Debug, clap::Args)]
pub struct PlaceArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// A path in the VM; one that is not absolute is in the home directory of the image's normal user
    #[arg(value_name = "PATH")]
    pub path: String,
}

/// Arguments of `fs ls` and `fs stat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl fs ls sandbox-1 /var/log
  slicectl fs stat sandbox-1 /etc/os-release -o json")]
pub struct ListArgs {
    /// Which files.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `fs mkdir`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl fs mkdir -p sandbox-1 work/logs")]
pub struct MkdirArgs {
    /// Which directory.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Create missing parents; an existing directory is no error
    #[arg(short, long)]
    pub parents: bool,
    /// Permissions in octal
    #[arg(long, value_name = "MODE", default_value = "0755", value_parser = cp::permissions)]
    pub mode: u32,
}

/// Arguments of `fs rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl fs rm sandbox-1 /tmp/result
  slicectl fs rm -r sandbox-1 work")]
pub struct RmArgs {
    /// Which file.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Remove a directory with its content
    #[arg(short, long, visible_short_alias = 'R')]
    pub recursive: bool,
}

/// Arguments of `fs watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Events are create, write, remove, rename and chmod. A file that is renamed is reported under both names: rename, then create. A file can \
be watched before it exists.

Examples:
  slicectl fs watch sandbox-1 work -r --pattern '*.log'
  slicectl fs watch sandbox-1 /tmp/result --event create --one-shot --timeout 5m")]
pub struct WatchArgs {
    /// Which files.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Watch subdirectories
    #[arg(short, long, visible_short_alias = 'R')]
    pub recursive: bool,
    /// Only files with a path or a name that matches a pattern; may be repeated
    #[arg(long = "pattern", value_name = "PATTERN")]
    pub patterns: Vec<String>,
    /// Only these events; may be repeated
    #[arg(long = "event", value_name = "EVENT", value_parser = ["create", "write", "remove", "rename", "chmod", "all"])]
    pub events: Vec<String>,
    /// End after the first event
    #[arg(long, conflicts_with = "max_events")]
    pub one_shot: bool,
    /// End after this number of events
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_events: Option<u64>,
    /// End after this time, such as 5m
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// Events of a file within this time are one, such as 200ms
    #[arg(long, value_name = "TIME")]
    pub debounce: Option<String>,
    /// Output format; json is one object per line
    #[arg(short, long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub output: String,
}

impl FsCommand {
    /// The VM.
    pub fn vm(&self) -> &Name {
        match self {
            Self::Ls(args) | Self::Stat(args) => &args.place.vm,
            Self::Mkdir(args) => &args.place.vm,
            Self::Rm(args) => &args.place.vm,
            Self::Watch(args) => &args.place.vm,
        }
    }
}

/// `fs …`. `connect` makes the connection to the agent of a VM.
pub async fn fs<R: Requester>(
    connect: impl FnOnce(Name) -> R,
    command: FsCommand,
) -> Result<(), Failure> {
    let agent = connect(command.vm().clone());
    match command {
        FsCommand::Ls(args) => {
            let path = with_query("/fs/readdir", &Path::of(&args.place));
            let response = agent.request(Method::GET, path, None).await?;
            let files: Vec<FileInfo> = response.json().await?;
            print::answer(args.output, &files, |files| table(files))
        }
        FsCommand::Stat(args) => {
            let path = with_query("/fs/stat", &Path::of(&args.place));
            let response = agent.request(Method::GET, path, None).await?;
            let file: FileInfo = response.json().await?;
            print::answer(args.output, &file, |file| table(std::slice::from_ref(file)))
        }
        FsCommand::Mkdir(args) => {
            let body = Mkdir {
                path: guest_path(&args.place),
                recursive: args.parents,
                mode: Some(format!("{:04o}", args.mode)),
            };
            let body = serde_json::to_vec(&body).map_err(|e| Failure::one(e.to_string()))?;
            let body = stream::iter([Ok(body.into())]).boxed();
            let path = "/fs/mkdir".to_owned();
            agent.request(Method::POST, path, Some(body)).await?;
            Ok(())
        }
        FsCommand::Rm(args) => {
            let query = RemoveQuery {
                path: guest_path(&args.place),
                recursive: args.recursive,
            };
            let path = with_query("/fs/remove", &query);
            agent.request(Method::DELETE, path, None).await?;
            Ok(())
        }
        FsCommand::Watch(args) => watch(&agent, args).await,
    }
}

/// The query of `stat` and `readdir`.
#[derive(Serialize)]
struct Path {
    path: String,
}

impl Path {
    fn of(place: &PlaceArgs) -> Self {
        Self {
            path: guest_path(place),
        }
    }
}

fn guest_path(place: &PlaceArgs) -> String {
    GuestPath::new(&place.path).as_str().to_owned()
}

/// Texts, numbers and lists of texts can always be a query.
fn with_query(path: &str, query: &impl Serialize) -> String {
    let query = serde_html_form::to_string(query).unwrap_or_default();
    format!("{path}?{query}")
}

fn table(files: &[FileInfo]) -> String {
    let rows = files.iter().map(|file| {
        let kind = match file.kind {
            FileType::File => "file",
            FileType::Directory => "directory",
            FileType::Symlink => "symlink",
        };
        let time = seconds(file.mtime);
        vec![
            Field::from(kind),
            Field::from(&file.mode),
            Field::from(file.size),
            Field::from(time),
            Field::from(&file.name),
        ]
    });
    let header = vec!["TYPE", "MODE", "SIZE", "MODIFIED", "NAME"];
    Table::new(header, Colors::for_stdout()).draw(rows.collect())
}

async fn watch(agent: &impl Requester, args: WatchArgs) -> Result<(), Failure> {
    let query = WatchQuery {
        paths: vec![guest_path(&args.place)],
        patterns: args.patterns,
        events: args.events,
        recursive: args.recursive,
        one_shot: args.one_shot,
        debounce: args.debounce,
        timeout: args.timeout,
        max_events: args.max_events,
        ..WatchQuery::default()
    };
    let path = with_query("/fs/watch", &query);
    let response = agent.request(Method::GET, path, None).await?;
    let mut events = Events::new(response.body);
    loop {
        let data = events.next().await;
        let data = data.map_err(|error| Failure::one(format!("the agent: {error}")))?;
        let Some(data) = data else {
            return Ok(());
        };
        let event: WatchEvent = serde_json::from_slice(&data)
            .map_err(|error| Failure::one(format!("invalid event of the agent: {error}")))?;
        match args.output.as_str() {
            "json" => print::json_line(&event)?,
            _ => print::out(&line(&event))?,
        }
    }
}

/// The file is last: it may contain blanks.
fn line(event: &WatchEvent) -> String {
    let time = seconds(event.timestamp);
    let text = format!("{time}  {:<6}  {}", event.kind, event.path);
    format!("{}\n", sanitize::line(&text))
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::one(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::guest::agent::files::router;
    use crate::guest::copy::tests::Agent;

    #[derive(Parser)]
    struct Command {
        #[command(subcommand)]
        command: FsCommand,
    }

    fn parse(words: &[&str]) -> Result<FsCommand, clap::Error> {
        let words = std::iter::once("fs").chain(words.iter().copied());
        Command::try_parse_from(words).map(|command| command.command)
    }

    #[test]
    fn malformed_arguments_are_usage_errors() {
        for words in [
            &["ls", "a-1"][..],
            &["mkdir", "a-1", "x", "--mode", "9"],
            &["watch", "a-1", "x", "--event", "open"],
            &["watch", "a-1", "x", "--max-events", "0"],
            &["watch", "a-1", "x", "--max-events", "2", "--one-shot"],
            &["watch", "a-1", "x", "-o", "yaml"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[tokio::test]
    async fn directories_are_created_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::serve(dir.path(), router());
        let path = |name: &str| dir.path().join(name).display().to_string();
        let run = async |words: &[&str]| fs(|_| &agent, parse(words).unwrap()).await;
        run(&["mkdir", "-p", "a-1", &path("x/y"), "--mode", "700"])
            .await
            .unwrap();
        run(&["ls", "a-1", &path("x"), "-o", "json"]).await.unwrap();
        run(&["stat", "a-1", &path("x")]).await.unwrap();
        run(&["watch", "a-1", &path("x"), "--timeout", "10ms"])
            .await
            .unwrap();
        for (words, expected) in [
            (&["mkdir", "a-1", &path("x")][..], "exists"),
            (&["rm", "a-1", &path("x")], "not empty"),
            (&["ls", "a-1", &path("none")], "No such file"),
            (
                &["watch", "a-1", &path("x"), "--timeout", "soon"],
                "invalid duration",
            ),
        ] {
            match run(words).await {
                Err(Failure::Failed(causes)) => assert!(causes[0].contains(expected), "{causes:?}"),
                other => panic!("{words:?}: {other:?}"),
            }
        }
        run(&["rm", "-r", "a-1", &path("x")]).await.unwrap();
        assert!(!dir.path().join("x").exists());
    }

    #[test]
    fn names_of_a_guest_do_not_control_the_terminal() {
        let file = FileInfo {
            name: "a\u{1b}[2Jb\nc".to_owned(),
            kind: FileType::Symlink,
            size: 7,
            mtime: "2026-11-29T12:00:00.5Z".parse().unwrap(),
            mode: "0777".to_owned(),
        };
        let text = table(&[file]);
        assert!(
            text.contains("symlink   0777   7      2026-11-29T12:00:00Z   a [2Jb c"),
            "{text}"
        );
        let event = WatchEvent {
            id: 1,
            kind: "create".to_owned(),
            path: "/a\u{1b}]0;x\u{7}\n".to_owned(),
            timestamp: "2026-11-29T12:00:00Z".parse().unwrap(),
            size: 0,
            is_dir: false,
        };
        assert_eq!(line(&event), "2026-11-29T12:00:00Z  create  /a ]0;x  \n");
    }
}
