//! While a VM's data path is being built and taken down: a guest that sends from the moment there is a TAP.
//! Out of scope: what passes once the rules are in place.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use slicectl::api::meta::Uid;
use slicectl::api::vm::VmSpec;
use slicectl::daemon::Daemon;
use slicectl::host::netns::Netns;
use slicectl::host::tap::{self, Framing};
use slicectl::owner::{Instance, vm_names};
use slicectl::store;

use test_support::frames::{self, ICMP, Ip, TCP, UDP};
use test_support::kernel::{self, Canaries};
use test_support::lab::{CONTAINER, HOST, INTERNET, LAN, Place, neighbourhood};
use test_support::objects;

const RUN: &str = "/run/slice";

/// Everything that an eager guest sends at once: honest packets, borrowed sources, what would be answered on the way.
fn salvo(to_mac: [u8; 6], mac: [u8; 6], ip: Ipv4Addr) -> Vec<Vec<u8>> {
    let gateway = Ipv4Addr::from(u32::from(ip) - 1);
    let mut salvo = vec![frames::who_has(mac, ip, gateway)];
    for source in [ip, INTERNET, LAN] {
        for to in [LAN, INTERNET, CONTAINER, HOST, gateway] {
            let bodies = [
                (UDP, frames::udp(5, 6, &frames::mark(1))),
                (ICMP, frames::echo(7, &frames::mark(1))),
                (TCP, frames::syn(source, to, 8, 80, &frames::mark(1))),
            ];
            for (protocol, body) in bodies {
                for ttl in [64, 1] {
                    let mut packet = Ip::new(source, to, protocol, body.clone());
                    packet.ttl = ttl;
                    salvo.push(frames::ethernet(to_mac, mac, 0x0800, &packet.bytes()));
                }
            }
        }
    }
    salvo
}

/// Looks for the VM by what it leaves in the run directory, attaches as soon as it can, and sends all of its salvo each time.
struct Eager {
    find: Find,
    attached: Option<Attached>,
}

/// What came of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effort {
    /// There is no TAP yet, or none any more.
    Nothing,
    /// There is one, and it takes no frame.
    Refused,
    /// All frames were taken.
    Sent,
}

/// A guest's end, and what it sends.
type Attached = (std::fs::File, Vec<Vec<u8>>);

/// Looks for the only VM there is.
type Find = fn(&Instance) -> Option<Attached>;

impl Eager {
    fn attack(&mut self, instance: &Instance) -> Effort {
        if self.attached.is_none() {
            self.attached = (self.find)(instance);
        }
        let Some((tap, salvo)) = &self.attached else {
            return Effort::Nothing;
        };
        let mut sent = true;
        for frame in salvo {
            // A TAP that is not up, or is gone, takes none.
            sent &= std::io::Write::write(&mut &*tap, frame).is_ok();
        }
        match sent {
            true => Effort::Sent,
            false => Effort::Refused,
        }
    }
}

fn the_uid() -> Option<Uid> {
    let dirs = std::fs::read_dir(Path::new(RUN).join("vm")).ok()?;
    dirs.flatten()
        .find_map(|dir| dir.file_name().to_str()?.parse().ok())
}

/// On a bridge, to its gateway and to everybody.
fn attach_to_port(instance: &Instance) -> Option<Attached> {
    let names = vm_names(instance, the_uid()?);
    let tap = tap::attach("vmtap0", Framing::Plain).ok()?;
    let all = [GATEWAY_MAC, frames::BROADCAST];
    let salvos = all.map(|to| salvo(to, names.guest_mac.0, BRIDGED));
    Some((tap, salvos.concat()))
}

fn attach_in_namespace(instance: &Instance) -> Option<Attached> {
    let uid = the_uid()?;
    let names = vm_names(instance, uid);
    let netns = Netns::open(&Path::new(RUN).join("netns").join(&names.netns)).ok()?;
    let tap = netns
        .run_here(|| tap::attach("tap0", Framing::Plain))
        .ok()?;
    // A group of one in a /22 of its own: whichever block it has, the record says.
    let record = std::fs::read_to_string(
        Path::new(RUN)
            .join("vm")
            .join(uid.to_string())
            .join("record.json"),
    )
    .ok()?;
    let at = record.find("169.254.100.")?;
    let last: String = record[at + 12..]
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let ip = Ipv4Addr::new(169, 254, 100, (last.parse::<u8>().ok()? & !3) | 2);
    Some((tap, salvo(names.tap_mac.0, names.guest_mac.0, ip)))
}

/// All IPv4 that any neighbour has seen; they are silent themselves, but for what group they belong to (IGMP).
fn seen(places: &[Place]) -> usize {
    let of = |place: &Place| {
        let frames = place.sniffer.frames();
        frames
            .iter()
            .filter(|frame| frames::read(frame).is_some_and(|seen| seen.protocol != 2))
            .count()
    };
    places.iter().map(of).sum()
}

/// What was about to be done, what came of the salvo before it, and what had been seen by then.
type Log = Arc<Mutex<Vec<(String, Effort, usize)>>>;

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BRIDGED: Ipv4Addr = Ipv4Addr::new(192, 168, 137, 2);

#[test]
fn nothing_passes_before_the_rules_exist_nor_after_forwarding_is_off() {
    let template = objects::spec(Some("169.254.100.0/24"), "");
    watch_over(template, attach_in_namespace, Effort::Sent, || {
        let (lan, net, container) = neighbourhood();
        vec![lan, net, container]
    });
}

#[test]
fn nothing_passes_a_port_before_its_filter_exists_nor_after_the_link_is_down() {
    let template = objects::bridged("br0", "192.168.137.1/24");
    // A port is down until its gate opens.
    watch_over(template, attach_to_port, Effort::Refused, || {
        let (lan, net, container) = neighbourhood();
        // Somebody else is on the bridge, and sees whatever is for everybody.
        let beside = Place::settle("nic0", "192.168.137.1/24", "192.168.137.10/24");
        kernel::run(
            "ip link add br0 address 02:00:00:00:00:01 type bridge forward_delay 0
             ip addr flush dev nic0
             ip link set nic0 master br0
             ip link set br0 up
             ip addr add 192.168.137.1/24 dev br0",
        );
        vec![lan, net, container, beside]
    });
}

fn watch_over(
    template: VmSpec,
    find: Find,
    effort: Effort,
    settle: impl FnOnce() -> Vec<Place> + Send,
) {
    kernel::private(async {
        let places: Arc<[Place]> = settle().into();
        let canaries = Canaries::release();
        let state = tempfile::tempdir().unwrap();
        let state = state.path().canonicalize().unwrap();
        let instance = Instance::of(&state);
        let eager = Arc::new(Mutex::new(Eager {
            find,
            attached: None,
        }));
        let over = Arc::new(AtomicBool::new(false));
        let flood = flood(eager.clone(), instance.clone(), over.clone());

        let log = Log::default();
        let daemon = prepare(&state, &log, &eager, &instance, &places).await;
        let group = objects::group("sandbox", 1, template);
        let write = |txn: &mut store::Txn<'_>| txn.put_group(group.clone());
        daemon.engine.store.write(write).await.unwrap();
        let engine = daemon.engine.clone();
        assert!(daemon.settle(Duration::from_secs(30)).await);
        engine.store.close();
        drop(engine);
        let built = std::mem::take(&mut *log.lock().unwrap());
        assert_eq!(
            built
                .iter()
                .filter(|step| step.0.starts_with("turn forwarding on"))
                .count(),
            1
        );
        assert!(
            built.iter().filter(|step| step.1 >= effort).count() >= 5,
            "it hardly got to send: {built:#?}"
        );
        let early: Vec<_> = built.iter().filter(|step| step.2 > 0).collect();
        assert!(early.is_empty(), "{early:#?}");
        // The proof that it would have been seen.
        let mut looks = 0;
        while seen(&places) == 0 {
            looks += 1;
            assert!(looks < 500, "nothing passes although the gate is open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        let daemon = prepare(&state, &log, &eager, &instance, &places).await;
        let mut group = daemon
            .engine
            .store
            .read(|world| world.groups().next().cloned())
            .unwrap();
        group.meta.deleting = true;
        let write = |txn: &mut store::Txn<'_>| txn.put_group(group.clone());
        daemon.engine.store.write(write).await.unwrap();
        assert!(daemon.settle(Duration::from_secs(30)).await);
        let gone = std::mem::take(&mut *log.lock().unwrap());
        let shut = gone
            .iter()
            .position(|step| step.0.starts_with("turn forwarding off"))
            .expect("shut");
        // The first look after the gate was shut counts from there.
        let behind = &gone[shut + 1..];
        let (first, rest) = behind.split_first().expect("more to take down");
        assert!(rest.iter().all(|step| step.2 == first.2), "{gone:#?}");
        over.store(true, Ordering::Relaxed);
        flood.join().unwrap();
        canaries.assert_alive();
    });
}

/// A daemon that lets the guest send, and looks around, before each step.
async fn prepare(
    state: &Path,
    log: &Log,
    eager: &Arc<Mutex<Eager>>,
    instance: &Instance,
    places: &Arc<[Place]>,
) -> Daemon {
    let (log, eager, instance, places) =
        (log.clone(), eager.clone(), instance.clone(), places.clone());
    let probe = Arc::new(move |action: &str| {
        let sent = eager.lock().unwrap().attack(&instance);
        // What got out has arrived, and has been read.
        std::thread::sleep(Duration::from_millis(40));
        log.lock()
            .unwrap()
            .push((action.to_owned(), sent, seen(&places)));
        Ok(())
    });
    Daemon::prepare(state, &PathBuf::from(RUN), probe)
        .await
        .unwrap()
}

/// Sends between the steps, too.
fn flood(
    eager: Arc<Mutex<Eager>>,
    instance: Instance,
    over: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            eager.lock().unwrap().attack(&instance);
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}
