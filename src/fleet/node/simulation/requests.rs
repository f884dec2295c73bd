//! The requests of daemons, on their way to etcd and back.
//! Out of scope: what a daemon does with a response.

use super::*;

impl World {
    /// Sends a request, if the daemon runs; returns its number.
    pub(super) fn send(&mut self, node: usize, kind: Kind) -> Option<u64> {
        let (now, host) = (self.now, &mut self.hosts[node]);
        let time = host.boottime(now);
        let agent = host.agent.as_mut()?;
        agent.next_number += 1;
        let number = agent.next_number;
        let request = Rc::new(Request {
            node,
            incarnation: host.incarnation,
            number,
            ticket: agent.contact.send(time),
            sent: now,
            foreign: now < host.foreign_until,
            kind,
        });
        self.after(5000, Event::TimedOut(request.clone()));
        let is_lost = now < self.hosts[node].partitioned_until || self.rng.percent(2);
        if !is_lost {
            let slow = self.rng.percent(3);
            let delay = self.rng.range(1, if slow { 20_000 } else { 300 });
            self.after(delay, Event::AtEtcd(request));
        }
        Some(number)
    }

    pub(super) fn renew(&mut self, node: usize) {
        let Some(agent) = &self.hosts[node].agent else {
            return;
        };
        let create = agent.has_no_lease || self.hosts[node].is_eager;
        self.send(node, Kind::Renew { create });
        self.after(10_000, Event::RenewTimer(node));
        self.replan(node);
    }

    /// Out of turn.
    pub(super) fn send_renewal(&mut self, node: usize) {
        if self.hosts[node].blocked_until(self.now, false) <= self.now {
            self.send(node, Kind::Renew { create: false });
        }
    }

    pub(super) fn list_timer(&mut self, node: usize) {
        if self.hosts[node].agent.is_some() {
            self.list(node);
            self.after(5000, Event::ListTimer(node));
        }
    }

    fn list(&mut self, node: usize) {
        let agent = self.hosts[node].agent.as_ref();
        if agent.is_some_and(|agent| agent.listing.is_none()) {
            let number = self.send(node, Kind::List);
            if let Some(agent) = &mut self.hosts[node].agent {
                agent.listing = number;
            }
        }
    }

    pub(super) fn at_etcd(&mut self, request: &Rc<Request>) {
        let (now, node) = (self.now, request.node);
        let is_refused = !self.etcd.is_available(now) || request.sent < self.faults.restored_at;
        let is_unlisted = now < self.hosts[node].unlisted_until;
        let is_refused = is_refused || is_unlisted && matches!(request.kind, Kind::List);
        if !request.foreign && is_refused {
            return;
        }
        let answer = match (&request.kind, request.foreign) {
            (Kind::Renew { .. }, true) => Answer::Renewed { alive: true },
            (Kind::Renew { create }, false) => Answer::Renewed {
                alive: self.etcd.renew(node, *create, now),
            },
            (Kind::List, true) => Answer::Listed(Box::default(), BTreeMap::new()),
            (Kind::List, false) => {
                let (objects, revisions) = self.etcd.list(node);
                Answer::Listed(Box::new(objects), revisions)
            }
            (Kind::Put(_), true) => Answer::Put,
            (Kind::Put(writes), false) => {
                for write in writes {
                    self.etcd.put_status(node, write);
                }
                Answer::Put
            }
        };
        let header = match request.foreign {
            true => Header {
                cluster_id: 999,
                revision: 5 + now,
            },
            false => self.etcd.header(),
        };
        if now >= self.hosts[node].partitioned_until && !self.rng.percent(2) {
            let slow = self.rng.percent(3);
            let delay = self.rng.range(1, if slow { 20_000 } else { 300 });
            self.after(delay, Event::Answered(request.clone(), header, answer));
        }
    }

    pub(super) fn answered(&mut self, request: &Request, header: Header, answer: Answer) {
        let (now, node) = (self.now, request.node);
        let host = &mut self.hosts[node];
        let time = host.boottime(now);
        let is_same = host.incarnation == request.incarnation;
        let Some(agent) = host.agent.as_mut().filter(|_| is_same) else {
            return;
        };
        let ticket = request.ticket;
        match answer {
            Answer::Renewed { alive } => {
                agent.has_no_lease = !alive;
                let event = contact::Event::Renewed {
                    ticket,
                    header,
                    alive,
                };
                agent.contact.handle(event, time);
            }
            Answer::Listed(objects, revisions) => {
                if agent.listing != Some(request.number) {
                    return;
                }
                agent.listing = None;
                let event = contact::Event::Listed { ticket, header };
                if agent.contact.handle(event, time) {
                    (agent.objects, agent.revisions) = (*objects, revisions);
                }
            }
            Answer::Put => {
                if agent.writing == Some(request.number) {
                    agent.writing = None;
                }
                self.list(node);
                return;
            }
        }
        host.facts = agent.contact.facts();
        if agent.contact.needs_list() {
            self.list(node);
        }
        self.replan(node);
    }

    pub(super) fn timed_out(&mut self, request: &Request) {
        let (now, host) = (self.now, &mut self.hosts[request.node]);
        let time = host.boottime(now);
        let is_same = host.incarnation == request.incarnation;
        let Some(agent) = host.agent.as_mut().filter(|_| is_same) else {
            return;
        };
        let outstanding = match request.kind {
            Kind::Renew { .. } => {
                let event = contact::Event::RenewalFailed;
                agent.contact.handle(event, time);
                return;
            }
            Kind::List => &mut agent.listing,
            Kind::Put(_) => &mut agent.writing,
        };
        outstanding.take_if(|number| *number == request.number);
    }
}
