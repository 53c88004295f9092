//! The server: one thread, one socket, signals as a descriptor.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sys::signal::SignalFd;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use types::{Error, Namespace, Result};

use crate::caught::survives;
use crate::log;
use crate::service::{Shim, dispatch};
use crate::watch::watch;
use crate::wire;

/// Connections at a time: a daemon has one, clients that attach have one each.
const CONNECTIONS: usize = 1024;
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the end waits for the daemon to take the last events.
const LAST_EVENTS: Duration = Duration::from_secs(5);
/// How long it waits for calls of the runtime that make a process, and for loggers that were told to end.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// Before the publisher starts again after a bug in it.
const PUBLISHER_PAUSE: Duration = Duration::from_secs(1);

/// What a server needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) namespace: Namespace,
    /// Where events go; empty when there is no daemon.
    pub(crate) events: String,
    /// The listening socket's path, removed at the end.
    pub(crate) socket: Option<PathBuf>,
}

/// Serves until it is told to stop.
///
/// # Errors
/// When the process cannot be set up; nothing afterwards ends it.
pub(crate) fn serve(listener: UnixListener, setup: Setup) -> Result<()> {
    sys::reaper::become_subreaper()?;
    let handled = [
        libc::SIGCHLD,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGUSR1,
        libc::SIGHUP,
    ];
    let signals = SignalFd::new(&handled)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::os("start runtime", e))?;
    runtime.block_on(run(listener, signals, setup))
}

async fn run(listener: UnixListener, signals: SignalFd, setup: Setup) -> Result<()> {
    listener
        .set_nonblocking(true)
        .map_err(|e| Error::os("listen", e))?;
    let listener =
        tokio::net::UnixListener::from_std(listener).map_err(|e| Error::os("listen", e))?;
    let shim = Arc::new(Shim::new(setup.namespace));
    if !setup.events.is_empty() {
        drop(tokio::spawn(publish(Arc::clone(&shim), setup.events)));
    }
    drop(tokio::spawn(accept(listener, Arc::clone(&shim))));
    let signals = watch(signals)?;
    tokio::select! {
        () = shim.stop.notified() => {}
        () = follow_signals(&shim, &signals) => {}
    }
    // New callers must not find a socket that is about to close.
    if let Some(socket) = setup.socket {
        drop(std::fs::remove_file(socket));
    }
    // Requests that came before may be in the middle of making something.
    let last = async {
        if timeout(LAST_CALLS, shim.reap.quiet()).await.is_err() {
            log::warn(format_args!("a runtime or a logger is still at work"));
        }
        shim.reap.insist();
        shim.publisher.drain(LAST_EVENTS).await;
    };
    tokio::pin!(last);
    loop {
        tokio::select! {
            () = &mut last => return Ok(()),
            () = follow_children(&shim, &signals) => {}
        }
    }
}

/// Sends events as long as the shim lives, whatever becomes of one attempt.
async fn publish(shim: Arc<Shim>, address: String) {
    while tokio::spawn(Arc::clone(&shim.publisher).run(address.clone()))
        .await
        .is_err()
    {
        tokio::time::sleep(PUBLISHER_PAUSE).await;
    }
}

/// Takes connections as long as the shim lives.
async fn accept(listener: tokio::net::UnixListener, shim: Arc<Shim>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, for one: it passes.
                log::warn(format_args!("accept: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = admit(&stream, connections.len()) {
            log::warn(format_args!("connection refused: {error}"));
            continue;
        }
        let shim = Arc::clone(&shim);
        drop(connections.spawn(async move {
            wire::converse(stream, |request| dispatch(Arc::clone(&shim), request)).await;
        }));
    }
}

/// Only this user's processes speak to the shim, and not too many at once.
fn admit(stream: &UnixStream, there: usize) -> Result<()> {
    let peer = sys::socket::peer(stream)?;
    let own = sys::process::effective_uid();
    if peer.uid != own {
        let text = format_args!("user {} is not {own}", peer.uid);
        return Err(Error::permission_denied(text));
    }
    if there >= CONNECTIONS {
        return Err(Error::resource_exhausted(format_args!(
            "{there} connections"
        )));
    }
    Ok(())
}

/// Until a signal says stop.
async fn follow_signals(shim: &Shim, signals: &AsyncFd<SignalFd>) {
    loop {
        let Ok(mut ready) = signals.readable().await else {
            return;
        };
        while let Some(signal) = signals.get_ref().next() {
            match signal {
                libc::SIGCHLD => {
                    survives(|| shim.reap.round());
                }
                libc::SIGUSR1 => log::info(format_args!("{shim:?}")),
                // The kernel sends it to a shim that somebody has stopped when the daemon that started it ends:
                // its process group has nobody left who could continue it.
                libc::SIGHUP => log::info(format_args!("the daemon has ended: the shim goes on")),
                _ => {
                    log::info(format_args!("signal {signal}: the shim ends"));
                    return;
                }
            }
        }
        ready.clear_ready();
    }
}

async fn follow_children(shim: &Shim, signals: &AsyncFd<SignalFd>) {
    let Ok(mut ready) = signals.readable().await else {
        return std::future::pending().await;
    };
    while signals.get_ref().next().is_some() {
        survives(|| shim.reap.round());
    }
    ready.clear_ready();
}
