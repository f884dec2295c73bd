//! Watches objects across restarts of the daemon: after a lost connection they are listed again, and only what has changed is reported.
//! Out of scope: the output.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::failure::{Failure, note};
use super::target::Selection;
use crate::api::view::{Change, Kind, Object};
use crate::wire::Client;
use crate::wire::client::ClientError;

/// How long a daemon may be unreachable while it restarts, and the time between two attempts.
const RECONNECT_LIMIT: Duration = Duration::from_secs(30);
const RECONNECT_INTERVAL: Duration = Duration::from_millis(250);

type Changes = BoxStream<'static, Result<Change, ClientError>>;

/// The kind of the objects of a selection; a watch has one.
pub fn kind(selection: &Selection) -> Result<Kind, Failure> {
    let one_kind = || {
        let usage = "a watch supports one kind only; start one watch per kind".to_owned();
        Failure::Usage(usage)
    };
    match selection {
        Selection::All(kinds) => match kinds[..] {
            [kind] => Ok(kind),
            _ => Err(one_kind()),
        },
        Selection::Some(targets) => {
            let kind = targets[0].kind;
            match targets.iter().all(|target| target.kind == kind) {
                true => Ok(kind),
                false => Err(one_kind()),
            }
        }
    }
}

/// Calls `handle` for every object, once with [`Change::Synced`], and then for every change, until it fails or the daemon is gone for
/// longer than a restart takes.
pub async fn watch(
    client: &Client,
    selection: &Selection,
    mut handle: impl FnMut(Change) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut known = Known::default();
    let (mut changes, mut lists) = open(client, selection).await?;
    loop {
        let mut unsynced = lists;
        while let Some(Ok(change)) = changes.next().await {
            for change in known.apply(change, &mut unsynced) {
                handle(change)?;
            }
        }
        (changes, lists) = reconnect(|| open(client, selection)).await?;
        known.listed.clear();
    }
}

/// All changes in one stream, and the number of `SYNCED` in it.
async fn open(client: &Client, selection: &Selection) -> Result<(Changes, usize), ClientError> {
    match selection {
        Selection::All(kinds) => {
            let mut streams = Vec::new();
            for kind in kinds {
                streams.push(client.watch(*kind, None).await?);
            }
            Ok((stream::select_all(streams).boxed(), kinds.len()))
        }
        Selection::Some(targets) => {
            let mut streams = Vec::new();
            for target in targets {
                streams.push(client.watch(target.kind, Some(&target.name)).await?);
            }
            Ok((stream::select_all(streams).boxed(), targets.len()))
        }
    }
}

/// Repeats `connect` while no daemon answers, as during its restart.
pub async fn reconnect<T, F: Future<Output = Result<T, ClientError>>>(
    mut connect: impl FnMut() -> F,
) -> Result<T, Failure> {
    note("connection closed by sliced; reconnecting");
    let mut last = None;
    let attempts = async {
        loop {
            tokio::time::sleep(RECONNECT_INTERVAL).await;
            match connect().await {
                Err(error) if is_temporary(&error) => last = Some(error),
                other => return other,
            }
        }
    };
    match tokio::time::timeout(RECONNECT_LIMIT, attempts).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(last.map_or_else(
            || Failure::one("connection closed by sliced"),
            Failure::from,
        )),
    }
}

/// Whether a daemon that restarts is the likely cause.
fn is_temporary(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::ConnectionFailed { .. } => true,
        ClientError::Refused { status, .. } => *status == 503,
        ClientError::PermissionDenied(_)
        | ClientError::TokenRequired(_)
        | ClientError::TokenRefused(_)
        | ClientError::AgentClosed
        | ClientError::InvalidAgent(_) => false,
    }
}

/// What has been reported.
#[derive(Default)]
struct Known {
    objects: BTreeMap<String, Object>,
    /// The objects of the current connection.
    listed: BTreeSet<String>,
    is_synced: bool,
}

impl Known {
    /// The changes to report for a change that was received. `unsynced` is the number of lists that are not complete yet.
    fn apply(&mut self, change: Change, unsynced: &mut usize) -> Vec<Change> {
        match change {
            Change::Synced => {
                *unsynced = unsynced.saturating_sub(1);
                if *unsynced > 0 {
                    return Vec::new();
                }
                let mut changes = self.gone();
                if !std::mem::replace(&mut self.is_synced, true) {
                    changes.push(Change::Synced);
                }
                changes
            }
            Change::Added { object } | Change::Modified { object } => self.exists(object),
            Change::Deleted { object } => {
                self.objects.remove(&object.reference());
                vec![Change::Deleted { object }]
            }
        }
    }

    fn exists(&mut self, object: Object) -> Vec<Change> {
        let reference = object.reference();
        self.listed.insert(reference.clone());
        match self.objects.insert(reference, object.clone()) {
            None => vec![Change::Added { object }],
            Some(before) if before == object => Vec::new(),
            Some(before) if before.metadata().uid != object.metadata().uid => {
                vec![Change::Deleted { object: before }, Change::Added { object }]
            }
            Some(_) => vec![Change::Modified { object }],
        }
    }

    /// The objects that were deleted while there was no connection.
    fn gone(&mut self) -> Vec<Change> {
        let listed = std::mem::take(&mut self.listed);
        let objects = std::mem::take(&mut self.objects);
        let (known, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = objects
            .into_iter()
            .partition(|(name, _)| listed.contains(name));
        self.objects = known;
        let gone = gone.into_values();
        gone.map(|object| Change::Deleted { object }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::LeaseView;

    fn lease(name: &str, ip: &str) -> Object {
        let view = serde_json::json!({
            "metadata": {"name": name, "created_at": "2026-01-01T00:00:00Z"},
            "block": null, "ip": ip, "range": "10.0.0.0/24",
        });
        Object::Lease(serde_json::from_value::<LeaseView>(view).unwrap())
    }

    fn added(object: &Object) -> Change {
        Change::Added {
            object: object.clone(),
        }
    }

    #[test]
    fn a_list_after_a_reconnection_reports_only_what_has_changed() {
        let (one, two, three) = (
            lease("a-1", "10.0.0.1"),
            lease("a-2", "10.0.0.2"),
            lease("a-3", "10.0.0.3"),
        );
        let moved = lease("a-2", "10.0.0.9");
        let mut known = Known::default();
        let mut report = |changes: Vec<Change>, lists: usize| -> Vec<Change> {
            let mut unsynced = lists;
            let changes = changes.into_iter();
            changes
                .flat_map(|change| known.apply(change, &mut unsynced))
                .collect()
        };
        let first = vec![added(&one), added(&two), added(&three), Change::Synced];
        assert_eq!(report(first.clone(), 1), first);
        let again = vec![added(&one), added(&moved), Change::Synced];
        let expected = vec![
            Change::Modified { object: moved },
            Change::Deleted { object: three },
        ];
        assert_eq!(report(again.clone(), 1), expected);
        assert_eq!(report(again, 1), []);
    }
}
