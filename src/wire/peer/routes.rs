//! Which requests name a VM, and where.
//! Out of scope: where the VM is; what the requests do.

use std::borrow::Cow;
use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use percent_encoding::percent_decode_str;

use crate::api::event::ObjectRef;
use crate::api::meta::Name;
use crate::api::view::Kind;

/// Where the name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the segment of the path with this number; 1 is the first.
    Segment(usize),
    /// In `/v1/objects/{kind}/{name}`, if the kind is that of VMs.
    Object,
    /// In the parameter `object` of the query, if it is `vm/NAME`.
    Query,
}

/// How long the head of a response may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::wire) enum Patience {
    /// It is answered at once: [`SHORT`].
    Short,
    /// It is answered when the VM has reached a state, or its agent answers: [`LONG`].
    Long,
    /// It is a request to an agent, or a stream, and has the limits of these.
    Stream,
}

const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(900);

impl Patience {
    /// `None`: it may take as long as both sides are connected.
    pub(in crate::wire) fn head(self) -> Option<Duration> {
        match self {
            Self::Short => Some(SHORT),
            Self::Long => Some(LONG),
            Self::Stream => None,
        }
    }
}

/// The routes that name a VM. A test compares them with the router.
const ROUTES: &[(&str, At, Patience)] = &[
    ("/v1/objects/{kind}/{name}", At::Object, Patience::Short),
    ("/v1/vms/{vm}", At::Segment(3), Patience::Short),
    ("/v1/vms/{vm}/{verb}", At::Segment(3), Patience::Short),
    (
        "/v1/vms/{vm}/agent/{*path}",
        At::Segment(3),
        Patience::Stream,
    ),
    ("/v1/metrics/{vm}", At::Segment(3), Patience::Short),
    ("/v1/usage/{vm}", At::Segment(3), Patience::Short),
    ("/v1/logs/{vm}", At::Segment(3), Patience::Short),
    ("/v1/console/{vm}", At::Segment(3), Patience::Short),
    ("/v1/explain/{vm}", At::Segment(3), Patience::Short),
    ("/v1/events", At::Query, Patience::Short),
    ("/v1/watch", At::Query, Patience::Short),
    ("/node/{vm}/stats", At::Segment(2), Patience::Short),
    (
        "/hostgroup/{group}/nodes/{vm}",
        At::Segment(4),
        Patience::Short,
    ),
    ("/vm/{vm}", At::Segment(2), Patience::Short),
    ("/vm/{vm}/tags", At::Segment(2), Patience::Short),
    ("/vm/{vm}/logs", At::Segment(2), Patience::Short),
    ("/vm/{vm}/health", At::Segment(2), Patience::Long),
    ("/vm/{vm}/pause", At::Segment(2), Patience::Long),
    ("/vm/{vm}/resume", At::Segment(2), Patience::Long),
    ("/vm/{vm}/shutdown", At::Segment(2), Patience::Long),
    ("/vm/{vm}/relaunch", At::Segment(2), Patience::Long),
    ("/vm/{vm}/suspend", At::Segment(2), Patience::Short),
    ("/vm/{vm}/restore", At::Segment(2), Patience::Short),
    ("/vm/{vm}/exec", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/exec/{id}", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/exec/{id}/logs", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/exec/{id}/kill", At::Segment(2), Patience::Stream),
    (
        "/vm/{vm}/exec/{id}/wait-exit",
        At::Segment(2),
        Patience::Stream,
    ),
    ("/vm/{vm}/cp", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/fs/stat", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/fs/readdir", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/fs/mkdir", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/fs/remove", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/fs/watch", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/shell", At::Segment(2), Patience::Stream),
    ("/vm/{vm}/forward", At::Segment(2), Patience::Stream),
];

/// The VM that a request names; `None` if it names none, or none that can exist.
pub(in crate::wire) fn vm_of(request: &Request) -> Option<(Name, Patience)> {
    let route = request.extensions().get::<MatchedPath>()?;
    let uri = request.uri();
    named(route.as_str(), uri.path(), uri.query().unwrap_or_default())
}

/// The VM that the path and the query of a request to this route name.
pub(super) fn named(route: &str, path: &str, query: &str) -> Option<(Name, Patience)> {
    let (_, at, patience) = ROUTES.iter().find(|(known, ..)| *known == route)?;
    let segment = |number: usize| decoded(path.split('/').nth(number)?);
    let name = match at {
        At::Segment(number) => Name::new(segment(*number)?).ok()?,
        At::Object => {
            let kind: Kind = segment(3)?.parse().ok()?;
            let name = Name::new(segment(4)?).ok()?;
            (kind == Kind::Vm).then_some(name)?
        }
        At::Query => of_object(query)?,
    };
    Some((name, *patience))
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

/// The VM of `object=vm/NAME`. Several are an error of the handler.
fn of_object(query: &str) -> Option<Name> {
    let mut values = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("object="));
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    match decoded(value)?.parse().ok()? {
        ObjectRef::Named(Kind::Vm, name) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The routes of the OpenAPI document, which another test compares with the router.
    fn routes() -> BTreeSet<String> {
        let document: serde_json::Value =
            serde_json::from_slice(&crate::wire::openapi()).expect("a document");
        let paths = document["paths"].as_object().expect("paths");
        let agent = "/v1/vms/{vm}/agent/";
        paths
            .keys()
            .map(|path| match path.starts_with(agent) {
                true => format!("{agent}{{*path}}"),
                false => path.clone(),
            })
            .collect()
    }

    #[test]
    fn each_route_that_names_a_vm_is_in_the_table() {
        let known: BTreeSet<String> = ROUTES
            .iter()
            .map(|(route, ..)| (*route).to_owned())
            .collect();
        assert_eq!(known.len(), ROUTES.len(), "no route is listed twice");
        let all = routes();
        let unknown: Vec<_> = known.difference(&all).collect();
        assert!(unknown.is_empty(), "no such route: {unknown:?}");
        let missing: Vec<_> = all
            .iter()
            .filter(|path| path.contains("{vm}") && !known.contains(*path))
            .collect();
        assert!(missing.is_empty(), "missing: {missing:?}");
    }

    #[test]
    fn the_routers_of_both_apis_have_no_other_name_of_a_vm() {
        for (text, least) in [
            (include_str!("../server.rs"), 7),
            (include_str!("../compat/mod.rs"), 20),
        ] {
            let paths = text
                .split(".route(")
                .skip(1)
                .filter_map(|call| call.split('"').nth(1));
            let of_vms: Vec<&str> = paths.filter(|path| path.contains("{vm}")).collect();
            assert!(of_vms.len() > least, "{of_vms:?}");
            for path in of_vms {
                assert!(ROUTES.iter().any(|(route, ..)| *route == path), "{path}");
            }
        }
    }

    #[test]
    fn segments_are_those_of_the_name() {
        for (route, at, _) in ROUTES {
            if let At::Segment(number) = at {
                assert_eq!(route.split('/').nth(*number), Some("{vm}"), "{route}");
            }
        }
    }

    #[test]
    fn a_name_is_found_where_it_is_and_nowhere_else() {
        let name = |route: &str, path: &str, query: &str| {
            named(route, path, query).map(|(name, _)| name.to_string())
        };
        for (route, path, query, expected) in [
            ("/v1/vms/{vm}", "/v1/vms/a-1", "", Some("a-1")),
            ("/v1/vms/{vm}", "/v1/vms/%61-1", "", Some("a-1")),
            ("/v1/vms/{vm}", "/v1/vms/A", "", None),
            ("/v1/vms/{vm}", "/v1/vms/%ff", "", None),
            ("/vm/{vm}/exec", "/vm/a-1/exec", "vm=b", Some("a-1")),
            (
                "/hostgroup/{group}/nodes/{vm}",
                "/hostgroup/g/nodes/g-1",
                "",
                Some("g-1"),
            ),
            (
                "/v1/objects/{kind}/{name}",
                "/v1/objects/vm/a",
                "",
                Some("a"),
            ),
            (
                "/v1/objects/{kind}/{name}",
                "/v1/objects/vms/a",
                "",
                Some("a"),
            ),
            (
                "/v1/objects/{kind}/{name}",
                "/v1/objects/hostgroup/a",
                "",
                None,
            ),
            (
                "/v1/events",
                "/v1/events",
                "follow=true&object=vm%2Fa-1",
                Some("a-1"),
            ),
            ("/v1/events", "/v1/events", "object=vm/a", Some("a")),
            ("/v1/events", "/v1/events", "object=vm/a&object=vm/b", None),
            ("/v1/events", "/v1/events", "object=host", None),
            ("/v1/events", "/v1/events", "", None),
            ("/v1/apply", "/v1/apply", "object=vm/a", None),
        ] {
            assert_eq!(
                name(route, path, query).as_deref(),
                expected,
                "{path}?{query}"
            );
        }
    }
}
