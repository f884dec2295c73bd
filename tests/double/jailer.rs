//! Firecracker's jailer: its arguments and what it does, step by step in the same order (`src/jailer/src/{main,env,chroot}.rs`).
//! Out of scope: `--netns`, `--cgroup`, `--daemonize`, `--new-pid-ns`: whoever asks for them is refused.
//!
//! One thing it does beside: what it puts in a jail may be a double, which needs the host's libraries and itself. So these are shown
//! there, itself as `/double`.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};

use crate::{Version, guest};

/// Since this version it takes a program of any name.
const ANY_NAME: Version = (1, 13);
/// `resource_limits.rs`, `NO_FILE`.
const OPEN_FILES: u64 = 2048;
/// What a double needs of the host.
const LIBRARIES: [&str; 3] = ["/usr", "/lib", "/lib64"];

pub fn main(version: Version, words: &[String]) -> ! {
    // What was opened before has no meaning in a jail.
    // SAFETY: a plain system call; nothing here has opened anything that it still needs.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    if words == ["--version"] {
        guest::print(&format!("Jailer v{}.{}.0\n\n", version.0, version.1));
        std::process::exit(0);
    }
    let Err(why) = Arguments::parse(version, words).and_then(|arguments| arguments.run());
    eprintln!("{why}\nError: {why}");
    std::process::exit(1)
}

#[derive(Default)]
struct Arguments {
    id: String,
    program: PathBuf,
    user: u32,
    group: u32,
    base: PathBuf,
    file_size: Option<u64>,
    open_files: u64,
    rest: Vec<String>,
}

/// Who never comes back when all goes well.
type Ended = Result<std::convert::Infallible, String>;

impl Arguments {
    fn parse(version: Version, words: &[String]) -> Result<Self, String> {
        let (mut id, mut exec, mut user, mut group) = (None, None, None, None);
        let mut parsed = Self {
            base: "/srv/jailer".into(),
            open_files: OPEN_FILES,
            ..Self::default()
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next().filter(|value| !value.starts_with("--"));
                value.ok_or_else(|| format!("The argument '{word}' requires a value."))
            };
            let number =
                |text: &String| text.parse::<u32>().map_err(|_| format!("Invalid: {text}"));
            let twice = format!("The argument '{word}' was provided more than once.");
            let earlier = match word.as_str() {
                "--id" => id.replace(value()?.clone()).is_some(),
                "--exec-file" => exec.replace(value()?.clone()).is_some(),
                "--uid" => user.replace(number(value()?)?).is_some(),
                "--gid" => group.replace(number(value()?)?).is_some(),
                "--chroot-base-dir" => {
                    parsed.base = value()?.into();
                    false
                }
                "--resource-limit" => {
                    parsed.limit(value()?)?;
                    false
                }
                "--" => {
                    parsed.rest = words.cloned().collect();
                    break;
                }
                _ => return Err(format!("Found argument '{word}' which wasn't expected.")),
            };
            if earlier {
                return Err(twice);
            }
        }
        let missing = |name: &str| format!("Argument '{name}' required, but not found.");
        parsed.id = id.ok_or_else(|| missing("id"))?;
        parsed.user = user.ok_or_else(|| missing("uid"))?;
        parsed.group = group.ok_or_else(|| missing("gid"))?;
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !(1..=64).contains(&parsed.id.len()) || !parsed.id.chars().all(valid) {
            return Err(format!("Invalid instance ID: {}", parsed.id));
        }
        let exec = exec.ok_or_else(|| missing("exec-file"))?;
        parsed.program = with_context(
            &format!("Failed to canonicalize path {exec}"),
            fs::canonicalize(&exec),
        )?;
        if !parsed.program.is_file() {
            return Err(format!("{exec} is not a file"));
        }
        if version < ANY_NAME && !parsed.name().contains("firecracker") {
            return Err("Invalid filename: it must contain firecracker".to_owned());
        }
        Ok(parsed)
    }

    fn limit(&mut self, text: &str) -> Result<(), String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("Invalid format for resources limits")?;
        let value = with_context(text, value.parse().map_err(io::Error::other))?;
        match name {
            "fsize" => self.file_size = Some(value),
            "no-file" => self.open_files = value,
            _ => return Err(format!("Invalid resource argument: {name}")),
        }
        Ok(())
    }

    fn name(&self) -> String {
        let name = self.program.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn run(self) -> Ended {
        let base = with_context("Failed to canonicalize path", fs::canonicalize(&self.base))?;
        let jail = base.join(self.name()).join(&self.id).join("root");
        with_context("Failed to create directory", fs::create_dir_all(&jail))?;
        with_context("Failed to copy", self.copy_to(&jail))?;
        self.set_limits()?;
        with_context("Failed to show libraries", show_libraries(&jail))?;
        self.enter(&jail)?;
        for dir in ["/", "/dev", "/dev/net", "/run"] {
            let own = || {
                fs::create_dir_all(dir)?;
                fs::set_permissions(dir, Permissions::from_mode(0o700))?;
                std::os::unix::fs::chown(dir, Some(self.user), Some(self.group))
            };
            with_context(&format!("Failed to own {dir}"), own())?;
        }
        for (path, major, minor) in [
            ("/dev/net/tun", 10, 200),
            ("/dev/kvm", 10, 232),
            ("/dev/urandom", 1, 9),
        ] {
            let make = || {
                let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o600));
                let number = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, number)?;
                std::os::unix::fs::chown(path, Some(self.user), Some(self.group))
            };
            with_context(
                &format!("Failed to create {path} via mknod inside the jail"),
                make(),
            )?;
        }
        let note = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(format!("/{}.pid", self.name()))?;
            write!(file, "{}", std::process::id())
        };
        with_context("Failed to note the pid", note())?;
        let error = Command::new(Path::new("/").join(self.name()))
            .env_clear()
            .args([
                "--id",
                &self.id,
                "--start-time-us",
                "1",
                "--start-time-cpu-us",
                "2",
                "--parent-cpu-time-us",
                "3",
            ])
            .uid(self.user)
            .gid(self.group)
            .args(&self.rest)
            .exec();
        Err(format!("Failed to exec into Firecracker: {error}"))
    }

    fn copy_to(&self, jail: &Path) -> io::Result<()> {
        let mut program = File::open(&self.program)?;
        let mut copy = OpenOptions::new()
            .write(true)
            .create(true)
            .custom_flags(libc::O_NOFOLLOW)
            .mode(program.metadata()?.mode())
            .open(jail.join(self.name()))?;
        if copy.metadata()?.nlink() > 1 {
            return Err(io::Error::other("Detected hard link"));
        }
        rustix::fs::fchown(
            &copy,
            Some(Uid::from_raw(self.user)),
            Some(Gid::from_raw(self.group)),
        )?;
        io::copy(&mut program, &mut copy).map(drop)
    }

    fn set_limits(&self) -> Result<(), String> {
        let limits = [
            (Resource::Fsize, self.file_size),
            (Resource::Nofile, Some(self.open_files)),
        ];
        for (what, limit) in limits {
            let Some(limit) = limit else { continue };
            let limit = Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            };
            with_context(
                "Failed to set limit for resource",
                rustix::process::setrlimit(what, limit).map_err(Into::into),
            )?;
        }
        Ok(())
    }

    fn enter(&self, jail: &Path) -> Result<(), String> {
        let enter = || -> io::Result<()> {
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", slave)?;
            rustix::mount::mount_bind_recursive(jail, jail)?;
            std::env::set_current_dir(jail)?;
            rustix::fs::mkdir("old_root", Mode::from_raw_mode(0o600))?;
            rustix::process::pivot_root(".", "old_root")?;
            std::env::set_current_dir("/")?;
            rustix::mount::unmount("old_root", UnmountFlags::DETACH)?;
            fs::remove_dir("old_root")
        };
        with_context("Failed to enter the jail", enter())
    }
}

fn with_context<T>(doing: &str, done: io::Result<T>) -> Result<T, String> {
    done.map_err(|error| format!("{doing}: {error}"))
}

/// In a mount namespace of its own, as the jailer makes one at this point.
fn show_libraries(jail: &Path) -> io::Result<()> {
    // SAFETY: this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    for library in LIBRARIES.map(Path::new) {
        let place = jail.join(library.strip_prefix("/").unwrap_or(library));
        if library.exists() && !place.exists() {
            fs::create_dir_all(&place)?;
            rustix::mount::mount_bind_recursive(library, &place)?;
        }
    }
    // SAFETY: what getauxval(3) tells of a program's name is a C string of this process, for ever.
    let own = unsafe { CStr::from_ptr(libc::getauxval(libc::AT_EXECFN) as *const libc::c_char) };
    let place = jail.join("double");
    File::create(&place)?;
    Ok(rustix::mount::mount_bind(own, &place)?)
}
