//! A node: its connection, its scheduler and its agent on a thread in a network namespace.
//! Out of scope: the other nodes ([`super::fleet`]).

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use slicectl::api::meta::Name;
use slicectl::fleet::contact::{Contact, Facts};
use slicectl::fleet::control::Control;
use slicectl::fleet::kv::Client;
use slicectl::fleet::link::{Link, boottime};
use test_support::kernel::Neighbour;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::super::lab::Lab;
use super::agent;

/// A node that runs until it is dropped.
pub struct TestNode {
    pub link: Arc<Link>,
    pub control: Arc<Control>,
    /// What the node has stored, in order.
    pub stored: Arc<Mutex<Vec<Facts>>>,
    host: Neighbour,
    handle: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl TestNode {
    /// The node `n<number>`, from 1, which may lead. `vcpus`: the VMs that it can run; 0: it has no agent.
    pub fn start(lab: &Lab, number: u8, vcpus: u64) -> Self {
        Self::start_as(lab, number, &format!("n{number}"), "control", vcpus)
    }

    /// A node with this name and user of etcd. Only `control` may lead.
    pub fn start_as(lab: &Lab, number: u8, node: &str, user: &str, vcpus: u64) -> Self {
        let name = format!("n{number}");
        let host = Neighbour::alone(&name);
        test_support::kernel::run(&format!(
            "ip link add {name} type veth peer name eth0 netns {name}
             ip link set {name} master etcd up
             ip -n {name} addr add 10.77.0.2{number}/24 dev eth0
             ip -n {name} link set eth0 up"
        ));
        let mut config = lab.config(user);
        config.endpoints.rotate_left(usize::from(number) % 3);
        let client = Client::new(&config).expect("a client");
        let contact = Contact::new(None, None, boottime());
        let link = Link::new(
            Name::new(node).expect("a name"),
            name.clone(),
            client,
            contact,
        );
        let control = Control::new(Arc::clone(&link), user == "control");
        let stored = Arc::default();
        let stop = CancellationToken::new();
        let (handle, thread) = spawn(
            &host,
            Parts {
                link: Arc::clone(&link),
                control: Arc::clone(&control),
                stored: Arc::clone(&stored),
                stop: stop.clone(),
                vcpus,
            },
        );
        Self {
            link,
            control,
            stored,
            host,
            handle,
            stop,
            thread: Some(thread),
        }
    }

    pub fn name(&self) -> &str {
        self.link.node().as_str()
    }

    /// Its thread does nothing for this time, as after SIGSTOP.
    pub fn pause(&self, time: Duration) {
        self.handle.spawn(async move { std::thread::sleep(time) });
    }

    /// Drops all its packets.
    pub fn isolate(&self) {
        self.host.run(
            "iptables -w -A INPUT ! -i lo -j DROP
             iptables -w -A OUTPUT ! -o lo -j DROP",
        );
    }

    /// Ends [`Self::isolate`].
    pub fn heal(&self) {
        self.host.run("iptables -w -F");
    }

    /// A clean stop of the daemon.
    pub fn stop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread of the node");
        }
    }

    pub fn may_act(&self) -> bool {
        self.link.read(|_, contact| contact.may_act(boottime()))
    }

    pub fn leads(&self) -> bool {
        self.control.status().is_leader
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

struct Parts {
    link: Arc<Link>,
    control: Arc<Control>,
    stored: Arc<Mutex<Vec<Facts>>>,
    stop: CancellationToken,
    vcpus: u64,
}

fn spawn(host: &Neighbour, parts: Parts) -> (Handle, JoinHandle<()>) {
    let namespace = File::open(host.path()).expect("the namespace");
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("moved into the namespace");
        // One thread, so that all of the node is paused with it.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        sender.send(runtime.handle().clone()).expect("sent");
        runtime.block_on(run(parts));
    });
    (receiver.recv().expect("a runtime"), thread)
}

async fn run(parts: Parts) {
    let Parts {
        link,
        control,
        stored,
        stop,
        vcpus,
    } = parts;
    let store = |facts: Facts| {
        stored.lock().expect("not poisoned").push(facts);
        std::future::ready(Ok(()))
    };
    let agent = async {
        match vcpus {
            0 => stop.cancelled().await,
            vcpus => tokio::select! {
                () = agent::run(&link, vcpus) => {}
                () = stop.cancelled() => {}
            },
        }
    };
    tokio::join!(
        link.run(store, stop.clone()),
        control.run(stop.clone()),
        agent
    );
}
