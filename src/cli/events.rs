//! `events`: prints events.
//! Out of scope: objects.

use std::collections::VecDeque;

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
fn object(args: &[String]) -> Result<Option<ObjectRef>, Failure> {
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

/// The number of events that are not printed again after a reconnection.
const PRINTED: usize = 2000;

/// Calls `handle` for each event; if they are followed, across restarts of the daemon.
async fn each(
    client: &Client,
    object: Option<&ObjectRef>,
    span: StreamMode,
    mut handle: impl FnMut(Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut stream = client.events(object, span).await?;
    let mut printed: VecDeque<Event> = VecDeque::new();
    loop {
        while let Some(event) = stream.next().await {
            let event = match (event, span) {
                (Ok(event), _) => event,
                (Err(_), StreamMode::Follow) => break,
                (Err(error), StreamMode::Once) => return Err(error.into()),
            };
            if printed.contains(&event) {
                continue;
            }
            if span == StreamMode::Follow {
                printed.truncate(PRINTED - 1);
                printed.push_front(event.clone());
            }
            handle(event)?;
        }
        if span == StreamMode::Once {
            return Ok(());
        }
        stream = watch::reconnect(|| client.events(object, span)).await?;
    }
}

fn header(columns: Columns) -> Table {
    let titles = match columns {
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
    };
    Table::new(titles, Colors::for_stdout())
}

fn row(event: &Event, columns: Columns) -> Vec<Field> {
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
