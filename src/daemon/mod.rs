//! JOINS: the only room that knows every room. Starts them, wires them together, stops them.
//! Out of scope: decisions.

mod answers;
mod budget;
mod conflists;
mod console;
mod deletion;
mod difference;
mod drafts;
mod folders;
mod instance;
mod intake_loop;
mod log;
mod metrics;
mod objects;
mod orders;
mod power;
mod prepare;
mod reach;
mod removals;
mod restrictions;
mod settings;
mod streams;
mod take_over;
mod trigger;
mod wakes;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::cli::sliced::{Args, LogFormat};
use crate::host::{self, cpu, process};
use crate::reconcile::engine::{Engine, Key};
use crate::reconcile::unprobed;
use crate::runtime::controller::Controller;
use crate::store::{self, Change};
use crate::wire::limits::Limits;
use crate::wire::{self, Door};
use crate::{clock, cni};

pub use settings::Settings;

use answers::Answers;
use budget::Budget;
use intake_loop::IntakeLoop;
use trigger::Trigger;
use wakes::{converged, quiet, resync, tell_when_quiet, wake_by_changes};

/// Keys that are run at once. More than the cores: a run waits for the kernel's locks and the disk.
const WIDTH: usize = 16;

/// What ends the daemon with exit status 1.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder cannot be used.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refuses.
    #[error("{0}")]
    Host(String),
    /// The database refuses.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The settings are not understood.
    #[error("{0}")]
    Settings(String),
    /// The socket refuses.
    #[error("{0}")]
    Door(String),
}

impl From<host::Error> for Error {
    fn from(error: host::Error) -> Self {
        Self::Host(format!("{error}: {}", error.source))
    }
}

/// After a burst the threads that may block end with the rest of its stir, and not in the silence long after it.
const IDLE_THREADS: Duration = Duration::from_secs(2);

/// Between two words about descriptors that are used up.
const EXHAUSTION_PAUSE: Duration = Duration::from_secs(5);

/// `sliced`, from its arguments to its exit status.
pub fn main(args: Args) -> ExitCode {
    // What we make has the mode that it is made with, whoever has started us and how: network managers read some of it, and a umask of
    // nothing would leave the rest to be written by all.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let log = match log::Log::to_stderr() {
        Ok(log) => log,
        Err(error) => {
            // If this write fails, too, there is nowhere left to report the error.
            let _ = writeln!(std::io::stderr(), "sliced: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    log_to_stderr(&args, log);
    let status = run_to_the_end(args);
    log::end();
    status
}

fn run_to_the_end(args: Args) -> ExitCode {
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
    let ended = runtime.block_on(run(args));
    // What hangs must not outlive us, and whoever waits for it is not waited for.
    process::end_helpers();
    // Whoever still waits for a guest to power down is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            error!(%error, "sliced ends");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(args: &Args, log: log::Log) {
    let filter = EnvFilter::try_new(&args.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(move || log.clone());
    match args.log_format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().init(),
    }
}

/// A daemon that has looked around and has not begun.
pub struct Daemon {
    /// What is done for a key.
    pub engine: Arc<Engine>,
    controller: Controller<Key>,
    idle: watch::Receiver<bool>,
    /// From before anybody could write: what is told between preparing and running is not missed.
    changes: broadcast::Receiver<Change>,
    /// While we live, no other daemon has our instance id.
    _claim: std::fs::File,
}

impl Daemon {
    /// The same, working on so many keys at once, and on so many more that are slow.
    fn with_width(self, width: usize, slow: usize) -> Self {
        Self {
            controller: self.controller.with_width(width).with_slow(slow),
            ..self
        }
    }

    /// Runs what is due until nothing is, for `patience` at most. True: nothing is left to do.
    pub async fn settle(self, patience: Duration) -> bool {
        let (engine, idle) = (self.engine.clone(), self.idle.clone());
        let settled = self
            .run_until(tokio::time::timeout(patience, quiet(idle)))
            .await;
        settled.is_ok() && engine.all_ready()
    }

    /// Runs what is due until `end` completes; what is under way then is finished.
    pub async fn run_until<T>(self, end: impl Future<Output = T>) -> T {
        let stop = CancellationToken::new();
        let changes = tokio::spawn(wake_by_changes(self.engine.clone(), self.changes));
        let run = move |key, failures| self.engine.clone().run(key, failures);
        let stopped = stop.clone();
        let running = tokio::spawn(
            self.controller
                .run(run, async move { stopped.cancelled().await }),
        );
        let ended = end.await;
        stop.cancel();
        if let Err(error) = running.await {
            error!(%error, "the controller panicked");
        }
        changes.abort();
        ended
    }
}

async fn run(args: Args) -> Result<bool, Error> {
    if let Err(error) = cpu::go_first_with_our_session() {
        debug!(%error, "our session goes as every other");
    }
    let budget = share_descriptors(args.concurrency.into());
    let mut cni = cni::Runtime::from_env();
    cni.deadline = args.cni_deadline;
    cni.file_limit = process::original_file_limit();
    let (state, run) = (&args.state_dir, &args.run_dir);
    let read = settings::read_all(&args)?;
    let settings = Settings {
        cni,
        vmm_ids: args.vmm_ids,
        allowed: read.allowed,
        filter_deadline: args.filter_deadline,
    };
    let daemon = Daemon::prepare_with(state, run, unprobed(), settings).await?;
    let daemon = daemon.with_width(args.concurrency.into(), budget.slow);
    let engine = daemon.engine.clone();
    let intake = IntakeLoop::new(&args.config_dir, read.removal_grace, engine.clone());
    if args.once {
        intake.read_to_the_end().await;
        let idle = daemon.idle.clone();
        let converged = async { Ok(converged(&engine, idle).await) };
        let converged = daemon.run_until(or_stuck(&engine, converged)).await?;
        engine.store.close();
        return Ok(converged && intake.is_sound());
    }
    serve(args, daemon, intake, budget).await?;
    engine.store.close();
    Ok(true)
}

/// Raises our own limit of descriptors, and shares it out.
fn share_descriptors(width: usize) -> Budget {
    let limit = process::raise_file_limit().or_else(|error| {
        warn!(%error, "cannot raise the limit of open files");
        process::file_limit()
    });
    let limit = limit.unwrap_or(1024);
    let budget = Budget::of(limit, width);
    if budget.is_short(limit, width) {
        warn!(
            limit,
            "the limit of open files (LimitNOFILE=) is short of what --concurrency may need"
        );
    }
    debug!(limit, ?budget, "descriptors");
    budget
}

/// Tells, once a while, that descriptors are used up.
async fn tell_exhaustion(engine: Arc<Engine>) {
    loop {
        let error = host::error::exhaustion().await;
        warn!(%error, "descriptors are used up");
        let message = format!("{error}: raise LimitNOFILE= of sliced.service, or fs.file-max");
        let events = engine.store.events();
        let kind = crate::api::event::EventType::Warning;
        events.note(
            clock::now(),
            kind,
            "ground",
            "DescriptorsExhausted",
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
) -> Result<(), Error> {
    let engine = daemon.engine.clone();
    let stop = CancellationToken::new();
    let intake = Arc::new(intake);
    let door = Door::open(&engine.run_dir.socket(), &args.socket_group)
        .map_err(|error| Error::Door(error.to_string()))?;
    let answers = Answers::new(engine.clone(), intake.clone(), &args);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(wake_by_changes(engine.clone(), daemon.changes));
    tasks.spawn(resync(engine.clone(), args.resync));
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
            engine.sweep_plugins().await;
        }
    });
    tasks.spawn(tell_when_quiet(engine.clone(), daemon.idle));
    tasks.spawn(tell_exhaustion(engine.clone()));
    let limits = Limits::of(budget.connections);
    let wire = wire::serve_within(door, answers, stop.clone(), limits);
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
    // Not under systemd is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    info!(socket = %engine.run_dir.socket().display(), "ready");
    let ending = or_stuck(&engine, terminated()).await;
    info!("ending; VMs run on");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    tasks.abort_all();
    // Runs under way are finished, but a guest may take its time to power down: the next start goes on with it.
    let ended = async { tokio::join!(&mut wire, &mut controller) };
    if tokio::time::timeout(Duration::from_millis(1500), ended)
        .await
        .is_err()
    {
        warn!("some runs were still under way; the next start finishes them");
        // What they have started goes with them.
        controller.abort();
        wire.abort();
    }
    ending
}

/// `end`, unless the store falls silent before: then nothing can be remembered, nothing may be touched, and whoever started
/// us starts us anew.
async fn or_stuck<T>(
    engine: &Engine,
    end: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        ended = end => ended,
        () = engine.store.stuck() => Err(store::Error::Stuck.into()),
    }
}

async fn terminated() -> Result<(), Error> {
    let fail = |error: std::io::Error| Error::Host(format!("cannot hear signals: {error}"));
    let mut term = signal(SignalKind::terminate()).map_err(fail)?;
    let mut int = signal(SignalKind::interrupt()).map_err(fail)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
