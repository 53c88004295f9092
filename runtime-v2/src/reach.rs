//! Reaching the shim of a task that the daemon has lost sight of.
//!
//! Invariant: a shim is gone only when a fact of the kernel says so: a refused connection, or the end of
//! the process that it is known by. What cannot be read, a socket that is missing, and a process that
//! nobody has told of are no such facts: the task stays, with the reason, and is tried again. A container
//! that is known to have ended ends its task whatever cannot be read.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use types::{Code, Error, Result};

use crate::Status;
use crate::bootstrap;
use crate::client::{Client, Dialed, Failure, dial};
use crate::entry::{Entry, Init, Shim};
use crate::tasks::Shared;

/// First and longest pause between two attempts to connect.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// How long a shim may be at making its container: longer than ours gives its runtime for that.
const MAKING: Duration = Duration::from_secs(3 * 60);

/// What came of trying to reach a shim.
pub(crate) enum Reached {
    /// It answers.
    Up(Arc<Client>),
    /// Nobody listens any more.
    Gone,
    /// The container has ended, and its shim, which may be there still, cannot be asked.
    Cut,
    /// It answers and does not know the task.
    Empty,
}

/// Connects, however long it takes.
pub(crate) async fn reach(shared: &Shared, entry: &Entry) -> Reached {
    let mut pause = PAUSE.0;
    let mut making = None;
    loop {
        match attempt(shared, entry, &mut making).await {
            Ok(Some(reached)) => return reached,
            Ok(None) => {}
            Err(error) => entry.blame(&error),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One attempt; `None` means that nothing is known yet. `making`: since when the shim says that it cannot tell
/// of the task.
async fn attempt(
    shared: &Shared,
    entry: &Entry,
    making: &mut Option<Instant>,
) -> Result<Option<Reached>> {
    let address = match entry.address.get() {
        Some(address) => address,
        None => {
            load(shared, entry)?;
            match entry.address.get() {
                Some(address) => address,
                None => return unseen(entry, "its bundle names no socket").map(Some),
            }
        }
    };
    let stream = match dial(address).await {
        Ok(Dialed::Up(stream)) => stream,
        Ok(Dialed::Refused) => return Ok(Some(Reached::Gone)),
        Ok(Dialed::Absent) => {
            let why = format!("its socket {} is not there", address.address);
            return unseen(entry, &why).map(Some);
        }
        Ok(Dialed::Failed(error)) => return Err(Error::os("connect", error)),
        // It speaks what we do not.
        Err(error) => {
            let error = error.ctx("cannot be reached by this daemon");
            return unless_ended(entry, error).map(Some);
        }
    };
    // No deadline: a stopped shim answers when it is continued, and the kernel ends the
    // connection when it dies.
    let client = match Client::greet(stream, address.version, &entry.namespace, &entry.id).await {
        Ok(client) => client,
        Err(Failure::Answer(error)) if error.is_not_found() => return Ok(Some(Reached::Empty)),
        Err(Failure::Lost | Failure::Silent) => return Ok(None),
        Err(Failure::Answer(error)) => return Err(error),
    };
    ask(entry, client, making).await
}

/// Asks a shim that answers for its task.
async fn ask(
    entry: &Entry,
    client: Client,
    making: &mut Option<Instant>,
) -> Result<Option<Reached>> {
    match client.state(None).await {
        Ok(state) => {
            entry.seen().told(None, &state);
            if !matches!(state.status, Status::Unknown | Status::Created) {
                // The daemon may have ended between its start and this.
                entry.drop_checkpoint();
            }
        }
        // One that has no word for a create that is under way may yet have its task.
        Err(Failure::Answer(error))
            if error.is_not_found()
                && !client.peer().has_version
                && entry.bundle.is_younger_than(MAKING)
                && !entry.bundle.is_ending() =>
        {
            return Err(error.ctx("its shim may be at making it"));
        }
        Err(Failure::Answer(error)) if error.is_not_found() => return Ok(Some(Reached::Empty)),
        // An earlier daemon's create may be under way: whether there will be a container is not known yet.
        // Of a container that is known, or after that time, it is the shim that ails, and it may still be
        // able to end the task.
        Err(Failure::Answer(error))
            if error.is(Code::Unavailable)
                && entry.init() == Init::Unknown
                && making.get_or_insert_with(Instant::now).elapsed() < MAKING =>
        {
            return Err(error);
        }
        Err(Failure::Lost) => return Ok(None),
        // It answered once; whatever state it has can be asked for later.
        Err(Failure::Silent | Failure::Answer(_)) => {}
    }
    Ok(Some(Reached::Up(Arc::new(client))))
}

/// No socket to ask at, which says nothing about the shim: it is gone when the process that we knew it by
/// is. When there is none, it is gone when it was about to go with its bundle, even if the container's init
/// has outlived it; with that init, with the boot that its bundle is of, and when it was never there.
fn unseen(entry: &Entry, why: &str) -> Result<Reached> {
    let shim = entry.shim()?;
    if matches!(shim, Shim::Ended) {
        return Ok(Reached::Gone);
    }
    let looked = match entry.init() {
        // It may have been written since.
        Init::Unknown => entry.look(),
        _ => Ok(()),
    };
    let what = match (entry.init(), shim) {
        (Init::Ended, Shim::Unknown) if entry.bundle.is_of_earlier_boot() => {
            return Ok(Reached::Gone);
        }
        (Init::Ended, _) => return Ok(Reached::Cut),
        // The daemon that was at it took the socket away, or its shim did when it was told to end.
        (_, Shim::Unknown) if entry.bundle.is_ending() => return Ok(Reached::Gone),
        (Init::Alive(pid), _) => format!("but the container's process {pid} lives"),
        (Init::Unknown, Shim::Alive(..)) => "but its process lives".to_owned(),
        (Init::Unknown, _) => {
            if entry.bundle.is_of_earlier_boot() {
                return Ok(Reached::Gone);
            }
            looked?;
            if entry.address.get().is_none() {
                // Neither a shim nor a container ever came of it.
                return Ok(Reached::Gone);
            }
            "and nobody knows whether its container lives".to_owned()
        }
    };
    Err(Error::unavailable(format_args!("{why}, {what}")))
}

/// Why a shim cannot be asked, for as long as its container may live.
fn unless_ended(entry: &Entry, error: Error) -> Result<Reached> {
    match entry.init() {
        Init::Ended => Ok(Reached::Cut),
        Init::Alive(_) | Init::Unknown => Err(error),
    }
}

/// Reads what the bundle says.
///
/// # Errors
/// What cannot be read, or is not understood: who is there is unknown then. Of a container that has ended,
/// an address that says nothing is as good as none.
pub(crate) fn load(shared: &Shared, entry: &Entry) -> Result<()> {
    let (namespace, id) = (&entry.namespace, &entry.id);
    match entry.look() {
        // The shim can tell better.
        Err(error) if error.is(Code::DataLoss) => {
            tracing::debug!(%namespace, %id, %error, "state of task");
        }
        looked => looked?,
    }
    let address = match entry.bundle.address() {
        Err(error)
            if (error.is(Code::DataLoss) || error.is(Code::NotImplemented))
                && entry.init() == Init::Ended =>
        {
            tracing::warn!(%namespace, %id, %error, "address of shim");
            None
        }
        address => address?,
    };
    if let Some(address) = address {
        if let Err(error) = entry.bundle.migrate_address(&address) {
            tracing::warn!(%namespace, %id, %error, "address of an older shim");
        }
        let _first = entry.address.set(address);
    }
    match load_binary(shared, entry) {
        // To ask the shim, it takes none.
        Err(error) if error.is(Code::DataLoss) => {
            tracing::debug!(%namespace, %id, %error, "binary of shim");
            Ok(())
        }
        loaded => loaded,
    }
}

/// Finds the shim's binary: as remembered, else by the runtime of the container's record.
///
/// # Errors
/// What cannot be read; what is damaged while the record does not tell either.
pub(crate) fn load_binary(shared: &Shared, entry: &Entry) -> Result<()> {
    if entry.binary.get().is_some() {
        return Ok(());
    }
    let (namespace, id) = (&entry.namespace, &entry.id);
    let remembered = entry.bundle.binary();
    let binary = match &remembered {
        Ok(Some(binary)) => Some(binary.clone()),
        Err(error) if !error.is(Code::DataLoss) => return remembered.map(drop),
        _ => (shared.config.runtime_of)(namespace, id).and_then(|runtime| {
            bootstrap::resolve(&runtime)
                .inspect_err(|error| tracing::warn!(%namespace, %id, %error, "runtime of task"))
                .ok()
        }),
    };
    match binary {
        Some(binary) => {
            let _first = entry.binary.set(binary);
            Ok(())
        }
        None => remembered.map(drop),
    }
}
