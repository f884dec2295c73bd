//! Command line of Firecracker when its jailer starts it, and of the jailer. Pure.
//! Out of scope: whether a usable jailer exists (`program`); the environment it is started in (`crate::host::process::Jail`).
//!
//! # Why these arguments
//! - The jailer is started confined: network namespace, control group, session and limits are set, and its root file system is nearly
//!   empty. So `--netns`, `--cgroup`, `--daemonize` and `--new-pid-ns` are not passed: the process that the daemon started becomes
//!   Firecracker and keeps the recorded pid.
//! - It passes `--id` and three times to Firecracker, and sets `/` as working directory: so all other arguments contain the path of the run
//!   directory, which has a short name in the jail. Paths of Unix sockets have 107 bytes at most.
//! - `fsize` is set by the jailer only: the copy of the program, which it makes before, may be larger than any file of a VMM.
//!
//! Sources: docs/jailer.md and src/jailer/src/env.rs of Firecracker 1.10 to 1.17.

use std::path::{Path, PathBuf};

use super::recipe::{ConfinedBy, Launch};
use super::version::Program;

/// Path of the run directory in a jail.
pub(crate) const JAIL_RUN_DIR: &str = "/vmm";
/// `--chroot-base-dir`; it exists only in the mount namespace of the jailer.
const BASE: &str = "/jail";
/// Options that the jailer adds, each with a value.
const TIMES: [&str; 3] = [
    "--start-time-us",
    "--start-time-cpu-us",
    "--parent-cpu-time-us",
];
/// The limit of every VMM, see [`crate::host::process::Confine`].
const OPEN_FILES: u64 = 4096;

/// How a process is started in a jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JailerCommand {
    /// The jailer's command line.
    pub(crate) argv: Vec<String>,
    /// The directory that becomes the root of the jail.
    pub(crate) root: PathBuf,
}

/// The path by which a VMM opens a file in its run directory, which is its working directory unless it is in a jail.
pub(crate) fn path_in_vmm(confined_by: &ConfinedBy, name: &str) -> String {
    match confined_by {
        ConfinedBy::Sliced { .. } => name.to_owned(),
        ConfinedBy::Jailer(_) => format!("{JAIL_RUN_DIR}/{name}"),
    }
}

/// The command line of the jailer. `program`: the resolved path of the program to start. The process cannot make a file larger than
/// `file_limit` bytes.
pub(crate) fn jailer_command(
    jailer: &Program,
    launch: &Launch,
    program: &Path,
    user: u32,
    file_limit: u64,
) -> JailerCommand {
    let (id, arguments) = without_id(launch.argv.get(1..).unwrap_or_default());
    let name = program.file_name().unwrap_or_default();
    let root = Path::new(BASE).join(name).join(&id).join("root");
    let mut argv = vec![jailer.path.display().to_string()];
    for (option, value) in [
        ("--id", id),
        ("--exec-file", program.display().to_string()),
        ("--uid", user.to_string()),
        ("--gid", user.to_string()),
        ("--chroot-base-dir", BASE.to_owned()),
        ("--resource-limit", format!("fsize={file_limit}")),
        ("--resource-limit", format!("no-file={OPEN_FILES}")),
    ] {
        argv.extend([option.to_owned(), value]);
    }
    argv.push("--".to_owned());
    argv.extend(arguments);
    JailerCommand { argv, root }
}

fn without_id(arguments: &[String]) -> (String, Vec<String>) {
    match arguments {
        [option, id, rest @ ..] if option == "--id" => (id.clone(), rest.to_vec()),
        all => (String::new(), all.to_vec()),
    }
}

/// The arguments of a process, in the form of `launch` if the process is, or is about to become, a Firecracker in a jail; otherwise
/// unchanged.
pub(crate) fn without_jailer(argv: Vec<String>, launch: Option<&Launch>) -> Vec<String> {
    let Some((launch, arguments)) = launch.zip(argv.get(1..)) else {
        return argv;
    };
    let (id, rest) = without_id(arguments);
    let Some(rest) = strip_times(&rest).or_else(|| strip_jailer_arguments(&rest)) else {
        return argv;
    };
    let program = launch.argv.first().cloned().unwrap_or_default();
    let first = [program, "--id".to_owned(), id];
    first.into_iter().chain(rest.iter().cloned()).collect()
}

fn strip_times(arguments: &[String]) -> Option<&[String]> {
    TIMES.iter().try_fold(arguments, |words, time| match words {
        [option, _, rest @ ..] if option == time => Some(rest),
        _ => None,
    })
}

fn strip_jailer_arguments(arguments: &[String]) -> Option<&[String]> {
    let is_jailer = arguments.first().is_some_and(|word| word == "--exec-file");
    let end = arguments.iter().position(|word| word == "--")?;
    is_jailer.then(|| &arguments[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::super::Version;
    use super::*;

    fn split(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn launch() -> Launch {
        Launch {
            argv: split("/opt/bin/fc --id vm-1 --api-sock /vmm/firecracker.sock"),
            netns: None,
            tap: "tap0".to_owned(),
            files: Vec::new(),
            pipes: Vec::new(),
            version: None,
            only_kept: false,
            confined_by: ConfinedBy::default(),
            back_end: None,
        }
    }

    #[test]
    fn a_jailer_gets_its_options_and_the_arguments_of_firecracker() {
        let jailer = Program {
            path: "/opt/bin/jailer".into(),
            version: Version::new(1, 17),
        };
        let real = Path::new("/opt/fc-1.17/firecracker-v1.17");
        let command = jailer_command(&jailer, &launch(), real, 70_001, 9_000);
        let expected = "/opt/bin/jailer --id vm-1 --exec-file /opt/fc-1.17/firecracker-v1.17 --uid 70001 --gid 70001 \
            --chroot-base-dir /jail --resource-limit fsize=9000 --resource-limit no-file=4096 \
            -- --api-sock /vmm/firecracker.sock";
        assert_eq!(command.argv, split(expected));
        let root = "/jail/firecracker-v1.17/vm-1/root";
        assert_eq!(command.root, Path::new(root));
        assert_eq!(without_jailer(command.argv, Some(&launch())), launch().argv);
    }

    #[test]
    fn only_the_arguments_that_a_jailer_adds_are_removed() {
        let launch = launch();
        let jailed = "/firecracker-v1.17 --id vm-1 --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3 \
            --api-sock /vmm/firecracker.sock";
        assert_eq!(without_jailer(split(jailed), Some(&launch)), launch.argv);
        for other in [
            "/opt/bin/fc --id vm-1 --api-sock firecracker.sock",
            "/opt/bin/fc --id vm-1 --start-time-us 1 --api-sock x",
            "/usr/bin/qemu -name x -- y",
            "x",
        ] {
            assert_eq!(without_jailer(split(other), Some(&launch)), split(other));
            assert_eq!(without_jailer(split(other), None), split(other));
        }
        assert_eq!(
            without_jailer(Vec::new(), Some(&launch)),
            Vec::<String>::new()
        );
    }
}
