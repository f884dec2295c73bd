//! ADD, CHECK, GC and STATUS of a whole chain (spec, section 3), and what is remembered of them.
//! Out of scope: one plugin's call; DEL (`removal`).

use super::cache::Shelf;
use super::invoke::{Call, Command, garbage};
use super::request::{self, About};
use super::{
    Attachment, Cached, CniResult, Error, Failure, Network, Plugin, Runtime, Valid, cache, find,
};
use std::collections::BTreeSet;
use std::io;

/// What came of an operation that not every configuration knows or wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every plugin was asked, and none complained.
    Done,
    /// Nobody was asked: the configuration forbids it (`disableCheck`, `disableGC`).
    Disabled,
    /// Nobody was asked: the configuration's version does not know the operation.
    Unknown,
}

impl Runtime {
    /// Attaches: ADD of every plugin in order, each told the result of the one before. The final result is remembered in the
    /// cache, and returned.
    ///
    /// On an error nothing is undone: a DEL must follow, and [`add_or_undo`](Self::add_or_undo) sees to it. What has been
    /// added and not deleted since cannot be added: [`Error::AddedBefore`].
    pub async fn add(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<CniResult, Error> {
        attachment.check()?;
        if attachment.netns.is_none() {
            return Err(Error::BadArgument {
                what: "network namespace",
                value: String::new(),
                why: "must be given",
            });
        }
        let _turn = self.turns.container(&attachment.container_id).await;
        if self.cached(&network.name, attachment)?.is_some() {
            return Err(added_before(network, attachment));
        }
        let mut result: Option<CniResult> = None;
        for plugin in &network.plugins {
            if let Some(result) = &result {
                let shelf = Shelf::Unfinished;
                cache::write(&self.cache_dir, shelf, network, attachment, result)?;
            }
            let about = About::Attachment {
                attachment,
                previous: result.as_ref(),
            };
            let answer = self.ask(network, plugin, Command::Add, about).await?;
            let parsed = CniResult::parse(&answer, network.cni_version);
            let parsed =
                parsed.map_err(|why| garbage(&plugin.name, Command::Add, &why, &answer))?;
            result = Some(parsed);
        }
        let Some(result) = result else {
            return Err(Error::bad_config(
                &network.path,
                "none",
                "at least one plugin",
            ));
        };
        let (folder, shelf) = (&self.cache_dir, Shelf::Results);
        cache::write(folder, shelf, network, attachment, &result)?;
        cache::remove(folder, Shelf::Unfinished, &network.name, attachment)?;
        Ok(result)
    }

    /// [`add`](Self::add), and when that fails [`del`](Self::del) at once. Returns the error of the ADD; an error of the DEL is logged, and the caller has to DEL again.
    pub async fn add_or_undo(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<CniResult, Error> {
        let error = match self.add(network, attachment).await {
            Ok(result) => return Ok(result),
            Err(error @ (Error::AddedBefore { .. } | Error::BadArgument { .. })) => {
                return Err(error);
            }
            Err(error) => error,
        };
        if let Err(undoing) = self.del(network, attachment).await {
            tracing::warn!(
                network = network.name,
                container = attachment.container_id,
                error = %undoing,
                "cannot undo a CNI ADD that failed"
            );
        }
        Err(error)
    }

    /// Asks every plugin in order, up to the first that complains, whether the attachment is as ADD made it; with what the
    /// cache remembers of the ADD.
    pub async fn check(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<Outcome, Error> {
        attachment.check()?;
        let _turn = self.turns.container(&attachment.container_id).await;
        let added = match self.for_check(network, attachment)? {
            Ok(added) => added,
            Err(unasked) => return Ok(unasked),
        };
        for plugin in &added.network.plugins {
            self.ask(&added.network, plugin, Command::Check, added.about())
                .await?;
        }
        Ok(Outcome::Done)
    }

    /// What plugins are given at CHECK; `Err`: why no plugin is called.
    fn for_check(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<Result<Added, Outcome>, Error> {
        let disabled = network.disable_check;
        let Some(cached) = self.cached(&network.name, attachment)? else {
            return Err(never_added(network, attachment));
        };
        let (network, attachment) = remembered(network, attachment, Some(&cached));
        if !network.cni_version.has_check() {
            return Ok(Err(Outcome::Unknown));
        }
        if disabled || network.disable_check {
            return Ok(Err(Outcome::Disabled));
        }
        let result = cached.result(network.cni_version)?;
        Ok(Ok(Added {
            network,
            attachment,
            result,
        }))
    }

    /// Calls CHECK of every plugin except the `excused`, with the cache's record of the ADD. Returns all failures. None: no plugin was
    /// called, because the configuration disables CHECK (as it was at the ADD, or as given), or its version does not define CHECK. A plugin
    /// that answers "try again later" (code 11) has not checked anything, which is not a failure.
    pub async fn complaints(
        &self,
        network: &Network,
        attachment: &Attachment,
        excused: &BTreeSet<String>,
    ) -> Result<Option<Vec<Failure>>, Error> {
        attachment.check()?;
        let _turn = self.turns.container(&attachment.container_id).await;
        let Ok(added) = self.for_check(network, attachment)? else {
            return Ok(None);
        };
        let mut complaints = Vec::new();
        let asked = |plugin: &&Plugin| !excused.contains(&plugin.name);
        for plugin in added.network.plugins.iter().filter(asked) {
            let answer = self.ask(&added.network, plugin, Command::Check, added.about());
            match answer.await {
                Ok(_) => {}
                Err(Error::Plugin(failure)) => complaints.push(failure),
                Err(Error::TryAgain(failure)) => {
                    tracing::debug!(%failure, "a CNI plugin could not look");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(complaints))
    }

    /// Has every plugin forget all attachments of the network but these. Waits for operations under way and holds back new
    /// ones. An error stops nothing; all are returned.
    ///
    /// `valid` must name *every* attachment of the network, those of other runtimes on this host too: see
    /// [`attachments`](Self::attachments). It is asked when no operation of ours is under way any more: what was added while
    /// this waited is among them. Not a substitute for DEL.
    pub async fn gc(
        &self,
        network: &Network,
        valid: impl FnOnce() -> Result<Vec<Valid>, Error>,
    ) -> Result<Outcome, Vec<Error>> {
        if !network.cni_version.has_gc_and_status() {
            return Ok(Outcome::Unknown);
        }
        if network.disable_gc {
            return Ok(Outcome::Disabled);
        }
        let Some(_turn) = self.turns.alone(self.deadline).await else {
            let why = io::Error::from(io::ErrorKind::TimedOut);
            let doing = "find a moment in which nothing else is done with the networks of";
            return Err(vec![Error::io(doing, &self.conf_dir, why)]);
        };
        let valid = valid().map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        for plugin in &network.plugins {
            let asked = self.ask(network, plugin, Command::Gc, About::Valid(&valid));
            errors.extend(asked.await.err());
        }
        match errors.is_empty() {
            true => Ok(Outcome::Done),
            false => Err(errors),
        }
    }

    /// Asks every plugin in order, up to the first that says no, whether it could serve an ADD.
    pub async fn status(&self, network: &Network) -> Result<Outcome, Error> {
        if !network.cni_version.has_gc_and_status() {
            return Ok(Outcome::Unknown);
        }
        for plugin in &network.plugins {
            self.ask(network, plugin, Command::Status, About::Network)
                .await?;
        }
        Ok(Outcome::Done)
    }

    /// What the cache remembers of an attachment that was added; by its container id and interface name.
    pub fn cached(&self, network: &str, attachment: &Attachment) -> Result<Option<Cached>, Error> {
        for shelf in cache::ADDED {
            let found = cache::read(&self.cache_dir, shelf, network, attachment)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Everything that is remembered, in our cache and in the one that other runtimes on this host use.
    pub fn attachments(&self) -> Result<Vec<Cached>, Error> {
        self.added(|_| true)
    }

    /// The same of one container, without reading what is of others.
    pub fn attachments_of(&self, container_id: &str) -> Result<Vec<Cached>, Error> {
        let mut found = self.added(|file| file.contains(container_id))?;
        found.retain(|cached| cached.attachment.container_id == container_id);
        Ok(found)
    }

    fn added(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Cached>, Error> {
        let mut found = Vec::new();
        for shelf in cache::ADDED {
            found.extend(cache::list(&self.cache_dir, shelf, &wanted)?);
        }
        Ok(found)
    }

    /// Moves the records of containers that are ours from the cache that other runtimes use into our own.
    pub fn bring_home(&self, is_ours: impl Fn(&str) -> bool) -> Result<(), Error> {
        let found = cache::list(&self.cache_dir, Shelf::Libcni, |_| true)?;
        let mut ours = found
            .iter()
            .filter(|cached| is_ours(&cached.attachment.container_id));
        ours.try_for_each(|cached| cache::bring_home(&self.cache_dir, cached))
    }

    /// What is remembered of ADDs of ours that are under way, or were cut short; with the result so far.
    pub fn unfinished(&self) -> Result<Vec<Cached>, Error> {
        cache::list(&self.cache_dir, Shelf::Unfinished, |_| true)
    }

    /// What plugins could not be made to take back, each with the plugins that failed.
    pub fn abandoned(&self) -> Result<Vec<Cached>, Error> {
        cache::list(&self.cache_dir, Shelf::Abandoned, |_| true)
    }

    /// Removes what the cache remembers of an attachment, and nothing else. [`del`](Self::del) does so by itself.
    pub fn forget(&self, network: &str, attachment: &Attachment) -> Result<(), Error> {
        cache::ALL
            .into_iter()
            .try_for_each(|shelf| cache::remove(&self.cache_dir, shelf, network, attachment))
    }

    pub(super) async fn ask(
        &self,
        network: &Network,
        plugin: &Plugin,
        command: Command,
        about: About<'_>,
    ) -> Result<String, Error> {
        let call = Call {
            plugin: &plugin.name,
            program: &find::program(&self.bin_dirs, &plugin.name)?,
            command,
            environment: request::environment(command, about, &self.bin_dirs),
            stdin: request::stdin(network, plugin, about),
            deadline: self.deadline,
            file_limit: self.file_limit,
        };
        call.run().await
    }
}

/// What the cache has of an ADD, as CHECK is given it.
struct Added {
    network: Network,
    attachment: Attachment,
    result: CniResult,
}

impl Added {
    fn about(&self) -> About<'_> {
        About::Attachment {
            attachment: &self.attachment,
            previous: Some(&self.result),
        }
    }
}

/// The network and the parameters of the ADD, as far as they are remembered.
pub(super) fn remembered(
    network: &Network,
    attachment: &Attachment,
    cached: Option<&Cached>,
) -> (Network, Attachment) {
    let Some(cached) = cached else {
        return (network.clone(), attachment.clone());
    };
    let network = cached.config().unwrap_or_else(|error| {
        tracing::warn!(%error, "using the CNI configuration at hand");
        network.clone()
    });
    let attachment = Attachment {
        // The caller knows whether the namespace is still there.
        netns: attachment.netns.clone(),
        ..cached.attachment.clone()
    };
    (network, attachment)
}

fn added_before(network: &Network, attachment: &Attachment) -> Error {
    Error::AddedBefore {
        network: network.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    }
}

fn never_added(network: &Network, attachment: &Attachment) -> Error {
    Error::NeverAdded {
        network: network.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    }
}
