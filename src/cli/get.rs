//! `get`: lists or watches objects, in all output formats.
//! Out of scope: the columns (see [`super::rows`]).

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::args::{GetArgs, Output};
use super::failure::{self, Failure};
use super::paint::{Colors, Severity};
use super::rows::{self, Columns, STATUS};
use super::table::{Field, Table};
use super::target::{self, Selection, Target};
use super::{print, yaml};
use crate::api::tag::{Selector, Tags};
use crate::api::view::{Change, Kind, List, Object};
use crate::clock;
use crate::wire::Client;
use crate::wire::client::ClientError;

/// `get KIND [NAME…] [-o …] [-w]`.
pub async fn get(client: &Client, args: GetArgs) -> Result<(), Failure> {
    let selection = target::selection(&args.targets)?;
    let selector = args.selector.as_ref();
    match (selector, &selection) {
        (None, _) => {}
        (Some(_), Selection::All(kinds)) => {
            if let Some(kind) = kinds.iter().find(|kind| **kind != Kind::Vm) {
                let usage = format!("-l is valid for VMs only: a {kind} has no tags");
                return Err(Failure::Usage(usage));
            }
        }
        (Some(_), Selection::Some(_)) => {
            let usage = "-l cannot be used with names of VMs".to_owned();
            return Err(Failure::Usage(usage));
        }
    }
    match args.watch {
        true => watch(client, &selection, selector, args.output).await,
        false => once(client, &selection, selector, args.output).await,
    }
}

/// Whether the selector of `-l` matches the object.
fn is_selected(selector: Option<&Selector>, object: &Object) -> bool {
    selector.is_none_or(|selector| match object {
        Object::Vm(vm) => match &vm.on_demand {
            Some(on_demand) => selector.selects(&on_demand.tags),
            None => selector.selects(&Tags::new()),
        },
        Object::HostGroup(_) | Object::Lease(_) => false,
    })
}

async fn once(
    client: &Client,
    selection: &Selection,
    selector: Option<&Selector>,
    output: Output,
) -> Result<(), Failure> {
    match selection {
        Selection::All(kinds) => {
            let (items, more) = list(client, kinds, selector).await?;
            if items.is_empty() && matches!(output, Output::Table | Output::Wide) {
                let kinds: Vec<String> = kinds.iter().map(|kind| format!("{kind}s")).collect();
                failure::note(&format!("no {} found", kinds.join(" or ")));
                return Ok(());
            }
            show(items, more, output)
        }
        Selection::Some(targets) => {
            let (items, errors) = fetch(client, targets).await?;
            match (items.as_slice(), output) {
                ([], _) => {}
                ([one], Output::Json) if targets.len() == 1 => print::json(one)?,
                ([one], Output::Yaml) if targets.len() == 1 => print::out(&yaml::document(one)?)?,
                _ => show(items, 0, output)?,
            }
            match errors.is_empty() {
                true => Ok(()),
                false => Err(Failure::Failed(errors)),
            }
        }
    }
}

/// The selected objects of these kinds, and the number of objects that the responses omit.
async fn list(
    client: &Client,
    kinds: &[Kind],
    selector: Option<&Selector>,
) -> Result<(Vec<Object>, usize), Failure> {
    let (mut all, mut omitted) = (Vec::new(), 0);
    for kind in kinds {
        let List { items, more } = client.get(*kind, None).await?;
        if more > 0 {
            failure::warn(&format!(
                "and {more} more {kind}s: the response size is limited; specify names to show the others"
            ));
        }
        let selected = |object: &Object| is_selected(selector, object);
        all.extend(items.into_iter().filter(selected));
        omitted += more;
    }
    Ok((all, omitted))
}

/// The objects that exist, and an error message for each that does not.
pub async fn fetch(
    client: &Client,
    targets: &[Target],
) -> Result<(Vec<Object>, Vec<String>), Failure> {
    let (mut items, mut errors) = (Vec::new(), Vec::new());
    for target in targets {
        match client.get(target.kind, Some(&target.name)).await {
            Ok(list) => items.extend(list.items),
            Err(error) if error.is_not_found() => errors.extend(error.causes()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((items, errors))
}

fn show(items: Vec<Object>, more: usize, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => print::json(&List { items, more }),
        Output::Yaml => print::out(&yaml::document(&List { items, more })?),
        Output::Name => {
            let names: String = items
                .iter()
                .map(|object| object.reference() + "\n")
                .collect();
            print::out(&names)
        }
        Output::Table => print::out(&tables(&items, Columns::Narrow)),
        Output::Wide => print::out(&tables(&items, Columns::Wide)),
    }
}

/// One table per run of objects of the same kind.
fn tables(items: &[Object], breadth: Columns) -> String {
    let now = clock::now();
    let tables: Vec<String> = items
        .chunk_by(|one, next| one.kind() == next.kind())
        .map(|run| {
            let header = rows::header(run[0].kind(), breadth);
            let rows = run.iter().map(|o| rows::row(o, breadth, now)).collect();
            Table::new(header, Colors::for_stdout()).draw(rows)
        })
        .collect();
    tables.join("\n")
}

type Changes = BoxStream<'static, Result<Change, ClientError>>;

async fn watch(
    client: &Client,
    selection: &Selection,
    selector: Option<&Selector>,
    output: Output,
) -> Result<(), Failure> {
    let (kind, changes, watched) = open(client, selection).await?;
    let selector = selector.cloned();
    // Tags never change, so the selection of an object does not change either.
    let is_match = move |change: &Result<Change, ClientError>| match change {
        Ok(Change::Added { object } | Change::Modified { object } | Change::Deleted { object }) => {
            is_selected(selector.as_ref(), object)
        }
        Ok(Change::Synced) | Err(_) => true,
    };
    let changes = changes
        .filter(move |change| std::future::ready(is_match(change)))
        .boxed();
    match output {
        Output::Table => stream_rows(kind, changes, watched, Columns::Narrow).await?,
        Output::Wide => stream_rows(kind, changes, watched, Columns::Wide).await?,
        Output::Json | Output::Yaml | Output::Name => stream_values(changes, output).await?,
    }
    Err(Failure::one("connection closed by sliced"))
}

/// All changes in one stream, and the number of `SYNCED` in it.
async fn open(client: &Client, selection: &Selection) -> Result<(Kind, Changes, usize), Failure> {
    let one_kind = || {
        let usage = "a watch supports one kind only; start one watch per kind".to_owned();
        Failure::Usage(usage)
    };
    match selection {
        Selection::All(kinds) => match kinds[..] {
            [kind] => Ok((kind, client.watch(kind, None).await?, 1)),
            _ => Err(one_kind()),
        },
        Selection::Some(targets) => {
            let kind = targets[0].kind;
            if targets.iter().any(|target| target.kind != kind) {
                return Err(one_kind());
            }
            let mut streams = Vec::new();
            for target in targets {
                streams.push(client.watch(kind, Some(&target.name)).await?);
            }
            Ok((kind, stream::select_all(streams).boxed(), targets.len()))
        }
    }
}

/// The initial objects are collected and drawn as one table, so that its columns are aligned.
async fn stream_rows(
    kind: Kind,
    mut changes: Changes,
    mut unsynced: usize,
    breadth: Columns,
) -> Result<(), Failure> {
    let titles = rows::header(kind, breadth);
    let status = titles.iter().position(|title| *title == STATUS);
    let mut table = Table::new(titles, Colors::for_stdout());
    let mut pending_rows = Vec::new();
    while let Some(change) = changes.next().await {
        match change? {
            Change::Synced => unsynced = unsynced.saturating_sub(1),
            Change::Added { object } | Change::Modified { object } => {
                pending_rows.push(rows::row(&object, breadth, clock::now()));
            }
            Change::Deleted { object } => {
                let mut row = rows::row(&object, breadth, clock::now());
                if let Some(status) = status {
                    row[status] = Field::with_severity("Deleted", Severity::Error);
                }
                pending_rows.push(row);
            }
        }
        if unsynced == 0 && !pending_rows.is_empty() {
            print::out(&table.draw(std::mem::take(&mut pending_rows)))?;
        }
    }
    Ok(())
}

async fn stream_values(mut changes: Changes, output: Output) -> Result<(), Failure> {
    while let Some(change) = changes.next().await {
        let change = change?;
        let (object, suffix) = match &change {
            Change::Synced => continue,
            Change::Added { object } | Change::Modified { object } => (object, ""),
            Change::Deleted { object } => (object, " deleted"),
        };
        match output {
            Output::Json => print::json_line(&change)?,
            Output::Yaml => print::out(&format!("---\n{}", yaml::document(&change)?))?,
            Output::Name | Output::Table | Output::Wide => {
                print::out(&format!("{}{suffix}\n", object.reference()))?;
            }
        }
    }
    Ok(())
}
