//! Who waits for whom.
//! Out of scope: what they do in their turn.

use std::fs;

use slicectl::cni::{Attachment, ValidAttachment};

use crate::cni::stage::{Stage, blue};

/// How often a plugin began and ended before the next began: `+` and `-`.
fn ended(stage: &Stage) -> usize {
    let ended = fs::read_to_string(stage.path("received/ended")).unwrap_or_default();
    ended.lines().count()
}

#[tokio::test]
async fn one_container_has_one_operation_at_a_time() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.say("one", "ADD.pause", "0.5");
    let attachment = blue();
    let add = stage.runtime.add(&network, &attachment);
    let del = async {
        while stage.order().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        stage.runtime.del(&network, &blue()).await.unwrap();
        // It found the record, so it began after the ADD was over.
        assert!(stage.calls()[1].stdin().get("prevResult").is_some());
        assert_eq!(ended(&stage), 1);
    };
    let (added, ()) = tokio::join!(add, del);
    added.unwrap();
    assert_eq!(stage.order(), ["ADD one", "DEL one"]);
}

#[tokio::test]
async fn different_containers_do_not_wait_for_each_other() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.say("one", "ADD.pause", "1");
    let names = ["a", "b", "c"].map(|id| Attachment::new(id, "/run/netns/x", "eth0"));
    let began = std::time::Instant::now();
    let adds = names.iter().map(|it| stage.runtime.add(&network, it));
    for result in futures::future::join_all(adds).await {
        result.unwrap();
    }
    // One after the other would take three seconds.
    assert!(began.elapsed().as_millis() < 2500, "{:?}", began.elapsed());
}

#[tokio::test]
async fn gc_is_alone() {
    let stage = Stage::new();
    let network = stage.chain("1.1.0", &["one"]);
    stage.say("one", "ADD.pause", "0.5");
    stage.say("one", "GC.pause", "0.5");
    let other = Attachment::new("other", "/run/netns/x", "eth0");
    // A clone takes turns with its origin.
    let runtime = stage.runtime.clone();
    let wait_for = |calls: usize| {
        let stage = &stage;
        async move {
            while stage.order().len() < calls {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    };
    let first = stage.runtime.add(&network, &other);
    let gc = async {
        wait_for(1).await;
        runtime
            .gc(&network, || Ok(vec![ValidAttachment::from(&other)]))
            .await
            .unwrap();
    };
    let second = async {
        wait_for(2).await;
        let before = stage.runtime.add(&network, &blue()).await;
        before.unwrap();
        // ADD, GC, ADD: each was over before the next began.
        assert_eq!(ended(&stage), 3);
    };
    let during = async {
        wait_for(2).await;
        assert_eq!(ended(&stage), 1, "GC began while an ADD was under way");
        wait_for(3).await;
        assert_eq!(ended(&stage), 2, "an ADD began while GC was under way");
    };
    let (first, (), (), ()) = tokio::join!(first, gc, second, during);
    first.unwrap();
    assert_eq!(stage.order(), ["ADD one", "GC one", "ADD one"]);
}
