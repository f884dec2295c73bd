//! The device as QEMU sees it: a vhost-user back end with a queue in each direction (QEMU, docs/interop/vhost-user.rst).
//! Out of scope: connections (`mux`); starting the process (`super`).
//!
//! # Queues
//! The guest puts empty buffers into queue 0 and packets into queue 1. QEMU handles queue 2, the events of a migration, itself. The
//! content of both is the guest's: every length and address is checked by `vm-memory` and `virtio-queue`, and a packet that is not complete
//! is dropped.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::EventfdFlags;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringMutex, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::mux::Mux;
use super::packet::{GUEST_CID, HEADER_BYTES, Header, MAX_DATA};
use super::vmm_limit::VmmLimit;
use crate::clock;

/// The queue with buffers for packets to the guest.
const TO_GUEST: usize = 0;
/// The queue with packets of the guest.
const FROM_GUEST: usize = 1;
const QUEUES: usize = 2;
/// The maximum number of entries of a queue; QEMU and Linux use 128.
const QUEUE_SIZE: usize = 1024;
/// The maximum number of packets of each direction before the other direction and the sockets have a turn.
const TURN: usize = 64;
/// The maximum number of turns before QEMU's requests have one.
const TURNS: usize = 16;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Chain = DescriptorChain<<Memory as GuestAddressSpace>::T>;

/// The identifier of the events of [`Device::events`]; the queues have those before.
pub(super) const SOCKETS: u64 = QUEUES as u64 + 1;
/// The identifier of [`Device::again`].
pub(super) const AGAIN: u64 = SOCKETS + 1;

/// The device of one guest.
pub(super) struct Device {
    mux: Mux,
    memory: Memory,
    /// Readable if a turn was ended although there is more to do.
    again: OwnedFd,
    /// The data of one packet.
    data: Vec<u8>,
    limit: VmmLimit,
}

impl Device {
    /// A device with these connections, and the memory of the guest, which QEMU provides later.
    pub(super) fn new(mux: Mux, memory: Memory, limit: VmmLimit) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            mux,
            memory,
            again: rustix::event::eventfd(0, flags)?,
            data: vec![0; MAX_DATA],
            limit,
        })
    }

    /// The descriptors with events that the device handles, with their identifiers.
    pub(super) fn events(&self) -> [(impl AsFd + '_, u64); 2] {
        [(self.mux.events(), SOCKETS), (self.again.as_fd(), AGAIN)]
    }

    /// Forwards packets in both directions until there are none, or others must have a turn.
    fn run(&mut self, vrings: &[VringMutex<Memory>]) {
        // An error: nothing was written.
        let _ = rustix::io::read(&self.again, &mut [0; 8]);
        let [to_guest, from_guest] = [TO_GUEST, FROM_GUEST].map(|queue| vrings.get(queue));
        for _ in 0..TURNS {
            self.mux.on_events(clock::monotonic());
            let received = from_guest.is_some_and(|queue| self.receive(queue));
            let sent = to_guest.is_some_and(|queue| self.send(queue));
            if !received && !sent {
                return;
            }
        }
        let _ = rustix::io::write(&self.again, &1_u64.to_ne_bytes());
    }

    /// Reads packets of the guest. Returns whether it has read any.
    fn receive(&mut self, queue: &VringMutex<Memory>) -> bool {
        let mut count = 0;
        let _ = queue.disable_notification();
        while count < TURN && self.mux.can_receive() {
            let Some(chain) = self.pop_or_wait(queue) else {
                break;
            };
            count += 1;
            let head = chain.head_index();
            if let Some(header) = self.read_packet(chain) {
                let data = &self.data[..header.len as usize];
                self.mux.receive(&header, data, clock::monotonic());
            }
            give_back(queue, head, 0);
        }
        notify(queue, count)
    }

    /// Reads a packet into `data`. `None`: it is not complete, or too long.
    fn read_packet(&mut self, chain: Chain) -> Option<Header> {
        let memory = self.memory.memory();
        let mut reader = chain.reader(&memory).ok()?;
        let mut header = [0; HEADER_BYTES];
        reader.read_exact(&mut header).ok()?;
        let header = Header::decode(&header);
        let data = self.data.get_mut(..usize::try_from(header.len).ok()?)?;
        reader.read_exact(data).ok()?;
        Some(header)
    }

    /// Sends packets to the guest, while it has buffers. Returns whether it has sent any.
    fn send(&mut self, queue: &VringMutex<Memory>) -> bool {
        let mut count = 0;
        while count < TURN && self.mux.wants_to_send() {
            let Some(chain) = self.pop_or_wait(queue) else {
                break;
            };
            let head = chain.head_index();
            match self.write_packet(chain) {
                Some(used) => {
                    count += 1;
                    give_back(queue, head, used);
                }
                None => {
                    queue.get_mut().get_queue_mut().go_to_previous_position();
                    break;
                }
            }
        }
        notify(queue, count)
    }

    /// Writes a packet. Returns the number of bytes, 0 if the buffer is too short; `None`: there is no packet.
    fn write_packet(&mut self, chain: Chain) -> Option<u32> {
        let memory = self.memory.memory();
        let Ok(mut writer) = chain.writer(&memory) else {
            return Some(0);
        };
        let space = writer.available_bytes().saturating_sub(HEADER_BYTES);
        let buffer = &mut self.data[..space.min(MAX_DATA)];
        if buffer.is_empty() {
            return Some(0);
        }
        let header = self.mux.next_packet(buffer, clock::monotonic())?;
        let data = &buffer[..header.len as usize];
        let mut write = || -> io::Result<()> {
            writer.write_all(&header.encode())?;
            writer.write_all(data)
        };
        match write() {
            Ok(()) => u32::try_from(HEADER_BYTES + data.len()).ok(),
            Err(_) => Some(0),
        }
    }

    /// The next chain. `None`: the guest notifies of the next one, or the queue is stopped or not valid.
    fn pop_or_wait(&self, queue: &VringMutex<Memory>) -> Option<Chain> {
        if let Some(chain) = self.pop(queue) {
            return Some(chain);
        }
        // The guest may have added one before it saw that notifications are enabled. A queue that is not valid may claim that for ever.
        let has_more = queue.enable_notification().unwrap_or(false);
        let chain = has_more.then(|| self.pop(queue)).flatten()?;
        let _ = queue.disable_notification();
        Some(chain)
    }

    fn pop(&self, queue: &VringMutex<Memory>) -> Option<Chain> {
        let mut state = queue.get_mut();
        if !state.is_enabled() || !state.get_queue().ready() {
            return None;
        }
        state
            .get_queue_mut()
            .pop_descriptor_chain(self.memory.memory())
    }
}

/// Returns a buffer to the guest. An error: the guest's queue is not valid, which is the guest's problem.
fn give_back(queue: &VringMutex<Memory>, head: u16, used: u32) {
    let _ = queue.add_used(head, used);
}

/// Notifies the guest of `count` returned buffers. Returns whether there are any.
fn notify(queue: &VringMutex<Memory>, count: usize) -> bool {
    if count > 0 && queue.needs_notification().unwrap_or(true) {
        let _ = queue.signal_used_queue();
    }
    count > 0
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG
    }

    /// The queues have the setting.
    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    /// `struct virtio_vsock_config`: the address of the guest. QEMU reads it when it initializes the device.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        if let Err(error) = self.limit.apply() {
            eprintln!("vsock: cannot limit the files of the VMM: {error}");
            // The VMM fails to start.
            std::process::exit(1);
        }
        let config = GUEST_CID.to_le_bytes();
        let range = offset as usize..(offset as usize).saturating_add(size as usize);
        config.get(range).unwrap_or_default().to_vec()
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        vrings: &[VringMutex<Memory>],
        _thread: usize,
    ) -> io::Result<()> {
        self.run(vrings);
        Ok(())
    }
}

/// A device that two threads share: one handles requests of QEMU, one the queues.
pub(super) type SharedDevice = Arc<Mutex<Device>>;
