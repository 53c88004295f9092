//! The flight recorder: what every call is doing now, and what the finished ones took long for.
//!
//! Invariant: memory is bounded whatever the calls do (entries, stages of one, texts), and a call that
//! is answered without waiting costs two looks at the clock and neither a lock nor an allocation.
//!
//! ```text
//! fly(name, work) ─ polls work with the flight at hand ─> stage(..) inside of it: begun … dropped
//!       │ waits for the first time, or has a subject
//!       v
//!   in flight ──────────────── ends ─────────────> recent (ring)   slow or failed (ring)
//! ```
//! The flight at hand is the thread's for as long as its work is polled, as with the spans of a log:
//! who does the work tells what it waits for, and nobody in between has to pass anything on. Work that
//! is put on a task of its own takes the flight along by [`carry`].
//!
//! Called by `grpc` (flights), by everything that waits (stages), and read by the daemon.

mod entry;
mod origin;
mod table;

use std::cell::Cell;
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use pin_project_lite::pin_project;

pub use entry::{MAX_STAGES, MAX_TEXT, On, Stage, Told, ToldStage};
pub use origin::Origin;
pub use table::{Counts, MAX_IN_FLIGHT, RECENT, SLOW, counts, finished, in_flight, on_finish};

use entry::Entry;

thread_local! {
    static AT_HAND: Cell<Option<Flight>> = const { Cell::new(None) };
}

/// One flight, in the hands of who polls it.
#[derive(Debug)]
struct Flight {
    name: &'static str,
    origin: Option<Origin>,
    began: Instant,
    /// As soon as there is something to tell of it.
    entry: Option<Arc<Entry>>,
    /// Ends the entry when it is dropped.
    owner: bool,
}

impl Flight {
    fn new(name: &'static str, origin: Option<Origin>) -> Self {
        Self {
            name,
            origin,
            began: Instant::now(),
            entry: None,
            owner: true,
        }
    }

    /// The entry, from now on in the table.
    fn entry(&mut self) -> &Arc<Entry> {
        let (name, began, origin) = (self.name, self.began, self.origin);
        self.entry.get_or_insert_with(|| {
            let entry = Arc::new(Entry::new(name, began, origin));
            table::take_off(&entry);
            entry
        })
    }

    fn land(&mut self, error: Option<String>) {
        if let Some(entry) = self.entry.take()
            && self.owner
        {
            table::land(&entry, error);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.land(Some("dropped before its end".to_owned()));
    }
}

/// Puts a flight into the thread for one poll, and back into its future, also when the poll panics.
struct Boarded<'a> {
    flight: &'a mut Option<Flight>,
    outer: Option<Flight>,
}

impl<'a> Boarded<'a> {
    fn new(flight: &'a mut Option<Flight>) -> Self {
        let outer = AT_HAND.replace(flight.take());
        Self { flight, outer }
    }
}

impl Drop for Boarded<'_> {
    fn drop(&mut self) {
        *self.flight = AT_HAND.replace(self.outer.take());
    }
}

/// Runs `work` as one flight. Its error is told, bounded.
pub fn fly<R, E, F>(name: &'static str, work: F) -> Flown<F>
where
    F: Future<Output = Result<R, E>>,
    E: Display,
{
    fly_from(name, None, work)
}

/// The same for somebody else's trace.
pub fn fly_from<R, E, F>(name: &'static str, origin: Option<Origin>, work: F) -> Flown<F>
where
    F: Future<Output = Result<R, E>>,
    E: Display,
{
    Flown {
        flight: Some(Flight::new(name, origin)),
        work,
    }
}

pin_project! {
    /// The work of a flight.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless they are polled"]
    pub struct Flown<F> {
        flight: Option<Flight>,
        // In place: as an argument of an `async` block it would be there twice.
        #[pin]
        work: F,
    }
}

impl<R, E: Display, F: Future<Output = Result<R, E>>> Future for Flown<F> {
    type Output = Result<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R, E>> {
        let this = self.project();
        let polled = {
            let _boarded = Boarded::new(this.flight);
            this.work.poll(cx)
        };
        if let Some(flight) = this.flight {
            match &polled {
                Poll::Pending => {
                    flight.entry();
                }
                Poll::Ready(done) if flight.entry.is_some() => {
                    flight.land(done.as_ref().err().map(ToString::to_string));
                }
                Poll::Ready(_) => {}
            }
        }
        polled
    }
}

/// Takes the flight at hand along to wherever `work` is polled; it is not ended there.
pub fn carry<F: Future>(work: F) -> Carried<F> {
    let flight = with(|flight| Flight {
        name: flight.name,
        origin: flight.origin,
        began: flight.began,
        entry: Some(Arc::clone(flight.entry())),
        owner: false,
    });
    Carried { flight, work }
}

pin_project! {
    /// Work with a flight that began elsewhere.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless they are polled"]
    pub struct Carried<F> {
        flight: Option<Flight>,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for Carried<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _boarded = this.flight.is_some().then(|| Boarded::new(this.flight));
        this.work.poll(cx)
    }
}

/// Says whom the flight at hand is for. The first word stands.
pub fn subject(namespace: &str, id: &str) {
    let _nobody = with(|flight| flight.entry().subject(namespace, id));
}

/// The flight at hand waits for this until the answer is dropped.
#[must_use = "the stage ends when this is dropped"]
pub fn stage(name: &'static str, on: impl FnOnce() -> On) -> Stage {
    with(|flight| Stage::begin(flight.entry(), name, on())).unwrap_or_default()
}

/// Runs `f` with the flight at hand, if there is one.
fn with<R>(f: impl FnOnce(&mut Flight) -> R) -> Option<R> {
    // Taken out meanwhile: `f` ends with the entry at hand and begins no flight.
    let mut flight = AT_HAND.take()?;
    let made = f(&mut flight);
    AT_HAND.set(Some(flight));
    Some(made)
}

#[cfg(test)]
mod tests;
