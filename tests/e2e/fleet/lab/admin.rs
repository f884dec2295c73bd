//! What an administrator does with `etcdctl`.
//! Out of scope: members ([`super::members`]).

use std::process::{Command, Output, Stdio};

use slicectl::fleet::keys;

use super::super::pki::Validity;
use super::members::Member;
use super::{Lab, NODES};

impl Lab {
    /// Deletes a user, and with it its tokens.
    pub fn delete_user(&self, user: &str) {
        self.ctl(&format!("user delete {user}"));
    }

    /// Compacts the history up to a revision.
    pub fn compact(&self, revision: u64) {
        self.ctl(&format!("compaction {revision}"));
    }

    /// `etcdctl` of root with these words (split at blanks), which must succeed within [`PATIENCE`]; its standard output.
    #[track_caller]
    pub fn ctl(&self, words: &str) -> String {
        self.until(words, || {
            let output = self.try_ctl(words);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(text)
        })
    }

    pub(super) fn try_ctl(&self, words: &str) -> Output {
        let user = format!("root:{}", password("root"));
        self.etcdctl(words)
            .args(["--user", &user])
            .output()
            .expect("etcdctl")
    }

    /// Without a user: there are none yet.
    fn etcdctl(&self, words: &str) -> Command {
        let root = self.pki.client("root", Validity::Now);
        let urls: Vec<String> = self.members.iter().map(Member::client_url).collect();
        let mut command = Command::new(self.programs.join("etcdctl"));
        command
            .args(words.split_whitespace())
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_CACERT", self.pki.ca())
            .env("ETCDCTL_CERT", root.cert)
            .env("ETCDCTL_KEY", root.key)
            .args(["--command-timeout", "3s", "--dial-timeout", "1s"])
            .stdin(Stdio::null());
        if !words.contains("--endpoints") {
            command.args(["--endpoints", &urls.join(",")]);
        }
        command
    }

    /// The users of a fleet: each node reads all keys and writes its own; `control` reads and writes all.
    pub(super) fn create_users(&self) {
        let mut commands = vec!["role add control".to_owned()];
        let permit = |role: &str, what: &str| format!("role grant-permission {role} {what}");
        commands.push(permit(
            "control",
            &format!("--prefix readwrite {}", keys::ROOT),
        ));
        let nodes = &NODES[..self.options.nodes];
        for node in nodes {
            commands.push(format!("role add {node}"));
            commands.push(permit(node, &format!("--prefix read {}", keys::ROOT)));
            commands.push(permit(
                node,
                &format!("readwrite {}{node}", keys::NODE_STATUS),
            ));
            commands.push(permit(node, &format!("readwrite {}{node}", keys::ALIVE)));
            commands.push(permit(
                node,
                &format!("--prefix readwrite {}{node}/", keys::STATUS),
            ));
        }
        for user in ["root", "control"].iter().chain(nodes) {
            commands.push(format!("user add {user}:{}", password(user)));
            commands.push(format!("user grant-role {user} {user}"));
        }
        commands.push("auth enable".to_owned());
        for words in commands {
            // Repeated: the first may come before the first election.
            self.until(&words, || {
                let output = self.etcdctl(&words).output().expect("etcdctl");
                let text = String::from_utf8_lossy(&output.stderr);
                (output.status.success() || text.contains("already")).then_some(())
            });
        }
    }
}

/// The password of a user.
pub fn password(user: &str) -> String {
    format!("password-of-{user}")
}
