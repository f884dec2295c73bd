//! Sees every frame that comes in at a namespace's links: a proof that something arrived, or that nothing did.
//! Out of scope: what is sent.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket, sockopt};
use slicectl::host::netns::Netns;
use slicectl::host::{Error, Kind};

use super::frames;

/// Listens until dropped.
pub struct Sniffer {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// On all links of the namespace at `path`. Frames that have `own` as their source go out, not in.
    pub fn listen(path: &Path, own: [u8; 6]) -> Self {
        let netns = Netns::open(path).expect("a namespace");
        let all = u32::from(0x0003u16.to_be());
        let open = || {
            let every = Protocol::from_raw(std::num::NonZero::new(all).expect("not 0"));
            let fail = |e: rustix::io::Errno| Error {
                operation: "listen",
                object: "all links".into(),
                kind: Kind::Other,
                source: e.into(),
            };
            let fd = socket(AddressFamily::PACKET, SocketType::RAW, Some(every)).map_err(fail)?;
            sockopt::set_socket_recv_buffer_size_force(&fd, 16 << 20).map_err(fail)?;
            Ok(fd)
        };
        let fd = netns.run_here(open).expect("a packet socket");
        let frames = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (frames.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            while !stopped.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(&fd, PollFlags::IN)];
                let time = Timespec::try_from(Duration::from_millis(20)).expect("a time");
                let _ = poll(&mut fds, Some(&time));
                while let Ok((length, _)) = recv(&fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                    let frame = &buffer[..length];
                    let incoming = frame
                        .get(6..12)
                        .is_some_and(|from| from != own && from != [0; 6]);
                    if incoming {
                        kept.lock().expect("frames").push(frame.to_vec());
                    }
                }
            }
        });
        Self {
            frames,
            stop,
            thread: Some(thread),
        }
    }

    /// Everything that has come in so far.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        self.frames.lock().expect("frames").clone()
    }

    /// The numbers of the probes that have come in so far.
    pub fn arrived(&self) -> BTreeSet<u32> {
        let frames = self.frames.lock().expect("frames");
        frames
            .iter()
            .filter_map(|frame| frames::marked(frame))
            .collect()
    }

    /// The packet with that number, if it has come in.
    pub fn seen(&self, id: u32) -> Option<frames::Seen> {
        let frames = self.frames.lock().expect("frames");
        let found = frames
            .iter()
            .find(|frame| frames::marked(frame) == Some(id));
        frames::read(found?)
    }

    /// Until that probe has come in: what came in before it has been seen, too.
    #[track_caller]
    pub fn wait_for(&self, id: u32) {
        let begin = Instant::now();
        while !self.arrived().contains(&id) {
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "probe {id} never came in"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// From here on as if nothing had come in.
    pub fn forget(&self) {
        self.frames.lock().expect("frames").clear();
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
