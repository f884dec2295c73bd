//! scp, sftp and rsync.
//! Out of scope: `slicectl vm cp`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Output, Stdio};

use super::super::text;
use super::{ROOT, Ssh, exchange, noise, with_ssh};

fn assert_succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn scp_copies_in_both_directions_with_both_protocols() {
    with_ssh(|ssh| {
        let data = noise(5 << 20);
        fs::write(ssh.path("data"), &data).expect("written");
        fs::set_permissions(ssh.path("data"), PermissionsExt::from_mode(0o640)).expect("changed");
        let there = ssh.path("there");
        fs::create_dir(&there).expect("a directory");
        let remote = |name: &str| format!("{ROOT}@127.0.0.1:{}", there.join(name).display());
        for (name, words) in [("sftp", &["-p"][..]), ("rcp", &["-p", "-O"])] {
            let scp = |from: &str, to: &str| {
                let mut command = ssh.program("scp", &[]);
                assert_succeeds(&command.args(words).args([from, to]).output().expect("scp"));
            };
            scp("data", &remote(name));
            let copy = fs::metadata(there.join(name)).expect("a copy");
            assert_eq!(copy.mode() & 0o7777, 0o640, "{name}");
            assert!(
                fs::read(there.join(name)).expect("a copy") == data,
                "{name}"
            );
            scp(&remote(name), "back");
            assert!(
                fs::read(ssh.path("back")).expect("a copy") == data,
                "{name}"
            );
        }
        // A tree, and a name in the home directory.
        fs::create_dir_all(ssh.path("tree/a/b")).expect("directories");
        fs::write(ssh.path("tree/a/b/c"), "c").expect("written");
        let mut command = ssh.program("scp", &[]);
        let output = command.args(["-r", "tree", &remote("copied")]).output();
        assert_succeeds(&output.expect("scp"));
        assert_eq!(fs::read(there.join("copied/a/b/c")).expect("a copy"), b"c");
        let mut command = ssh.program("scp", &[]);
        let missing = command
            .args([&remote("missing"), "x"])
            .output()
            .expect("scp");
        assert_eq!(missing.status.code(), Some(1), "{missing:?}");
        assert!(
            text(&missing.stderr).contains("No such file"),
            "{missing:?}"
        );
    });
}

fn sftp(ssh: &Ssh, user: &str, batch: &str) -> Output {
    let mut command = ssh.program("sftp", &[]);
    command.args(["-b", "-", &format!("{user}@127.0.0.1")]);
    exchange(&mut command, batch.as_bytes().to_vec())
}

#[test]
fn sftp_lists_reads_writes_renames_links_and_removes() {
    with_ssh(|ssh| {
        let data = noise(1 << 20);
        fs::write(ssh.path("data"), &data).expect("written");
        let there = ssh.path("there");
        fs::create_dir(&there).expect("a directory");
        let place = there.display();
        let batch = format!(
            "cd {place}\nput data\nls -l\nrename data moved\nchmod 600 moved\nsymlink moved link\nln moved hard\nmkdir dir\n\
             put -p data dir/second\nget link back\nls -la dir\nreget moved back\ndf {place}\npwd\n"
        );
        let output = assert_succeeds(&sftp(ssh, ROOT, &batch));
        assert!(output.contains("-rw-r--r--"), "{output}");
        assert!(
            output.contains(&format!("Remote working directory: {place}")),
            "{output}"
        );
        assert!(fs::read(ssh.path("back")).expect("a copy") == data);
        let moved = fs::metadata(there.join("moved")).expect("renamed");
        assert_eq!((moved.mode() & 0o777, moved.nlink()), (0o600, 2));
        assert_eq!(
            fs::read_link(there.join("link"))
                .expect("a link")
                .as_os_str(),
            "moved"
        );
        let batch = format!("cd {place}\nrm link\nrm hard\nrm moved\nrm dir/second\nrmdir dir\n");
        assert_succeeds(&sftp(ssh, ROOT, &batch));
        assert_eq!(fs::read_dir(&there).expect("a directory").count(), 0);
        for (batch, expected) in [
            ("get /nonexistent\n", "not found"),
            ("rmdir /etc\n", "Failure"),
            ("ls /root/x\n", "not found"),
        ] {
            let output = sftp(ssh, ROOT, batch);
            assert_eq!(output.status.code(), Some(1), "{batch}: {output:?}");
            assert!(
                text(&output.stderr).contains(expected),
                "{batch}: {output:?}"
            );
        }
        // The home directory is the first one, and many names fit into several responses.
        let output = assert_succeeds(&sftp(ssh, ROOT, "pwd\n"));
        assert!(
            output.contains("Remote working directory: /root"),
            "{output}"
        );
        for number in 0..500 {
            fs::write(there.join(format!("file-{number}")), "").expect("written");
        }
        let output = assert_succeeds(&sftp(ssh, ROOT, &format!("ls -1 {place}\n")));
        assert_eq!(output.matches("/file-").count(), 500, "{output}");
    });
}

#[test]
fn sftp_has_the_permissions_of_its_user() {
    with_ssh(|ssh| {
        fs::write(ssh.path("secret"), "secret").expect("written");
        fs::set_permissions(ssh.path("secret"), PermissionsExt::from_mode(0o600)).expect("changed");
        symlink(ssh.path("secret"), ssh.path("link")).expect("a link");
        for user in ["4711+box-1", "daemon+box-1"] {
            for name in ["secret", "link"] {
                let batch = format!("get {} stolen\n", ssh.path(name).display());
                let output = sftp(ssh, user, &batch);
                assert_eq!(output.status.code(), Some(1), "{output:?}");
                assert!(!ssh.path("stolen").exists());
            }
        }
        let output = sftp(
            ssh,
            "root+box-1",
            &format!("get {} copy-of-link\n", ssh.path("link").display()),
        );
        assert_succeeds(&output);
    });
}

#[test]
fn rsync_works_over_it() {
    with_ssh(|ssh| {
        fs::create_dir_all(ssh.path("from/a")).expect("directories");
        let data = noise(3 << 20);
        fs::write(ssh.path("from/a/data"), &data).expect("written");
        symlink("data", ssh.path("from/a/link")).expect("a link");
        let shell = format!("ssh {}", ssh.options("alice").join(" "));
        let rsync = |from: &str, to: &str| {
            let mut command = std::process::Command::new("rsync");
            command
                .args(["-a", "--delete", "-e", &shell, from, to])
                .current_dir(ssh.harness.dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            assert_succeeds(&command.output().expect("rsync"));
        };
        let remote = format!("{ROOT}@127.0.0.1:{}/", ssh.path("to").display());
        rsync("from/", &remote);
        assert!(fs::read(ssh.path("to/a/data")).expect("a copy") == data);
        assert!(ssh.path("to/a/link").is_symlink());
        fs::remove_file(ssh.path("to/a/link")).expect("removed");
        rsync(&remote, "from/");
        assert!(!ssh.path("from/a/link").exists());
    });
}
