//! DEL of a chain of plugins (spec, section 3), and abandoning an attachment if DEL fails.
//! Out of scope: the call of one plugin; resources that plugins do not remove.

use super::cache::Shelf;
use super::error::UNKNOWN_CONTAINER;
use super::invoke::Command;
use super::operations::remembered;
use super::request::About;
use super::{Attachment, Cached, CniResult, Error, Network, Plugin, Runtime, cache};

impl Runtime {
    /// Detaches: calls [`release`](Self::release), a second time if that [may succeed](Error::may_be_done_now), and removes the cache's
    /// record.
    pub async fn del(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        let released = match self.release(network, attachment).await {
            Err(error) if error.may_be_done_now() => self.release(network, attachment).await,
            released => released,
        };
        released?;
        self.forget(&network.name, attachment)
    }

    /// Calls DEL of every plugin in reverse order, up to the first that fails. It may be called any number of times, with and without an
    /// ADD before, and without the namespace (`netns` may be `None`). A plugin that does not know the container (code 3) has nothing to
    /// release.
    ///
    /// The cache's record of the ADD (configuration, arguments and result; the partial result of an interrupted ADD) takes precedence over
    /// the parameters, and stays until [`forget`](Self::forget) is called. Before version 0.4.0 of the spec plugins do not receive the
    /// result.
    pub async fn release(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        attachment.check()?;
        let _turn = self.turns.container(&attachment.container_id).await;
        let recalled = self.recall_all(network, attachment)?;
        for plugin in recalled.network.plugins.iter().rev() {
            self.del_one(&recalled, plugin).await?;
        }
        Ok(())
    }

    /// Calls DEL of every plugin, even if others fail, and then treats the attachment as deleted. Returns the errors. A record is kept that
    /// contains only the plugins that failed ([`abandoned`](Self::abandoned)): what the others have released may belong to another
    /// container when these plugins are called again. A plugin that has exceeded its deadline a moment ago with the error `hung` has
    /// failed, and is not called.
    pub async fn abandon(
        &self,
        network: &Network,
        attachment: &Attachment,
        mut hung: Option<Error>,
    ) -> Result<Vec<Error>, Error> {
        attachment.check()?;
        let _turn = self.turns.container(&attachment.container_id).await;
        let recalled = self.recall_all(network, attachment)?;
        let mut errors = Vec::new();
        let mut failed = Vec::new();
        for (at, plugin) in recalled.network.plugins.iter().enumerate().rev() {
            let released = match hung.take_if(|error| error.is_deadline_of(&plugin.name)) {
                Some(error) => Err(error),
                None => self.del_one(&recalled, plugin).await,
            };
            if let Err(error) = released {
                errors.push(error);
                failed.push(at);
            }
        }
        let name = &recalled.network.name;
        self.forget(name, attachment)?;
        if !failed.is_empty() {
            let owing = recalled.network.only(&failed)?;
            let result = match recalled.result {
                Some(result) => result,
                None => CniResult::parse("{}", owing.cni_version)
                    .map_err(|why| Error::bad_config(&owing.path, why, "a result"))?,
            };
            let (folder, shelf) = (&self.cache_dir, Shelf::Abandoned);
            cache::write(folder, shelf, &owing, &recalled.attachment, &result)?;
        }
        Ok(errors)
    }

    async fn del_one(&self, recalled: &Recalled, plugin: &Plugin) -> Result<(), Error> {
        let about = About::Attachment {
            attachment: &recalled.attachment,
            previous: recalled.result.as_ref(),
        };
        let asked = self.ask(&recalled.network, plugin, Command::Del, about);
        match asked.await {
            Err(error) if error.code() == Some(UNKNOWN_CONTAINER) => {
                tracing::debug!(%error, "the CNI plugin does not know the container: nothing to release");
                Ok(())
            }
            asked => asked.map(drop),
        }
    }

    /// Returns the input of DEL: the record of the ADD, or the parameters.
    fn recall_all(&self, network: &Network, attachment: &Attachment) -> Result<Recalled, Error> {
        let mut cached = None;
        for shelf in cache::ALL {
            if cached.is_none() {
                cached = self.recall(shelf, network, attachment)?;
            }
        }
        let (network, attachment) = remembered(network, attachment, cached.as_ref());
        let result = cached.filter(|_| network.cni_version.has_check());
        let result = result.and_then(|cached| {
            let result = cached.result(network.cni_version);
            result
                .inspect_err(
                    |error| tracing::warn!(%error, "calling CNI DEL without the result of the ADD"),
                )
                .ok()
        });
        Ok(Recalled {
            network,
            attachment,
            result,
        })
    }

    /// Reads a record for DEL, which is called without the record if that is damaged.
    fn recall(
        &self,
        shelf: Shelf,
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
struct Recalled {
    network: Network,
    attachment: Attachment,
    result: Option<CniResult>,
}
