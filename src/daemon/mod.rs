//! Starts all modules, connects them and stops them. The only module that imports every other.
//! Out of scope: decisions.

mod agent;
mod answers;
mod api_server;
mod app_state;
mod budget;
mod changes;
mod check_config;
mod conflists;
mod console;
mod deletion;
mod difference;
mod drafts;
mod failure;
mod file_watch;
mod fleet;
mod folders;
mod group_events;
mod host_checks;
mod host_figures;
mod instance;
mod intake_loop;
mod journal;
mod log;
mod metrics;
mod nodes;
mod not_found;
mod objects;
mod once;
mod orders;
mod peers;
mod power;
mod prepare;
mod reach;
mod removals;
mod restrictions;
mod scale;
mod secrets;
mod settings;
mod settings_file;
mod ssh_server;
mod streams;
mod take_over;
mod trigger;
mod usage;
mod wakes;
mod watches;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api_server::Target;
use crate::cli::sliced::{Args, LogFormat};
use crate::engine::{Engine, Key, agents};
use crate::host::{self, cpu, process};
use crate::reconcile::no_probe;
use crate::runtime::controller::Controller;
use crate::store::{self, Change};
use crate::wire::limits::Limits;
use crate::wire::{self, AgentRequests, Listener};
use crate::{clock, cni};

pub use host_checks::without_daemon;
pub use settings::Settings;

use app_state::{ApiProblem, AppState};
use budget::Budget;
use intake_loop::IntakeLoop;
use settings::FromFile;
use settings_file::Followers;
use trigger::Trigger;
use wakes::{converged, enqueue_by_changes, log_initial_sync, quiet, resync};
use watches::Watches;

/// Number of keys that are reconciled concurrently. More than the cores: a run waits for the kernel's locks and the disk.
const DEFAULT_CONCURRENCY: usize = 16;

/// An error that ends the daemon with exit status 1.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be used.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// Path of the directory.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A call to the kernel failed, or the host does not meet a requirement.
    #[error("{0}")]
    Host(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The settings file is invalid.
    #[error("{0}")]
    Settings(String),
    /// The API socket cannot be opened.
    #[error("{0}")]
    Socket(String),
}

impl From<host::Error> for Error {
    fn from(error: host::Error) -> Self {
        Self::Host(error.to_string())
    }
}

/// How long idle threads of the blocking pool are kept. Short, so that after a burst they end while the daemon is still busy, instead of
/// waking an idle host later.
const IDLE_THREADS: Duration = Duration::from_secs(2);

/// Minimum interval between two events about exhausted file descriptors.
const EXHAUSTION_PAUSE: Duration = Duration::from_secs(5);

/// `sliced`, from its arguments to its exit status.
pub fn main(args: Args) -> ExitCode {
    // Files get the mode that they are created with, independent of the umask of the parent process: network managers must be able to
    // read some of them, and with a umask of 0 the rest would be world-writable.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if args.check_config {
        return check_config::main(&args);
    }
    let log = match log::Log::to_stderr() {
        Ok(log) => log,
        Err(error) => {
            // If this write fails, too, there is nowhere left to report the error.
            let _ = writeln!(std::io::stderr(), "sliced: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    log_to_stderr(&args, log);
    let status = run_to_completion(args);
    log::end();
    status
}

fn run_to_completion(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(IDLE_THREADS)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(args));
    // Helper programs that hang must not outlive the daemon, and threads that wait for them would delay its end.
    process::end_helpers();
    // Threads that wait for a guest to power down are abandoned.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            error!(%error, "exiting with an error");
            ExitCode::FAILURE
        }
    }
}

/// Logs to standard error, or to the journal if standard error is connected to it.
fn log_to_stderr(args: &Args, log: log::Log) {
    let filter = args.log.env_filter();
    if args.log_format == LogFormat::Text && journal::is_stderr() {
        return journal::log(filter, log);
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(move || log.clone());
    match args.log_format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().init(),
    }
}

/// A daemon that is prepared: it has observed the host and has not changed it yet.
pub struct Daemon {
    /// Reconciles a key.
    pub engine: Arc<Engine>,
    controller: Controller<Key>,
    idle: watch::Receiver<bool>,
    /// Subscribed before any write is possible, so that no change between preparation and `run_until` is missed.
    changes: broadcast::Receiver<Change>,
    /// Lock on the instance id, held while the daemon lives.
    _claim: crate::host::lock::FileLock,
}

impl Daemon {
    /// Sets the number of keys that are reconciled concurrently, and the number of slow ones that run in addition.
    fn with_concurrency(self, concurrency: usize, slow: usize) -> Self {
        Self {
            controller: self
                .controller
                .with_workers(concurrency)
                .with_max_slow_runs(slow),
            ..self
        }
    }

    /// Reconciles until no key is due, for at most `patience`. Returns whether everything is Ready.
    pub async fn settle(self, timeout: Duration) -> bool {
        let (engine, idle) = (self.engine.clone(), self.idle.clone());
        let settled = self
            .run_until(tokio::time::timeout(timeout, quiet(idle)))
            .await;
        settled.is_ok() && engine.all_ready()
    }

    /// Reconciles keys that are due until `end` completes, then waits for the runs in progress.
    pub async fn run_until<T>(self, end: impl Future<Output = T>) -> T {
        let stop = CancellationToken::new();
        let changes = tokio::spawn(enqueue_by_changes(self.engine.clone(), self.changes));
        let run = move |key, failures| self.engine.clone().run(key, failures);
        let stopped = stop.clone();
        let running = tokio::spawn(
            self.controller
                .run(run, async move { stopped.cancelled().await }),
        );
        let output = end.await;
        stop.cancel();
        if let Err(error) = running.await {
            error!(%error, "the controller panicked");
        }
        changes.abort();
        output
    }
}

async fn run(args: Args) -> Result<bool, Error> {
    if let Err(error) = cpu::set_session_priority() {
        debug!(%error, "cannot set the autogroup nice value of the session");
    }
    let budget = allocate_descriptors(args.concurrency.into());
    let mut cni = cni::Runtime::from_env();
    cni.deadline = args.cni_deadline;
    cni.file_limit = process::original_file_limit();
    let (state, run) = (&args.state_dir, &args.run_dir);
    let read = settings::read_all(&args)?;
    let settings = Settings {
        cni,
        vmm_ids: args.vmm_ids,
        allowed: read.allowed.clone(),
        filter_deadline: args.filter_deadline,
        sliced: settings::own_program(),
        guest_agent: args.guest_agent.clone(),
    };
    let daemon = Daemon::prepare_with(state, run, no_probe(), settings).await?;
    let daemon = daemon.with_concurrency(args.concurrency.into(), budget.slow);
    let engine = daemon.engine.clone();
    let _forwarding = journal::forward_events(engine.store.events());
    let intake = IntakeLoop::new(&args.config_dir, read.removal_grace, engine.clone());
    if args.once {
        intake.read_until_settled().await;
        let idle = daemon.idle.clone();
        let converged = async { Ok(converged(&engine, idle).await) };
        let converged = daemon.run_until(or_store_stuck(&engine, converged)).await?;
        let converged = converged && intake.has_no_problems();
        if !converged {
            once::report(&engine, &intake).iter().for_each(log::line);
        }
        engine.store.close();
        return Ok(converged);
    }
    serve(args, daemon, intake, budget, read).await?;
    engine.store.close();
    Ok(true)
}

/// Raises the soft limit of file descriptors and divides it among the consumers.
fn allocate_descriptors(width: usize) -> Budget {
    let limit = process::raise_file_limit().unwrap_or_else(|error| {
        warn!(%error, "cannot raise the open file limit");
        process::file_limit()
    });
    let budget = Budget::of(limit, width);
    if budget.is_insufficient(limit, width) {
        warn!(
            limit,
            "the open file limit (LimitNOFILE=) is too low for --concurrency"
        );
    }
    debug!(limit, ?budget, "file descriptor budget");
    budget
}

/// Reports exhausted file descriptors, at most once per [`EXHAUSTION_PAUSE`].
async fn report_exhaustion(engine: Arc<Engine>) {
    loop {
        let error = host::error::exhausted().await;
        warn!(%error, "file descriptors exhausted");
        let message = format!("{error}: raise LimitNOFILE= of sliced.service, or fs.file-max");
        let events = engine.store.events();
        let kind = EventType::Warning;
        events.note(
            clock::now(),
            kind,
            &ObjectRef::Host,
            EventReason::DescriptorsExhausted,
            &message,
        );
        tokio::time::sleep(EXHAUSTION_PAUSE).await;
    }
}

async fn serve(
    args: Args,
    daemon: Daemon,
    intake: IntakeLoop,
    budget: Budget,
    settings: FromFile,
) -> Result<(), Error> {
    let engine = daemon.engine.clone();
    let stop = CancellationToken::new();
    let intake = Arc::new(intake);
    let listener = Listener::open(&engine.run_dir.socket(), &args.socket_group)
        .map_err(|error| Error::Socket(error.to_string()))?;
    let watches = Arc::new(Watches::new(engine.store.events()));
    let api_problem = ApiProblem::default();
    let fleet = Arc::new(fleet::Slot::default());
    let peers = Arc::new(peers::Peers::new(fleet.clone(), engine.clone()));
    let new_state = || {
        let (watches, api_problem) = (Arc::clone(&watches), Arc::clone(&api_problem));
        let (fleet, peers) = (Arc::clone(&fleet), Arc::clone(&peers));
        AppState::new(
            engine.clone(),
            intake.clone(),
            watches,
            api_problem,
            fleet,
            peers,
            &args,
        )
    };
    let (state, ssh, api, watched) = (new_state(), new_state(), new_state(), new_state());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(enqueue_by_changes(engine.clone(), daemon.changes));
    tasks.spawn(resync(engine.clone(), args.resync));
    tasks.spawn(changes::run(watched));
    tasks.spawn(agents::run(engine.clone(), args.resync));
    tasks.spawn({
        let (engine, resync) = (engine.clone(), args.resync);
        async move {
            let trigger = Trigger::new(engine.instance.clone(), resync);
            trigger.run(&engine).await;
        }
    });
    tasks.spawn({
        let resync = args.resync;
        async move { intake.run(resync).await }
    });
    tasks.spawn({
        let engine = engine.clone();
        async move { conflists::run(&engine).await }
    });
    tasks.spawn({
        let engine = engine.clone();
        async move {
            engine.release_orphaned_attachments().await;
        }
    });
    tasks.spawn(log_initial_sync(engine.clone(), daemon.idle));
    tasks.spawn(report_exhaustion(engine.clone()));
    let ((ssh_sender, ssh_configs), (api_sender, api_configs)) =
        (watch::channel(settings.ssh), watch::channel(settings.api));
    let (fleet_sender, fleet_configs) = watch::channel(settings.fleet);
    let (files_sender, fleet_files) = watch::channel(settings.fleet_files);
    let followers = Followers {
        ssh: ssh_sender,
        api: api_sender,
        fleet: fleet_sender,
        fleet_files: files_sender,
    };
    let member = fleet::run(engine.clone(), fleet.clone(), fleet_configs, stop.clone());
    let mut member = tokio::spawn(member);
    tasks.spawn(settings_file::follow(args.clone(), followers));
    tasks.spawn(ssh_server::run(ssh, ssh_configs, stop.clone()));
    let limits = Limits::of(budget.connections).with_agents(budget.agents);
    let agent_requests = AgentRequests::new(&limits);
    let peer_certificates = peers.start(&mut tasks, fleet_files, args.resync).await;
    let target = Target {
        backend: Arc::new(api),
        agents: agent_requests.clone(),
        limits: Limits::remote(budget.remote).with_agents(budget.agents),
        peers: peer_certificates,
    };
    let mut api = tokio::spawn(api_server::run(
        target,
        api_configs,
        args.resync,
        stop.clone(),
    ));
    let wire = wire::serve(listener, state, agent_requests, stop.clone(), limits);
    let mut wire = tokio::spawn(wire);
    let run = {
        let engine = engine.clone();
        move |key, failures| engine.clone().run(key, failures)
    };
    let stopped = stop.clone();
    let mut controller = tokio::spawn(
        daemon
            .controller
            .run(run, async move { stopped.cancelled().await }),
    );
    // Fails if the daemon does not run under systemd, which is not an error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    info!(socket = %engine.run_dir.socket().display(), "ready");
    let result = or_store_stuck(&engine, termination_signal()).await;
    info!("shutting down; VMs keep running");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    tasks.abort_all();
    // Runs in progress are completed, but waiting for a guest to power down may take long: the next start continues it.
    let ended = async { tokio::join!(&mut wire, &mut api, &mut controller, &mut member) };
    if tokio::time::timeout(Duration::from_millis(1500), ended)
        .await
        .is_err()
    {
        warn!("some reconciliations were still running; the next start completes them");
        // Helper programs that they started are ended with them.
        controller.abort();
        wire.abort();
        api.abort();
        member.abort();
    }
    result
}

/// Waits for `end`, or for the store to stop responding: then no state can be persisted and the host must not be changed, so the daemon
/// exits and its supervisor restarts it.
async fn or_store_stuck<T>(
    engine: &Engine,
    end: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        ended = end => ended,
        () = engine.store.stuck() => Err(store::Error::Stuck.into()),
    }
}

async fn termination_signal() -> Result<(), Error> {
    let fail =
        |error: std::io::Error| Error::Host(format!("cannot install signal handlers: {error}"));
    let mut term = signal(SignalKind::terminate()).map_err(fail)?;
    let mut int = signal(SignalKind::interrupt()).map_err(fail)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
