//! The life of the daemon: locks, sockets, floors, service, end.
//!
//! ```text
//! locks -> sockets bound -> ground -> store -> engine -> face -> READY -> serve … signal -> STOPPING
//!                                                 \-> recovery of shims, beside the service
//! ```
//! Invariant: nothing is touched before the locks are held, and the sockets are never taken from a
//! daemon that lives.

use std::path::Path;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::oneshot;
use types::{Error, Result};

use crate::config::Config;
use crate::engine::Engine;
use crate::fsck::Checker;
use crate::ground::Ground;
use crate::listen::Socket;
use crate::lock::{self, Lock};
use crate::signals::Signals;
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
/// Serves until a signal says stop.
///
/// # Errors
/// What keeps the daemon from starting, in one line.
pub(crate) fn run(config: &Config) -> Result<()> {
    tune(config);
    let _root = Lock::take(&config.root, lock::ROOT_MODE)?;
    let _state = Lock::take(&config.state, lock::STATE_MODE)?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(cpus.clamp(*THREADS.start(), *THREADS.end()))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP)
        .thread_name("containerd")
        .enable_all()
        .build()
        .map_err(|e| Error::os("start threads", e))?;
    let done = runtime.block_on(serve(config));
    runtime.shutdown_timeout(GRACE);
    done
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

async fn serve(config: &Config) -> Result<()> {
    let mut signals = Signals::take()?;
    let (grpc, ttrpc) = (&config.grpc, &config.ttrpc);
    let socket = Socket::bind(Path::new(&grpc.address), grpc.uid, grpc.gid)?;
    let shims = Socket::bind(Path::new(&config.ttrpc_address()), ttrpc.uid, ttrpc.gid)?;

    let running = Running::begin(&config.root)?;
    let store = Store::open(Ground::open(config)?, config).await?;
    let engine = Engine::open(store, config)?;
    let checker = Checker::new(&engine.store.metadata, config);
    let routes = face::routes(&engine, &checker, config)?;
    let _ttrpc = ttrpc_server::serve(shims, face::events(&engine)).await?;
    engine.start(config)?;
    restart::start(&engine, config)?;
    metrics::start(&engine, config)?;
    debug::start(&engine, config)?;
    traces::start();
    running.watch(checker, engine.transfers.clone());
    memory::watch();

    let (stop, stopped) = oneshot::channel::<()>();
    let server = grpc::connections::serve(routes, socket.incoming(|_| true), async {
        // Either way it is time to stop.
        let _signalled = stopped.await;
    });
    tokio::pin!(server);
    tracing::info!(
        address = grpc.address,
        version = version::VERSION,
        "serving"
    );
    notify::notify(notify::READY);
    tokio::select! {
        () = &mut server => return Err(Error::internal("the socket is gone")),
        signal = signals.end() => tracing::info!(signal, "stopping"),
    }
    notify::notify(notify::STOPPING);
    drop(stop);
    let stopped = tokio::time::timeout(GRACE, server).await;
    running.end();
    if stopped.is_err() {
        tracing::info!("calls still in flight were cut off");
    }
    Ok(())
}
