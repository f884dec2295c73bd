//! The users and groups of the guest, from `/etc/passwd` and `/etc/group`.
//! Out of scope: other sources of nsswitch.conf(5), which a static binary cannot load.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::process::{getegid, geteuid};

/// The maximum size of a file with users or groups that is read, in bytes.
const FILE_LIMIT: u64 = 4 << 20;

/// The shell of a user without one, as in passwd(5).
const DEFAULT_SHELL: &str = "/bin/sh";

/// A user with the ids of its processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name; the number if the user has none.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// The supplementary groups, with the group itself.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
    /// The login shell.
    pub shell: String,
}

/// The content of the files.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads the files. One that does not exist has no entries.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read() -> io::Result<Self> {
        Self::read_below(Path::new("/"))
    }

    /// Reads the files of a file system with this root.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read_below(root: &Path) -> io::Result<Self> {
        Ok(Self {
            passwd: read(&root.join("etc/passwd"))?,
            group: read(&root.join("etc/group"))?,
        })
    }

    /// The user with an id; a user without an entry has the group of the same number and the home directory `/`.
    ///
    /// Without an id: `ubuntu`, or the user 1000, or root. An agent without privileges can only start programs as its own user.
    pub fn user(&self, uid: Option<u32>, gid: Option<u32>) -> User {
        let own = geteuid();
        let mut user = match uid {
            Some(uid) => self.by_uid(uid),
            None if !own.is_root() => self.by_uid(own.as_raw()),
            None => self.default_user(),
        };
        if uid.is_none() && !own.is_root() {
            user.gid = getegid().as_raw();
        }
        user.gid = gid.unwrap_or(user.gid);
        user.groups = self.groups(&user);
        user
    }

    /// The id of the user with a name; a number without such a user is an id.
    pub fn uid_of(&self, name: &str) -> Option<u32> {
        let found = self.users().find(|user| user.name == name);
        found.map(|user| user.uid).or_else(|| name.parse().ok())
    }

    fn default_user(&self) -> User {
        let mut users = self.users();
        let ubuntu = users.find(|user| user.name == "ubuntu");
        let normal = || self.users().find(|user| user.uid == 1000);
        ubuntu.or_else(normal).unwrap_or_else(|| self.by_uid(0))
    }

    fn by_uid(&self, uid: u32) -> User {
        let found = self.users().find(|user| user.uid == uid);
        found.unwrap_or_else(|| User {
            name: if uid == 0 {
                "root".to_owned()
            } else {
                uid.to_string()
            },
            uid,
            gid: uid,
            groups: Vec::new(),
            home: if uid == 0 { "/root" } else { "/" }.to_owned(),
            shell: DEFAULT_SHELL.to_owned(),
        })
    }

    /// The valid entries: `NAME:PASSWORD:UID:GID:COMMENT:HOME:SHELL`.
    fn users(&self) -> impl Iterator<Item = User> + '_ {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1).filter(|home| home.starts_with('/'));
            let shell = fields.next().filter(|shell| shell.starts_with('/'));
            Some(User {
                name: name.to_owned(),
                uid,
                gid,
                groups: Vec::new(),
                home: home.unwrap_or("/").to_owned(),
                shell: shell.unwrap_or(DEFAULT_SHELL).to_owned(),
            })
        })
    }

    /// As initgroups(3). The entries are `NAME:PASSWORD:GID:MEMBER,MEMBER`.
    fn groups(&self, user: &User) -> Vec<u32> {
        let mut groups = vec![user.gid];
        for line in self.group.lines() {
            let mut fields = line.split(':').skip(2);
            let gid = fields.next().and_then(|gid| gid.parse().ok());
            let mut members = fields.next().unwrap_or_default().split(',');
            if let Some(gid) = gid.filter(|gid| !groups.contains(gid))
                && members.any(|member| member == user.name)
            {
                groups.push(gid);
            }
        }
        groups
    }
}

fn read(path: &Path) -> io::Result<String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "root:x:0:0:root:/root:/bin/bash\n";
    const GROUPS: &str = "root:x:0:\nadm:x:4:ubuntu,x\nubuntu:x:1000:\ndocker:x:999:a,ubuntu\nbad\nworse:x:y:ubuntu\nalso:x:4:ubuntu\n";

    fn accounts(passwd: &str) -> Accounts {
        Accounts {
            passwd: passwd.to_owned(),
            group: GROUPS.to_owned(),
        }
    }

    #[test]
    fn the_default_user_is_ubuntu_or_1000_or_root() {
        for (more, expected) in [
            ("", "root"),
            ("a:x:1000:1000::/home/a:/bin/sh\n", "a"),
            (
                "a:x:1000:1000::/home/a:/bin/sh\nubuntu:x:1001:1001::/h:/bin/sh",
                "ubuntu",
            ),
            ("broken\n:x:1000:1:::\na:x:1000\nb:x:y:1000:::\n", "root"),
        ] {
            let accounts = accounts(&format!("{ROOT}{more}"));
            assert_eq!(accounts.default_user().name, expected, "{more}");
        }
        assert_eq!(accounts("").default_user().home, "/root");
        let accounts = accounts(&format!("{ROOT}7:x:1007:1007::/:/bin/sh\n"));
        assert_eq!(accounts.uid_of("root"), Some(0));
        assert_eq!(accounts.uid_of("7"), Some(1007));
        assert_eq!(accounts.uid_of("8"), Some(8));
        assert_eq!(accounts.uid_of("x"), None);
    }

    #[test]
    fn a_user_has_the_groups_that_name_it_and_its_own_first() {
        let accounts = accounts("ubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash\n");
        let user = accounts.by_uid(1000);
        assert_eq!(accounts.groups(&user), [1000, 4, 999]);
        assert_eq!(
            (user.home.as_str(), user.shell.as_str()),
            ("/home/ubuntu", "/bin/bash")
        );
    }

    #[test]
    fn a_user_without_an_entry_has_its_number_a_group_and_the_root_directory() {
        let user = accounts(ROOT).by_uid(4711);
        assert_eq!(
            (user.name.as_str(), user.gid, user.home.as_str()),
            ("4711", 4711, "/")
        );
        let fields_missing = accounts("a:x:7:8\n").by_uid(7);
        assert_eq!(
            (fields_missing.home.as_str(), fields_missing.shell.as_str()),
            ("/", "/bin/sh")
        );
    }
}
