//! The life of the daemon: locks, sockets, floors, service, end.
//!
//! ```text
//! locks -> sockets bound -> ground -> store -> engine -> face -> READY -> serve … signal -> STOPPING
//!                                                 \-> recovery of shims, beside the service
//! ```
//! Invariant: nothing is touched before the locks are held, and the sockets are never taken from a
//! daemon that lives.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use events::{Exchange, History};
use futures::FutureExt as _;
use tokio::runtime;
use tokio::sync::oneshot;
use types::{Error, Result};

use crate::config::Config;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::fsck::Checker;
use crate::ground::Ground;
use crate::handover::{self, Estate, Heir, Successor};
use crate::listen::Socket;
use crate::lock::Locks;
use crate::passed::Passed;
use crate::reload::{Live, Source};
use crate::signals::{Signals, Wish};
use crate::store::Store;
use crate::unclean::Running;
use crate::{debug, face, memory, metrics, notify, restart, traces, ttrpc_server, version};

/// Threads that serve: enough to use a small machine, few enough to stay small on a large one.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;
/// Threads for file work at most, and how long an idle one stays.
const BLOCKING_THREADS: usize = 64;
const BLOCKING_KEEP: Duration = Duration::from_secs(5);
/// How long calls in flight may go on after the signal. Waiting calls never end by themselves.
const GRACE: Duration = Duration::from_secs(1);

/// How often the service manager hears of a daemon that waits for its successor.
const BEAT: Duration = Duration::from_secs(5);

/// Serves until a signal says stop, or until a successor serves.
///
/// # Errors
/// What keeps the daemon from starting, in one line.
pub(crate) fn run(
    mut config: Config,
    mut source: Source,
    heir: &mut Option<Heir>,
) -> Result<(), Failure> {
    // As long as it is the file that this process was started from.
    let binary = std::env::current_exe().map_err(|e| Error::os("find own binary", e))?;
    let mut passed = Passed::by_manager()?;
    tune(&config);
    let (locks, mut past) = match heir {
        Some(heir) => heir.inherit(&config, &mut passed)?,
        None => (Locks::take(&config).map_err(Failure::place)?, None),
    };
    let sockets = Sockets::open(&mut config, &mut passed).map_err(Failure::place)?;
    drop(passed);
    let place = Place {
        binary,
        config,
        locks,
        sockets,
    };
    loop {
        let runtime = threads()?;
        let done = runtime.block_on(serve(&place, &mut source, past.take(), heir));
        runtime.shutdown_timeout(GRACE);
        let Ended::Leaving(successor, events) = done? else {
            return Ok(());
        };
        let history = events.history();
        drop(events);
        match place.give(successor, &history)? {
            Given::Gone(successor) => {
                place.leave(&successor);
                return Ok(());
            }
            Given::Stopped => return Ok(()),
            Given::Back => past = Some(history),
        }
    }
}

/// What a daemon holds as long as it is one, however often it begins to serve.
#[derive(Debug)]
struct Place {
    /// The file that it was started from, or what is there now.
    binary: PathBuf,
    config: Config,
    locks: Locks,
    sockets: Sockets,
}

/// How serving ended.
enum Ended {
    /// By a signal.
    Stopped,
    /// For a successor, with the events that it is to go on with.
    Leaving(Successor, Arc<Exchange>),
}

/// How a hand-over ended.
enum Given {
    /// The successor serves, and waits for the end of this daemon.
    Gone(Successor),
    /// A signal said stop meanwhile.
    Stopped,
    /// It is for this daemon to go on.
    Back,
}

impl Place {
    /// Starts a successor and gives it what this daemon holds.
    fn successor(&self) -> Result<Successor> {
        let estate = Estate {
            root: self.config.root.clone(),
            state: self.config.state.clone(),
            sockets: self.sockets.given(),
        };
        let fds: Vec<_> = self.locks.fds().chain(self.sockets.fds()).collect();
        Successor::start(&self.binary, &estate, &fds)
    }

    /// Lets the successor open the stores, which this daemon has closed, and waits until it serves.
    fn give(&self, successor: Successor, history: &History) -> Result<Given> {
        let is_closed = closed();
        if let Err(error) = successor.go(history, !is_closed) {
            successor.end();
            tracing::error!(%error, "the new daemon is gone: going on");
            return Ok(Given::Back);
        }
        if !is_closed {
            // Something still works on the stores; it ends with this process, and not before.
            tracing::warn!(
                "work under way does not end: the successor begins when this one has ended"
            );
            return Ok(Given::Gone(successor));
        }
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::os("start threads", e))?;
        let heard = runtime.block_on(async {
            let mut signals = Signals::take()?;
            let mut beat = tokio::time::interval(BEAT);
            loop {
                tokio::select! {
                    ready = successor.ready() => return ready.map(|()| false),
                    _ = beat.tick() => notify::alive(),
                    wish = signals.next() => if let Wish::End(signal) = wish {
                        tracing::info!(signal, "stopping");
                        return Ok(true);
                    },
                }
            }
        });
        match heard {
            Ok(false) => return Ok(Given::Gone(successor)),
            Ok(true) => {
                notify::notify(notify::STOPPING);
                successor.end();
                return Ok(Given::Stopped);
            }
            Err(error) => {
                successor.end();
                tracing::error!(%error, "the new daemon failed: going on");
            }
        }
        Ok(Given::Back)
    }

    /// Leaves everything to the successor.
    fn leave(self, successor: &Successor) {
        let pid = successor.pid();
        notify::successor(pid);
        tracing::info!(pid, "the new daemon serves: leaving");
        self.sockets.leave();
        self.locks.leave();
    }
}

/// True when nothing of this process works any more but the thread that asks. Waits a while for that.
fn closed() -> bool {
    /// Pause between two looks: threads tell nobody that they are gone.
    const LOOK: Duration = Duration::from_millis(1);
    let begun = Instant::now();
    // Not knowing is no yes.
    while !sys::process::threads().is_ok_and(|threads| threads == 1) {
        if begun.elapsed() > GRACE {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

fn threads() -> Result<runtime::Runtime> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    runtime::Builder::new_multi_thread()
        .worker_threads(cpus.clamp(*THREADS.start(), *THREADS.end()))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP)
        .thread_name("containerd")
        .enable_all()
        .build()
        .map_err(|e| Error::os("start threads", e))
}

/// Asks the kernel and the allocator for what suits a daemon. Refusals are no reason not to start.
fn tune(config: &Config) {
    sys::limits::tune_heap();
    if let Err(error) = sys::limits::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    if config.oom_score != 0
        && let Err(error) = sys::limits::set_oom_score(std::process::id(), config.oom_score)
    {
        tracing::warn!(%error, "cannot set the OOM score");
    }
}

/// What clients and shims connect to.
#[derive(Debug)]
struct Sockets {
    grpc: Socket,
    ttrpc: Socket,
}

impl Sockets {
    /// Takes what was passed, and binds the rest. The configuration then has the paths as they are:
    /// shims are told them.
    fn open(config: &mut Config, passed: &mut Passed) -> Result<Self> {
        let (uid, gid) = (config.grpc.uid, config.grpc.gid);
        let grpc = one("grpc", &config.grpc.address, (uid, gid), passed)?;
        config.grpc.address = grpc.path().display().to_string();
        let (uid, gid) = (config.ttrpc.uid, config.ttrpc.gid);
        let ttrpc = one("ttrpc", &config.ttrpc_address(), (uid, gid), passed)?;
        config.ttrpc.address = ttrpc.path().display().to_string();
        Ok(Self { grpc, ttrpc })
    }

    fn named(&self) -> [(&'static str, &Socket); 2] {
        [("grpc", &self.grpc), ("ttrpc", &self.ttrpc)]
    }

    /// What a successor is told of them.
    fn given(&self) -> Vec<handover::Given> {
        let given = |(name, socket): (&str, &Socket)| handover::Given {
            name: name.to_owned(),
            owned: socket.is_owned(),
        };
        self.named().into_iter().map(given).collect()
    }

    /// Their descriptors, in the same order.
    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.named().into_iter().map(|(_, socket)| socket.fd())
    }

    fn leave(self) {
        self.grpc.leave();
        self.ttrpc.leave();
    }
}

fn one(name: &str, path: &str, owner: (u32, u32), passed: &mut Passed) -> Result<Socket> {
    match passed.take(name, Path::new(path))? {
        Some(socket) => Ok(socket),
        None => Socket::bind(Path::new(path), owner.0, owner.1),
    }
}

async fn serve(
    place: &Place,
    source: &mut Source,
    past: Option<History>,
    heir: &mut Option<Heir>,
) -> Result<Ended> {
    let config = &place.config;
    let mut signals = Signals::take()?;
    let running = Running::begin(&config.root)?;
    let mut ground = Ground::open(config)?;
    if let Some(past) = past {
        ground = ground.after(past);
    }
    let engine = Engine::open(Store::open(ground, config).await?, config)?;
    let checker = Checker::new(&engine.store.metadata, config);
    let routes = face::routes(&engine, &checker, config)?;
    let mut shims = ttrpc_server::serve(&place.sockets.ttrpc, face::events(&engine)).await?;
    let collector = engine.start(config)?;
    let mut live = Live::new(source, collector, engine.transfers.clone());
    restart::start(&engine, config)?;
    metrics::start(&engine, config)?;
    debug::start(&engine, config)?;
    traces::start();
    running.watch(checker, engine.transfers.clone());
    memory::watch();

    let (stop, stopped) = oneshot::channel::<()>();
    let incoming = place.sockets.grpc.incoming(|_| true)?;
    let server = grpc::connections::serve(routes, incoming, async {
        // Either way it is time to stop.
        let _signalled = stopped.await;
    });
    tokio::pin!(server);
    tracing::info!(
        address = config.grpc.address,
        version = version::VERSION,
        "serving"
    );
    let heir = heir.take();
    if let Some(heir) = &heir {
        // Not before: the files of one that fails are the old daemon's still.
        let named = place.sockets.named().into_iter();
        let owned = named.filter(|(name, _)| heir.owns(name));
        owned.for_each(|(_, socket)| socket.own());
        place.locks.own();
    }
    let ready = announce(heir);
    let successor = tokio::select! {
        () = notify::keep_alive() => None,
        () = &mut server => return Err(Error::internal("the socket is gone")),
        successor = heed(place, &mut signals, &mut live, ready) => successor,
    };
    match successor {
        Some(_) => notify::alive(),
        None => notify::notify(notify::STOPPING),
    }
    drop(stop);
    let ending = async {
        if tokio::time::timeout(GRACE, server).await.is_err() {
            tracing::info!("calls still in flight were cut off");
        }
        // An event that was taken is answered, or its shim would send it again.
        if tokio::time::timeout(GRACE, shims.shutdown()).await.is_err() {
            tracing::info!("shims still sending were cut off");
        }
    };
    let successor = ended_for(successor, &mut signals, ending).await;
    running.end();
    Ok(match successor {
        Some(successor) => Ended::Leaving(successor, Arc::clone(&engine.store.ground.events)),
        None => Ended::Stopped,
    })
}

/// Tells the world that the daemon serves. An heir is not the main process before the old one has gone.
async fn announce(heir: Option<Heir>) {
    if let Some(heir) = heir {
        heir.ready().await;
    }
    notify::notify(notify::READY);
    // What was said before the manager knew this process was not heard.
    notify::alive();
}

/// Comes to the end for a successor, which is ended itself when a signal says stop meanwhile.
async fn ended_for(
    successor: Option<Successor>,
    signals: &mut Signals,
    ending: impl Future<Output = ()>,
) -> Option<Successor> {
    let mut ending = pin!(ending);
    let Some(successor) = successor else {
        ending.await;
        return None;
    };
    loop {
        tokio::select! {
            () = &mut ending => return Some(successor),
            wish = signals.next() => if let Wish::End(signal) = wish {
                tracing::info!(signal, "stopping");
                notify::notify(notify::STOPPING);
                successor.end();
                ending.await;
                return None;
            },
        }
    }
}

/// Does what signals ask for, until one of them ends the daemon or a successor is prepared.
async fn heed(
    place: &Place,
    signals: &mut Signals,
    live: &mut Live<'_>,
    ready: impl Future<Output = ()>,
) -> Option<Successor> {
    let mut ready = pin!(ready.fuse());
    loop {
        let wish = tokio::select! {
            () = &mut ready => continue,
            wish = signals.next() => wish,
        };
        match wish {
            Wish::End(signal) => {
                tracing::info!(signal, "stopping");
                return None;
            }
            Wish::Reload => {
                notify::reloading();
                live.reload();
                notify::notify(notify::READY);
            }
            Wish::Upgrade => {
                notify::reloading();
                match prepared(place, signals).await {
                    Ok(successor) => return successor,
                    Err(error) => tracing::error!(%error, "no new daemon: going on"),
                }
                notify::notify(notify::READY);
            }
        }
    }
}

/// A successor that needs nothing more but the stores; none when a signal says stop meanwhile.
async fn prepared(place: &Place, signals: &mut Signals) -> Result<Option<Successor>> {
    let successor = place.successor()?;
    tracing::info!(pid = successor.pid(), binary = %place.binary.display(), "starting a new daemon");
    let done = loop {
        tokio::select! {
            prepared = successor.prepared() => break prepared.map(|()| true),
            wish = signals.next() => match wish {
                Wish::End(signal) => {
                    tracing::info!(signal, "stopping");
                    break Ok(false);
                }
                Wish::Reload | Wish::Upgrade => {}
            },
        }
    };
    match done {
        Ok(true) => Ok(Some(successor)),
        Ok(false) => {
            successor.end();
            Ok(None)
        }
        Err(error) => {
            successor.end();
            Err(error)
        }
    }
}
