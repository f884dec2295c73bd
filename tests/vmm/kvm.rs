//! Trying a program: confined, without a way to be fooled.
//! Out of scope: what becomes of the result (`recipes`).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use slicectl::api::allowed::Purpose;
use slicectl::api::vm::Hypervisor;
use slicectl::host::named::Named;
use slicectl::host::process::{Query, query};
use slicectl::vmm::{Accel, Machines, Programs, boots};

use crate::fixture::places;

fn open(dir: &Path, program: &Path) -> Named {
    places(&[dir]).open(Purpose::Program, program).unwrap()
}

fn qemu() -> Named {
    open(Path::new("/opt"), Path::new("/usr/bin/qemu-system-x86_64"))
}

/// By another process, see `test_support::vmm`.
fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let mut sh = std::process::Command::new("sh");
    let made = sh.args(["-c", write]).arg(&path).arg(text).status();
    assert!(made.unwrap().success());
    path
}

#[tokio::test]
async fn our_kernel_boots_and_answers_where_a_guest_runs() {
    assert!(boots(&qemu(), Accel::Tcg).await);
}

#[tokio::test]
async fn a_program_that_only_prints_does_not_run_guests() {
    let dir = tempfile::tempdir().unwrap();
    for (at, text) in [
        "echo bc731f31d5869306",
        "echo 'Unable to mount root fs'",
        "echo 'VFS: Unable to mount root fs'; echo QEMU emulator version 9.0",
        // All that is in its input, as text and as digits.
        "cat <&0",
        "od -An -v -tx8 <&0 | tr -d ' '",
        "for n in 0 1 2 3 4 5 6 7 8 9; do echo 000000000000000$n; done",
        "exec yes 0000000000000000",
        "sleep 600",
        "exit 0",
        "",
    ]
    .iter()
    .enumerate()
    {
        let program = script(dir.path(), &format!("qemu-{at}"), text);
        let begin = Instant::now();
        assert!(
            !boots(&open(dir.path(), &program), Accel::Tcg).await,
            "{text}"
        );
        assert!(begin.elapsed() < Duration::from_secs(8), "{text}");
    }
}

#[tokio::test]
async fn a_program_decides_for_itself_alone_and_is_tried_again_when_it_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let run = tempfile::tempdir().unwrap();
    let liar = script(dir.path(), "liar", "echo 'Unable to mount root fs'");
    let machines = Machines::default();
    let lied = machines.machine(run.path(), &open(dir.path(), &liar)).await;
    assert_eq!(lied.unwrap().accel, Accel::Tcg);
    let text = || std::fs::read_to_string(run.path().join("kvm.json")).unwrap();
    let count = |text: &str| text.matches("\"tcg\"").count() + text.matches("\"kvm\"").count();
    assert_eq!(count(&text()), 1);
    let real = machines.machine(run.path(), &qemu()).await.unwrap();
    assert_eq!(count(&text()), 2, "it was tried itself");
    // What is remembered is what is answered, by another daemon, too, and nothing is tried for it.
    let before = text();
    let begin = Instant::now();
    let again = Machines::default().machine(run.path(), &qemu()).await;
    assert_eq!(again.unwrap(), real);
    assert!(begin.elapsed() < Duration::from_millis(500));
    assert_eq!(text(), before);
    script(dir.path(), "liar", "echo something else");
    let _ = machines.machine(run.path(), &open(dir.path(), &liar)).await;
    assert_eq!(count(&text()), 3, "the file is another");
    // Of another boot nothing is believed.
    let other = text().replace('-', "0").replace("tcg", "kvm");
    std::fs::write(run.path().join("kvm.json"), other).unwrap();
    let found = Machines::default()
        .machine(run.path(), &open(dir.path(), &liar))
        .await;
    assert_eq!(found.unwrap().accel, Accel::Tcg);
}

/// Each line is one property of who is asked, and what it may.
#[tokio::test]
async fn a_helper_program_runs_as_nobody_without_privileges() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "x").unwrap();
    let show = format!(
        "id -u; id -g; id -G
         sed -n 's/^CapEff:[^0-9a-f]*//p; s/^CapBnd:[^0-9a-f]*//p; s/^NoNewPrivs:[^0-9]*/nnp/p; s/^Seccomp:[^0-9]*/seccomp/p' /proc/self/status
         ls /proc | grep -c '^[0-9]*$' | sed 's/^/processes /'
         tail -n +3 /proc/self/net/dev | sed 's/:.*//; s/^ */link /'
         ls /dev | sort | tr '\\n' ' '; echo
         for path in {0} /etc/shadow /etc/passwd /root /home /run /var /sys/kernel /dev/kvm /proc/1/environ; do
           cat $path >/dev/null 2>&1 && echo \"reads $path\"; done
         for path in /x /usr/x /tmp/x {1}/x /dev/x; do (echo > $path) 2>/dev/null && echo \"writes $path\"; done
         echo $PATH; ulimit -c; echo end",
        secret.display(),
        dir.path().display()
    );
    let program = script(dir.path(), "asked", &show);
    let file = open(dir.path(), &program);
    let ask = Query {
        program: &file,
        args: &["--version"],
        beside: &[],
        input: None,
        kvm: false,
    };
    let outcome = query(&ask, Duration::from_secs(5), |reported| {
        reported.contains("end")
    })
    .await;
    let reported = outcome.unwrap().output;
    let lines: Vec<&str> = reported.lines().collect();
    assert_eq!(
        lines,
        [
            "2013265919",
            "2013265919",
            "2013265919",
            "0000000000000000",
            "0000000000000000",
            "nnp1",
            "seccomp2",
            // The shell, ls and grep, or fewer.
            lines[7],
            "link lo",
            "net null random urandom zero ",
            // That of its own process namespace, which is itself.
            "reads /proc/1/environ",
            "/usr/sbin:/usr/bin:/sbin:/bin",
            "0",
            "end"
        ],
        "{reported}"
    );
}

#[tokio::test]
async fn a_helper_program_answers_in_time_or_is_killed_with_all_that_it_has_started() {
    let dir = tempfile::tempdir().unwrap();
    let mark = format!("86{}", std::process::id());
    let script = script(
        dir.path(),
        "asked",
        &format!("(setsid sleep {mark} &) ; setsid sleep {mark} & trap '' TERM; sleep {mark}"),
    );
    let programs = Programs::new(places(&[dir.path()]));
    let begin = Instant::now();
    let why = programs.get(Hypervisor::Qemu, Some(&script)).await;
    assert!(why.unwrap_err().contains("contains no version"));
    assert!(begin.elapsed() < Duration::from_secs(6));
    let lives = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let words = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        words
            .into_iter()
            .any(|words| words == format!("sleep\0{mark}\0").into_bytes())
    };
    assert!(crate::fixture::eventually(Duration::from_secs(3), || {
        !lives()
    }));
}
