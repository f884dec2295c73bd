//! `events`: prints events.
//! Out of scope: objects.

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::age::age;
use super::args::EventsArgs;
use super::failure::{Failure, note};
use super::output::EventsFormat;
use super::paint::Colors;
use super::print;
use super::rows::Columns;
use super::table::{Field, Table};
use super::target::{self, Target};
use super::{watch, yaml};
use crate::api::event::{Event, InvalidObjectRef, ObjectRef};
use crate::api::meta::Uid;
use crate::api::view::{ResourceVersion, WatchFilter, WatchLine};
use crate::clock;
use crate::wire::client::ClientError;
use crate::wire::{Client, StreamMode};

type Stream = BoxStream<'static, Result<Event, ClientError>>;

/// `events [-w] [OBJECT]`.
pub async fn events(client: &Client, args: EventsArgs) -> Result<(), Failure> {
    let object = object(&args.object)?;
    let span = match args.watch {
        true => StreamMode::Follow,
        false => StreamMode::Once,
    };
    let columns = match args.output {
        EventsFormat::Table => Columns::Narrow,
        EventsFormat::Wide => Columns::Wide,
        EventsFormat::Json => {
            return each(client, object.as_ref(), span, |event| {
                print::json_line(&event)
            })
            .await;
        }
        EventsFormat::Yaml => {
            let document = |event| print::out(&format!("---\n{}", yaml::document(&event)?));
            return each(client, object.as_ref(), span, document).await;
        }
    };
    let mut table = header(columns);
    match span {
        StreamMode::Once => {
            let events = collect(client.events(object.as_ref(), span).await?).await?;
            if events.is_empty() {
                note("no events found");
                return Ok(());
            }
            let rows = events.iter().map(|event| row(event, columns));
            print::out(&table.draw(rows.collect()))
        }
        StreamMode::Follow => {
            let draw = |event| print::out(&table.draw(vec![row(&event, columns)]));
            each(client, object.as_ref(), span, draw).await
        }
    }
}

/// The object as events name it: `vm/x` for every spelling of the target.
pub(super) fn object(args: &[String]) -> Result<Option<ObjectRef>, Failure> {
    match args {
        [] => Ok(None),
        [arg] if arg == "host" || arg.starts_with("manifest/") => arg
            .parse()
            .map(Some)
            .map_err(|error: InvalidObjectRef| Failure::Usage(error.to_string())),
        words => match target::targets(words)?.as_slice() {
            [Target { kind, name }] => Ok(Some(ObjectRef::Named(*kind, name.clone()))),
            _ => Err(Failure::Usage("expected at most one object".into())),
        },
    }
}

/// A table of events, which is inserted into other text with this indentation.
pub fn listing(events: &[Event], indent: usize) -> String {
    let rows = events.iter().map(|event| row(event, Columns::Narrow));
    header(Columns::Narrow)
        .indented(indent)
        .draw(rows.collect())
}

async fn collect(stream: Stream) -> Result<Vec<Event>, Failure> {
    Ok(stream.try_collect().await?)
}

/// Calls `handle` for each event; if they are followed, across restarts of the daemon.
async fn each(
    client: &Client,
    object: Option<&ObjectRef>,
    span: StreamMode,
    mut handle: impl FnMut(Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if span == StreamMode::Follow {
        return follow(client, object, handle).await;
    }
    let mut events = client.events(object, span).await?;
    while let Some(event) = events.next().await {
        handle(event?)?;
    }
    Ok(())
}

/// Calls `handle` for each event until it fails, or the daemon is gone for longer than a restart takes. A lost connection is continued from
/// the last version. If that is of another run of the daemon, all of its events are new, since no run has those of another.
async fn follow(
    client: &Client,
    object: Option<&ObjectRef>,
    mut handle: impl FnMut(Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let filter = WatchFilter {
        kinds: Vec::new(),
        events: true,
        object: object.cloned(),
    };
    let (mut version, mut last) = (None, None);
    let mut lines = client.watch_since(version, &filter).await?;
    loop {
        let printed = last;
        while let Some(Ok(line)) = lines.next().await {
            match line {
                WatchLine::Event {
                    resource_version,
                    event,
                } => {
                    version = resource_version.or(version);
                    // If the version was too old, those that were printed are sent again.
                    let is_new = resource_version.is_some() || Some(event.time) > printed;
                    last = last.max(Some(event.time));
                    if is_new {
                        handle(event)?;
                    }
                }
                WatchLine::Synced { resource_version }
                | WatchLine::Bookmark { resource_version } => version = Some(resource_version),
                WatchLine::Error { .. } => version = None,
                WatchLine::Added { .. }
                | WatchLine::Modified { .. }
                | WatchLine::Deleted { .. } => {}
            }
        }
        lines = watch::reconnect(|| reopen(client, version, &filter)).await?;
    }
}

/// Continues a watch, or begins again if that is not possible.
async fn reopen(
    client: &Client,
    version: Option<ResourceVersion>,
    filter: &WatchFilter,
) -> Result<BoxStream<'static, Result<WatchLine, ClientError>>, ClientError> {
    match client.watch_since(version, filter).await {
        Err(ClientError::Refused { status: 410, .. }) => client.watch_since(None, filter).await,
        other => other,
    }
}

pub(super) fn titles(columns: Columns) -> Vec<&'static str> {
    match columns {
        Columns::Narrow => vec!["LAST SEEN", "TYPE", "REASON", "OBJECT", "COUNT", "MESSAGE"],
        Columns::Wide => vec![
            "LAST SEEN",
            "TYPE",
            "REASON",
            "OBJECT",
            "UID",
            "COUNT",
            "MESSAGE",
        ],
    }
}

fn header(columns: Columns) -> Table {
    Table::new(titles(columns), Colors::for_stdout())
}

pub(super) fn row(event: &Event, columns: Columns) -> Vec<Field> {
    let mut row = vec![
        age(event.time, clock::now()).into(),
        Field::with_severity(event.kind.to_string(), event.kind),
        event.reason.to_string().into(),
        event.object.to_string().into(),
    ];
    if columns == Columns::Wide {
        row.push(Field::maybe(event.uid));
    }
    row.extend([event.count.into(), (&event.message).into()]);
    row
}

/// The events of one object, oldest first, without those of an earlier object of the same name.
pub async fn of(client: &Client, target: &Target, uid: Option<Uid>) -> Result<Vec<Event>, Failure> {
    let object = ObjectRef::Named(target.kind, target.name.clone());
    let mut events = collect(client.events(Some(&object), StreamMode::Once).await?).await?;
    events.retain(|event| event.uid.is_none() || event.uid == uid);
    Ok(events)
}
