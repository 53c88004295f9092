//! Signals: which end the daemon and which do not.
//!
//! SIGTERM and SIGINT end it in order; containers go on running. SIGHUP is how a service manager
//! asks for a reload; there is none yet, and it must not kill. SIGUSR1 asks for a sign of life.
//! SIGPIPE is ignored by the standard library from the start.

use tokio::signal::unix::{Signal, SignalKind, signal};
use types::{Error, Result};

/// The signals that are handled, from the moment of [`Signals::take`] on.
#[derive(Debug)]
pub(crate) struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Signal,
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
        })
    }

    /// Waits for one that ends the daemon; its name.
    pub(crate) async fn end(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::warn!("SIGHUP: the configuration is read at the start only");
                }
                _ = self.user.recv() => {
                    let jobs = tokio::runtime::Handle::current().metrics().num_alive_tasks();
                    tracing::info!(jobs, "SIGUSR1: alive");
                }
            }
        }
    }
}
