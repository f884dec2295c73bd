//! What is stored, and when readers see it.
//! Out of scope: etcd.

use std::sync::Mutex;

use super::*;
use crate::fleet::contact::ContactReason;

fn link() -> Arc<Link> {
    let config = kv::Config::new(vec!["http://127.0.0.1:1".parse().unwrap()]);
    let client = kv::Client::new(&config).unwrap();
    let contact = Contact::new(None, None, boottime());
    Link::new(Name::new("a").unwrap(), "host".to_owned(), client, contact)
}

fn header(cluster_id: u64, revision: u64) -> Header {
    Header {
        cluster_id,
        revision,
    }
}

fn renewed(link: &Link, header: Header) -> Event {
    Event::Renewed {
        ticket: link.ticket(),
        header,
        alive: true,
    }
}

fn listed(link: &Link, header: Header) -> Event {
    Event::Listed {
        ticket: link.ticket(),
        header,
    }
}

fn mirror(revision: u64) -> Option<Mirror> {
    Some(Mirror {
        revision,
        ..Mirror::default()
    })
}

fn reason(link: &Link) -> ContactReason {
    link.read(|_, contact| contact.condition(boottime()).reason)
}

#[tokio::test]
async fn facts_are_stored_before_anything_is_done_on_them() {
    let link = link();
    let seen = Mutex::new(Vec::new());
    let store = |facts: Facts| {
        let is_seen = link
            .facts()
            .is_some_and(|it| decisive(it) == decisive(facts));
        seen.lock().unwrap().push((facts, is_seen));
        std::future::ready(Ok(()))
    };
    for (event, mirror) in [
        (renewed(&link, header(1, 5)), None),
        (renewed(&link, header(1, 6)), None),
    ] {
        assert!(link.handle(&store, event, mirror).await.unwrap());
    }
    let event = listed(&link, header(1, 7));
    assert!(link.handle(&store, event, mirror(7)).await.unwrap());
    assert_eq!(reason(&link), ContactReason::Connected);
    let event = renewed(&link, header(2, 9));
    assert!(!link.handle(&store, event, None).await.unwrap());
    assert_eq!(reason(&link), ContactReason::WrongCluster);
    let seen = seen.into_inner().unwrap();
    // The cluster, and the other one; revisions alone are stored later.
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|(_, is_seen)| !is_seen));
    assert_eq!(seen[1].0.unaccepted, Some(header(2, 9)));
}

#[tokio::test]
async fn an_event_whose_facts_cannot_be_stored_has_no_effect() {
    let link = link();
    let fails = |_| std::future::ready(Err("the disk is full".to_owned()));
    let event = renewed(&link, header(1, 5));
    let error = link.handle(&fails, event, None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot store the facts of the fleet: the disk is full"
    );
    assert!(link.facts().is_none() && !link.read(|_, contact| contact.needs_list()));
    let stores = |_| std::future::ready(Ok(()));
    link.handle(&stores, event, None).await.unwrap();
    assert!(link.read(|_, contact| contact.needs_list()) && link.is_stored());
}

#[tokio::test]
async fn a_list_of_another_history_does_not_replace_the_objects() {
    let link = link();
    let store = |_| std::future::ready(Ok(()));
    let event = renewed(&link, header(1, 50));
    link.handle(&store, event, None).await.unwrap();
    let event = listed(&link, header(1, 50));
    link.handle(&store, event, mirror(50)).await.unwrap();
    let event = listed(&link, header(1, 20));
    assert!(!link.handle(&store, event, mirror(20)).await.unwrap());
    assert_eq!(
        link.read_listed(|mirror, _, list| (mirror.revision, list)),
        (50, 1)
    );
    assert_eq!(reason(&link), ContactReason::Rewound);
}

#[tokio::test]
async fn a_cluster_that_is_accepted_while_facts_are_stored_stays_accepted() {
    let link = link();
    let stores = |_| std::future::ready(Ok(()));
    let event = renewed(&link, header(1, 5));
    link.handle(&stores, event, None).await.unwrap();
    let event = renewed(&link, header(2, 9));
    link.handle(&stores, event, None).await.unwrap();
    let late = renewed(&link, header(2, 10));
    let accepts = |_| {
        link.accept(2, boottime());
        std::future::ready(Ok(()))
    };
    assert!(!link.handle(&accepts, late, None).await.unwrap());
    let facts = link.facts().unwrap();
    assert_eq!((facts.cluster_id, facts.unaccepted), (2, None));
    assert!(link.is_stored());
}
