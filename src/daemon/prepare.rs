//! Prepares a daemon: opens its state, adopts existing VMs and finds orphans.
//! Out of scope: running it.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use tracing::{error, info, warn};

use super::settings::{Settings, agents};
use super::{DEFAULT_CONCURRENCY, Daemon, Error, folders, instance, take_over};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::clock;
use crate::engine::conflicting_writer::ConflictingWriters;
use crate::engine::processes::Processes;
use crate::engine::{Engine, HostContext, Key};
use crate::fleet::agent::fence_file;
use crate::host::iptables::Backend;
use crate::host::netns::Netns;
use crate::host::{self, fs, link};
use crate::reconcile::Probe;
use crate::reconcile::checkpoint;
use crate::reconcile::group::{CLAIMS_DIR, ClaimOwner, Claims};
use crate::runtime::controller::controller;
use crate::secrets::Secrets;
use crate::store::{self, Opened, RunCopy, RunDirState, Store};

/// Number of netlink sockets: one per thread of the runtime, and one for a request with a late response.
fn netlink_sockets() -> NonZeroUsize {
    let threads = std::thread::available_parallelism();
    threads.map_or(NonZeroUsize::MIN, |threads| threads.saturating_add(1))
}

impl Daemon {
    /// Opens the store in `state_dir`, adopts existing VMs and finds orphans. Does not change the host yet.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn prepare(state_dir: &Path, run_dir: &Path, probe: Probe) -> Result<Self, Error> {
        Self::prepare_with(state_dir, run_dir, probe, Settings::default()).await
    }

    /// As [`Daemon::prepare`], with the given settings.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn prepare_with(
        state_dir: &Path,
        run_dir: &Path,
        probe: Probe,
        settings: Settings,
    ) -> Result<Self, Error> {
        let Settings {
            cni,
            vmm_ids,
            allowed,
            filter_deadline,
            sliced,
            guest_agent,
        } = settings;
        let lacking = crate::doctor::lacking();
        if !lacking.is_empty() {
            let why = format!("sliced must run as root: missing {}", lacking.join(", "));
            return Err(Error::Host(why));
        }
        let state_dir = folders::state(state_dir)?;
        let run_dir = folders::run(run_dir)?;
        let home = Netns::current()?;
        let (controller, waker, idle) = controller(DEFAULT_CONCURRENCY);
        let boot_id = fs::boot_id()?.to_owned();
        let dirs = instance::Dirs {
            state: &state_dir,
            run: &run_dir,
            boot_id: &boot_id,
        };
        let claimed = instance::claim(&dirs, &home).await?;
        let run_copy = RunCopy {
            path: run_dir.integrity_record(),
            boot_id: boot_id.clone(),
        };
        // Runs a process that prints its version, while the database is read.
        let backend = tokio::task::spawn_blocking(Backend::detect);
        let (store, opened, recalled) = Store::open_for_daemon(&state_dir, &run_dir.0, &run_copy)?;
        let recalled = check_checkpoints(&store, recalled, &state_dir)?;
        // On a read-only disk permissions cannot be changed; they were restricted while it was writable.
        if store.read_only().is_none() {
            folders::restrict_state(&state_dir)?;
        }
        let netlink = home.netlink_pool(netlink_sockets())?;
        // There may be many links; the run directory is read concurrently.
        let links = tokio::spawn({
            let netlink = netlink.clone();
            async move { link::list(&netlink).await }
        });
        let backend = backend
            .await
            .map_err(|error| Error::Host(error.to_string()))??;
        let claim_owner = ClaimOwner {
            instance: claimed.instance.clone(),
            state_dir: state_dir.clone(),
            run_dir: run_dir.0.clone(),
            boot_id: boot_id.clone(),
        };
        let guarded_users = fence_file::users(&run_dir.0, &boot_id);
        let engine = Arc::new(Engine {
            instance: claimed.instance,
            store,
            host: HostContext {
                netlink,
                host_netns: home,
                backend: Backend {
                    timeout: filter_deadline,
                    ..backend
                },
                boot_id,
            },
            processes: Processes::new(
                run_dir.clone(),
                state_dir.join("disks"),
                allowed,
                waker.clone(),
            )
            .with_user_range(vmm_ids)
            .with_programs(sliced, agents(guest_agent), state_dir.join("initrds")),
            run_dir,
            claims: Claims::new(Path::new(CLAIMS_DIR), claim_owner),
            waker,
            probe,
            conflicting_writers: ConflictingWriters::default(),
            step_count: Default::default(),
            blocked_reasons: Default::default(),
            waiting_groups: Default::default(),
            cni,
            cni_checked: Default::default(),
            plugin_rules: Default::default(),
            vmm_ids,
            guarded_users,
            verified_rules: Default::default(),
            isolated_refused_packets: Default::default(),
            bridge_refused_packets: Default::default(),
            entries: Default::default(),
            host_properties: Default::default(),
            flows: Default::default(),
            waiting_for_host_network: Default::default(),
            forward_chains: Default::default(),
            read_all_tables: true.into(),
            enforcement: Default::default(),
            agents: Default::default(),
            secrets: Arc::new(Secrets::new(&state_dir)),
            removals: Default::default(),
        });
        for message in &claimed.notes {
            warn!(%message, "instance id");
            let (events, kind) = (engine.store.events(), EventType::Warning);
            events.note(
                clock::now(),
                kind,
                &ObjectRef::Host,
                EventReason::InstanceNoticed,
                message,
            );
        }
        info!(instance = %engine.instance, iptables = %engine.host.backend.version, "starting");
        engine.require_permissions();
        engine.processes.recover_owners();
        engine.processes.clear_injected();
        // Subscribed before the first change: a change without a receiver enqueues nothing.
        let changes = engine.store.watch();
        let is_complete = opened == Opened::Existing || matches!(recalled, RunDirState::World(_));
        take_over::take_over(&engine, opened, recalled).await?;
        if let Err(error) = engine.restore_claims(is_complete).await {
            // Each group reports the error when it needs a claim.
            error!(%error, "cannot claim the stored ranges and users on this host");
        }
        // Restrictions are passed to the VMs first, so that no VM is observed with the previous spec of its group.
        for group in engine.store.restricted_groups().to_vec() {
            engine.apply_to_vms(&group).await;
        }
        engine.store.begin_observation(clock::now());
        if let Ok(base) = host::cgroup::base() {
            host::cgroup::sweep(base);
        }
        engine.enqueue_all();
        let links = Box::pin(async move {
            let failed = |error| host::Error::other("list", "links", error);
            links.await.map_err(failed)?
        });
        let orphans = engine.orphans_with_links(links, clock::now()).await?;
        for orphan in orphans.removable {
            engine.waker.enqueue(Key::Orphan(orphan.label));
        }
        let lanes = engine.clone();
        let controller = controller.with_lanes(move |key| lanes.lane(key));
        Ok(Self {
            engine,
            controller,
            idle,
            changes,
            _claim: claimed.lock,
        })
    }
}

/// Decodes what the store keeps as text. A checkpoint that this version cannot decode is an error, not an absent one.
fn check_checkpoints(
    store: &Store,
    recalled: RunDirState,
    state_dir: &Path,
) -> Result<RunDirState, store::Error> {
    store
        .read(checkpoint::check)
        .map_err(|reason| store::Error::Open {
            path: state_dir.display().to_string(),
            why: format!("{reason}; start the version of sliced that wrote it"),
        })?;
    Ok(match recalled {
        RunDirState::World(world) => match checkpoint::check(&world) {
            Ok(()) => RunDirState::World(world),
            Err(reason) => RunDirState::Unreadable(reason),
        },
        unchanged => unchanged,
    })
}
