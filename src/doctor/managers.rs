//! Programs that take links over: systemd-networkd and NetworkManager, and how they are told to leave ours alone.
//! Not here: addresses and routes themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Host, ask, ok, unseen, warn, words};
use crate::api::view::Check;
use crate::host::Error;
use crate::host::fs::{self, Dir, Durability};
use crate::host::netns::Netns;

mod networkd;
mod nm;

const NETWORKD: &str = "systemd-networkd";
const NM: &str = "NetworkManager";

/// Where a file of ours lies that a reboot takes away.
const NETWORKD_RUN: &str = "/run/systemd/network";
const NM_RUN: &str = "/run/NetworkManager/conf.d";

/// Whether a program runs in our network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Yes,
    No,
}

/// What a program would do to a link of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing: this file says so, or no file speaks of it.
    LeftAlone(Option<PathBuf>),
    /// It is set up as this file says, or by default.
    Captured(Option<PathBuf>),
}

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let prefix = cx.instance.link_prefix();
    let (networkd, nm) = match running(&cx.home) {
        Ok(running) => running,
        Err(error) => return vec![unseen(NETWORKD, &words(&error)), unseen(NM, &words(&error))],
    };
    let networkd = match networkd {
        Runs::No => ok(NETWORKD, "does not run here"),
        Runs::Yes => match networkd::fate(&prefix) {
            Ok(fate) => judge(NETWORKD, &fate, &networkd_remedy(&prefix)),
            Err(error) => unseen(NETWORKD, &words(&error)),
        },
    };
    let nm = match nm {
        Runs::No => ok(NM, "does not run here"),
        Runs::Yes => match nm::fate(&prefix) {
            Ok(fate) => judge(NM, &fate, &nm_remedy(&prefix)),
            Err(error) => unseen(NM, &words(&error)),
        },
    };
    vec![networkd, nm]
}

fn judge(name: &str, fate: &Fate, remedy: &str) -> Check {
    match fate {
        Fate::LeftAlone(Some(file)) => ok(
            name,
            format!("runs and leaves our links alone ({})", file.display()),
        ),
        Fate::LeftAlone(None) => ok(name, "runs, and none of its files speaks of our links"),
        Fate::Captured(file) => {
            let by = file
                .as_ref()
                .map_or("its defaults".into(), |file| file.display().to_string());
            warn(
                name,
                format!("runs and would take our links over, by {by}"),
                remedy,
            )
        }
    }
}

/// A `.network` file (systemd.network(5)) that makes systemd-networkd leave alone every link whose name starts so.
pub fn unmanaged_networkd_text(link_prefix: &str) -> String {
    format!(
        "# Links of slice's VMs: sliced sets them up.\n[Match]\nName={link_prefix}*\n\n[Link]\nUnmanaged=yes\n"
    )
}

/// A snippet (NetworkManager.conf(5)) that makes NetworkManager leave alone every link whose name starts so. The section
/// has a name of its own: `unmanaged-devices` in `[keyfile]` would replace another file's.
pub fn unmanaged_nm_text(link_prefix: &str) -> String {
    format!(
        "# Links of slice's VMs: sliced sets them up.\n[device-{link_prefix}]\nmatch-device=interface-name:{link_prefix}*\nmanaged=0\n"
    )
}

/// Writes those files where the programs run that read them, has them read, and answers which were written. A file that is
/// there as it should be is not written again. The daemon calls this once, at its start.
pub async fn write_unmanaged(home: &Netns, link_prefix: &str) -> Result<Vec<PathBuf>, Error> {
    let (networkd, nm) = running(home)?;
    let mut written = Vec::new();
    if networkd == Runs::Yes
        && write(
            &networkd_file(link_prefix),
            &unmanaged_networkd_text(link_prefix),
        )?
    {
        written.push(networkd_file(link_prefix));
        reload(&["networkctl", "reload"]).await;
    }
    if nm == Runs::Yes && write(&nm_file(link_prefix), &unmanaged_nm_text(link_prefix))? {
        written.push(nm_file(link_prefix));
        reload(&["nmcli", "general", "reload", "conf"]).await;
    }
    Ok(written)
}

/// Whether it had to be written.
fn write(path: &Path, text: &str) -> Result<bool, Error> {
    if fs::read_text(path)?.as_deref() == Some(text) {
        return Ok(false);
    }
    if let Some(dir) = path.parent() {
        fs::make_dir(dir, 0o755)?;
    }
    fs::write(path, text.as_bytes(), 0o644, Durability::Process)?;
    Ok(true)
}

/// A program that is not told reads the file when it starts next; doctor and this line say what to do until then.
async fn reload(argv: &[&str]) {
    if let Err(error) = ask(argv).await {
        tracing::warn!(
            command = argv.join(" "),
            error = words(&error),
            "cannot have a network manager read its files again"
        );
    }
}

/// Low, so that it comes before any file that matches by the kind of link.
fn networkd_file(link_prefix: &str) -> PathBuf {
    Path::new(NETWORKD_RUN).join(format!("05-slice-{link_prefix}.network"))
}

fn nm_file(link_prefix: &str) -> PathBuf {
    Path::new(NM_RUN).join(format!("90-slice-{link_prefix}.conf"))
}

fn networkd_remedy(link_prefix: &str) -> String {
    format!(
        "Restart sliced, which writes {}; or keep it: `printf '[Match]\\nName={link_prefix}*\\n\\n[Link]\\nUnmanaged=yes\\n' \
         > /etc/systemd/network/05-slice.network && networkctl reload`.",
        networkd_file(link_prefix).display()
    )
}

fn nm_remedy(link_prefix: &str) -> String {
    format!(
        "Restart sliced, which writes {}; or keep it: `printf '[device-slice]\\nmatch-device=interface-name:{link_prefix}*\\n\
         managed=0\\n' > /etc/NetworkManager/conf.d/90-slice.conf && nmcli general reload conf`.",
        nm_file(link_prefix).display()
    )
}

/// Whether each runs in this network namespace. By the kernel's name of the process, 15 characters of it (proc_pid_comm(5)).
fn running(home: &Netns) -> Result<(Runs, Runs), Error> {
    let home = home.inode()?;
    let (mut networkd, mut nm) = (Runs::No, Runs::No);
    for (pid, comm) in processes()? {
        let program = match comm.as_str() {
            "systemd-network" => &mut networkd,
            NM => &mut nm,
            _ => continue,
        };
        // One that ends while we look does not run.
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        if Netns::open(&path)
            .and_then(|netns| netns.inode())
            .is_ok_and(|inode| inode == home)
        {
            *program = Runs::Yes;
        }
    }
    Ok((networkd, nm))
}

fn processes() -> Result<Vec<(u32, String)>, Error> {
    let names = match fs::look_at_dir(Path::new("/proc"))? {
        Dir::Present(names) => names,
        Dir::Absent | Dir::NotADirectory => Vec::new(),
    };
    let pids = names
        .into_iter()
        .filter_map(|name| name.parse::<u32>().ok());
    Ok(pids
        .filter_map(|pid| {
            let path = PathBuf::from(format!("/proc/{pid}/comm"));
            let comm = fs::read_text(&path).ok().flatten()?;
            Some((pid, comm.trim_end().to_owned()))
        })
        .collect())
}

/// The files with this ending in several directories, by name; of two with one name the earlier directory's counts.
fn files(dirs: &[&str], ending: &str) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut found = BTreeMap::new();
    for dir in dirs {
        let Dir::Present(names) = fs::look_at_dir(Path::new(dir))? else {
            continue;
        };
        for name in names.into_iter().filter(|name| name.ends_with(ending)) {
            let path = Path::new(dir).join(&name);
            found.entry(name).or_insert(path);
        }
    }
    Ok(found)
}

/// `KEY=VALUE` lines of an ini file, each with its section.
fn settings(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut section = "";
    text.lines().map(str::trim).filter_map(move |line| {
        if line.starts_with(['#', ';']) {
            return None;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name;
            return None;
        }
        let (key, value) = line.split_once('=')?;
        Some((section, key.trim(), value.trim()))
    })
}

/// A shell pattern with `*` and `?` (fnmatch(3)); sets in brackets match nothing here.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            glob(rest, text)
                || text
                    .split_first()
                    .is_some_and(|(_, tail)| glob(pattern, tail))
        }
        ([b'?', rest @ ..], [_, tail @ ..]) => glob(rest, tail),
        ([c, rest @ ..], [d, tail @ ..]) => c == d && glob(rest, tail),
        _ => false,
    }
}

/// A name such as our links have.
fn example(link_prefix: &str) -> String {
    format!("{link_prefix}aaaaaaaa")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckVerdict;

    #[test]
    fn what_we_write_makes_both_leave_our_links_alone() {
        let link = example("slabcde");
        let text = unmanaged_networkd_text("slabcde");
        assert_eq!(
            networkd::verdict(&text, &link),
            Some(networkd::Says::LeaveAlone)
        );
        assert_eq!(networkd::verdict(&text, "slaves0"), None);
        let text = unmanaged_nm_text("slabcde");
        assert!(nm::leaves_alone(&text, &link));
        assert!(!nm::leaves_alone(&text, "slaves0"));
    }

    #[test]
    fn being_taken_over_is_told_with_the_file_and_the_remedy() {
        let file = Some(PathBuf::from("/etc/systemd/network/all.network"));
        let check = judge(NETWORKD, &Fate::Captured(file), &networkd_remedy("slabcde"));
        assert_eq!(check.verdict, CheckVerdict::Warn);
        assert!(check.found.contains("/etc/systemd/network/all.network"));
        assert!(
            check
                .remedy
                .contains("/run/systemd/network/05-slice-slabcde.network")
        );
        assert_eq!(
            judge(NM, &Fate::LeftAlone(None), "").verdict,
            CheckVerdict::Ok
        );
    }

    #[test]
    fn patterns_match_as_a_shell_has_them() {
        let matches = |pattern: &str, text: &str| glob(pattern.as_bytes(), text.as_bytes());
        assert!(matches("*", "") && matches("sl*", "slx") && matches("s?x*", "slx"));
        assert!(!matches("sl", "slx") && !matches("?", "") && !matches("eth*", "slx"));
    }

    #[test]
    fn settings_know_their_section() {
        let text = "a=1\n[One]\n# b=2\n c = 3 = 4\n[Two]\nd=\n";
        let found: Vec<_> = settings(text).collect();
        assert_eq!(
            found,
            [("", "a", "1"), ("One", "c", "3 = 4"), ("Two", "d", "")]
        );
    }
}
