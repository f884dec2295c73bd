//! DEL of a chain of plugins (spec, section 3), and abandoning an attachment if DEL fails.
//! Out of scope: the call of one plugin; resources that plugins do not remove.

use super::cache::RecordDir;
use super::command::Command;
use super::error::UNKNOWN_CONTAINER;
use super::operations::recorded;
use super::request::Subject;
use super::{Attachment, Cached, CniResult, Error, Network, Plugin, Runtime, cache};

impl Runtime {
    /// Detaches: calls [`release`](Self::release), a second time if that [may succeed](Error::should_retry_now), and removes the cache's
    /// record.
    pub async fn del(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        let result = match self.release(network, attachment).await {
            Err(error) if error.should_retry_now() => self.release(network, attachment).await,
            released => released,
        };
        result?;
        self.remove_records(&network.name, attachment)
    }

    /// Calls DEL of every plugin in reverse order, up to the first that fails. It may be called any number of times, with and without an
    /// ADD before, and without the namespace (`netns` may be `None`). A plugin that does not know the container (code 3) has nothing to
    /// release.
    ///
    /// The cache's record of the ADD (configuration, arguments and result; the partial result of an interrupted ADD) takes precedence over
    /// the parameters, and stays until [`remove_records`](Self::remove_records) is called. Before version 0.4.0 of the spec plugins do not
    /// receive the result.
    pub async fn release(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        attachment.check()?;
        let _turn = self.locks.container(&attachment.container_id).await;
        let input = self.del_input(network, attachment)?;
        for plugin in input.network.plugins.iter().rev() {
            self.call_del(&input, plugin).await?;
        }
        Ok(())
    }

    /// Calls DEL of every plugin, even if others fail, and then treats the attachment as deleted. Returns the errors. A record is kept that
    /// contains only the plugins that failed ([`abandoned`](Self::abandoned)): what the others have released may belong to another
    /// container when these plugins are called again. A plugin that has exceeded its deadline a moment ago with the error `timed_out` has
    /// failed, and is not called.
    pub async fn abandon(
        &self,
        network: &Network,
        attachment: &Attachment,
        mut timed_out: Option<Error>,
    ) -> Result<Vec<Error>, Error> {
        attachment.check()?;
        let _turn = self.locks.container(&attachment.container_id).await;
        let input = self.del_input(network, attachment)?;
        let mut errors = Vec::new();
        let mut failed = Vec::new();
        for (at, plugin) in input.network.plugins.iter().enumerate().rev() {
            let released = match timed_out.take_if(|error| error.is_deadline_of(&plugin.name)) {
                Some(error) => Err(error),
                None => self.call_del(&input, plugin).await,
            };
            if let Err(error) = released {
                errors.push(error);
                failed.push(at);
            }
        }
        let name = &input.network.name;
        self.remove_records(name, attachment)?;
        if !failed.is_empty() {
            let remaining = input.network.with_plugins(&failed)?;
            let result = match input.result {
                Some(result) => result,
                None => CniResult::parse("{}", remaining.cni_version)
                    .map_err(|reason| Error::invalid_config(&remaining.path, reason, "a result"))?,
            };
            let (cache_dir, dir) = (&self.cache_dir, RecordDir::Abandoned);
            cache::write(cache_dir, dir, &remaining, &input.attachment, &result)?;
        }
        Ok(errors)
    }

    async fn call_del(&self, input: &DelInput, plugin: &Plugin) -> Result<(), Error> {
        let subject = Subject::Attachment {
            attachment: &input.attachment,
            previous: input.result.as_ref(),
        };
        let call = self.call_plugin(&input.network, plugin, Command::Del, subject);
        match call.await {
            Err(error) if error.code() == Some(UNKNOWN_CONTAINER) => {
                tracing::debug!(%error, "the CNI plugin does not know the container: nothing to release");
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// Returns the input of DEL: the record of the ADD, or the parameters.
    fn del_input(&self, network: &Network, attachment: &Attachment) -> Result<DelInput, Error> {
        let mut cached = None;
        for dir in cache::ALL {
            if cached.is_none() {
                cached = self.read_record(dir, network, attachment)?;
            }
        }
        let (network, attachment) = recorded(network, attachment, cached.as_ref());
        let result = cached.filter(|_| network.cni_version.has_check());
        let result = result.and_then(|cached| {
            let result = cached.result(network.cni_version);
            result
                .inspect_err(
                    |error| tracing::warn!(%error, "calling CNI DEL without the result of the ADD"),
                )
                .ok()
        });
        Ok(DelInput {
            network,
            attachment,
            result,
        })
    }

    /// Reads a record for DEL, which is called without the record if that is damaged.
    fn read_record(
        &self,
        shelf: RecordDir,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<Option<Cached>, Error> {
        match cache::read(&self.cache_dir, shelf, &network.name, attachment) {
            Err(error @ Error::DamagedCache { .. }) => {
                tracing::warn!(%error, "calling CNI DEL without the cache record of the ADD");
                Ok(None)
            }
            other => other,
        }
    }
}

/// The input of DEL.
struct DelInput {
    network: Network,
    attachment: Attachment,
    result: Option<CniResult>,
}
