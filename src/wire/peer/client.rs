//! The client of requests about all nodes.
//! Out of scope: connections between nodes ([`super::connect`]).

use futures::stream::BoxStream;

use super::events::path;
use crate::api::event::{FleetEvent, ObjectRef};
use crate::wire::backend::StreamMode;
use crate::wire::client::{Client, ClientError};

/// The path of the events of all nodes.
const EVENTS: &str = "/v1/fleet/events";

impl Client {
    /// The events of all nodes of the fleet, as they arrive.
    ///
    /// # Errors
    /// The request fails; a node that does not answer is an item.
    pub async fn fleet_events(
        &self,
        object: Option<&ObjectRef>,
        span: StreamMode,
    ) -> Result<BoxStream<'static, Result<FleetEvent, ClientError>>, ClientError> {
        self.lines(&path(EVENTS, object, span)).await
    }
}
