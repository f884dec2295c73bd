//! The number of connections, of all clients and of one address, and their rate.
//! Out of scope: accepting them.
//!
//! A connection that has not logged in is worth less than a new one: where such connections are too many, the oldest is closed. So
//! connections that never log in do not keep others from doing so.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::wire::rates::{Rates, network};

/// The maximum number of connections, of all and of one address.
const CONNECTIONS: usize = 128;
const OF_ADDRESS: usize = 64;

/// The maximum number of connections that have not logged in, of all and of one address.
const STRANGERS: usize = 48;
const STRANGERS_OF_ADDRESS: usize = 16;

/// The connections that an address may make at once, and per second.
const BURST: f64 = 64.0;
const RATE: f64 = 10.0;

/// All connections.
#[derive(Debug)]
pub struct Admission {
    state: Mutex<State>,
    rates: Rates,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            rates: Rates::new(BURST, RATE),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    connections: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    address: IpAddr,
    is_stranger: bool,
    end: CancellationToken,
}

/// A connection that is counted, until dropped.
#[derive(Debug)]
pub struct Permit {
    number: u64,
    all: Arc<Admission>,
    /// Cancelled when the connection is to be closed.
    pub end: CancellationToken,
}

impl Admission {
    /// Counts a connection; `None` if it is to be closed.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Permit> {
        if !self.rates.permits(address, now) {
            return None;
        }
        let address = network(address);
        let mut state = self.state.lock();
        state.close_strangers(address);
        let of_address = state.connections.iter().filter(|c| c.address == address);
        if of_address.count() >= OF_ADDRESS || state.connections.len() >= CONNECTIONS {
            return None;
        }
        let number = state.next;
        state.next += 1;
        let end = CancellationToken::new();
        state.connections.push(Entry {
            number,
            address,
            is_stranger: true,
            end: end.clone(),
        });
        Some(Permit {
            number,
            all: Arc::clone(self),
            end,
        })
    }
}

impl State {
    /// Closes the oldest connections that have not logged in, where they are too many: first those of this address, then those of the address
    /// that has most.
    fn close_strangers(&mut self, address: IpAddr) {
        let strangers = |state: &Self, address: IpAddr| {
            let all = state.connections.iter();
            all.filter(|c| c.is_stranger && c.address == address)
                .count()
        };
        while strangers(self, address) >= STRANGERS_OF_ADDRESS {
            self.close_oldest(address);
        }
        while self.connections.iter().filter(|c| c.is_stranger).count() >= STRANGERS {
            let of_strangers = self.connections.iter().filter(|c| c.is_stranger);
            let most = of_strangers.max_by_key(|c| strangers(self, c.address));
            match most.map(|c| c.address) {
                Some(address) => self.close_oldest(address),
                None => return,
            }
        }
    }

    fn close_oldest(&mut self, address: IpAddr) {
        let mut all = self.connections.iter();
        if let Some(at) = all.position(|c| c.is_stranger && c.address == address) {
            self.connections.remove(at).end.cancel();
        }
    }
}

impl Permit {
    /// The connection has logged in.
    pub fn logged_in(&self) {
        let mut state = self.all.state.lock();
        let mut all = state.connections.iter_mut();
        if let Some(entry) = all.find(|entry| entry.number == self.number) {
            entry.is_stranger = false;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.all.state.lock();
        state
            .connections
            .retain(|entry| entry.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn connections_that_do_not_log_in_are_closed_for_others() {
        let all = Arc::new(Admission::default());
        let now = clock::monotonic();
        let logged_in = all.admit(v4(1), now).unwrap();
        logged_in.logged_in();
        let strangers: Vec<Permit> = (0..40).map(|_| all.admit(v4(1), now).unwrap()).collect();
        let open = strangers.iter().filter(|p| !p.end.is_cancelled()).count();
        assert_eq!(open, STRANGERS_OF_ADDRESS);
        assert!(strangers[0].end.is_cancelled() && !strangers[39].end.is_cancelled());
        assert!(!logged_in.end.is_cancelled());
        let mut others = Vec::new();
        for address in 2..20 {
            for _ in 0..8 {
                others.push(all.admit(v4(address), now).unwrap());
            }
        }
        let of_first = strangers.iter().filter(|p| !p.end.is_cancelled()).count();
        assert!(
            of_first < 8,
            "those of the address with most are closed: {of_first}"
        );
        assert!(all.state.lock().connections.len() <= STRANGERS + 1);
        drop((others, strangers, logged_in));
        assert!(all.state.lock().connections.is_empty());
    }

    #[test]
    fn connections_are_limited_in_number_and_rate() {
        let all = Arc::new(Admission::default());
        let mut now = clock::monotonic();
        let mut kept = Vec::new();
        let admit = |address, now| {
            let permit: Permit = all.admit(address, now)?;
            permit.logged_in();
            Some(permit)
        };
        while let Some(permit) = admit(v4(1), now) {
            kept.push(permit);
        }
        assert_eq!(kept.len(), OF_ADDRESS);
        kept.truncate(1);
        assert!(admit(v4(1), now).is_none(), "the burst is used up");
        assert!(admit(v4(2), now).is_some());
        now += Duration::from_secs(1);
        let again: Vec<Permit> = std::iter::from_fn(|| admit(v4(1), now)).collect();
        assert_eq!(again.len(), 10);
    }
}
