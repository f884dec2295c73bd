//! What one group cannot know of itself: whether it is at peace with the others.
//! Not here: reading YAML, the store, which pools are leased.
//!
//! # Why
//! VM names need no check: `<group>-<index>` is unique when group names are, because an index has no `-`, so that all before the
//! last `-` is the group (`a-1-1` is the first VM of `a-1`, and no VM of `a`). A test below holds that down.

use std::collections::HashMap;

use ipnetwork::Ipv4Network;

use super::host_group::{HostGroup, HostGroupSpec, Origin};
use super::manifest::{Draft, Location, Problem};
use super::meta::Name;
use super::network::NetworkSpec;
use super::pool;

/// A draft, and where the group would belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// What is wanted.
    pub draft: &'a Draft,
    /// Who wants it.
    pub origin: Origin,
}

/// What each of `claims` is refused for: the index of the claim, and the problem. `standing` are groups that stay as they are
/// whatever is claimed; among the claims the earlier wins, see [`by_precedence`].
pub fn conflicts(standing: &[&HostGroup], claims: &[Claim]) -> Vec<(usize, Problem)> {
    let mut ground = Ground::default();
    for group in standing {
        ground.take(&group.meta.name, &group.spec, Place::Stored(&group.origin));
    }
    let mut refused = Vec::new();
    for (index, Claim { draft, .. }) in claims.iter().enumerate() {
        let problems = ground.objections(draft);
        if problems.is_empty() {
            ground.take(&draft.name, &draft.spec, Place::Written(&draft.at));
        }
        refused.extend(problems.into_iter().map(|problem| (index, problem)));
    }
    refused
}

/// Puts claims in the order in which they win: what runs and keeps its range, then what runs and changes it, then what
/// comes from elsewhere, then what is new; within each the order given.
pub fn by_precedence<'a>(stored: &[HostGroup], mut claims: Vec<Claim<'a>>) -> Vec<Claim<'a>> {
    let stored: HashMap<&Name, &HostGroup> = stored.iter().map(|g| (&g.meta.name, g)).collect();
    claims.sort_by_key(|claim| match stored.get(&claim.draft.name) {
        Some(group) if group.origin != claim.origin => 2,
        Some(group) if range(&group.spec) != range(&claim.draft.spec) => 1,
        Some(_) => 0,
        None => 3,
    });
    claims
}

/// Whether `slicectl apply` may bring these drafts: none may belong to a file, and all must be at peace.
pub fn check_apply(stored: &[HostGroup], drafts: &[Draft]) -> Result<(), Vec<Problem>> {
    let brings = |group: &HostGroup| drafts.iter().any(|draft| draft.name == group.meta.name);
    let standing: Vec<&HostGroup> = stored
        .iter()
        .filter(|group| !group.meta.deleting)
        .filter(|group| group.origin != Origin::Apply || !brings(group))
        .collect();
    let claim = |draft| Claim {
        draft,
        origin: Origin::Apply,
    };
    let claims = by_precedence(stored, drafts.iter().map(claim).collect());
    let problems: Vec<Problem> = conflicts(&standing, &claims)
        .into_iter()
        .map(|(_, problem)| problem)
        .collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems),
    }
}

/// Where a group was met.
#[derive(Clone, Copy)]
enum Place<'a> {
    Stored(&'a Origin),
    Written(&'a Location),
}

impl Place<'_> {
    fn describe(self) -> String {
        match self {
            Self::Stored(Origin::Apply) => "made by slicectl apply".to_owned(),
            Self::Stored(Origin::File(path)) => format!("of {}", path.display()),
            Self::Written(at) => format!("at {at}"),
        }
    }
}

/// What is taken already.
#[derive(Default)]
struct Ground<'a> {
    names: HashMap<&'a Name, Place<'a>>,
    ranges: Vec<(Ipv4Network, &'a Name, Place<'a>)>,
}

impl<'a> Ground<'a> {
    fn take(&mut self, name: &'a Name, spec: &HostGroupSpec, place: Place<'a>) {
        self.names.insert(name, place);
        if let Some(range) = range(spec) {
            self.ranges.push((range, name, place));
        }
    }

    fn objections(&self, draft: &Draft) -> Vec<Problem> {
        if let Some(place) = self.names.get(&draft.name) {
            return vec![Problem {
                at: draft.at.clone(),
                field: format!("{}.name", draft.field),
                message: twice(&draft.name, *place),
            }];
        }
        let Some(range) = range(&draft.spec) else {
            return Vec::new();
        };
        // One is enough: a wide range may overlap thousands.
        self.ranges
            .iter()
            .find(|(taken, ..)| pool::overlaps(*taken, range))
            .into_iter()
            .map(|(taken, name, place)| {
                let place = place.describe();
                let message = format!("{range} overlaps {taken} of group \"{name}\" {place}");
                draft.problem("network.range", message)
            })
            .collect()
    }
}

fn twice(name: &Name, place: Place) -> String {
    match place {
        Place::Stored(Origin::Apply) => format!(
            "group \"{name}\" was made by slicectl apply; `slicectl delete hostgroup/{name}` first, or change it with apply"
        ),
        Place::Stored(Origin::File(path)) => format!(
            "group \"{name}\" belongs to the file {}; change it there",
            path.display()
        ),
        Place::Written(at) => format!("group \"{name}\" is already at {at}"),
    }
}

fn range(spec: &HostGroupSpec) -> Option<Ipv4Network> {
    match &spec.template.network {
        NetworkSpec::Isolated(isolated) => isolated.range,
        NetworkSpec::Bridge(_) | NetworkSpec::Cni(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::manifest::{Source, parse};
    use super::super::meta::Meta;
    use super::*;

    fn drafts(file: &str, groups: &[(&str, Option<&str>)]) -> Vec<Draft> {
        let mut text = "config:\n  host_groups:\n".to_owned();
        for (name, range) in groups {
            let range = range.map_or(String::new(), |range| format!(", range: {range}"));
            text += &format!("    - {{name: {name}, network: {{mode: isolated{range}}}}}\n");
        }
        parse(&Source {
            name: file.into(),
            text,
        })
        .expect("a sound manifest")
    }

    fn stored(origin: Origin, draft: &Draft) -> HostGroup {
        HostGroup {
            meta: Meta::new(draft.name.clone(), jiff::Timestamp::UNIX_EPOCH),
            origin,
            spec: draft.spec.clone(),
        }
    }

    fn claim(draft: &Draft) -> Claim<'_> {
        let origin = Origin::File(draft.at.file.clone().into());
        Claim { draft, origin }
    }

    fn words(problems: &[(usize, Problem)]) -> Vec<String> {
        problems.iter().map(|(_, p)| p.to_string()).collect()
    }

    #[test]
    fn the_same_group_in_two_files_names_both_places() {
        let (a, b) = (
            drafts("a.yaml", &[("web", None)]),
            drafts("b.yaml", &[("web", None)]),
        );
        assert_eq!(
            words(&conflicts(&[], &[claim(&a[0]), claim(&b[0])])),
            ["b.yaml:3:14: config.host_groups[0].name: group \"web\" is already at a.yaml:3:14"]
        );
    }

    #[test]
    fn overlapping_ranges_name_both_groups_both_ranges_and_both_places() {
        let a = drafts("a.yaml", &[("one", Some("169.254.100.0/22"))]);
        let b = drafts("b.yaml", &[("two", Some("169.254.102.0/23"))]);
        assert_eq!(
            words(&conflicts(&[], &[claim(&a[0]), claim(&b[0])])),
            [
                "b.yaml:3:52: config.host_groups[0].network.range: 169.254.102.0/23 overlaps 169.254.100.0/22 of group \"one\" at a.yaml:3:14"
            ]
        );
    }

    #[test]
    fn what_runs_wins_over_what_comes_also_when_it_stands_later_in_the_alphabet() {
        let new = drafts("a.yaml", &[("new", Some("169.254.100.0/22"))]);
        let old = drafts("b.yaml", &[("old", Some("169.254.100.0/22"))]);
        let running = [stored(Origin::File("b.yaml".into()), &old[0])];
        let claims = by_precedence(&running, vec![claim(&new[0]), claim(&old[0])]);
        let refused = conflicts(&[], &claims);
        assert_eq!(refused.len(), 1);
        assert_eq!(claims[refused[0].0].draft.name.as_str(), "new");
    }

    #[test]
    fn apply_on_a_group_of_a_file_is_refused_with_the_files_name() {
        let mine = drafts("-", &[("web", None), ("other", None)]);
        let running = [stored(
            Origin::File("/etc/slice/groups.d/web.yaml".into()),
            &mine[0],
        )];
        let problems = check_apply(&running, &mine).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(
            problems[0].to_string(),
            "-:3:14: config.host_groups[0].name: group \"web\" belongs to the file /etc/slice/groups.d/web.yaml; change it there"
        );
    }

    #[test]
    fn apply_changes_its_own_groups_and_two_of_them_may_swap_ranges() {
        let before = drafts(
            "-",
            &[
                ("a", Some("169.254.100.0/22")),
                ("b", Some("169.254.104.0/22")),
            ],
        );
        let after = drafts(
            "-",
            &[
                ("a", Some("169.254.104.0/22")),
                ("b", Some("169.254.100.0/22")),
            ],
        );
        let running: Vec<_> = before.iter().map(|d| stored(Origin::Apply, d)).collect();
        assert_eq!(check_apply(&running, &after), Ok(()));
        // Alone, the first runs into the second, which stays.
        assert_eq!(check_apply(&running, &after[..1]).unwrap_err().len(), 1);
    }

    proptest! {
        #[test]
        fn vm_names_are_unique_when_group_names_are(
            groups in proptest::collection::hash_set("[a-c1-3]{1,2}(-[1-3a]{1,2}){0,2}", 1..8),
            count in 1_u32..40,
        ) {
            let mut seen = HashSet::new();
            for group in &groups {
                let group = Name::new(group.clone()).unwrap();
                for index in 1..=count {
                    prop_assert!(seen.insert(HostGroup::vm_name(&group, index).unwrap()));
                }
            }
        }
    }
}
