//! Six nodes through failures of daemons, hosts and members of etcd: each VM runs once, and on the same node as before.
//! Out of scope: replacement.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use test_support::dice::Dice;
use test_support::harness;

use super::super::hosts::{Fleet, fleet};
use super::{group, nothing_left, ready};

/// A failure, with the host or the member of etcd.
#[derive(Clone, Copy, Debug)]
enum Failure {
    CutOff(usize),
    Suspend(usize),
    Kill(usize),
    KillMember(usize),
    PauseMember(usize),
    IsolateMember(usize),
}

impl Failure {
    fn pick(dice: &mut Dice) -> Self {
        let (host, member) = (dice.below(6), dice.below(3));
        match dice.below(6) {
            0 => Self::CutOff(host),
            1 => Self::Suspend(host),
            2 => Self::Kill(host),
            3 => Self::KillMember(member),
            4 => Self::PauseMember(member),
            _ => Self::IsolateMember(member),
        }
    }

    fn begin(self, fleet: &mut Fleet) {
        match self {
            Self::CutOff(host) => fleet.hosts[host].cut_off(),
            Self::Suspend(host) => harness::signal(fleet.hosts[host].harness.pid(), Signal::STOP),
            Self::Kill(host) => fleet.hosts[host].harness.kill(),
            Self::KillMember(member) => fleet.lab.kill(member),
            Self::PauseMember(member) => fleet.lab.pause(member),
            Self::IsolateMember(member) => fleet.lab.isolate(member),
        }
    }

    fn end(self, fleet: &mut Fleet) {
        match self {
            Self::CutOff(host) => fleet.hosts[host].heal(),
            Self::Suspend(host) => harness::signal(fleet.hosts[host].harness.pid(), Signal::CONT),
            Self::Kill(host) => {
                fleet.hosts[host].harness.start();
            }
            Self::KillMember(member) => fleet.lab.restart_without_majority(member),
            Self::PauseMember(member) => fleet.lab.resume(member),
            Self::IsolateMember(member) => fleet.lab.heal(member),
        }
    }

    /// The host whose daemon does not answer meanwhile.
    fn silent(self) -> Option<usize> {
        match self {
            Self::Suspend(host) | Self::Kill(host) => Some(host),
            _ => None,
        }
    }
}

/// The host of each VM; fails if two hosts have one.
fn holders(fleet: &Fleet, except: Option<usize>) -> BTreeMap<String, usize> {
    let mut holders = BTreeMap::new();
    for (at, host) in fleet.hosts.iter().enumerate() {
        if Some(at) == except {
            continue;
        }
        for name in host.vms() {
            let other = holders.insert(name.clone(), at);
            assert_eq!(other, None, "{name} is on two hosts");
        }
    }
    holders
}

#[test]
fn six_nodes_run_each_vm_once_and_where_it_was_through_failures() {
    // Another one each time; `SLICE_STORM_SEED` repeats one.
    let seed = std::env::var("SLICE_STORM_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("SLICE_STORM_SEED={seed}");
    let mut dice = Dice::new(seed);
    fleet(6, 3, |fleet| {
        fleet.apply(&group("web", 24, "placement: {max_unavailable: 6}"));
        ready(fleet, 24);
        assert_eq!(fleet.counts(), [4; 6]);
        let before = holders(fleet, None);
        for _ in 0..6 {
            let failure = Failure::pick(&mut dice);
            eprintln!("{failure:?}");
            failure.begin(fleet);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(5) {
                for (name, at) in holders(fleet, failure.silent()) {
                    assert_eq!(before.get(&name), Some(&at), "{name} has moved");
                }
                std::thread::sleep(Duration::from_millis(300));
            }
            failure.end(fleet);
        }
        fleet.within(
            Duration::from_secs(120),
            "all VMs are Ready again",
            |fleet| {
                let vms = fleet.get("vms --fleet")?;
                let is_ready = |vm: &serde_json::Value| vm["state"] == "Ready" && vm["epoch"] == 1;
                (vms.len() == 24 && vms.iter().all(is_ready)).then_some(())
            },
        );
        assert_eq!(holders(fleet, None), before);
        fleet.ctl("delete hostgroup/web --fleet");
        nothing_left(fleet);
    });
}
