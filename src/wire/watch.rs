//! `/v1/watch`: the query of a watch.
//! Out of scope: the changes; the lines.

use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::backend::{Backend, Refusal};
use super::extract::Extract;
use super::lines::encoded_lines;
use super::shared::{ApiError, AppState, read};
use crate::api::event::ObjectRef;
use crate::api::meta::Name;
use crate::api::view::{Kind, WatchFilter, WatchLine, WatchRequest};

/// All kinds of objects.
const KINDS: [Kind; 3] = [Kind::HostGroup, Kind::Vm, Kind::Lease];

/// The query of a watch. The texts are parsed here, so that an invalid one is reported as other invalid requests are.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub(super) struct WatchQuery {
    /// The version after which the watch continues.
    since: Option<String>,
    /// Kinds, separated by commas; absent: all.
    kinds: Option<String>,
    /// Events, too.
    events: bool,
    /// One object and its events, such as `vm/x`.
    object: Option<String>,
}

impl WatchQuery {
    fn request(&self) -> Result<WatchRequest, Refusal> {
        let kinds = match self.kinds.as_deref() {
            None => KINDS.to_vec(),
            // Without objects.
            Some("") => Vec::new(),
            Some(kinds) => kinds.split(',').map(read).collect::<Result<_, _>>()?,
        };
        Ok(WatchRequest {
            since: self.since.as_deref().map(read).transpose()?,
            filter: WatchFilter {
                kinds,
                events: self.events,
                object: self.object.as_deref().map(read).transpose()?,
            },
            versions: true,
        })
    }
}

/// The watch of `objects/{kind}[/{name}]?follow=true`, which clients of all versions understand.
pub(super) fn request_of_objects(kind: Kind, name: Option<Name>) -> WatchRequest {
    WatchRequest {
        since: None,
        filter: WatchFilter {
            kinds: vec![kind],
            events: false,
            object: name.map(|name| ObjectRef::Named(kind, name)),
        },
        versions: false,
    }
}

/// Changes of objects, and events. It does not end.
#[utoipa::path(get, path = "/v1/watch", tag = "v1", params(WatchQuery), responses(
    ApiError,
    (status = 200, description = "A line for each", body = WatchLine, content_type = "application/x-ndjson"),
    (status = 410, description = "The watch cannot be continued from that version"),
))]
pub(super) async fn watch<B: Backend>(
    State(state): AppState<B>,
    Extract(Query(query)): Extract<Query<WatchQuery>>,
) -> Result<Response, ApiError> {
    let lines = state.backend.watch(query.request()?).await?;
    Ok(encoded_lines(&state, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(query: &str) -> Result<WatchRequest, String> {
        let uri = format!("http://sliced/v1/watch?{query}");
        let uri = uri.parse().map_err(|_| "no URI".to_owned())?;
        let Query(query) =
            Query::<WatchQuery>::try_from_uri(&uri).map_err(|error| error.to_string())?;
        query.request().map_err(|refusal| format!("{refusal:?}"))
    }

    #[test]
    fn the_query_of_a_watch_names_the_version_the_kinds_events_and_one_object() {
        let all = request("").unwrap();
        assert_eq!((all.since, all.filter.object), (None, None));
        assert_eq!(
            (all.filter.kinds, all.filter.events),
            (KINDS.to_vec(), false)
        );
        let some = request("since=00000000000000ff-7&kinds=vm,hg&events=true&object=vm/a-1");
        let some = some.unwrap();
        assert_eq!(some.since.unwrap().to_string(), "00000000000000ff-7");
        assert_eq!(some.filter.kinds, [Kind::Vm, Kind::HostGroup]);
        assert!(some.filter.events);
        assert_eq!(some.filter.object.unwrap().to_string(), "vm/a-1");
        assert_eq!(request("kinds=").unwrap().filter.kinds, []);
        for (query, cause) in [
            ("since=", "resource version"),
            ("since=7", "resource version"),
            ("kinds=pod", "unknown kind"),
            ("kinds=vm,,lease", "unknown kind"),
            ("object=pod/a", "pod/a"),
            ("events=yes", "provided string was not `true` or `false`"),
        ] {
            let error = request(query).unwrap_err();
            assert!(error.contains(cause), "{query}: {error}");
        }
    }
}
