//! `events` and `logs`: print events, and the output of guests.
//! Out of scope: objects.

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::age::age;
use super::args::{EventsArgs, LogsArgs};
use super::failure::{Failure, note};
use super::paint::Colors;
use super::print::{self, Format};
use super::table::{Field, Table};
use super::target::{self, Target};
use super::yaml;
use crate::api::event::{Event, InvalidObjectRef, ObjectRef};
use crate::clock;
use crate::wire::client::ClientError;
use crate::wire::{Client, StreamMode};

type Stream = BoxStream<'static, Result<Event, ClientError>>;

/// `events [-w] [OBJECT]`.
pub async fn events(client: &Client, args: EventsArgs) -> Result<(), Failure> {
    let object = object(&args.object)?;
    let span = span(args.watch);
    let stream = client.events(object.as_ref(), span).await?;
    match (args.output, span) {
        (Format::Table, StreamMode::Once) => table(stream).await,
        (Format::Table, StreamMode::Follow) => rows(stream).await,
        (Format::Json, _) => each(stream, |event| print::json_line(&event)).await,
        (Format::Yaml, _) => {
            each(stream, |event| {
                print::out(&format!("---\n{}", yaml::document(&event)?))
            })
            .await
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

async fn table(stream: Stream) -> Result<(), Failure> {
    let events = collect(stream).await?;
    if events.is_empty() {
        note("no events found");
        return Ok(());
    }
    print::out(&listing(&events))
}

/// A table of events.
pub fn listing(events: &[Event]) -> String {
    header().draw(events.iter().map(row).collect())
}

async fn rows(stream: Stream) -> Result<(), Failure> {
    let mut table = header();
    each(stream, |event| print::out(&table.draw(vec![row(&event)]))).await
}

async fn collect(stream: Stream) -> Result<Vec<Event>, Failure> {
    Ok(stream.try_collect().await?)
}

async fn each(
    mut stream: Stream,
    mut handle: impl FnMut(Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    while let Some(event) = stream.next().await {
        handle(event?)?;
    }
    Ok(())
}

fn header() -> Table {
    let titles = vec!["LAST SEEN", "TYPE", "REASON", "OBJECT", "COUNT", "MESSAGE"];
    Table::new(titles, Colors::for_stdout())
}

fn row(event: &Event) -> Vec<Field> {
    vec![
        age(event.time, clock::now()).into(),
        Field::with_severity(event.kind.to_string(), event.kind),
        event.reason.to_string().into(),
        event.object.to_string().into(),
        event.count.into(),
        (&event.message).into(),
    ]
}

/// `logs VM [-f] [-n NUMBER]`: prints the raw bytes.
pub async fn logs(client: &Client, args: LogsArgs) -> Result<(), Failure> {
    let mut stream = Box::pin(client.logs(&args.vm, args.lines, span(args.follow)).await?);
    while let Some(bytes) = stream.next().await {
        print::bytes(&bytes?)?;
    }
    Ok(())
}

fn span(follow: bool) -> StreamMode {
    match follow {
        true => StreamMode::Follow,
        false => StreamMode::Once,
    }
}

/// The events of one object, oldest first.
pub async fn of(client: &Client, target: &Target) -> Result<Vec<Event>, Failure> {
    let object = ObjectRef::Named(target.kind, target.name.clone());
    collect(client.events(Some(&object), StreamMode::Once).await?).await
}
