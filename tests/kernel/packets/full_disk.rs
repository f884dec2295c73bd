//! A policy that is tightened while the run directory, the state disk or both take no more: it is in force, for packets, and stays so.
//! Out of scope: what is refused meanwhile (`tests/e2e/full_disk.rs`).

use std::net::Ipv4Addr;
use std::time::Duration;

use slicectl::host::tap::Framing;

use test_support::frames;
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::{Ping, Tcp, Udp};
use test_support::harness::{Harness, bridge_group, group};
use test_support::kernel::run;
use test_support::lab::{INTERNET, Lab, lab_mut};

const OTHER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
const BRIDGE: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24\n";

/// What takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    Run,
    /// No file can be created, though the existing ones have free space.
    RunInodes,
    State,
    StateExt4,
    Both,
}

impl Full {
    fn is_run(self) -> bool {
        matches!(self, Self::Run | Self::RunInodes | Self::Both)
    }

    fn is_state(self) -> bool {
        matches!(self, Self::State | Self::StateExt4 | Self::Both)
    }

    fn mount(self, harness: &Harness) {
        let (state, run_dir) = (harness.state(), harness.run.clone());
        let (state, run_dir) = (state.display(), run_dir.display());
        let disk = harness.dir.path().join("disk");
        let disk = disk.display();
        if self.is_run() {
            run(&format!(
                "mkdir -p {run_dir} && mount -t tmpfs -o size=2m,mode=0700,nr_inodes=400 run {run_dir}"
            ));
        }
        match self {
            Self::StateExt4 => run(&format!(
                "truncate -s 24M {disk} && mkfs.ext4 -q -m 0 {disk} && mount -o loop {disk} {state}"
            )),
            Self::State | Self::Both => run(&format!(
                "mount -t tmpfs -o size=16m,mode=0700 state {state}"
            )),
            Self::Run | Self::RunInodes => String::new(),
        };
    }

    fn fill(self, harness: &Harness) {
        if self == Self::RunInodes {
            run(&format!(
                "mkdir {0}/fill; n=0; while touch {0}/fill/$n; do n=$((n+1)); done 2>/dev/null; true",
                harness.run.display()
            ));
            return;
        }
        for place in self.places(harness) {
            run(&format!(
                "mkdir {place}/fill; for n in 1048576 4096 512 1; do dd if=/dev/zero of={place}/fill/$n bs=$n 2>/dev/null || true; done; sync -f {place}"
            ));
        }
    }

    fn make_room(self, harness: &Harness) {
        for place in self.places(harness) {
            run(&format!("rm -rf {place}/fill"));
        }
    }

    fn places(self, harness: &Harness) -> Vec<String> {
        let run_dir = self.is_run().then(|| harness.run.display().to_string());
        let state = self
            .is_state()
            .then(|| harness.state().display().to_string());
        run_dir.into_iter().chain(state).collect()
    }
}

fn is_silent(lab: &Lab, guest: &Guest, to: Ipv4Addr) -> bool {
    let ids = [Ping, Tcp(80), Udp(80)].map(|kind| lab.probe(guest, to, kind));
    let arrived = lab.arrived();
    !ids.iter().any(|id| arrived.contains(id))
}

/// Within 3 s nothing more arrives there.
#[track_caller]
fn becomes_silent(lab: &Lab, guest: &Guest, to: Ipv4Addr) {
    lab.harness
        .within(Duration::from_secs(3), "the policy is in force", || {
            is_silent(lab, guest, to).then_some(())
        });
}

/// Whether a frame from another MAC comes to the other guest.
fn passes(lab: &Lab, one: &Guest, two: &Guest) -> bool {
    while two.read().is_some() {}
    let id = lab.id();
    let packet = one.packet(id, two.ip, Udp(53));
    one.send(&frames::ethernet(
        two.mac,
        OTHER_MAC,
        0x0800,
        &packet.bytes(),
    ));
    let is_it = |frame: &[u8]| frames::marked(frame) == Some(id);
    two.receive(Duration::from_millis(200), is_it).is_some()
}

fn apply(lab: &Lab, manifest: &str) -> (bool, String) {
    let file = lab.harness.write("changed.yaml", manifest);
    let output = lab.harness.try_ctl(&format!("apply -f {file}"));
    let reported = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&reported).into_owned(),
    )
}

fn kill_and_start(lab: &mut Lab) {
    lab.harness.kill();
    lab.harness.start();
}

fn tightened_while(full: Full) {
    eprintln!("{full:?}");
    lab_mut(
        |harness| full.mount(harness),
        |lab| {
            let harness = &lab.harness;
            let listed = |network: &str| group("listed", 1, "169.254.104.0/22", network);
            let open = |network: &str| group("open", 1, "169.254.108.0/22", network);
            let web = |more: &str| bridge_group("web", 2, &format!("{BRIDGE}{more}"));
            harness.apply(&listed("allow: [\"203.0.113.0/24\", \"8.8.8.8\"]"));
            harness.save("open.yaml", &open("drop: []"));
            harness.apply(&web("antispoof: false"));
            harness.ctl("wait hg/listed hg/open hg/web --for ready --timeout 30s");
            let guests = ["listed-1", "open-1"].map(|vm| lab.guest_of(vm, Framing::Plain));
            let [listed_guest, open_guest] = &guests;
            let (one, two) = (lab.port("web-1"), lab.port("web-2"));
            assert!(
                !is_silent(lab, listed_guest, INTERNET) && !is_silent(lab, open_guest, INTERNET)
            );
            assert!(passes(lab, &one, &two));
            full.fill(harness);

            let (accepted, reported) = apply(lab, &listed("allow: [\"8.8.8.8\"]"));
            assert!(
                accepted
                    && (full == Full::RunInodes || reported.contains("No space left on device")),
                "{reported}"
            );
            becomes_silent(lab, listed_guest, INTERNET);
            assert!(!is_silent(lab, listed_guest, OTHER));
            harness.save("open.yaml", &open("drop: [\"203.0.113.0/24\"]"));
            becomes_silent(lab, open_guest, INTERNET);
            assert!(!is_silent(lab, open_guest, OTHER));
            let (accepted, reported) = apply(lab, &web("antispoof: true"));
            assert!(accepted, "{reported}");
            harness.within(Duration::from_secs(3), "frames are filtered", || {
                (!passes(lab, &one, &two)).then_some(())
            });
            // Once more, and on_deny alone.
            let (accepted, reported) = apply(lab, &listed("allow: [\"8.8.8.8:53\"]"));
            assert!(accepted, "{reported}");
            becomes_silent(lab, listed_guest, OTHER);
            let (accepted, reported) = apply(
                lab,
                &listed("allow: [\"8.8.8.8:53\"]\n        on_deny: reject"),
            );
            assert!(accepted, "{reported}");
            // What opens is refused, with the reason.
            for looser in [
                "allow: [\"8.8.8.8\"]",
                "drop: [\"203.0.113.0/24\"]",
                "drop: []",
            ] {
                let (accepted, reported) = apply(lab, &listed(looser));
                assert!(!accepted, "{looser}: {reported}");
            }
            let conditions = harness.get("vm listed-1")["status"]["conditions"].to_string();
            assert!(
                conditions.contains("No space left on device"),
                "{conditions}"
            );

            // It was acknowledged: a daemon that is killed does not forget it.
            kill_and_start(lab);
            let harness = &lab.harness;
            let spec = |name: &str| harness.get(&format!("hg {name}"))["spec"].to_string();
            assert!(spec("listed").contains("8.8.8.8:53"), "{}", spec("listed"));
            assert!(spec("open").contains("203.0.113.0/24"), "{}", spec("open"));
            let silent = |lab: &Lab| {
                is_silent(lab, listed_guest, INTERNET)
                    && is_silent(lab, listed_guest, OTHER)
                    && is_silent(lab, open_guest, INTERNET)
                    && !passes(lab, &one, &two)
            };
            harness.stays(Duration::from_millis(500), || silent(lab));
            assert!(silent(lab));

            full.make_room(harness);
            harness.ctl("wait hg/listed hg/open hg/web --for ready --timeout 30s");
            harness.until("changes are accepted", || {
                apply(lab, &group("late", 1, "169.254.116.0/22", ""))
                    .0
                    .then_some(())
            });
            kill_and_start(lab);
            let harness = &lab.harness;
            harness.ctl("wait hg/listed hg/open hg/web hg/late --for ready --timeout 30s");
            let listed = harness.get("hg listed")["spec"].to_string();
            assert!(listed.contains("8.8.8.8:53"), "{listed}");
            assert!(silent(lab));
        },
    );
}

#[test]
fn a_full_run_directory_does_not_delay_a_tightened_policy() {
    tightened_while(Full::Run);
    tightened_while(Full::RunInodes);
}

#[test]
fn a_full_state_disk_does_not_delay_a_tightened_policy() {
    tightened_while(Full::State);
    tightened_while(Full::StateExt4);
}

#[test]
fn a_full_host_does_not_delay_a_tightened_policy() {
    tightened_while(Full::Both);
}
