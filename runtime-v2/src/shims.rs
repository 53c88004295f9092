//! Watching shims: connecting, noticing that one is gone, cleaning up after it.
//!
//! Invariant: clean-up (which kills the container) starts only when the kernel says that nobody
//! listens on the shim's socket. A shim that is silent, stopped or out of reach is waited for.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use recorder::On;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};
use types::{Error, Event, Exit, Result};

use crate::bootstrap::{self, Address, Target};
use crate::bundle::{Ended, lost};
use crate::client::{Client, Dialed, Failure, dial};
use crate::ending::{mark, note_ending};
use crate::entry::{Entry, Init, Link, Shim};
use crate::exec;
use crate::reach::{Reached, load_binary, reach};
use crate::silent;
use crate::tasks::Shared;

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// How long a shim that was told to end may take.
const ENDING: Duration = Duration::from_secs(3);
/// How long the caller waits for its process, whose end may include writing back a file system.
const PROMPT: Duration = Duration::from_millis(100);
/// How long it may take in the background before it is killed.
const LINGER: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;
/// How long a new shim may take to accept and answer.
const GREETING: Duration = Duration::from_secs(5);

/// Follows one task from now until it is gone. `client`: the connection, when there is one.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    mut client: Option<Arc<Client>>,
) {
    loop {
        let ready = match client.take() {
            Some(ready) => ready,
            None => match silent::told_late(&entry, reach(&shared, &entry)).await {
                Reached::Up(ready) => ready,
                Reached::Gone => return bury(&shared, &entry).await,
                Reached::Empty => return discard(&shared, &entry).await,
                Reached::Cut => {
                    put_down(&shared, &entry).await;
                    return bury(&shared, &entry).await;
                }
            },
        };
        entry.relink(Link::Ready(Arc::clone(&ready)));
        tokio::select! {
            () = ready.over() => {}
            // A shim of several stays when this task is deleted, and so would the connection.
            () = entry.over() => return,
            // It never ends.
            () = listen(&entry, &ready) => {}
        }
        // A delete that is under way ends the shim: wait for its result.
        let ending = entry.ending.lock().await;
        if matches!(entry.link(), Link::Gone(_)) {
            return;
        }
        drop(ending);
        tracing::debug!(namespace = %entry.namespace, id = %entry.id, "connection to shim ended");
        entry.relink(Link::Connecting);
    }
}

/// Tells of a shim that does not answer somebody in time, until it does.
async fn listen(entry: &Entry, client: &Client) {
    loop {
        entry.unanswered.notified().await;
        // A connection that ends is its supervisor's business, who ends this.
        if silent::told(entry, client.answers()).await.is_err() {
            std::future::pending::<()>().await;
        }
        // Others who were not answered meanwhile are told of by that.
        let _told = entry.unanswered.notified().now_or_never();
    }
}

fn target<'a>(shared: &'a Shared, entry: &'a Entry) -> Option<Target<'a>> {
    Some(Target {
        config: &shared.config,
        namespace: &entry.namespace,
        id: &entry.id,
        bundle: entry.bundle.path(),
        binary: entry.binary.get()?,
    })
}

/// The shim is gone: ends what it left, records the exit, tells everybody.
async fn bury(shared: &Arc<Shared>, entry: &Arc<Entry>) {
    let recorded = recorded(entry).await;
    let _ending = entry.ending.lock().await;
    if matches!(entry.link(), Link::Gone(_)) {
        return;
    }
    let (namespace, id) = (entry.namespace.clone(), entry.id.clone());
    mark(shared, entry).await;
    let oom = recorded.is_some_and(|ended| ended.oom);
    let recorded = recorded.map(|ended| ended.exit).or(entry.seen().exit());
    tracing::info!(%namespace, %id, "shim is gone, cleaning up");
    let reported = clear(shared, entry).await;
    let pid = entry.seen().get(None).map_or(0, |state| state.pid);
    let mut exit = recorded.or(reported).unwrap_or_else(|| lost(pid));
    if exit.pid == 0 {
        exit.pid = pid;
    }
    remove_bundle(shared, entry).await;
    let published = entry.seen().is_exit_published();
    let oom = oom && !published && !entry.seen().is_oom_published();
    entry.finish(exit);
    shared.settle(entry);
    if oom {
        let container = id.clone();
        shared.publish(&namespace, Event::TaskOom { container });
    }
    if !published {
        tell_exit(shared, entry, exit);
    }
    tell_deletion(shared, entry, exit);
}

fn tell_exit(shared: &Shared, entry: &Entry, exit: Exit) {
    let event = Event::TaskExit {
        container: entry.id.clone(),
        id: entry.id.to_string(),
        pid: exit.pid,
        status: exit.status,
        exited_at: exit.at,
    };
    shared.publish(&entry.namespace, event);
}

fn tell_deletion(shared: &Shared, entry: &Entry, exit: Exit) {
    let container = entry.id.clone();
    shared.publish(&entry.namespace, Event::TaskDelete { container, exit });
}

/// What the shim has recorded, as soon as that can be read: with the bundle it is gone for good.
async fn recorded(entry: &Entry) -> Option<Ended> {
    let mut pause = PAUSE.0;
    loop {
        match entry.bundle.ended() {
            Ok(ended) => return ended,
            Err(_) if matches!(entry.link(), Link::Gone(_)) => return None,
            Err(error) => entry.blame(&error),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Runs the binary's `delete`, again and again while the container's init lives: a bundle whose
/// container runs is not given up.
async fn clear(shared: &Shared, entry: &Entry) -> Option<Exit> {
    let mut pause = PAUSE.0;
    loop {
        let Some(target) = target(shared, entry) else {
            match load_binary(shared, entry) {
                Err(error) if entry.init() != Init::Ended => entry.blame(&error),
                Ok(()) if entry.binary.get().is_some() => continue,
                Ok(()) if entry.is_init_alive() => entry.blame(&Error::not_found(
                    "the shim is gone and no shim binary is known, but its container lives",
                )),
                _ => {
                    let (namespace, id) = (&entry.namespace, &entry.id);
                    tracing::warn!(%namespace, %id, "no shim binary is known, the container is not deleted");
                    break None;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            continue;
        };
        match bootstrap::delete(target).await {
            Ok(exit) => break Some(exit),
            Err(error) => {
                let (namespace, id) = (&entry.namespace, &entry.id);
                tracing::warn!(%namespace, %id, %error, "clean up after shim");
                if !entry.is_init_alive() {
                    break None;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Removes the socket file when nobody listens on it.
async fn remove_socket(shared: &Shared, entry: &Entry) {
    let Some(address) = entry.address.get() else {
        // A daemon that was killed may have made one that it had no time to name.
        let path = bootstrap::socket_of(&shared.config, &entry.namespace, &entry.id);
        if path.exists() {
            drop(sys::socket::remove_deserted(&path));
        }
        return;
    };
    if let Some(path) = address.unix_path()
        && matches!(dial(address).await, Ok(Dialed::Refused))
    {
        // Another task's shim may have taken the name since: then it is not refused.
        drop(tokio::fs::remove_file(path).await);
    }
}

async fn remove_bundle(shared: &Shared, entry: &Entry) {
    let named = || On::named(entry.bundle.path().display().to_string());
    let _removing = recorder::stage("removal of bundle", named);
    remove_socket(shared, entry).await;
    let bundle = entry.bundle.clone();
    let removed = tokio::task::spawn_blocking(move || bundle.remove()).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(id = %entry.id, %error, "remove bundle");
    }
}

/// A shim that answers but has no such task: its daemon died before or during create.
async fn discard(shared: &Arc<Shared>, entry: &Arc<Entry>) {
    let _ending = entry.ending.lock().await;
    let (namespace, id) = (&entry.namespace, &entry.id);
    tracing::info!(%namespace, %id, "shim has no task, cleaning up");
    let mut pause = PAUSE.0;
    let reported = loop {
        match abandon(shared, entry).await {
            Ok(reported) => break reported,
            Err(error) => tracing::warn!(%namespace, %id, %error, "clean up leaked shim"),
        }
        // A container may have come of it all the same: while it runs, its bundle is not given up.
        if let Err(error) = entry.look() {
            entry.blame(&error);
        }
        if !entry.is_init_alive() {
            break None;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    };
    remove_bundle(shared, entry).await;
    entry.finish(lost(0));
    shared.forget(entry);
    // A container came of it all the same, and its shim has told of that: its end is told, too.
    if let Some(exit) = reported
        && exit.pid != 0
    {
        if !entry.seen().is_exit_published() {
            tell_exit(shared, entry, exit);
        }
        tell_deletion(shared, entry, exit);
    }
}

/// Takes a shim down whose task is not wanted, and whatever the task has become, which it returns.
///
/// # Errors
/// What `delete` of the binary says.
pub(crate) async fn abandon(shared: &Shared, entry: &Entry) -> Result<Option<Exit>> {
    note_ending(entry);
    let address = match entry.address.get() {
        Some(known) => Some(known.clone()),
        None => entry.bundle.address()?,
    };
    let mut client = None;
    if let Some(address) = &address {
        let _first = entry.address.set(address.clone());
        client = greet(entry, address).await.ok().map(Arc::new);
    }
    let shared_shim = shared.is_shared(entry);
    if let Some(client) = &client
        && !shared_shim
        && let Some(leaving) = Leaving::start(Arc::clone(client)).await
    {
        let patience = if leaving.closed {
            ENDING
        } else {
            Duration::ZERO
        };
        leaving.end(patience, || shared.is_shared(entry)).await;
    }
    if client.is_none() && !shared_shim {
        // It cannot be asked to end, and `delete` ends the container alone.
        kill(entry).await;
    }
    if let Err(error) = load_binary(shared, entry) {
        tracing::warn!(id = %entry.id, %error, "binary of shim");
    }
    let deleted = match target(shared, entry) {
        Some(target) => bootstrap::delete(target).await.map(Some),
        None => Ok(None),
    };
    if let Some(client) = client
        && shared_shim
    {
        // The shim stays for its other containers and must forget this one.
        drop(timeout(ENDING, client.delete(None)).await);
    }
    remove_socket(shared, entry).await;
    deleted
}

/// Kills a shim that this process has started, and waits for its end: its socket is refused then.
pub(crate) async fn kill(entry: &Entry) {
    let Some(process) = entry.process() else {
        return;
    };
    // One that has ended already is none to signal.
    drop(sys::pidfd::send_signal(&process, SIGKILL));
    match ended(&process, ENDING).await {
        Ok(true) => {}
        Ok(false) => tracing::warn!(id = %entry.id, "a killed shim does not end"),
        Err(error) => tracing::warn!(id = %entry.id, %error, "end of shim"),
    }
}

/// Whether a process ends in time.
async fn ended(process: &OwnedFd, limit: Duration) -> Result<bool> {
    let watched = process.try_clone().map_err(|e| Error::os("dup", e))?;
    let watch = exec::watch_fd(watched)?;
    // An error says no more than that there is nothing to wait for.
    Ok(timeout(limit, watch.readable()).await.is_ok())
}

/// Ends a shim that nobody can reach any more and whose container has ended: without this it would stay for
/// ever. It may have that end still to record.
async fn put_down(shared: &Shared, entry: &Entry) {
    let (namespace, id) = (&entry.namespace, &entry.id);
    if shared.is_shared(entry) {
        return;
    }
    let told = match entry.shim() {
        Ok(Shim::Ended) => return,
        // The last connection's word for it is all there is.
        _ if entry.is_own_process() => return,
        Ok(Shim::Alive(process)) => ended(&process, ENDING).await.and_then(|is_over| {
            if is_over {
                return Ok(());
            }
            tracing::warn!(%namespace, %id, "shim without a socket does not end, killing it");
            sys::pidfd::send_signal(&process, SIGKILL)
        }),
        Ok(Shim::Unknown) => Err(Error::not_found("its process is not known")),
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        tracing::warn!(%namespace, %id, %error, "a shim without a socket may be left behind");
    }
}

/// Connects to a shim that was just started.
///
/// # Errors
/// `Unavailable` when it cannot be reached, `DeadlineExceeded` when it does not answer.
pub(crate) async fn greet(entry: &Entry, address: &Address) -> Result<Client> {
    let stream = match dial(address).await? {
        Dialed::Up(stream) => stream,
        Dialed::Refused | Dialed::Absent => {
            return Err(Error::unavailable(format_args!(
                "shim does not listen on {}",
                address.address
            )));
        }
        Dialed::Failed(error) => {
            return Err(Error::os(
                format_args!("connect {}", address.address),
                error,
            ));
        }
    };
    let _waiting = recorder::stage("first answer of shim", || {
        On::named(address.address.clone())
    });
    let greeting = Client::greet(stream, address.version, &entry.namespace, &entry.id);
    timeout(GREETING, greeting)
        .await
        .unwrap_or(Err(Failure::Silent))
        .map_err(|e| entry.failed(e))
}

/// A shim that has no task left, on its way out.
struct Leaving {
    client: Arc<Client>,
    /// Opened while the connection proves that the pid is the shim's.
    process: Option<AsyncFd<OwnedFd>>,
    /// The connection has ended: it is about to go.
    closed: bool,
}

impl Leaving {
    /// Asks the shim to end, and waits a little. `None` when it did.
    async fn start(client: Arc<Client>) -> Option<Self> {
        let process = sys::pidfd::open(client.peer().shim);
        let process = process.and_then(exec::watch_fd).ok();
        let mut leaving = Self {
            client,
            process,
            closed: false,
        };
        match leaving.client.shutdown(false).await {
            // Many shims end before the answer is out.
            Ok(()) | Err(Failure::Lost) => {}
            Err(failure) => tracing::debug!(?leaving.client, ?failure, "shutdown of shim"),
        }
        let shim = leaving.client.peer().shim;
        let _waiting = recorder::stage("end of shim", || On::Process(shim));
        leaving.closed = timeout(ENDING, leaving.client.over()).await.is_ok();
        let gone = leaving.closed && leaving.gone(PROMPT).await;
        (!gone).then_some(leaving)
    }

    /// True when connection and process ended in time.
    async fn gone(&self, patience: Duration) -> bool {
        let gone = async {
            self.client.over().await;
            if let Some(process) = &self.process {
                // An error says no more than that there is nothing to wait for.
                drop(process.readable().await);
            }
        };
        timeout(patience, gone).await.is_ok()
    }

    /// Kills the shim unless it ends by itself: there is nothing to lose, unless another task has come
    /// to it meanwhile and is what keeps it.
    async fn end(self, patience: Duration, is_wanted: impl FnOnce() -> bool) {
        if self.gone(patience).await || (!self.closed && is_wanted()) {
            return;
        }
        if let Some(process) = &self.process {
            tracing::warn!(?self.client, "shim without a task does not end, killing it");
            drop(sys::pidfd::send_signal(process.get_ref(), SIGKILL));
            self.gone(ENDING).await;
        }
    }
}

/// Deletes a stopped task: in its shim, then the shim, then the bundle.
///
/// # Errors
/// What the shim answers; `Unavailable` when it does not respond.
pub(crate) async fn delete(shared: &Arc<Shared>, entry: &Arc<Entry>) -> Result<Exit> {
    if let Link::Gone(exit) = entry.link() {
        shared.forget(entry);
        return Ok(exit);
    }
    let client = entry.client().await?;
    let waiting = recorder::stage("another end of the same task", On::default);
    let ending = entry.ending.lock().await;
    drop(waiting);
    if let Link::Gone(exit) = entry.link() {
        shared.forget(entry);
        return Ok(exit);
    }
    let exit = match client.delete(None).await {
        Ok(exit) => exit,
        Err(Failure::Lost) => {
            drop(ending);
            let gone = entry.gone(GREETING * 2).await;
            shared.forget_gone(entry);
            return gone.ok_or_else(|| entry.failed(Failure::Lost));
        }
        // The shim has forgotten it already: an earlier delete was cut off.
        Err(Failure::Answer(error)) if error.is_not_found() => {
            let seen = entry.seen();
            let pid = seen.get(None).map_or(0, |state| state.pid);
            seen.exit().unwrap_or_else(|| lost(pid))
        }
        Err(failure) => return Err(entry.failed(failure)),
    };
    if shared.is_shared(entry) {
        drop(client.shutdown(false).await);
    } else {
        // The socket goes with the shim, and some shims leave nothing else that tells.
        note_ending(entry);
        if let Some(leaving) = Leaving::start(client).await {
            // It may still be publishing its last events.
            let (shared, entry) = (Arc::clone(shared), Arc::clone(entry));
            tokio::spawn(async move { leaving.end(LINGER, || shared.is_shared(&entry)).await });
        }
    }
    remove_bundle(shared, entry).await;
    entry.finish(exit);
    shared.forget(entry);
    Ok(exit)
}
