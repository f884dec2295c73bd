//! Deletions while another process holds what is to be removed: each ends, or its condition names the holder and what it holds, and the
//! deletion ends when the holder has gone. No other object waits for it.
//! Out of scope: programs in `PATH` that hang (`hanging`), file systems that do not answer (`hung_files`), CNI plugins.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use slicectl::api::vm::Hypervisor;

use test_support::harness::{Harness, Place, bridge_group, empty, group};
use test_support::kernel::run;
use test_support::vmm;

/// A deletion that nothing holds up, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

const READ_ONLY: &str = "Read-only file system";

/// How a deletion ends.
enum Ends {
    /// By itself.
    ByItself,
    /// The conditions contain these texts, and the deletion ends when the holder has gone.
    After(&'static [&'static str]),
}

/// What holds something of a VM: processes, or a change that a command undoes.
#[derive(Default)]
struct Holder {
    processes: Vec<Child>,
    undo: Option<String>,
}

impl Holder {
    /// A process that does this and then sleeps.
    fn shell(script: &str) -> Self {
        let child = Command::new("sh")
            .args(["-c", &format!("{script}\necho ready; exec sleep 1000")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut holder = Self::default();
        holder.add(child);
        holder
    }

    fn add(&mut self, mut child: Child) {
        use std::io::Read;
        let mut word = [0; 5];
        let out = child.stdout.as_mut().expect("a pipe");
        out.read_exact(&mut word).expect("it is ready");
        self.processes.push(child);
    }

    fn undone_by(script: &str) -> Self {
        Self {
            processes: Vec::new(),
            undo: Some(script.to_owned()),
        }
    }

    fn pid(&self) -> Option<u32> {
        self.processes.first().map(Child::id)
    }

    fn let_go(&mut self) {
        for mut child in self.processes.drain(..) {
            child.kill().expect("killed");
            child.wait().expect("its status");
        }
        if let Some(undo) = self.undo.take() {
            run(&undo);
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        for mut child in self.processes.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn conditions(harness: &Harness, vm: &str) -> String {
    harness.get(&format!("vm {vm}"))["status"]["conditions"].to_string()
}

/// Deletes the group `victim` while `hold` has something of its VM.
fn deleted_while(
    what: &str,
    manifest: &str,
    ends: &Ends,
    hold: impl FnOnce(&Harness) -> Holder + Send,
) {
    eprintln!("{what}");
    empty(|mut harness| {
        harness.start();
        harness.apply(manifest);
        let mut holder = hold(&harness);
        harness.ctl("delete hostgroup/victim");
        let gone = |harness: &Harness| harness.vms().iter().all(|vm| !vm.starts_with("victim"));
        match ends {
            Ends::ByItself => harness.within(SOON, what, || gone(&harness).then_some(())),
            Ends::After(words) => {
                let pid = holder.pid().map(|pid| pid.to_string());
                let reported = harness.within(SOON, "the condition", || {
                    let reported = conditions(&harness, "victim-1");
                    let named = pid
                        .as_ref()
                        .is_none_or(|pid| reported.contains(&format!("process {pid}")));
                    (named && words.iter().all(|word| reported.contains(word))).then_some(reported)
                });
                eprintln!("    {reported}");
            }
        }
        // Nobody else waits, unless nothing can be written for anybody.
        let others = !matches!(ends, Ends::After(words) if words.contains(&READ_ONLY));
        let other = group("other", 2, "169.254.116.0/22", "drop: [192.168.1.0/24]");
        if others {
            harness.apply(&other);
        }
        if let Ends::After(_) = ends {
            assert!(!gone(&harness), "{what}: it was held");
            holder.let_go();
            harness.within(SOON, "it ends with its holder", || {
                gone(&harness).then_some(())
            });
        }
        holder.let_go();
        harness.apply(&other);
        harness.until("the group is gone", || {
            harness.get("hg victim").is_null().then_some(())
        });
        // What was held leaves nothing behind once it is free.
        harness.until("nothing is left", || {
            let left = run("ip -o link; ls /run/slice/vm; ls /run/netns");
            let known = run("ls /run/slice/vm").lines().count();
            (known == 2 && !left.contains("vmtap")).then_some(())
        });
    });
}

fn isolated() -> String {
    group("victim", 1, "169.254.104.0/22", "")
}

fn bridge() -> String {
    bridge_group(
        "victim",
        1,
        "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24",
    )
}

fn vm_dir(harness: &Harness) -> String {
    let uid = harness.get("vm victim-1")["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    harness.run.join("vm").join(uid).display().to_string()
}

fn place(harness: &Harness) -> Place {
    harness.place("victim-1")
}

#[test]
fn a_run_directory_that_others_use_goes() {
    for (mode, manifest) in [("isolated", isolated()), ("bridge", bridge())] {
        let it = |what: &str| format!("{mode}: {what}");
        let by_itself = &Ends::ByItself;
        deleted_while(
            &it("a process works in it"),
            &manifest,
            by_itself,
            |harness| Holder::shell(&format!("cd {0}; exec 5<{0}/record.json", vm_dir(harness))),
        );
        deleted_while(
            &it("a lock on its files"),
            &manifest,
            by_itself,
            |harness| {
                let dir = vm_dir(harness);
                Holder::shell(&format!(
                    "exec 5<{dir}/record.json; flock 5; : >{dir}/xtables.lock; exec 6<{dir}/xtables.lock; flock 6"
                ))
            },
        );
        deleted_while(&it("mounted elsewhere"), &manifest, by_itself, |harness| {
            run(&format!(
                "mkdir /run/copy && mount --bind {} /run/copy",
                vm_dir(harness)
            ));
            Holder::shell("cd /run/copy")
        });
        deleted_while(
            &it("something mounted on the record"),
            &manifest,
            by_itself,
            |harness| {
                let dir = vm_dir(harness);
                run(&format!(
                    "echo other >/run/other; mount --bind /run/other {dir}/record.json"
                ));
                Holder::shell(&format!("exec 5<{dir}/record.json"))
            },
        );
        deleted_while(
            &it("something mounted on it"),
            &manifest,
            by_itself,
            |harness| {
                let dir = vm_dir(harness);
                run(&format!(
                    "mount -t tmpfs over {dir}; mount -t tmpfs twice {dir}"
                ));
                Holder::shell(&format!("cd {dir}"))
            },
        );
        deleted_while(
            &it("its record is immutable"),
            &manifest,
            by_itself,
            |harness| {
                run(&format!("chattr +i {}/record.json", vm_dir(harness)));
                Holder::default()
            },
        );
        deleted_while(
            &it("it is immutable, and appended to only"),
            &manifest,
            by_itself,
            |harness| {
                let dir = vm_dir(harness);
                run(&format!("chattr +a {dir}/record.json; chattr +i {dir}"));
                Holder::default()
            },
        );
        deleted_while(
            &it("it is mounted on itself, read-only"),
            &manifest,
            by_itself,
            |harness| {
                let dir = vm_dir(harness);
                run(&format!(
                    "mount --bind {dir} {dir} && mount -o remount,ro,bind {dir}"
                ));
                Holder::default()
            },
        );
        let read_only = &Ends::After(&[READ_ONLY]);
        deleted_while(
            &it("a file system that became read-only"),
            &manifest,
            read_only,
            |harness| {
                let dir = harness.run.join("vm");
                let dir = dir.display();
                run(&format!(
                    "mount --bind {dir} {dir} && mount -o remount,ro,bind {dir}"
                ));
                Holder::undone_by(&format!("umount -l {dir}"))
            },
        );
    }
}

#[test]
fn a_file_of_others_in_a_run_directory_stays_and_holds_nothing_up() {
    for manifest in [isolated(), bridge()] {
        empty(|mut harness| {
            harness.start();
            harness.apply(&manifest);
            let file = format!("{}/theirs", vm_dir(&harness));
            fs::write(&file, "theirs").unwrap();
            harness.ctl("delete hostgroup/victim --wait");
            assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
            assert!(
                harness.log().contains("contains files that are not ours"),
                "{}",
                harness.log()
            );
            // Nor does a later start take it for a VM.
            harness.kill();
            harness.start();
            harness.stays(Duration::from_millis(500), || harness.vms());
            assert_eq!(harness.vms(), [""; 0]);
            assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
        });
    }
}

#[test]
fn a_namespace_and_links_that_others_use_go() {
    let by_itself = &Ends::ByItself;
    deleted_while(
        "a process in the namespace",
        &isolated(),
        by_itself,
        |harness| {
            Holder::shell(&format!(
                "exec nsenter --net={} sh -c 'echo ready; exec sleep 1000'; :",
                place(harness).netns
            ))
        },
    );
    deleted_while(
        "the namespace is mounted elsewhere",
        &isolated(),
        by_itself,
        |harness| {
            run(&format!(
                "touch /run/elsewhere; mount --bind {} /run/elsewhere",
                place(harness).netns
            ));
            Holder::undone_by("umount -l /run/elsewhere")
        },
    );
    deleted_while("the namespace is open", &isolated(), by_itself, |harness| {
        Holder::shell(&format!("exec 5<{}", place(harness).netns))
    });
    deleted_while("mounted on twice", &isolated(), by_itself, |harness| {
        let netns = place(harness).netns;
        run(&format!(
            "mount --bind {netns} {netns}; mount --bind /proc/self/ns/net {netns}"
        ));
        Holder::shell(&format!("exec 5<{netns}"))
    });
    deleted_while("the TAP is open", &isolated(), by_itself, |harness| {
        let place = place(harness);
        let opener = format!(
            "exec nsenter --net={} python3 -c \"\nimport fcntl,struct,time,sys\nf=open('/dev/net/tun','r+b',buffering=0)\nfcntl.ioctl(f,0x400454ca,struct.pack('16sH22x',b'tap0',0x1002))\nprint('ready',flush=True)\ntime.sleep(1000)\"",
            place.netns
        );
        Holder::shell(&opener)
    });
    deleted_while(
        "the veth is a port of somebody's bridge",
        &isolated(),
        by_itself,
        |harness| {
            run(&format!(
                "ip link add theirs type bridge; ip link set {} master theirs",
                place(harness).link
            ));
            Holder::default()
        },
    );
    deleted_while("bridge: the TAP is open", &bridge(), by_itself, |_| {
        Holder::shell(
            "exec python3 -c \"\nimport fcntl,struct,time,sys\nf=open('/dev/net/tun','r+b',buffering=0)\nfcntl.ioctl(f,0x400454ca,struct.pack('16sH22x',b'vmtap0',0x1002))\nprint('ready',flush=True)\ntime.sleep(1000)\"",
        )
    });
    deleted_while(
        "bridge: somebody's port on it",
        &bridge(),
        by_itself,
        |_| {
            run(
                "ip link add theirs type veth peer name theirs2; ip link set theirs master brvm0 up",
            );
            Holder::default()
        },
    );
    deleted_while(
        "bridge: the TAP is a port of somebody's bridge",
        &bridge(),
        by_itself,
        |_| {
            run("ip link add theirs type bridge; ip link set vmtap0 master theirs");
            Holder::default()
        },
    );
}

#[test]
fn locks_of_others_hold_no_deletion_up() {
    for (mode, manifest) in [("isolated", isolated()), ("bridge", bridge())] {
        let what = format!("{mode}: the lock of iptables, and every claim");
        deleted_while(&what, &manifest, &Ends::ByItself, |_| {
            Holder::shell(
                "exec 5>/run/xtables.lock; flock 5; for f in /run/slice-ranges/*.*; do exec 6<$f; flock -n 6; done",
            )
        });
    }
}

/// A VM with a VMM and a disk of its own.
fn with_vmm(deleted: impl FnOnce(&str) + Send) {
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = vmm::program(Hypervisor::CloudHypervisor, programs.path()).unwrap();
    let image = programs.path().join("image");
    fs::write(&image, vec![5; 1 << 20]).unwrap();
    let lines = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}\n      image: {}",
        program.display(),
        vmm::tiny_guest().display(),
        image.display()
    );
    deleted(&isolated().replace("hypervisor: none", &lines));
}

fn vmm_pid(harness: &Harness) -> u64 {
    harness.get("vm victim-1")["status"]["vmm"]["pid"]
        .as_u64()
        .expect("a pid")
}

#[test]
fn a_vmm_and_its_disk_that_others_use_go_or_the_holder_is_named() {
    let by_itself = &Ends::ByItself;
    with_vmm(|manifest| {
        deleted_while("the VMM is stopped", manifest, by_itself, |harness| {
            run(&format!("kill -STOP {}", vmm_pid(harness)));
            Holder::default()
        });
    });
    with_vmm(|manifest| {
        deleted_while(
            "a process works in the VMM's directory",
            manifest,
            by_itself,
            |harness| {
                let dir = vm_dir(harness);
                Holder::shell(&format!("cd {dir}/vmm; exec 5<{dir}/vmm/console.log"))
            },
        );
    });
    with_vmm(|manifest| {
        deleted_while(
            "somebody's mount in the VMM's directory",
            manifest,
            by_itself,
            |harness| {
                let dir = vm_dir(harness);
                run(&format!(
                    "mkdir -p {dir}/vmm/theirs; mount -t tmpfs theirs {dir}/vmm/theirs"
                ));
                Holder::shell(&format!("cd {dir}/vmm/theirs"))
            },
        );
    });
    with_vmm(|manifest| {
        deleted_while("the disk is immutable", manifest, by_itself, |harness| {
            run(&format!(
                "chattr +i {}/disks/victim-1.img",
                harness.state().display()
            ));
            Holder::default()
        });
    });
    with_vmm(|manifest| {
        let named = &Ends::After(&["victim-1.img", "sleep"]);
        deleted_while("somebody holds the disk", manifest, named, |harness| {
            Holder::shell(&format!(
                "exec 5<{}/disks/victim-1.img; flock -s 5 & until grep -q -- \"-> FLOCK .* $! \" /proc/locks; do sleep 0.01; done",
                harness.state().display()
            ))
        });
    });
    with_vmm(|manifest| {
        deleted_while(
            "a stranger in the VMM's cgroup",
            manifest,
            by_itself,
            |harness| {
                let group = run(&format!(
                    "sed -n 's/^0:://p' /proc/{}/cgroup",
                    vmm_pid(harness)
                ));
                let group = format!("/sys/fs/cgroup{}", group.trim());
                Holder::shell(&format!(
                    "[ -w {group}/cgroup.procs ] && echo $$ >{group}/cgroup.procs || true"
                ))
            },
        );
    });
}
