//! Signals: which end the daemon and which do not.
//!
//! SIGTERM and SIGINT end it in order; containers go on running. SIGHUP is how a service manager
//! asks for a reload. SIGUSR2 asks for a hand-over. SIGUSR1 asks for a sign of life. SIGPIPE is ignored by the standard library from
//! the start.

use tokio::signal::unix::{self, SignalKind, signal};
use types::{Error, Result};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// An end in order; the signal's name.
    End(&'static str),
    /// The configuration is to be read again.
    Reload,
    /// A new binary is to go on.
    Upgrade,
}

/// The signals that are handled, from the moment of [`Signals::take`] on.
#[derive(Debug)]
pub(crate) struct Signals {
    term: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
    user: unix::Signal,
    upgrade: unix::Signal,
}

impl Signals {
    /// Takes them over.
    ///
    /// # Errors
    /// The errno of `sigaction`.
    pub(crate) fn take() -> Result<Self> {
        let take = |kind| signal(kind).map_err(|e| Error::os("sigaction", e));
        Ok(Self {
            term: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            hangup: take(SignalKind::hangup())?,
            user: take(SignalKind::user_defined1())?,
            upgrade: take(SignalKind::user_defined2())?,
        })
    }

    /// Waits for one that asks for something. Cancel safe.
    pub(crate) async fn next(&mut self) -> Wish {
        loop {
            tokio::select! {
                _ = self.term.recv() => return Wish::End("SIGTERM"),
                _ = self.interrupt.recv() => return Wish::End("SIGINT"),
                _ = self.hangup.recv() => return Wish::Reload,
                _ = self.upgrade.recv() => return Wish::Upgrade,
                _ = self.user.recv() => {
                    let jobs = tokio::runtime::Handle::current().metrics().num_alive_tasks();
                    tracing::info!(jobs, "SIGUSR1: alive");
                }
            }
        }
    }
}
