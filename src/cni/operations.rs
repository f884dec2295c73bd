//! ADD, CHECK, GC and STATUS of a chain of plugins (spec, section 3), and the cache of results.
//! Out of scope: the call of one plugin; DEL (`del`).

use super::cache::RecordDir;
use super::command::Command;
use super::invoke::{Call, invalid_output};
use super::request::{self, Subject};
use super::{
    Attachment, Cached, CniResult, Error, Failure, Network, Plugin, Runtime, ValidAttachment,
    cache, find,
};
use std::collections::BTreeSet;
use std::io;

/// The outcome of an operation that not every configuration supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All plugins succeeded.
    Done,
    /// No plugin was called: the configuration disables the operation (`disableCheck`, `disableGC`).
    Disabled,
    /// No plugin was called: the version of the configuration does not define the operation.
    Unsupported,
}

impl Runtime {
    /// Attaches: calls ADD of every plugin in order, each with the result of the previous one. The final result is written to the cache
    /// and returned.
    ///
    /// # Errors
    /// After an error the caller must call DEL, as [`add_or_undo`](Self::add_or_undo) does. [`Error::AlreadyAdded`]: the attachment was
    /// added and not deleted since.
    pub async fn add(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<CniResult, Error> {
        attachment.check()?;
        if attachment.netns.is_none() {
            return Err(Error::InvalidArgument {
                what: "network namespace",
                value: String::new(),
                why: "must not be empty",
            });
        }
        let _turn = self.locks.container(&attachment.container_id).await;
        if self.cached(&network.name, attachment)?.is_some() {
            return Err(already_added(network, attachment));
        }
        let mut result: Option<CniResult> = None;
        for plugin in &network.plugins {
            if let Some(result) = &result {
                let dir = RecordDir::Unfinished;
                cache::write(&self.cache_dir, dir, network, attachment, result)?;
            }
            let subject = Subject::Attachment {
                attachment,
                previous: result.as_ref(),
            };
            let output = self
                .call_plugin(network, plugin, Command::Add, subject)
                .await?;
            let parsed = CniResult::parse(&output, network.cni_version);
            let parsed = parsed
                .map_err(|reason| invalid_output(&plugin.name, Command::Add, &reason, &output))?;
            result = Some(parsed);
        }
        let Some(result) = result else {
            return Err(Error::invalid_config(
                &network.path,
                "none",
                "at least one plugin",
            ));
        };
        let (cache_dir, shelf) = (&self.cache_dir, RecordDir::Results);
        cache::write(cache_dir, shelf, network, attachment, &result)?;
        cache::remove(cache_dir, RecordDir::Unfinished, &network.name, attachment)?;
        Ok(result)
    }

    /// Calls [`add`](Self::add) and, if that fails, [`del`](Self::del). Returns the error of the ADD. An error of the DEL is logged; then
    /// the caller must call DEL again.
    pub async fn add_or_undo(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<CniResult, Error> {
        let error = match self.add(network, attachment).await {
            Ok(result) => return Ok(result),
            Err(error @ (Error::AlreadyAdded { .. } | Error::InvalidArgument { .. })) => {
                return Err(error);
            }
            Err(error) => error,
        };
        if let Err(del_error) = self.del(network, attachment).await {
            tracing::warn!(
                network = network.name,
                container = attachment.container_id,
                error = %del_error,
                "cannot undo a CNI ADD that failed"
            );
        }
        Err(error)
    }

    /// Calls CHECK of every plugin in order, up to the first that fails, with the cache's record of the ADD.
    pub async fn check(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<Outcome, Error> {
        attachment.check()?;
        let _turn = self.locks.container(&attachment.container_id).await;
        let input = match self.check_input(network, attachment)? {
            Ok(added) => added,
            Err(outcome) => return Ok(outcome),
        };
        for plugin in &input.network.plugins {
            self.call_plugin(&input.network, plugin, Command::Check, input.subject())
                .await?;
        }
        Ok(Outcome::Done)
    }

    /// Returns the input of CHECK. The inner `Err` is the reason why no plugin is called.
    fn check_input(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<Result<CheckInput, Outcome>, Error> {
        let disabled = network.disable_check;
        let Some(cached) = self.cached(&network.name, attachment)? else {
            return Err(not_added(network, attachment));
        };
        let (network, attachment) = recorded(network, attachment, Some(&cached));
        if !network.cni_version.has_check() {
            return Ok(Err(Outcome::Unsupported));
        }
        if disabled || network.disable_check {
            return Ok(Err(Outcome::Disabled));
        }
        let result = cached.result(network.cni_version)?;
        Ok(Ok(CheckInput {
            network,
            attachment,
            result,
        }))
    }

    /// Calls CHECK of every plugin except the `ignored`, with the cache's record of the ADD. Returns all failures. `None`: no plugin was
    /// called, because the configuration disables CHECK (as it was at the ADD, or as given), or its version does not define CHECK. A plugin
    /// that returns code 11 (try again later) has not checked anything, which is not a failure.
    pub async fn check_failures(
        &self,
        network: &Network,
        attachment: &Attachment,
        ignored: &BTreeSet<String>,
    ) -> Result<Option<Vec<Failure>>, Error> {
        attachment.check()?;
        let _turn = self.locks.container(&attachment.container_id).await;
        let Ok(input) = self.check_input(network, attachment)? else {
            return Ok(None);
        };
        let mut failures = Vec::new();
        let is_called = |plugin: &&Plugin| !ignored.contains(&plugin.name);
        for plugin in input.network.plugins.iter().filter(is_called) {
            let call = self.call_plugin(&input.network, plugin, Command::Check, input.subject());
            match call.await {
                Ok(_) => {}
                Err(Error::Plugin(failure)) => failures.push(failure),
                Err(Error::TryAgain(failure)) => {
                    tracing::debug!(%failure, "a CNI plugin did not perform CHECK");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(failures))
    }

    /// Calls GC of every plugin, which removes all attachments of the network that are not `valid`. Waits for operations in progress and
    /// blocks new ones. It calls every plugin, even if others fail, and returns all errors. GC is not a substitute for DEL.
    ///
    /// `valid` must return *every* attachment of the network, including those of other runtimes on this host: see
    /// [`attachments`](Self::attachments). It is called after the wait, so it includes attachments that were added during it.
    pub async fn gc(
        &self,
        network: &Network,
        valid: impl FnOnce() -> Result<Vec<ValidAttachment>, Error>,
    ) -> Result<Outcome, Vec<Error>> {
        if !network.cni_version.has_gc_and_status() {
            return Ok(Outcome::Unsupported);
        }
        if network.disable_gc {
            return Ok(Outcome::Disabled);
        }
        let Some(_turn) = self.locks.exclusive(self.deadline).await else {
            let source = io::Error::from(io::ErrorKind::TimedOut);
            let operation = "get exclusive access to the networks of";
            return Err(vec![Error::io(operation, &self.conf_dir, source)]);
        };
        let valid = valid().map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        for plugin in &network.plugins {
            let call = self.call_plugin(network, plugin, Command::Gc, Subject::Valid(&valid));
            errors.extend(call.await.err());
        }
        match errors.is_empty() {
            true => Ok(Outcome::Done),
            false => Err(errors),
        }
    }

    /// Calls STATUS of every plugin in order, up to the first that fails: whether the plugins can serve an ADD.
    pub async fn status(&self, network: &Network) -> Result<Outcome, Error> {
        if !network.cni_version.has_gc_and_status() {
            return Ok(Outcome::Unsupported);
        }
        for plugin in &network.plugins {
            self.call_plugin(network, plugin, Command::Status, Subject::Network)
                .await?;
        }
        Ok(Outcome::Done)
    }

    /// The cache's record of an attachment that was added, by its container id and interface name.
    pub fn cached(&self, network: &str, attachment: &Attachment) -> Result<Option<Cached>, Error> {
        for dir in cache::ADDED {
            let found = cache::read(&self.cache_dir, dir, network, attachment)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// All attachments in our cache and in the cache that other runtimes on this host use.
    pub fn attachments(&self) -> Result<Vec<Cached>, Error> {
        self.list_added(|_| true)
    }

    /// The attachments of one container. The records of others are not read.
    pub fn attachments_of(&self, container_id: &str) -> Result<Vec<Cached>, Error> {
        let mut found = self.list_added(|file| file.contains(container_id))?;
        found.retain(|cached| cached.attachment.container_id == container_id);
        Ok(found)
    }

    fn list_added(&self, filter: impl Fn(&str) -> bool) -> Result<Vec<Cached>, Error> {
        let mut found = Vec::new();
        for dir in cache::ADDED {
            found.extend(cache::list(&self.cache_dir, dir, &filter)?);
        }
        Ok(found)
    }

    /// Moves the records of our containers from the cache that other runtimes use into our own.
    pub fn migrate_records(&self, is_ours: impl Fn(&str) -> bool) -> Result<(), Error> {
        let found = cache::list(&self.cache_dir, RecordDir::Libcni, |_| true)?;
        let mut ours = found
            .iter()
            .filter(|cached| is_ours(&cached.attachment.container_id));
        ours.try_for_each(|cached| cache::migrate_record(&self.cache_dir, cached))
    }

    /// The records of our ADDs that are in progress or were interrupted, with the result so far.
    pub fn unfinished(&self) -> Result<Vec<Cached>, Error> {
        cache::list(&self.cache_dir, RecordDir::Unfinished, |_| true)
    }

    /// The records of abandoned attachments, each with the plugins that failed to release it.
    pub fn abandoned(&self) -> Result<Vec<Cached>, Error> {
        cache::list(&self.cache_dir, RecordDir::Abandoned, |_| true)
    }

    /// Removes the cache's records of an attachment, without calling a plugin. [`del`](Self::del) does this.
    pub fn remove_records(&self, network: &str, attachment: &Attachment) -> Result<(), Error> {
        cache::ALL
            .into_iter()
            .try_for_each(|shelf| cache::remove(&self.cache_dir, shelf, network, attachment))
    }

    pub(super) async fn call_plugin(
        &self,
        network: &Network,
        plugin: &Plugin,
        command: Command,
        subject: Subject<'_>,
    ) -> Result<String, Error> {
        let call = Call {
            plugin: &plugin.name,
            program: &find::program(&self.bin_dirs, &plugin.name)?,
            command,
            environment: request::environment(command, subject, &self.bin_dirs),
            stdin: request::stdin(network, plugin, subject),
            deadline: self.deadline,
            file_limit: self.file_limit,
        };
        call.run().await
    }
}

/// The input of CHECK, from the cache's record of the ADD.
struct CheckInput {
    network: Network,
    attachment: Attachment,
    result: CniResult,
}

impl CheckInput {
    fn subject(&self) -> Subject<'_> {
        Subject::Attachment {
            attachment: &self.attachment,
            previous: Some(&self.result),
        }
    }
}

/// The network and the parameters of the ADD from its record, or the given ones.
pub(super) fn recorded(
    network: &Network,
    attachment: &Attachment,
    cached: Option<&Cached>,
) -> (Network, Attachment) {
    let Some(cached) = cached else {
        return (network.clone(), attachment.clone());
    };
    let network = cached.config().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot use the CNI configuration in the cache record; using the current one");
        network.clone()
    });
    let attachment = Attachment {
        // The caller knows whether the namespace exists.
        netns: attachment.netns.clone(),
        ..cached.attachment.clone()
    };
    (network, attachment)
}

fn already_added(network: &Network, attachment: &Attachment) -> Error {
    Error::AlreadyAdded {
        network: network.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    }
}

fn not_added(network: &Network, attachment: &Attachment) -> Error {
    Error::NotAdded {
        network: network.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    }
}
