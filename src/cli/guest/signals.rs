//! The signals that end `slicectl`, or that it passes on.
//! Out of scope: what is done with them.

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::super::failure::Failure;

/// A signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP
    Hangup,
    /// SIGINT
    Interrupt,
    /// SIGQUIT
    Quit,
    /// SIGTERM
    Terminate,
}

impl Signal {
    /// Its name without `SIG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hangup => "HUP",
            Self::Interrupt => "INT",
            Self::Quit => "QUIT",
            Self::Terminate => "TERM",
        }
    }

    /// The exit status of a program that it has ended.
    pub fn exit_status(self) -> u8 {
        128 + match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Quit => 3,
            Self::Terminate => 15,
        }
    }
}

/// Receives signals, which no longer end the process.
pub struct Signals {
    hangup: Stream,
    interrupt: Stream,
    quit: Stream,
    terminate: Stream,
}

impl Signals {
    /// Receives them from now on.
    pub fn new() -> Result<Self, Failure> {
        let receive = |kind| {
            signal(kind).map_err(|error| Failure::one(format!("cannot receive signals: {error}")))
        };
        Ok(Self {
            hangup: receive(SignalKind::hangup())?,
            interrupt: receive(SignalKind::interrupt())?,
            quit: receive(SignalKind::quit())?,
            terminate: receive(SignalKind::terminate())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Hangup,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.quit.recv() => Signal::Quit,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}
