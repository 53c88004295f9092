//! The life of the daemon: locks, sockets, floors, service, end.
//!
//! ```text
//! locks -> sockets bound -> ground -> store -> engine -> face -> READY -> serve … signal -> STOPPING
//!                                                 \-> recovery of shims, beside the service
//! ```
//! Invariant: nothing is touched before the locks are held, and the sockets are never taken from a
//! daemon that lives.

use std::path::PathBuf;
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
use crate::handover::{BEAT, Estate, Heir, Parting, Successor, heeding};
use crate::lock::Locks;
use crate::passed::Passed;
use crate::reload::{Live, Source};
use crate::signals::{Signals, Wish};
use crate::sockets::Sockets;
use crate::store::{self, Store};
use crate::unclean::Running;
use crate::{debug, face, memory, metrics, notify, restart, traces, ttrpc_server, version};

/// Threads that serve: enough to use a small machine, few enough to stay small on a large one.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;
/// Threads for file work at most, and how long an idle one stays.
const BLOCKING_THREADS: usize = 64;
const BLOCKING_KEEP: Duration = Duration::from_secs(5);
/// How long calls in flight may go on after the signal. Waiting calls never end by themselves.
const GRACE: Duration = Duration::from_secs(1);

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
    if heir.is_some() {
        sockets.tell_changes(&source.said);
    }
    let mut place = Place {
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
        match place.give(successor, &history, &mut source)? {
            Given::Gone(successor) => {
                place.leave(successor, source.asked);
                return Ok(());
            }
            Given::Stopped => return Ok(()),
            Given::Back => {
                past = Some(history);
                // What was reloaded since the start.
                place.config.plugins.clone_from(&source.said.plugins);
            }
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
    fn give(&self, successor: Successor, history: &History, source: &mut Source) -> Result<Given> {
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
            signals.end_in_order()?;
            let mut beat = tokio::time::interval(BEAT);
            let next = async || {
                tokio::select! {
                    _ = beat.tick() => None,
                    wish = signals.next() => Some(wish),
                }
            };
            let ready = async { successor.ready().await.map(|()| false) };
            heeding(ready, next, |came| {
                match came {
                    None => notify::alive(),
                    Some(Wish::End(signal)) => {
                        tracing::info!(signal, "stopping");
                        return Some(Ok(true));
                    }
                    Some(Wish::Reload) => source.asked = true,
                    Some(Wish::Upgrade) => {}
                }
                None
            })
            .await
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

    /// Makes what was given the daemon's own. Not before it serves: the files of one that fails are the old
    /// daemon's still.
    fn take_over(&self, heir: &Heir) {
        let named = self.sockets.named();
        let owned = named.filter(|(name, _)| heir.owns(name));
        owned.for_each(|(_, socket)| socket.own());
        self.locks.own();
    }

    /// Leaves everything to the successor, which reads its configuration again if that was asked for.
    fn leave(self, successor: Successor, reload: bool) {
        let pid = successor.pid();
        if !notify::successor(pid) {
            // It ends by itself, so that what the service manager starts finds the place free.
            tracing::error!(pid, "the new daemon is unknown to the service manager");
        } else if let Err(error) = successor.farewell(reload) {
            tracing::error!(%error, pid, "the new daemon has ended");
        }
        tracing::info!(pid, "the new daemon serves: leaving");
        self.sockets.leave();
        self.locks.leave();
        successor.keep();
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

async fn serve(
    place: &Place,
    source: &mut Source,
    past: Option<History>,
    heir: &mut Option<Heir>,
) -> Result<Ended, Failure> {
    let config = &place.config;
    let mut signals = Signals::take()?;
    let running = Running::begin(&config.root)?;
    let is_handed = past.is_some() || heir.is_some();
    let mut ground = Ground::open(config)?;
    if let Some(past) = past {
        ground = ground.after(past);
    }
    let engine = Engine::open(Store::open(ground, config).await?, config)?;
    signals.end_in_order()?;
    let checker = Checker::new(&engine.store.metadata, config)
        .with_mounts(&engine.mounts)
        .with_networks(engine.networks.clone(), engine.drivers.clone());
    let routes = face::routes(&engine, &checker, config)?;
    // Whatever can fail comes before the first event of a shim is taken: a successor that fails leaves all of
    // them to the daemon that goes on.
    metrics::start(&engine, config, is_handed)
        .await
        .map_err(Failure::place)?;
    debug::start(&engine, config, place.sockets.debug.as_ref()).map_err(Failure::place)?;
    let incoming = place.sockets.grpc.incoming(|_| true)?;
    let schedule = store::collector(config)?;
    let monitor = restart::monitor(&engine, config)?;
    let mut shims = ttrpc_server::serve(&place.sockets.ttrpc, face::events(&engine)).await?;
    let collector = engine.start(schedule);
    let mut live = Live::new(source, collector, &engine);
    if let Some(monitor) = monitor {
        monitor.begin();
    }
    traces::start();
    running.watch(checker, engine.transfers.clone());
    memory::watch();

    let (stop, stopped) = oneshot::channel::<()>();
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
        place.take_over(heir);
    }
    let ready = announce(heir);
    let successor = tokio::select! {
        () = notify::keep_alive() => None,
        () = &mut server => return Err(Error::internal("the socket is gone").into()),
        successor = heed(place, &mut signals, &mut live, ready) => successor,
    };
    if successor.is_some() {
        notify::alive();
        // What shims tell up to the end of their socket, the successor owes to subscribers that are gone by then.
        engine.store.ground.events.part();
    } else {
        notify::notify(notify::STOPPING);
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
    let successor = ended_for(successor, &mut signals, &mut live, ending).await;
    // What waits to be taken away would wait for the next start.
    match tokio::time::timeout(GRACE, engine.networks.settle()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "interfaces that were taken away are left to the next start");
        }
        Err(_) => tracing::warn!("interfaces that are still taken away are left to the next start"),
    }
    running.end();
    Ok(match successor {
        Some(successor) => Ended::Leaving(successor, Arc::clone(&engine.store.ground.events)),
        None => Ended::Stopped,
    })
}

/// Tells the world that the daemon serves. An heir is not the main process before the old one has gone,
/// with its last words.
async fn announce(heir: Option<Heir>) -> Parting {
    let parting = match heir {
        Some(heir) => heir.ready().await,
        None => Parting {
            is_known: true,
            reload: false,
        },
    };
    notify::notify(notify::READY);
    // What was said before the manager knew this process was not heard.
    notify::alive();
    parting
}

/// Comes to the end for a successor, which is ended itself when a signal says stop meanwhile.
async fn ended_for(
    successor: Option<Successor>,
    signals: &mut Signals,
    live: &mut Live<'_>,
    ending: impl Future<Output = ()>,
) -> Option<Successor> {
    let mut ending = pin!(ending);
    let Some(successor) = successor else {
        ending.await;
        return None;
    };
    loop {
        let wish = tokio::select! {
            () = &mut ending => return Some(successor),
            wish = signals.next() => wish,
        };
        match wish {
            Wish::End(signal) => {
                tracing::info!(signal, "stopping");
                notify::notify(notify::STOPPING);
                tokio::join!(successor.end_beside(), ending);
                return None;
            }
            Wish::Reload => live.ask(),
            Wish::Upgrade => {}
        }
    }
}

/// Does what signals ask for, until one of them ends the daemon or a successor is prepared.
async fn heed(
    place: &Place,
    signals: &mut Signals,
    live: &mut Live<'_>,
    ready: impl Future<Output = Parting>,
) -> Option<Successor> {
    let mut ready = pin!(ready.fuse());
    loop {
        if live.is_asked() {
            reload(live);
        }
        let wish = tokio::select! {
            parting = &mut ready => {
                if !parting.is_known && notify::is_heard() {
                    // It starts a daemon of its own, which finds the place taken until this one is gone.
                    tracing::error!("the old daemon ended before the service manager knew of this one: leaving");
                    return None;
                }
                if parting.reload {
                    live.ask();
                }
                continue;
            }
            wish = signals.next() => wish,
        };
        match wish {
            Wish::End(signal) => {
                tracing::info!(signal, "stopping");
                return None;
            }
            Wish::Reload => reload(live),
            Wish::Upgrade => {
                notify::reloading();
                match prepared(place, signals, live).await {
                    Ok(successor) => return successor,
                    Err(error) => tracing::error!(%error, "no new daemon: going on"),
                }
                notify::notify(notify::READY);
            }
        }
    }
}

fn reload(live: &mut Live<'_>) {
    notify::reloading();
    live.reload();
    notify::notify(notify::READY);
}

/// A successor that needs nothing more but the stores; none when a signal says stop meanwhile.
async fn prepared(
    place: &Place,
    signals: &mut Signals,
    live: &mut Live<'_>,
) -> Result<Option<Successor>> {
    let successor = place.successor()?;
    tracing::info!(pid = successor.pid(), binary = %place.binary.display(), "starting a new daemon");
    let prepared = async { successor.prepared().await.map(|()| true) };
    let done = heeding(
        prepared,
        async || signals.next().await,
        |wish| {
            match wish {
                Wish::End(signal) => {
                    tracing::info!(signal, "stopping");
                    return Some(Ok(false));
                }
                // The successor may have read it already: whoever goes on reads it again.
                Wish::Reload => live.ask(),
                Wish::Upgrade => {}
            }
            None
        },
    )
    .await;
    match done {
        Ok(true) => Ok(Some(successor)),
        Ok(false) => {
            successor.end_beside().await;
            Ok(None)
        }
        Err(error) => {
            successor.end_beside().await;
            Err(error)
        }
    }
}
