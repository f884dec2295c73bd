//! The list of all objects, and the watch that continues it.
//! Out of scope: what the objects are ([`crate::fleet::mirror`]).

use std::num::NonZeroU32;
use std::time::Duration;

use futures::StreamExt;

use super::errors::Part;
use super::{Backoff, Failure, Link, Store, boottime};
use crate::fleet::contact::Event;
use crate::fleet::keys;
use crate::fleet::kv::{Revision, WatchTarget};
use crate::fleet::mirror::Mirror;

/// The number of objects that are listed with one request.
const PAGE: NonZeroU32 = NonZeroU32::new(1000).unwrap();

/// A watch that ends earlier has failed like a list: the next attempt is later.
const STABLE: Duration = Duration::from_secs(10);

impl Link {
    /// Lists and watches until the end.
    pub(super) async fn objects(&self, store: &impl Store) {
        let mut backoff = Backoff::default();
        loop {
            self.list_needed().await;
            let failure = match self.list(store).await {
                // A response that is not of the fleet; the contact reports it.
                Ok(None) => None,
                Ok(Some(from)) => {
                    let begin = boottime();
                    let end = tokio::select! {
                        failure = self.follow(from) => Some(failure),
                        () = self.list_needed() => None,
                    };
                    if boottime().since(begin) >= STABLE {
                        backoff.reset();
                    }
                    if end.is_some() {
                        // Its own failure is that of storing facts, which follows from the next list as well.
                        let _ = self.handle(store, Event::WatchBroken, None).await;
                    }
                    end
                }
                Err(failure) => Some(failure),
            };
            if let Some(failure) = failure {
                self.state.lock().errors.failed(Part::Objects, &failure);
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Waits until contact needs a list.
    async fn list_needed(&self) {
        let mut changed = self.subscribe();
        let is_needed = |_: &u64| self.read(|_, contact| contact.needs_list());
        // The sender is in `self`.
        let _ = changed.wait_for(is_needed).await;
    }

    /// Lists all objects at one revision; returns that which follows. `None`: the list is not of the fleet.
    async fn list(&self, store: &impl Store) -> Result<Option<Revision>, Failure> {
        let ticket = self.ticket();
        let listing = self.client.range(keys::ROOT, None, PAGE).await?;
        let (header, from) = (listing.header.into(), listing.revision.next());
        // Tens of thousands of values.
        let decoded = tokio::task::spawn_blocking(move || Mirror::of(&listing)).await;
        let mirror = decoded.map_err(|error| Failure::Other(format!("cannot decode: {error}")))?;
        let event = Event::Listed { ticket, header };
        let is_usable = self.handle(store, event, Some(mirror)).await?;
        Ok(is_usable.then_some(from))
    }

    /// Applies changes until the watch ends; returns why.
    async fn follow(&self, from: Revision) -> Failure {
        let prefix = keys::ROOT.into();
        let acceptances = self.state.lock().acceptances;
        let mut watch = match self.client.watch(vec![WatchTarget { prefix, from }]).await {
            Ok(watch) => watch,
            Err(error) => return error.into(),
        };
        self.state.lock().errors.works(Part::Objects);
        while let Some(batch) = watch.next().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return error.into(),
            };
            let _turn = self.turn.lock().await;
            let mut state = self.state.lock();
            if state.acceptances != acceptances {
                return Failure::Other("a cluster was accepted".to_owned());
            }
            let header = batch.header.into();
            let is_usable = state.contact.handle(Event::Watched { header }, boottime());
            let is_changed = is_usable && {
                let before = state.mirror.revision;
                state.mirror.apply(&batch) || state.mirror.revision > before
            };
            drop(state);
            if is_changed {
                self.notify();
            }
        }
        Failure::Other("the watch has ended".to_owned())
    }
}
