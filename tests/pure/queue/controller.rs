//! The controller: bounded, no run cancelled, a panic is a failure. Time is tokio's, paused.
//! Out of scope: the order of keys.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use slicectl::runtime::backoff;
use slicectl::runtime::controller::{controller, release_worker};
use slicectl::runtime::queue::Outcome;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const WIDTH: usize = 3;

#[tokio::test(start_paused = true)]
async fn at_most_so_many_run_at_once_and_never_two_of_a_key() {
    let (controller, waker, mut idle) = controller::<u32>(WIDTH);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let running: Arc<Mutex<HashMap<u32, usize>>> = Arc::default();
    let looks = Arc::new(AtomicUsize::new(0));
    let (n, m, r, l) = (now.clone(), most.clone(), running.clone(), looks.clone());
    let run = move |key: u32, _| {
        let (now, most, running, looks) = (n.clone(), m.clone(), r.clone(), l.clone());
        async move {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            looks.fetch_add(1, SeqCst);
            let mine = *running
                .lock()
                .unwrap()
                .entry(key)
                .and_modify(|n| *n += 1)
                .or_insert(1);
            assert_eq!(mine, 1, "two runs of one key");
            sleep(Duration::from_millis(10)).await;
            running.lock().unwrap().remove(&key);
            now.fetch_sub(1, SeqCst);
            Outcome::Converged
        }
    };
    let task = tokio::spawn(controller.run(run, pending()));
    for round in 0..20 {
        (0..10).for_each(|key| waker.enqueue(key));
        sleep(Duration::from_millis(round % 7)).await;
    }
    sleep(Duration::from_secs(1)).await;
    idle.wait_for(|idle| *idle).await.unwrap();
    assert_eq!(most.load(SeqCst), WIDTH);
    assert!((10..=200).contains(&looks.load(SeqCst)));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_reconcile_that_releases_its_worker_lets_others_run_and_these_are_bounded_too() {
    let (controller, waker, mut idle) = controller::<u32>(WIDTH);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (n, m) = (now.clone(), most.clone());
    let run = move |_, _| {
        let (now, most) = (n.clone(), m.clone());
        async move {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            release_worker(sleep(Duration::from_secs(1))).await;
            now.fetch_sub(1, SeqCst);
            Outcome::Converged
        }
    };
    let started = Instant::now();
    let task = tokio::spawn(controller.run(run, pending()));
    (0..2).for_each(|key| waker.enqueue(key));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(now.load(SeqCst), 2);
    (2..24).for_each(|key| waker.enqueue(key));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(now.load(SeqCst), 4 * WIDTH, "three quarters of them aside");
    idle.wait_for(|idle| *idle).await.unwrap();
    assert_eq!(most.load(SeqCst), 4 * WIDTH);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "two by two dozens"
    );
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_key_enqueued_during_a_run_is_observed_again_after_it() {
    let (controller, waker, _) = controller::<u32>(WIDTH);
    let starts: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = starts.clone();
    let run = move |_, _| {
        seen.lock().unwrap().push(Instant::now());
        async {
            sleep(Duration::from_millis(100)).await;
            Outcome::Converged
        }
    };
    let task = tokio::spawn(controller.run(run, pending()));
    waker.enqueue(1);
    sleep(Duration::from_millis(50)).await;
    let enqueued = Instant::now();
    (0..5).for_each(|_| waker.enqueue(1));
    sleep(Duration::from_secs(1)).await;
    let starts = starts.lock().unwrap().clone();
    assert_eq!(starts.len(), 2, "many nudges, one look");
    assert!(starts[1] > enqueued);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn stopping_starts_nothing_and_finishes_what_runs() {
    let (controller, waker, _) = controller::<u32>(WIDTH);
    let (started, finished) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (s, f) = (started.clone(), finished.clone());
    let run = move |_, _| {
        s.fetch_add(1, SeqCst);
        let finished = f.clone();
        async move {
            sleep(Duration::from_secs(5)).await;
            finished.fetch_add(1, SeqCst);
            Outcome::Converged
        }
    };
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(controller.run(run, async move { stopped.cancelled().await }));
    (0..10).for_each(|key| waker.enqueue(key));
    sleep(Duration::from_millis(1)).await;
    stop.cancel();
    task.await.unwrap();
    assert_eq!(started.load(SeqCst), WIDTH);
    assert_eq!(finished.load(SeqCst), WIDTH);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_panics_backs_off_and_is_tried_again() {
    let (controller, waker, _) = controller::<u32>(WIDTH);
    let starts: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = starts.clone();
    let run = move |_, failures| {
        seen.lock().unwrap().push(Instant::now());
        async move {
            assert!(failures > 0, "only the first one");
            Outcome::Converged
        }
    };
    let task = tokio::spawn(controller.run(run, pending()));
    waker.enqueue(1);
    sleep(Duration::from_secs(10)).await;
    let starts = starts.lock().unwrap().clone();
    assert_eq!(starts.len(), 2);
    assert!(starts[1] - starts[0] >= backoff::MIN_DELAY);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_fresh_enqueue_ends_a_backoff_and_another_one_does_not() {
    let (controller, waker, _) = controller::<u32>(WIDTH);
    let looks = Arc::new(AtomicUsize::new(0));
    let seen = looks.clone();
    let run = move |_, _| {
        seen.fetch_add(1, SeqCst);
        async { Outcome::Failed }
    };
    let task = tokio::spawn(controller.run(run, pending()));
    waker.enqueue(1);
    sleep(backoff::MIN_DELAY / 4).await;
    waker.enqueue(1);
    sleep(backoff::MIN_DELAY / 4).await;
    assert_eq!(looks.load(SeqCst), 1);
    waker.enqueue_fresh(1);
    sleep(backoff::MIN_DELAY / 4).await;
    assert_eq!(looks.load(SeqCst), 2);
    task.abort();
}
