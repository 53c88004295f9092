//! Signals: which end the daemon and which do not.
//!
//! SIGTERM and SIGINT end it in order, once it is about to serve; containers go on running. SIGHUP is how a
//! service manager asks for a reload. SIGUSR2 asks for a hand-over. SIGUSR1 asks for a sign of life. SIGPIPE is
//! ignored by the standard library from the start.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{self, SignalKind, signal};
use types::{Error, Result};

/// Signals that end the process were taken over once: nobody gives them back to the kernel.
static FOR_GOOD: AtomicBool = AtomicBool::new(false);

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

/// The signals that are handled, from the moment of [`Signals::take`] on; those that end the daemon from that
/// of [`Signals::end_in_order`] on. Before, they do so at once: while the stores are opened nobody would hear
/// them, and a disk that hangs would keep a daemon that was told to go. A daemon that serves again after a
/// hand-over that failed has taken them for good, and to the first process of a pid namespace they would not come
/// (pid_namespaces(7)): there they are heard behind the opening.
#[derive(Debug)]
pub(crate) struct Signals {
    ends: Option<[(unix::Signal, &'static str); 2]>,
    hangup: unix::Signal,
    user: unix::Signal,
    upgrade: unix::Signal,
}

impl Signals {
    /// Takes over those that do not end the daemon.
    ///
    /// # Errors
    /// The errno of `sigaction`.
    pub(crate) fn take() -> Result<Self> {
        let mut taken = Self {
            ends: None,
            hangup: take(SignalKind::hangup())?,
            user: take(SignalKind::user_defined1())?,
            upgrade: take(SignalKind::user_defined2())?,
        };
        if FOR_GOOD.load(Ordering::Relaxed) || std::process::id() == 1 {
            taken.end_in_order()?;
        }
        Ok(taken)
    }

    /// Takes over those that end it as well.
    ///
    /// # Errors
    /// The errno of `sigaction`.
    pub(crate) fn end_in_order(&mut self) -> Result<()> {
        if self.ends.is_some() {
            return Ok(());
        }
        FOR_GOOD.store(true, Ordering::Relaxed);
        self.ends = Some([
            (take(SignalKind::terminate())?, "SIGTERM"),
            (take(SignalKind::interrupt())?, "SIGINT"),
        ]);
        Ok(())
    }

    /// Waits for one that asks for something. Cancel safe.
    pub(crate) async fn next(&mut self) -> Wish {
        loop {
            tokio::select! {
                name = end(&mut self.ends) => return Wish::End(name),
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

fn take(kind: SignalKind) -> Result<unix::Signal> {
    signal(kind).map_err(|e| Error::os("sigaction", e))
}

/// The first that comes of those that end the daemon. Cancel safe.
async fn end(ends: &mut Option<[(unix::Signal, &'static str); 2]>) -> &'static str {
    let Some([(one, name), (other, other_name)]) = ends else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = one.recv() => name,
        _ = other.recv() => other_name,
    }
}
