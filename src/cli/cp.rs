//! `vm cp`: copies files into a VM and out of it.
//! Out of scope: the copy itself (`guest::copy`), the connection to the agent.

use std::future::Future;
use std::io::{IsTerminal, stderr, stdout};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;
use super::target;
use crate::api::meta::Name;
use crate::guest::copy::{
    self, CopyError, Destination, GuestPath, Location, Options, Progress, Requester, Source,
};

/// The exit status of a program that SIGINT ends, as a shell reports it.
const INTERRUPTED: u8 = 130;

/// A shorter copy shows no progress.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Arguments of `vm cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Either SRC or DST is VM:PATH; the other one is a path of this host, or - for standard input or output. A path in a VM that is not \
absolute is one in the home directory of the user. As with cp, a copy is put into DST if DST is a directory, and SRC/. means the content \
of SRC. Permissions and modification times are kept. A file is replaced when all of it has arrived; a symbolic link is replaced, not \
followed.

Examples:
  slicectl vm cp app sandbox-1:/usr/local/bin/app --uid 0
  slicectl vm cp -r src/. sandbox-1:work --exclude target --exclude '*.o'
  slicectl vm cp -r sandbox-1:/var/log logs
  slicectl vm cp sandbox-1:/etc/os-release - | grep VERSION
  tar c . | slicectl vm cp - sandbox-1:/tmp/backup.tar")]
pub struct CpArgs {
    /// Source: VM:PATH, a path, or - for standard input
    #[arg(value_name = "SRC")]
    pub source: Location,
    /// Destination: VM:PATH, a path, or - for standard output
    #[arg(value_name = "DST")]
    pub destination: Location,
    /// Copy directories
    #[arg(short, long, visible_short_alias = 'R')]
    pub recursive: bool,
    /// The user in the VM: the owner of what is copied into it, and of the home directory ~ (the normal user of the image if omitted)
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    /// The group in the VM (the group of the user if omitted)
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,
    /// Permissions of files in octal, such as 0644, in place of those of the source
    #[arg(long, value_name = "MODE", value_parser = permissions)]
    pub permissions: Option<u32>,
    /// Leave out files with a path or a name that matches a pattern; may be repeated
    #[arg(long, value_name = "PATTERN", requires = "recursive")]
    pub exclude: Vec<String>,
    /// Fail if a VM sends more than this number of bytes
    #[arg(long, value_name = "BYTES")]
    pub max_size: Option<u64>,
    /// Do not show progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Permissions in octal.
pub(super) fn permissions(text: &str) -> Result<u32, String> {
    let is_octal = text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok();
    mode.filter(|mode| is_octal && *mode <= 0o777)
        .ok_or_else(|| format!("invalid permissions \"{text}\": expected 0000 to 0777"))
}

/// `vm cp`. `connect` makes the connection to the agent of a VM.
pub async fn cp<R: Requester>(
    connect: impl FnOnce(Name) -> R,
    args: CpArgs,
) -> Result<(), Failure> {
    let options = Options {
        recursive: args.recursive,
        uid: args.uid,
        gid: args.gid,
        permissions: args.permissions,
        exclude: args.exclude,
        max_bytes: args.max_size,
    };
    let progress = Arc::new(Progress::default());
    let is_printed = args.destination == Location::Stdio && stdout().is_terminal();
    let is_shown = !args.quiet && !is_printed && stderr().is_terminal();
    match (args.source, args.destination) {
        (Location::Guest { vm, path }, to @ (Location::Host(_) | Location::Stdio)) => {
            if options.gid.is_some() {
                let usage = "--gid has no effect with a copy out of a VM";
                return Err(Failure::Usage(usage.to_owned()));
            }
            let agent = connect(name(&vm)?);
            let to = match to {
                Location::Host(path) => Destination::Path(path),
                _ => Destination::Stream(Box::new(stdout())),
            };
            let copy = copy::download(&agent, &path, to, &options, &progress);
            run(copy, &progress, is_shown).await
        }
        (from @ (Location::Host(_) | Location::Stdio), Location::Guest { vm, path }) => {
            check_upload(&options, &from)?;
            let agent = connect(name(&vm)?);
            let source = match from {
                Location::Host(path) => Source::Path(path),
                _ => Source::stdin(),
            };
            into_vm(&agent, source, &path, &options, &progress, is_shown).await
        }
        (Location::Guest { .. }, Location::Guest { .. }) => Err(Failure::Usage(
            "SRC and DST are both in VMs: copy to this host first".to_owned(),
        )),
        _ => Err(Failure::Usage(
            "neither SRC nor DST is in a VM: expected VM:PATH".to_owned(),
        )),
    }
}

fn check_upload(options: &Options, from: &Location) -> Result<(), Failure> {
    let usage = match () {
        () if options.max_bytes.is_some() => "--max-size has no effect with a copy into a VM",
        () if options.recursive && *from == Location::Stdio => {
            "-r has no effect with standard input"
        }
        () => return Ok(()),
    };
    Err(Failure::Usage(usage.to_owned()))
}

async fn into_vm(
    agent: &impl Requester,
    source: Source,
    path: &GuestPath,
    options: &Options,
    progress: &Arc<Progress>,
    is_shown: bool,
) -> Result<(), Failure> {
    let copy = copy::upload(agent, source, path, options, progress);
    run(copy, progress, is_shown).await
}

fn name(vm: &str) -> Result<Name, Failure> {
    target::vm(vm).map_err(Failure::Usage)
}

/// Runs the copy with a progress bar. A signal ends it, so that its temporary file is removed.
async fn run(
    copy: impl Future<Output = Result<(), CopyError>>,
    progress: &Progress,
    is_shown: bool,
) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopped = || Failure::WithStatus(INTERRUPTED, vec!["the copy was interrupted".to_owned()]);
    tokio::select! {
        copied = copy => copied.map_err(failure),
        _ = interrupt.recv() => Err(stopped()),
        _ = terminate.recv() => Err(stopped()),
        never = show(progress), if is_shown => match never {},
    }
}

/// Draws a progress bar on standard error until it is dropped.
async fn show(progress: &Progress) -> std::convert::Infallible {
    tokio::time::sleep(PROGRESS_AFTER).await;
    let bar = Bar(ProgressBar::with_draw_target(
        progress.total(),
        ProgressDrawTarget::stderr(),
    ));
    let template = match progress.total() {
        Some(_) => "{bytes} of {total_bytes} [{wide_bar}] {bytes_per_sec} {eta}",
        None => "{bytes} {bytes_per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.0.set_style(style);
    }
    loop {
        bar.0.set_position(progress.done());
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

/// A progress bar that disappears.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn failure(error: CopyError) -> Failure {
    match error {
        CopyError::Stdio(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Failure::PipeClosed
        }
        error => Failure::one(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;
    use crate::guest::agent::files::router;
    use crate::guest::copy::tests::Agent;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: CpArgs,
    }

    fn parse(words: &[&str]) -> Result<CpArgs, clap::Error> {
        let words = std::iter::once("cp").chain(words.iter().copied());
        Command::try_parse_from(words).map(|command| command.args)
    }

    #[test]
    fn malformed_arguments_are_usage_errors() {
        for words in [
            &["a"][..],
            &["a", "vm-1:/b", "--permissions", "8"],
            &["a", "vm-1:/b", "--permissions", "4755"],
            &["a", "vm-1:/b", "--permissions", "+1"],
            &["a", "vm-1:/b", "--exclude", "x"],
            &["a", "vm-1:/b", "--uid", "root"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[tokio::test]
    async fn options_without_effect_and_other_pairs_of_places_are_usage_errors() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::serve(dir.path(), router());
        for (words, expected) in [
            (&["a", "b"][..], "neither SRC nor DST is in a VM"),
            (&["-", "-"], "neither SRC nor DST is in a VM"),
            (&["a-1:/x", "b-1:/x"], "both in VMs"),
            (&["a-1:/x", "x", "--gid", "1"], "--gid has no effect"),
            (
                &["x", "a-1:/x", "--max-size", "1"],
                "--max-size has no effect",
            ),
            (&["-r", "-", "a-1:/x"], "-r has no effect"),
            (&["x", "A_B:/x"], "invalid"),
        ] {
            let copied = cp(|_| &agent, parse(words).unwrap()).await;
            match copied {
                Err(Failure::Usage(text)) => assert!(text.contains(expected), "{words:?}: {text}"),
                other => panic!("{words:?}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_file_is_copied_into_a_vm_and_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("a"), "text").unwrap();
        let agent = Agent::serve(dir.path(), router());
        let vm = |name: &str| format!("sandbox-1:{}", at(name));
        let connect = |name: Name| {
            assert_eq!(name.to_string(), "sandbox-1");
            &agent
        };
        cp(connect, parse(&[&at("a"), &vm("b")]).unwrap())
            .await
            .unwrap();
        cp(connect, parse(&[&vm("b"), &at("c")]).unwrap())
            .await
            .unwrap();
        assert_eq!(fs::read(at("c")).unwrap(), b"text");
        let copied = cp(connect, parse(&[&vm("none"), &at("c")]).unwrap()).await;
        match copied {
            Err(Failure::Failed(causes)) => {
                assert!(causes[0].contains("No such file"), "{causes:?}")
            }
            other => panic!("{other:?}"),
        }
    }
}
