//! One life of a daemon: prepared, told what is wanted, run until it rests or is killed.
//! Out of scope: what the host looks like afterwards.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use slicectl::api::host_group::{HostGroup, HostGroupSpec, MAX_COUNT};
use slicectl::api::on_demand::{OnDemandEntry, VmOverrides};
use slicectl::api::stage::STAGES;
use slicectl::api::vm::Power;
use slicectl::daemon::{Daemon, Settings};
use slicectl::engine::Engine;
use slicectl::host;
use slicectl::reconcile::{Probe, no_probe};
use slicectl::store::{Store, Txn};

use test_support::cni_networks;
use test_support::objects::{group, name};
use test_support::programs;

/// Long enough on a machine that does seven things at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon's directories: all that it takes from one life to the next.
#[derive(Clone)]
pub struct Dirs {
    pub state: PathBuf,
    pub run: PathBuf,
}

/// The VM that is made on demand; it has something of its own.
pub const ORDERED: &str = "ci";

/// What is told to the store at the start of a life.
#[derive(Clone, Copy)]
pub enum Intent<'a> {
    /// What it knows already.
    Same,
    /// `slicectl apply`.
    Apply(&'a str, &'a HostGroupSpec),
    /// The same, and `slicectl vm add` of [`ORDERED`].
    Order(&'a str, &'a HostGroupSpec),
    /// `slicectl delete`.
    Delete(&'a str),
    /// `slicectl vm pause` and its like.
    Power(&'a str, Power),
}

/// What a life came to.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Everything is as wanted.
    Converged,
    /// It rests, and something is not.
    Unconverged,
    /// It was killed.
    Killed,
}

/// The system's, and where programs and guests are made for these tests.
fn allowed() -> slicectl::api::allowed::AllowedDirectories {
    let mut allowed = slicectl::api::allowed::AllowedDirectories::default();
    let own = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    allowed.programs.push(own.clone());
    allowed.images.push(own);
    allowed
}

impl Dirs {
    /// Below one directory.
    pub fn below(dir: &Path) -> Self {
        Self {
            state: dir.join("state"),
            run: dir.join("run"),
        }
    }

    /// What nobody can put back from a copy: the database, and the journal of this boot.
    pub fn lose_state_and_journal(&self) {
        std::fs::remove_dir_all(&self.state).unwrap();
        let _ = std::fs::remove_file(self.run.join(slicectl::store::JOURNAL));
    }

    /// A life that nobody disturbs.
    pub fn live(&self, intent: Intent<'_>) -> End {
        self.run(intent, no_probe(), |_| {}, Until::Rest)
    }

    /// The same, and before each action `probe` is asked.
    pub fn live_probed(&self, intent: Intent<'_>, probe: Probe) -> End {
        self.run(intent, probe, |_| {}, Until::Rest)
    }

    /// The same; counts the actions.
    pub fn live_counting(&self, intent: Intent<'_>) -> (End, Vec<String>) {
        let actions: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = actions.clone();
        let probe: Probe = Arc::new(move |action| {
            seen.lock().unwrap().push(action.to_owned());
            Ok(())
        });
        let end = self.run(intent, probe, |_| {}, Until::Rest);
        let actions = actions.lock().unwrap().clone();
        (end, actions)
    }

    /// A life that ends, as by SIGKILL, right before its action number `at`, from 0: nothing is done or remembered any more.
    pub fn live_until_killed(&self, intent: Intent<'_>, at: usize) -> End {
        let store: Arc<OnceLock<Store>> = Arc::default();
        let (count, to_close) = (AtomicUsize::new(0), store.clone());
        let (kill, killed) = tokio::sync::watch::channel(false);
        let probe: Probe = Arc::new(move |_| {
            if count.fetch_add(1, SeqCst) < at {
                return Ok(());
            }
            to_close.get().expect("an open store").close();
            let _ = kill.send(true);
            // Not `panic!`: no hook, no noise. The run unwinds, and all that follow.
            std::panic::resume_unwind(Box::new("killed"));
        });
        let remember = |engine: &Arc<Engine>| drop(store.set(engine.store.clone()));
        self.run(intent, probe, remember, Until::Killed(killed))
    }

    /// A life in which action number `at`, from 0, fails once.
    pub fn live_with_an_error(&self, intent: Intent<'_>, at: usize) -> (End, bool) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let probe: Probe = Arc::new(move |action| match counted.fetch_add(1, SeqCst) == at {
            true => Err(host::Error::other("do", action, "injected")),
            false => Ok(()),
        });
        let end = self.run(intent, probe, |_| {}, Until::Converged);
        (end, count.load(SeqCst) > at)
    }

    fn run(
        &self,
        intent: Intent<'_>,
        probe: Probe,
        report: impl FnOnce(&Arc<Engine>),
        until: Until,
    ) -> End {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let end = runtime.block_on(async {
            let daemon = Daemon::prepare_with(
                &self.state,
                &self.run,
                probe,
                Settings {
                    cni: cni_networks::runtime(),
                    vmm_ids: Default::default(),
                    allowed: allowed(),
                    filter_deadline: slicectl::host::iptables::DEADLINE,
                    sliced: programs::built("sliced"),
                    guest_agent: None,
                },
            )
            .await
            .unwrap();
            let engine = daemon.engine.clone();
            report(&engine);
            engine.store.write(|txn| say(txn, intent)).await.unwrap();
            let end = match until {
                Until::Rest => match daemon.settle(PATIENCE).await {
                    true => End::Converged,
                    false => End::Unconverged,
                },
                Until::Converged => {
                    let seen = engine.clone();
                    daemon
                        .run_until(async move { converged(&seen).await })
                        .await;
                    match engine.all_ready() {
                        true => End::Converged,
                        false => End::Unconverged,
                    }
                }
                Until::Killed(killed) => tokio::select! {
                    _ = dead(killed.clone()) => End::Killed,
                    settled = daemon.settle(PATIENCE) => match settled {
                        _ if *killed.borrow() => End::Killed,
                        true => End::Converged,
                        false => End::Unconverged,
                    },
                },
            };
            if end == End::Unconverged {
                eprintln!("unconverged: {}", why(&engine));
            }
            engine.store.close();
            end
        });
        runtime.shutdown_timeout(PATIENCE);
        end
    }
}

/// For whoever reads a failed test.
fn why(engine: &Engine) -> String {
    let warnings = engine.store.events().all();
    let pages = engine.store.read(|world| {
        let page =
            |uid| STAGES.map(|stage| world.status(uid, stage).map(|page| page.condition.clone()));
        let vms: Vec<_> = world
            .vms()
            .map(|vm| (vm.meta.name.clone(), vm.meta.deleting, page(vm.meta.uid)))
            .collect();
        format!(
            "{vms:#?} {:#?} {:#?}",
            world.host_network_status(),
            world.host_requirements()
        )
    });
    format!("{warnings:#?} {pages}")
}

enum Until {
    Rest,
    Converged,
    Killed(tokio::sync::watch::Receiver<bool>),
}

async fn dead(mut killed: tokio::sync::watch::Receiver<bool>) {
    // An error: the probe is gone, and with it the daemon.
    let _ = killed.wait_for(|killed| *killed).await;
}

async fn converged(engine: &Engine) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !engine.all_ready() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn say(txn: &mut Txn<'_>, intent: Intent<'_>) -> Result<(), slicectl::store::Error> {
    match intent {
        Intent::Same => Ok(()),
        Intent::Order(what, spec) => {
            say(txn, Intent::Apply(what, spec))?;
            let mut group = txn.world().group(&name(what)).cloned().expect("just put");
            let order = OnDemandEntry {
                fleet: None,
                name: name(ORDERED),
                overrides: VmOverrides {
                    ram_bytes: Some(64 << 20),
                    ..VmOverrides::default()
                },
            };
            group.orders.insert(MAX_COUNT + 1, order);
            txn.put_group(group)
        }
        Intent::Apply(what, spec) => {
            let known = txn.world().group(&name(what)).cloned();
            let new = || group(what, spec.count, spec.template.clone());
            let group = known.unwrap_or_else(new);
            txn.put_group(HostGroup {
                spec: spec.clone(),
                ..group
            })
        }
        Intent::Power(what, power) => match txn.world().vm_named(&name(what)).cloned() {
            None => panic!("no VM {what}"),
            Some(mut vm) => {
                vm.power = power;
                vm.meta.generation += 1;
                txn.put_vm(vm)
            }
        },
        Intent::Delete(what) => match txn.world().group(&name(what)).cloned() {
            None => Ok(()),
            Some(mut group) => {
                group.meta.deleting = true;
                group.orders.clear();
                txn.put_group(group)
            }
        },
    }
}
