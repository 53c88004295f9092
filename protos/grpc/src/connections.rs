//! Connections: each is one task, and all its calls are polled in it.
//!
//! Invariant: a call that need not wait costs no task, no other thread and no second turn of the
//! scheduler: it is read, run and answered in one poll. But a poll has an end, however much a client
//! asks for at once: then other connections have their turn. A call that panics ends alone. Called by
//! the daemon, with its [`Routes`].
//!
//! ```text
//! accept ─ task per connection:  read frames ─> start calls ─> poll those that were woken ─┐
//!                                    ^──────────────── until nothing was woken ────────────┤
//!                                                      send what was written together <─────┘
//! ```
//! A general executor would put each call on a task of its own. Its threads then wake each other for
//! work of a few microseconds: the waking costs more than the work.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::task::AtomicWaker;
use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::coop::{has_budget_remaining, unconstrained};
use tokio_stream::Stream;

use crate::call::{Connection, PATIENCE};
use crate::corked::Corked;
use crate::halves::Halves;
use crate::routes::Routes;

/// Flow control windows: content comes in messages of 1 MiB.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Calls that a client may give up in one moment without being taken for an attacker.
const MANY_RESETS: usize = 16 << 10;
/// What one poll may take before it ends; a call that is being polled then comes to its own end.
const SLICE: Duration = Duration::from_micros(500);
/// Answers of a poll that lasts are sent so often: they do not wait for its end.
const SOON: Duration = Duration::from_micros(100);

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves the routes on all connections until `stop` completes; then until the last call of the last
/// client has ended. Calls that only wait or tell are then ended, with `Unavailable`.
pub async fn serve(
    routes: Routes,
    incoming: impl Stream<Item = io::Result<UnixStream>>,
    stop: impl Future<Output = ()>,
) {
    let routes = Arc::new(routes);
    let (stopping, told) = watch::channel(());
    {
        let mut incoming = pin!(incoming);
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = incoming.next() => accepted,
            };
            match accepted {
                Some(Ok(stream)) => {
                    drop(tokio::spawn(spoken(
                        stream,
                        Arc::clone(&routes),
                        told.clone(),
                    )));
                }
                Some(Err(error)) => tracing::debug!(%error, "no connection"),
                None => break,
            }
        }
    }
    drop(told);
    // Nobody listens when there is no connection.
    let _nobody = stopping.send(());
    stopping.closed().await;
}

/// Serves one connection from its first byte on: one that only lies there has no state but its socket,
/// and what serves it is as large as all that HTTP/2 may need.
async fn spoken(stream: UnixStream, routes: Arc<Routes>, told: watch::Receiver<()>) {
    // What is wrong with it shows when it is read.
    let _error = heard(&stream).await;
    Box::pin(connection(stream, routes, told)).await;
}

/// Waits until something was said on a connection, or it has ended. Reads nothing. Cancel safe.
///
/// # Errors
/// The errno.
pub async fn heard(stream: &UnixStream) -> io::Result<()> {
    let look = || {
        let mut byte = [0_u8];
        rustix::net::recv(stream, &mut byte[..], RecvFlags::PEEK)?;
        Ok(())
    };
    // Looked at, not only waited for: a new socket is taken to be readable until that is known.
    stream.async_io(Interest::READABLE, look).await
}

/// Serves one connection to its end.
async fn connection(stream: UnixStream, routes: Arc<Routes>, mut told: watch::Receiver<()>) {
    let started = Started::default();
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let this = Connection {
        ending: told.clone(),
        pid: peer
            .and_then(|pid| pid.try_into().ok())
            .filter(|pid| *pid != 0),
        halves: Arc::new(Halves::of_connection()),
    };
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(this.clone());
        routes.call(request)
    });
    let mut builder = http2::Builder::new(started.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Every container that is waited for holds a stream: as in Go, no limit. Cancelling them
        // all at once is no attack.
        .max_concurrent_streams(u32::MAX)
        .max_pending_accept_reset_streams(Some(MANY_RESETS));
    let socket = Corked::new(stream);
    let mut connection = pin!(builder.serve_connection(socket.clone(), service));
    let mut stopping = pin!(told.changed().fuse());
    // One that was just made gets its first answer: a client takes its end for a refusal.
    let (mut is_used, mut begun) = (false, None);
    let mut calls = FuturesUnordered::new();
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let ended = poll_fn(|outer| {
        bell.outer.register(outer.waker());
        let inner = &mut Context::from_waker(&waker);
        let (begin, mut last) = (Instant::now(), Instant::now());
        // Without budget everything pretends to wait.
        while begin.elapsed() < SLICE && has_budget_remaining() {
            bell.begin();
            if stopping.as_mut().poll(inner).is_ready() {
                begun = Some(Box::pin(tokio::time::sleep(PATIENCE)));
            }
            if let Some(late) = &mut begun
                && (is_used || late.as_mut().poll(inner).is_ready())
            {
                begun = None;
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(inner) {
                // Its last word, if it had one.
                let _gone = send(&socket, inner);
                return Poll::Ready(ended.map_err(Failure::from));
            }
            if last.elapsed() >= SOON {
                // What goes wrong with it shows at the end.
                let _later = send(&socket, inner);
                last = Instant::now();
            }
            started.board(&mut calls);
            if !is_used && !calls.is_empty() {
                is_used = true;
                // The look at whether it is time to stop comes again.
                bell.ring();
            }
            while let Poll::Ready(Some(())) = calls.poll_next_unpin(inner) {
                if begin.elapsed() >= SLICE {
                    bell.ring();
                    break;
                }
            }
            if bell.is_silent() {
                return sent(&socket, inner);
            }
        }
        outer.waker().wake_by_ref();
        sent(&socket, inner)
    });
    if let Err(error) = ended.await {
        tracing::debug!(error = &*error, "connection failed");
    }
}

/// Why a connection ended too early.
type Failure = Box<dyn Error + Send + Sync>;

/// Sends what was written, also in a poll that has used up its budget: nobody else waits for that.
fn send(socket: &Corked, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let send = poll_fn(|cx| socket.poll_send(cx));
    pin!(unconstrained(send)).poll(cx)
}

/// The end of a poll: what was written in it goes. A connection goes on until that fails.
fn sent(socket: &Corked, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
    match send(socket, cx) {
        Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
    }
}

/// Calls that have come in and were not polled yet.
#[derive(Clone, Default)]
struct Started(Arc<Mutex<Vec<Alone>>>);

impl Started {
    /// Puts them among those that are polled.
    fn board(&self, calls: &mut FuturesUnordered<Alone>) {
        let mut started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        calls.extend(started.drain(..));
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Started {
    fn execute(&self, call: F) {
        let mut started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        started.push(Alone(Some(Box::pin(call))));
    }
}

/// A call until its end, whose panic is its own end, also one in its destructor.
struct Alone(Option<Call>);

impl Future for Alone {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(running) = &mut self.0 else {
            return Poll::Ready(());
        };
        // Without budget it would only seem to wait, and come back late: it is polled again instead,
        // in its turn, when the connection's next poll begins.
        if !has_budget_remaining() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx)));
        if let Ok(Poll::Pending) = polled {
            return Poll::Pending;
        }
        // What is left of it is dropped as carefully.
        let left = AssertUnwindSafe(self.0.take());
        let dropped = catch_unwind(|| drop(left));
        if polled.is_err() || dropped.is_err() {
            tracing::error!("a call panicked outside of its body");
        }
        Poll::Ready(())
    }
}

/// Nobody is being polled: a ring wakes the task.
const QUIET: u8 = 0;
/// The task is in its poll: a ring is noted.
const POLLING: u8 = 1;
/// It was rung at since.
const RUNG: u8 = 2;

/// The waker of everything in a connection. Woken from inside the task's own poll, it asks for one
/// more round instead of one more turn of the scheduler.
#[derive(Default)]
struct Bell {
    outer: AtomicWaker,
    state: AtomicU8,
}

impl Bell {
    fn begin(&self) {
        // Reads what it replaces: what was woken before is seen in the poll that follows.
        self.state.swap(POLLING, Ordering::SeqCst);
    }

    /// Asks for one more round.
    fn ring(&self) {
        self.state.store(RUNG, Ordering::SeqCst);
    }

    /// True when nothing was woken since [`Bell::begin`]; then whatever is woken wakes the task.
    fn is_silent(&self) -> bool {
        let end = self
            .state
            .compare_exchange(POLLING, QUIET, Ordering::SeqCst, Ordering::SeqCst);
        end.is_ok()
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::SeqCst) == QUIET {
            self.outer.wake();
        }
    }
}
