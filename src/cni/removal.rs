//! DEL of a whole chain (spec, section 3), and an end without it.
//! Out of scope: one plugin's call; what plugins leave behind.

use super::cache::Shelf;
use super::error::UNKNOWN_CONTAINER;
use super::invoke::Command;
use super::operations::remembered;
use super::request::About;
use super::{Attachment, Cached, CniResult, Error, Network, Plugin, Runtime, cache};

impl Runtime {
    /// Detaches: [`release`](Self::release), at once again if that [is of use](Error::may_be_done_now), and the cache forgets the
    /// attachment.
    pub async fn del(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        let released = match self.release(network, attachment).await {
            Err(error) if error.may_be_done_now() => self.release(network, attachment).await,
            released => released,
        };
        released?;
        self.forget(&network.name, attachment)
    }

    /// DEL of every plugin in reverse order, up to the first that fails. Good however often it is called, with and without an ADD
    /// before, and whether or not the namespace is still there (`netns` may be `None`). A plugin that does not know the container
    /// (code 3) has nothing to take back.
    ///
    /// What the cache remembers of the ADD (configuration, arguments, result; of one that was cut short, the result up to
    /// there) goes before what is given, and stays until it is [forgotten](Self::forget). Before 0.4.0 plugins are not told the
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

    /// DEL of every plugin, whatever the others say; the attachment counts as deleted then. Returns who failed. For these a record
    /// of their own is kept, which names no other plugin of the chain ([`abandoned`](Self::abandoned)): what the others have
    /// taken back may be somebody else's by the time these are asked again.
    pub async fn abandon(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<Vec<Error>, Error> {
        attachment.check()?;
        let _turn = self.turns.container(&attachment.container_id).await;
        let recalled = self.recall_all(network, attachment)?;
        let mut errors = Vec::new();
        let mut failed = Vec::new();
        for (at, plugin) in recalled.network.plugins.iter().enumerate().rev() {
            if let Err(error) = self.del_one(&recalled, plugin).await {
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
                tracing::debug!(%error, "there is nothing to take back");
                Ok(())
            }
            asked => asked.map(drop),
        }
    }

    /// What a DEL goes by.
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
                .inspect_err(|error| tracing::warn!(%error, "deleting without the CNI result"))
                .ok()
        });
        Ok(Recalled {
            network,
            attachment,
            result,
        })
    }

    /// For DEL, which does without what is damaged.
    fn recall(
        &self,
        shelf: Shelf,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<Option<Cached>, Error> {
        match cache::read(&self.cache_dir, shelf, &network.name, attachment) {
            Err(error @ Error::DamagedCache { .. }) => {
                tracing::warn!(%error, "deleting without what was remembered of the CNI ADD");
                Ok(None)
            }
            other => other,
        }
    }
}

/// What a DEL goes by.
struct Recalled {
    network: Network,
    attachment: Attachment,
    result: Option<CniResult>,
}
