//! `get`: lists or watches objects, in all output formats.
//! Out of scope: the columns (see [`super::rows`]).

use std::collections::HashMap;

use serde::Serialize;

use super::args::GetArgs;
use super::failure::{self, Failure};
use super::jsonpath::Template;
use super::output::Output;
use super::paint::{Colors, Severity};
use super::rows::{self, AGE, Columns, STATUS};
use super::table::{Field, Table};
use super::target::{self, Selection, Target};
use super::{group_manifest, print, watch, yaml};
use crate::api::tag::{Selector, Tags};
use crate::api::view::{Change, Kind, List, Object};
use crate::clock;
use crate::wire::Client;

/// `get KIND [NAME…] [-o …] [-w]`.
pub async fn get(client: &Client, args: GetArgs) -> Result<(), Failure> {
    let selection = target::selection(&args.targets)?;
    match (&args.selector, &selection) {
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
    let kinds: Vec<Kind> = match &selection {
        Selection::All(kinds) => kinds.clone(),
        Selection::Some(targets) => targets.iter().map(|target| target.kind).collect(),
    };
    if args.output == Output::Manifest {
        let is_group = |kind: &Kind| *kind == Kind::HostGroup;
        if args.watch || !kinds.iter().all(is_group) {
            let usage = "-o manifest is valid for host groups, without -w".to_owned();
            return Err(Failure::Usage(usage));
        }
    }
    if let Some(sort_by) = &args.sort_by {
        kinds.iter().try_for_each(|kind| sort_by.check(*kind))?;
    }
    match args.watch {
        true => watch(client, &selection, &args).await,
        false => once(client, &selection, &args).await,
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

async fn once(client: &Client, selection: &Selection, args: &GetArgs) -> Result<(), Failure> {
    let sort = |items: &mut Vec<Object>| {
        if let Some(sort_by) = &args.sort_by {
            sort_by.sort(items, clock::now());
        }
    };
    match selection {
        Selection::All(kinds) => {
            let (mut items, more) = list(client, kinds, args.selector.as_ref()).await?;
            if items.is_empty() && matches!(args.output, Output::Table | Output::Wide) {
                let kinds: Vec<String> = kinds.iter().map(|kind| format!("{kind}s")).collect();
                failure::note(&format!("no {} found", kinds.join(" or ")));
                return Ok(());
            }
            sort(&mut items);
            show(items, more, args)
        }
        Selection::Some(targets) => {
            let (mut items, errors) = fetch(client, targets).await?;
            sort(&mut items);
            match (items.as_slice(), &args.output) {
                ([], _) => {}
                ([one], Output::Json) if targets.len() == 1 => print::json(one)?,
                ([one], Output::Yaml) if targets.len() == 1 => print::out(&yaml::document(one)?)?,
                ([one], Output::JsonPath(template)) if targets.len() == 1 => {
                    values(template, one)?;
                }
                _ => show(items, 0, args)?,
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
        let List { items, more, .. } = client.get(*kind, None).await?;
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

fn show(items: Vec<Object>, more: usize, args: &GetArgs) -> Result<(), Failure> {
    // Several lists have no version in common.
    let list = |items| List {
        items,
        more,
        resource_version: None,
    };
    match &args.output {
        Output::Json => print::json(&list(items)),
        Output::Yaml => print::out(&yaml::document(&list(items))?),
        Output::Name => {
            let names: String = items
                .iter()
                .map(|object| object.reference() + "\n")
                .collect();
            print::out(&names)
        }
        Output::Table => print::out(&tables(&items, Columns::Narrow, args.no_headers)),
        Output::Wide => print::out(&tables(&items, Columns::Wide, args.no_headers)),
        Output::Manifest => {
            let groups = items.iter().filter_map(|object| match object {
                Object::HostGroup(group) => Some((&group.metadata.name, &group.spec)),
                Object::Vm(_) | Object::Lease(_) => None,
            });
            print::out(&group_manifest::text(groups)?)
        }
        Output::JsonPath(template) => values(template, &list(items)),
    }
}

/// Writes the values that a template selects, and a line feed unless it ends with one.
pub(super) fn values(template: &Template, value: &impl Serialize) -> Result<(), Failure> {
    let value = serde_json::to_value(value).map_err(|e| Failure::one(e.to_string()))?;
    let text = template.evaluate(&value);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    print::out(&format!("{text}{end}"))
}

fn table(kind: Kind, columns: Columns, no_headers: bool) -> Table {
    let table = Table::new(rows::header(kind, columns), Colors::for_stdout());
    match no_headers {
        true => table.without_header(),
        false => table,
    }
}

/// One table per run of objects of the same kind.
fn tables(items: &[Object], columns: Columns, no_headers: bool) -> String {
    let now = clock::now();
    let tables: Vec<String> = items
        .chunk_by(|one, next| one.kind() == next.kind())
        .map(|run| {
            let rows = run.iter().map(|o| rows::row(o, columns, now)).collect();
            table(run[0].kind(), columns, no_headers).draw(rows)
        })
        .collect();
    tables.join("\n")
}

async fn watch(client: &Client, selection: &Selection, args: &GetArgs) -> Result<(), Failure> {
    let kind = watch::kind(selection)?;
    let columns = match args.output {
        Output::Table => Columns::Narrow,
        Output::Wide => Columns::Wide,
        _ => {
            let print = |change| print_value(&change, args);
            return watch::watch(client, selection, print).await;
        }
    };
    let mut rows = Rows {
        table: table(kind, columns, args.no_headers),
        titles: rows::header(kind, columns),
        columns,
        printed: HashMap::new(),
        pending: Vec::new(),
        is_synced: false,
    };
    watch::watch(client, selection, |change| {
        rows.add(change, args.selector.as_ref());
        rows.print()
    })
    .await
}

/// The rows of a watch. The initial ones are drawn as one table, so that its columns are aligned; a row is printed only if it differs
/// from the last one of its object in more than the age.
struct Rows {
    table: Table,
    titles: Vec<&'static str>,
    columns: Columns,
    printed: HashMap<String, Vec<Field>>,
    pending: Vec<Vec<Field>>,
    is_synced: bool,
}

impl Rows {
    fn add(&mut self, change: Change, selector: Option<&Selector>) {
        match change {
            Change::Synced => self.is_synced = true,
            Change::Added { object } | Change::Modified { object } => {
                if !is_selected(selector, &object) {
                    return;
                }
                let row = rows::row(&object, self.columns, clock::now());
                let content = self.without_age(&row);
                let before = self.printed.insert(object.reference(), content.clone());
                if before != Some(content) {
                    self.pending.push(row);
                }
            }
            Change::Deleted { object } => {
                self.printed.remove(&object.reference());
                if !is_selected(selector, &object) {
                    return;
                }
                let mut row = rows::row(&object, self.columns, clock::now());
                if let Some(at) = self.titles.iter().position(|title| *title == STATUS) {
                    row[at] = Field::with_severity("Deleted", Severity::Error);
                }
                self.pending.push(row);
            }
        }
    }

    fn without_age(&self, row: &[Field]) -> Vec<Field> {
        let fields = row.iter().zip(&self.titles);
        let fields = fields.filter(|(_, title)| **title != AGE);
        fields.map(|(field, _)| field.clone()).collect()
    }

    fn print(&mut self) -> Result<(), Failure> {
        match self.is_synced && !self.pending.is_empty() {
            true => print::out(&self.table.draw(std::mem::take(&mut self.pending))),
            false => Ok(()),
        }
    }
}

fn print_value(change: &Change, args: &GetArgs) -> Result<(), Failure> {
    let (object, suffix) = match change {
        Change::Synced => return Ok(()),
        Change::Added { object } | Change::Modified { object } => (object, ""),
        Change::Deleted { object } => (object, " deleted"),
    };
    if !is_selected(args.selector.as_ref(), object) {
        return Ok(());
    }
    match &args.output {
        Output::Json => print::json_line(change),
        Output::Yaml => print::out(&format!("---\n{}", yaml::document(change)?)),
        Output::JsonPath(template) => values(template, object),
        Output::Name | Output::Table | Output::Wide | Output::Manifest => {
            print::out(&format!("{}{suffix}\n", object.reference()))
        }
    }
}
