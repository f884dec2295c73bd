//! Changes the tags of a VM on demand, in one transaction.
//! Out of scope: the syntax of tags.

use super::add_error::AddError;
use super::friendly_name;
use crate::api::meta::Name;
use crate::api::node::TagChange;
use crate::api::on_demand::VmOverrides;
use crate::api::tag::{InvalidTag, MAX_TAGS, TagSet, name_of};
use crate::store::Txn;

/// Changes the tags of a VM, in the entry of its group and in the VM. `None`: there is no such VM on demand.
///
/// # Errors
/// [`AddError`]; then the transaction must be rolled back.
pub fn set_tags(
    txn: &mut Txn<'_>,
    name: &Name,
    change: &TagChange,
) -> Result<Option<TagSet>, AddError> {
    let Some((group, index, order)) = txn.world().order(name) else {
        return Ok(None);
    };
    let before = order.overrides.tag_set();
    let mut group = group.clone();
    let after = changed(&before, change).map_err(|error| invalid(&error))?;
    if after.len() > MAX_TAGS {
        let why = format!(
            "vm/{name} would have {} tags, expected at most {MAX_TAGS}",
            after.len()
        );
        return Err(AddError::Invalid(vec![why]));
    }
    if let Some(label) = after.name().filter(|label| Some(*label) != before.name()) {
        friendly_name::check(txn.world(), &label.to_string(), Some(name))?;
    }
    if after == before {
        return Ok(Some(after));
    }
    let put = |overrides: &mut VmOverrides| {
        overrides.tags.clone_from(&after.tags);
        overrides.plain_tags.clone_from(&after.plain);
    };
    if let Some(order) = group.orders.get_mut(&index) {
        put(&mut order.overrides);
    }
    txn.put_group(group)?;
    if let Some(mut vm) = txn.world().vm_named(name).cloned()
        && let Some(on_demand) = &mut vm.on_demand
    {
        put(&mut on_demand.overrides);
        txn.put_vm(vm)?;
    }
    Ok(Some(after))
}

fn invalid(error: &InvalidTag) -> AddError {
    AddError::Invalid(vec![error.to_string()])
}

/// The tags after the change. The name is not among those that are added, removed and replaced.
fn changed(before: &TagSet, change: &TagChange) -> Result<TagSet, InvalidTag> {
    let lists = [
        Some(&change.add),
        Some(&change.remove),
        change.replace.as_ref(),
    ];
    let mut texts = lists.into_iter().flatten().flatten();
    let current = before.name().map(|name| format!("name={name}"));
    let renames = texts.find(|text| name_of(text).is_some() && Some(*text) != current.as_ref());
    if let Some(text) = renames {
        return Err(InvalidTag::fixed_name(text));
    }
    let is_name = |text: &&String| name_of(text).is_some();
    let mut after = match &change.replace {
        Some(replace) => {
            let mut after = TagSet::of(replace)?;
            after.set_name(before.name().cloned());
            after
        }
        None => before.clone(),
    };
    if let Some(text) = change.remove.iter().find(is_name) {
        return Err(InvalidTag::fixed_name(text));
    }
    change.remove.iter().for_each(|text| after.remove(text));
    change.add.iter().try_for_each(|text| after.add(text))?;
    match change.name.as_deref() {
        None => {}
        Some("") => after.set_name(None),
        Some(label) => {
            after.set_name(None);
            after.add(&format!("name={label}"))?;
        }
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn change(
        add: &[&str],
        remove: &[&str],
        replace: Option<&[&str]>,
        name: Option<&str>,
    ) -> TagChange {
        TagChange {
            add: list(add),
            remove: list(remove),
            replace: replace.map(list),
            name: name.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn tags_are_added_removed_and_replaced_and_the_name_stays() {
        let before = TagSet::of(&list(&["env=ci", "k3s", "name=web"])).unwrap();
        for (change, expected) in [
            (
                change(&["a"], &["k3s"], None, None),
                &["env=ci", "name=web", "a"][..],
            ),
            (
                change(&["name=web"], &[], None, None),
                &["env=ci", "name=web", "k3s"],
            ),
            (change(&[], &[], Some(&[]), None), &["name=web"]),
            (
                change(&[], &[], Some(&["b", "name=web"]), None),
                &["name=web", "b"],
            ),
            (
                change(&[], &[], None, Some("db")),
                &["env=ci", "name=db", "k3s"],
            ),
            (change(&[], &[], None, Some("")), &["env=ci", "k3s"]),
            (
                change(&[], &["nothing"], None, None),
                &["env=ci", "name=web", "k3s"],
            ),
        ] {
            assert_eq!(
                changed(&before, &change).unwrap().texts(),
                expected,
                "{change:?}"
            );
        }
        for refused in [
            change(&["name=db"], &[], None, None),
            change(&[], &["name=web"], None, None),
            change(&[], &[], Some(&["name=db"]), None),
            change(&["a\nb"], &[], None, None),
            change(&[], &[], None, Some("a b")),
        ] {
            assert!(changed(&before, &refused).is_err(), "{refused:?}");
        }
    }
}
