//! The client's requests for watches.
//! Out of scope: what to do when a watch ends.

use futures::stream::BoxStream;

use super::client::{Client, Result, percent_encode};
use crate::api::view::{Kind, ResourceVersion, WatchFilter, WatchLine};

impl Client {
    /// See [`super::Backend::watch`]: lines with versions, after the version `since` if there is one.
    pub async fn watch_since(
        &self,
        since: Option<ResourceVersion>,
        filter: &WatchFilter,
    ) -> Result<BoxStream<'static, Result<WatchLine>>> {
        let kinds: Vec<String> = filter.kinds.iter().map(Kind::to_string).collect();
        let (kinds, events) = (kinds.join(","), filter.events);
        let mut path = format!("/v1/watch?kinds={kinds}&events={events}");
        if let Some(version) = since {
            path.push_str(&format!("&since={version}"));
        }
        if let Some(object) = &filter.object {
            let object = percent_encode(&object.to_string());
            path.push_str(&format!("&object={object}"));
        }
        self.lines(&path).await
    }
}
