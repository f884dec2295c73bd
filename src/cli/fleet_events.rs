//! `events --fleet`: prints the events of all nodes.
//! Out of scope: the events of one node ([`super::events`]).

use futures::StreamExt;

use super::args::EventsArgs;
use super::events::{object, row, titles};
use super::failure::{Failure, error, note};
use super::output::EventsFormat;
use super::paint::Colors;
use super::rows::Columns;
use super::table::{Field, Table};
use super::{print, yaml};
use crate::api::event::FleetEvent;
use crate::wire::{Client, StreamMode};

/// Prints events by the time of their last occurrence; if they are followed, as they arrive. A node that does not answer is reported at
/// once; the events of the others are printed, and the command fails at the end.
pub async fn events(client: &Client, args: EventsArgs) -> Result<(), Failure> {
    let object = object(&args.object)?;
    let span = match args.watch {
        true => StreamMode::Follow,
        false => StreamMode::Once,
    };
    let mut lines = client.fleet_events(object.as_ref(), span).await?;
    let mut all = Vec::new();
    let mut output = Output::new(args.output);
    let mut ended = Ok(());
    while let Some(line) = lines.next().await {
        let line = line?;
        if let Some(text) = &line.error {
            error(text);
            ended = Err(Failure::Reported);
        }
        match span {
            _ if line.event.is_none() => {}
            StreamMode::Once => all.push(line),
            StreamMode::Follow => output.print(vec![line])?,
        }
    }
    if span == StreamMode::Follow {
        return ended;
    }
    if all.is_empty() {
        note("no events found");
        return ended;
    }
    all.sort_by_key(|line| line.event.as_ref().map(|event| event.time));
    output.print(all)?;
    ended
}

enum Output {
    Table(Table, Columns),
    Json,
    Yaml,
}

impl Output {
    fn new(format: EventsFormat) -> Self {
        let columns = match format {
            EventsFormat::Json => return Self::Json,
            EventsFormat::Yaml => return Self::Yaml,
            EventsFormat::Table => Columns::Narrow,
            EventsFormat::Wide => Columns::Wide,
        };
        let titles = [vec!["NODE"], titles(columns)].concat();
        Self::Table(Table::new(titles, Colors::for_stdout()), columns)
    }

    fn print(&mut self, lines: Vec<FleetEvent>) -> Result<(), Failure> {
        match self {
            Self::Json => lines.iter().try_for_each(print::json_line),
            Self::Yaml => lines
                .iter()
                .try_for_each(|line| print::out(&format!("---\n{}", yaml::document(line)?))),
            Self::Table(table, columns) => {
                let rows = lines.iter().filter_map(|line| {
                    let node: Field = line.node.to_string().into();
                    let event = row(line.event.as_ref()?, *columns);
                    Some(std::iter::once(node).chain(event).collect())
                });
                print::out(&table.draw(rows.collect()))
            }
        }
    }
}
