//! Signals: which end the daemon and which do not.
//!
//! SIGTERM and SIGINT end it in order; containers go on running. SIGHUP is how a service manager
//! asks for a reload; there is none yet, and it must not kill. SIGPIPE is ignored by the standard
//! library from the start.

use tokio::signal::unix::{Signal, SignalKind, signal};
use types::{Error, Result};

/// The signals that are handled, from the moment of [`Signals::take`] on.
#[derive(Debug)]
pub(crate) struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
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
            }
        }
    }
}
