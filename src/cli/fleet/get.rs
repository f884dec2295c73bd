//! `get --fleet` and `get nodes`: lists objects of the fleet, in the output formats of `get`.
//! Out of scope: the columns ([`super::object`]).

use super::super::args::GetArgs;
use super::super::failure::{self, Failure};
use super::super::get::values;
use super::super::output::Output;
use super::super::paint::Colors;
use super::super::rows::Columns;
use super::super::table::Table;
use super::super::{print, yaml};
use super::object::{FleetObject, fetch, header, list, row};
use super::target::{self, FleetSelection};
use crate::api::view::FleetList;
use crate::clock;
use crate::wire::Client;

/// `get KIND [NAME…] --fleet [-o …]`.
pub async fn get(client: &Client, args: GetArgs) -> Result<(), Failure> {
    let selection = target::selection(&args.targets)?;
    let unsupported = [
        (args.watch, "-w"),
        (args.selector.is_some(), "-l"),
        (args.sort_by.is_some(), "--sort-by"),
        (args.output == Output::Manifest, "-o manifest"),
    ];
    if let Some((_, option)) = unsupported.iter().find(|(is_set, _)| *is_set) {
        let usage = format!("{option} is not supported for objects of the fleet");
        return Err(Failure::Usage(usage));
    }
    match selection {
        FleetSelection::All(kind) => {
            let found = list(client, kind, None).await?;
            let errors: Vec<String> = found.unreadable.iter().map(ToString::to_string).collect();
            if found.items.is_empty() && matches!(args.output, Output::Table | Output::Wide) {
                failure::note(&format!("no {kind}s found in the fleet"));
            } else {
                show(found, &args)?;
            }
            // The list is not complete.
            match errors.is_empty() {
                true => Ok(()),
                false => Err(Failure::Failed(errors)),
            }
        }
        FleetSelection::Some(targets) => {
            let (items, errors) = fetch(client, &targets).await?;
            match (items.as_slice(), &args.output) {
                ([], _) => {}
                ([one], Output::Json) if targets.len() == 1 => print::json(one)?,
                ([one], Output::Yaml) if targets.len() == 1 => print::out(&yaml::document(one)?)?,
                ([one], Output::JsonPath(template)) if targets.len() == 1 => {
                    values(template, one)?;
                }
                _ => {
                    let unreadable = Vec::new();
                    show(FleetList { items, unreadable }, &args)?;
                }
            }
            match errors.is_empty() {
                true => Ok(()),
                false => Err(Failure::Failed(errors)),
            }
        }
    }
}

fn show(list: FleetList<FleetObject>, args: &GetArgs) -> Result<(), Failure> {
    match &args.output {
        Output::Json => print::json(&list),
        Output::Yaml => print::out(&yaml::document(&list)?),
        Output::JsonPath(template) => values(template, &list),
        Output::Name => {
            let names = list.items.iter();
            let names: String = names
                .map(|object| format!("{}/{}\n", object.kind(), object.name()))
                .collect();
            print::out(&names)
        }
        Output::Wide => print::out(&tables(&list.items, Columns::Wide, args.no_headers)),
        Output::Table | Output::Manifest => {
            print::out(&tables(&list.items, Columns::Narrow, args.no_headers))
        }
    }
}

/// One table per run of objects of the same kind.
fn tables(items: &[FleetObject], columns: Columns, no_headers: bool) -> String {
    let now = clock::now();
    let runs = items.chunk_by(|one, next| one.kind() == next.kind());
    let tables: Vec<String> = runs
        .map(|run| {
            let table = Table::new(header(run[0].kind(), columns), Colors::for_stdout());
            let mut table = match no_headers {
                true => table.without_header(),
                false => table,
            };
            table.draw(run.iter().map(|object| row(object, columns, now)).collect())
        })
        .collect();
    tables.join("\n")
}
