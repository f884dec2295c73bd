//! How long a commit takes: `cargo test --release --test store -- --ignored --nocapture latency`.
//! Not here: whether it is on the disk.

use std::time::Instant;

use slicectl::store::Store;

use crate::whole::{Step, apply, fill};

/// Commits of each writer.
const COMMITS: u32 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn latency_of_commits() {
    for writers in [1, 16, 256_u32] {
        let dir = tempfile::tempdir_in(std::env::var("SLICE_DISK").unwrap_or("/var/tmp".into()));
        let dir = dir.unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        fill(&store).await;
        let began = Instant::now();
        let tasks: Vec<_> = (0..writers)
            .map(|index| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut took = Vec::new();
                    for _ in 0..COMMITS {
                        let began = Instant::now();
                        let step = Step::Vm((index % 3) as u8, index / 3 + 1);
                        store.write(|txn| apply(txn, &step)).await.unwrap();
                        took.push(began.elapsed());
                    }
                    took
                })
            })
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await.unwrap());
        }
        let all = began.elapsed();
        took.sort();
        println!(
            "{writers} writers: {} commits in {all:?}, median {:?}, worst {:?}",
            took.len(),
            took[took.len() / 2],
            took[took.len() - 1]
        );
        store.close();
    }
}
