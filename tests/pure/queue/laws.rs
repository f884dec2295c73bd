//! The queue against a naive model: random wake-ups, runs and waits, every law asked after every step.
//! Out of scope: tasks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use slicectl::runtime::backoff;
use slicectl::runtime::queue::{Lane, MAX_CONSECUTIVE_PROMPT_RUNS, Outcome, Queue};

type Key = u8;
const KEYS: Key = 4;

#[derive(Clone, Debug)]
enum Step {
    Nudge(Key, Lane),
    Renew(Key, Lane),
    Take,
    /// Ends the run of the n-th running key, round and round.
    Done(usize, Outcome),
    Wait(Duration),
}

/// One key, as a person would tell it.
#[derive(Clone, Debug, Default)]
struct Story {
    running: bool,
    /// Since when a look is owed that may start at once: the number of the wake-up.
    owed: Option<u64>,
    /// A wake-up came while it ran.
    woken: bool,
    renewed: bool,
    /// No look before, unless renewed (backing off, or shunned).
    backing_off: Option<(Instant, u64)>,
    /// A look then, or sooner if woken (resting).
    resting: Option<(Instant, u64)>,
    /// What it rests for comes to its end by itself.
    awaits: bool,
    failures: u32,
    /// Of the look that is owed.
    lane: Lane,
}

struct Check {
    queue: Queue<Key>,
    now: Instant,
    stories: BTreeMap<Key, Story>,
    /// Numbers wake-ups and expiries in order.
    ticket: u64,
    /// Prompt looks given while a bulk one was owed.
    in_a_row: u32,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_the_queue_keeps_its_laws(steps in prop::collection::vec(step(), 1..80)) {
        let mut check = Check { queue: Queue::default(), now: start(), stories: BTreeMap::new(), ticket: 0, in_a_row: 0 };
        for step in steps {
            check.step(step)?;
            check.agrees()?;
        }
        check.come_to_rest()?;
    }

    #[test]
    fn a_key_that_is_enqueued_all_the_time_starves_no_other(others in 1_u8..KEYS) {
        let (mut queue, now) = (Queue::default(), start());
        (0..=others).for_each(|key| queue.enqueue(key));
        let mut seen = Vec::new();
        for _ in 0..=others {
            let key = queue.take(now).unwrap();
            queue.enqueue(key);
            queue.done(key, now, Outcome::Converged);
            seen.push(key);
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..=others).collect::<Vec<_>>());
    }

    #[test]
    fn neither_lane_starves_however_long_the_other_is(prompt in 1_u16..40, bulk in 1_u16..40) {
        let (mut queue, now) = (Queue::default(), start());
        (0..bulk).for_each(|key| queue.enqueue_in(Lane::Bulk, key));
        (0..prompt).for_each(|key| queue.enqueue_in(Lane::Prompt, 1000 + key));
        // All are woken again at once, for ever; how long each has waited for its last look.
        let mut waited = BTreeMap::new();
        for look in 0..400_u32 {
            let key = queue.take(now).unwrap();
            let (lane, most) = match key {
                // One bulk look comes between so many prompt ones.
                1000.. => (Lane::Prompt, u32::from(prompt) + u32::from(prompt) / MAX_CONSECUTIVE_PROMPT_RUNS + 1),
                _ => (Lane::Bulk, u32::from(bulk) * (MAX_CONSECUTIVE_PROMPT_RUNS + 1)),
            };
            let last = waited.insert(key, look).map_or(0, |last| last);
            prop_assert!(look - last <= most, "{key} at {last} and {look}");
            queue.enqueue_in(lane, key);
            queue.done(key, now, Outcome::Converged);
        }
        prop_assert_eq!(waited.len(), usize::from(prompt + bulk), "all were looked at");
    }

    #[test]
    fn one_prompt_key_waits_for_one_of_thousands_at_most(bulk in 1_u16..5000, before in 0_u16..20) {
        let (mut queue, now) = (Queue::default(), start());
        (0..bulk).for_each(|key| queue.enqueue_in(Lane::Bulk, key));
        for _ in 0..before.min(bulk - 1) {
            queue.take(now);
        }
        // One of those that wait, and another one.
        for key in [bulk - 1, bulk] {
            queue.enqueue_in(Lane::Prompt, key);
            queue.enqueue_in(Lane::Bulk, key);
        }
        let looks: Vec<u16> = (0..3).filter_map(|_| queue.take(now)).collect();
        prop_assert!(looks.contains(&(bulk - 1)) && looks.contains(&bulk), "{looks:?}");
    }

    #[test]
    fn a_key_that_always_fails_is_left_alone_longer_and_longer_and_never_given_up(failures in 1_u32..40) {
        let (mut queue, mut now) = (Queue::default(), start());
        queue.enqueue(0);
        for failure in 1..=failures {
            prop_assert_eq!(queue.take(now), Some(0));
            queue.done(0, now, Outcome::Failed);
            // Ticks of the world in between change nothing.
            queue.enqueue(0);
            let wait = backoff::delay_after(failure);
            prop_assert!((backoff::MIN_DELAY..=backoff::MAX_DELAY).contains(&wait));
            prop_assert_eq!(queue.take(now + wait - Duration::from_millis(1)), None);
            prop_assert_eq!(queue.next_due(now), Some(now + wait));
            now += wait;
        }
        prop_assert_eq!(queue.failures(&0), failures);
    }
}

impl Check {
    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Nudge(key, lane) => {
                self.queue.enqueue_in(lane, key);
                self.enqueued(key, lane);
            }
            Step::Renew(key, lane) => {
                self.queue.enqueue_fresh_in(lane, key);
                self.renewed(key, lane);
            }
            Step::Take => self.take()?,
            Step::Done(nth, outcome) => {
                let running: Vec<Key> = self.running().collect();
                if !running.is_empty() {
                    let key = running[nth % running.len()];
                    self.queue.done(key, self.now, outcome);
                    self.ended(key, outcome);
                }
            }
            Step::Wait(wait) => self.now += wait,
        }
        Ok(())
    }

    fn running(&self) -> impl Iterator<Item = Key> + '_ {
        self.stories
            .iter()
            .filter(|(_, story)| story.running)
            .map(|(key, _)| *key)
    }

    fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    fn enqueued(&mut self, key: Key, lane: Lane) {
        let ticket = self.next_ticket();
        let story = self.stories.entry(key).or_insert(Story::new(lane));
        story.woken_in(lane, ticket);
        if story.running {
            story.woken = true;
        } else if story.backing_off.is_none() {
            story.resting = None;
            story.owed.get_or_insert(ticket);
        }
    }

    fn renewed(&mut self, key: Key, lane: Lane) {
        let ticket = self.next_ticket();
        let story = self.stories.entry(key).or_insert(Story::new(lane));
        story.woken_in(lane, ticket);
        story.failures = 0;
        if story.running {
            story.renewed = true;
        } else {
            (story.backing_off, story.resting) = (None, None);
            story.owed.get_or_insert(ticket);
        }
    }

    fn ended(&mut self, key: Key, outcome: Outcome) {
        let ticket = self.next_ticket();
        let story = self.stories.entry(key).or_default();
        let (woken, renewed) = (story.woken, story.renewed);
        let failures = story.failures;
        *story = Story::new(story.lane);
        match outcome {
            _ if renewed => story.owed = Some(ticket),
            Outcome::Converged | Outcome::RequeueAfter(_) if woken => story.owed = Some(ticket),
            Outcome::AwaitChange(_) if woken => {
                story.failures = failures;
                story.owed = Some(ticket);
            }
            Outcome::Converged => drop(self.stories.remove(&key)),
            Outcome::HoldOff(wait) => {
                story.failures = failures;
                story.backing_off = Some((self.now + wait, ticket));
            }
            Outcome::RequeueAfter(wait) => story.resting = Some((self.now + wait, ticket)),
            Outcome::AwaitChange(wait) => {
                story.resting = Some((self.now + wait, ticket));
                (story.awaits, story.failures) = (true, failures);
            }
            Outcome::Failed => {
                story.failures = failures + 1;
                story.backing_off = Some((self.now + backoff::delay_after(failures + 1), ticket));
            }
        }
    }

    /// The queue returns the key that has waited for a look the longest in the lane that is next, and no key that is being run.
    fn take(&mut self) -> Result<(), TestCaseError> {
        self.ripen();
        let longest = |lane: Lane| {
            let owed = self.stories.iter().filter(|(_, story)| story.lane == lane);
            let owed = owed.filter_map(|(key, story)| Some((story.owed?, *key)));
            owed.min().map(|(_, key)| key)
        };
        let (prompt, bulk) = (longest(Lane::Prompt), longest(Lane::Bulk));
        let expected = match (prompt, bulk) {
            (Some(_), Some(bulk)) if self.in_a_row == MAX_CONSECUTIVE_PROMPT_RUNS => Some(bulk),
            (prompt, bulk) => prompt.or(bulk),
        };
        self.in_a_row = match expected.is_some() && expected == prompt && bulk.is_some() {
            true => self.in_a_row + 1,
            false if expected.is_some() => 0,
            false => self.in_a_row,
        };
        let taken = self.queue.take(self.now);
        prop_assert_eq!(taken, expected);
        if let Some(key) = taken {
            let story = self.stories.entry(key).or_default();
            prop_assert!(!story.running, "two runs of one key");
            (story.owed, story.running) = (None, true);
        }
        Ok(())
    }

    /// Waits that are over, in the order in which they ended.
    fn ripen(&mut self) {
        let over = |wait: Option<(Instant, u64)>| wait.filter(|wait| wait.0 <= self.now);
        let mut ripe: Vec<((Instant, u64), Key)> = self
            .stories
            .iter()
            .filter_map(|(key, story)| {
                Some((over(story.backing_off).or(over(story.resting))?, *key))
            })
            .collect();
        ripe.sort_unstable();
        for (_, key) in ripe {
            let ticket = self.next_ticket();
            let story = self.stories.entry(key).or_default();
            (story.backing_off, story.resting, story.owed) = (None, None, Some(ticket));
        }
    }

    fn agrees(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(
            self.queue.len(),
            self.stories.len(),
            "an idle key costs no memory"
        );
        for (key, story) in &self.stories {
            prop_assert_eq!(self.queue.failures(key), story.failures);
        }
        let awaits = |story: &Story| story.awaits && story.resting.is_some();
        let waits_only = |story: &Story| !story.running && story.owed.is_none() && !awaits(story);
        prop_assert_eq!(self.queue.is_idle(), self.stories.values().all(waits_only));
        Ok(())
    }

    /// With no more wake-ups and every run converging, every look that is owed is given, and then nothing is known.
    fn come_to_rest(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..4 * usize::from(KEYS) {
            let running: Vec<Key> = self.running().collect();
            for key in running {
                self.queue.done(key, self.now, Outcome::Converged);
                self.ended(key, Outcome::Converged);
            }
            if let Some(due) = self.queue.next_due(self.now) {
                self.now = self.now.max(due);
            }
            self.take()?;
            self.agrees()?;
        }
        prop_assert!(self.queue.is_empty());
        Ok(())
    }
}

impl Story {
    fn new(lane: Lane) -> Self {
        Self {
            lane,
            ..Self::default()
        }
    }

    /// The better lane counts as long as a look is owed; a look that changes over is the last one there.
    fn woken_in(&mut self, lane: Lane, ticket: u64) {
        let owed = self.owed.is_some() || self.woken || self.renewed || self.backing_off.is_some();
        if !owed {
            self.lane = lane;
        } else if lane > self.lane {
            self.lane = lane;
            self.owed = self.owed.map(|_| ticket);
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let lane = || prop_oneof![Just(Lane::Prompt), Just(Lane::Bulk)];
    let outcome = prop_oneof![
        2 => Just(Outcome::Converged),
        2 => Just(Outcome::Failed),
        1 => (1_u64..5000).prop_map(|ms| Outcome::RequeueAfter(Duration::from_millis(ms))),
        1 => (0_u64..5000).prop_map(|ms| Outcome::AwaitChange(Duration::from_millis(ms))),
        1 => (1_u64..5000).prop_map(|ms| Outcome::HoldOff(Duration::from_millis(ms))),
    ];
    prop_oneof![
        3 => (0..KEYS, lane()).prop_map(|(key, lane)| Step::Nudge(key, lane)),
        1 => (0..KEYS, lane()).prop_map(|(key, lane)| Step::Renew(key, lane)),
        4 => Just(Step::Take),
        3 => (0_usize..8, outcome).prop_map(|(nth, outcome)| Step::Done(nth, outcome)),
        2 => (1_u64..3000).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ]
}

/// Only differences count.
fn start() -> Instant {
    Instant::now()
}
