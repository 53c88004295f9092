//! Extractions under way, so that a layer is unpacked once whoever asks.
//!
//! ```text
//! prepare of "extract-... <chain>" with the label snapshot.ref = <chain>
//!   nobody at it -> a flight, until that snapshot is committed or removed
//!   somebody     -> waits for the end of the flight; then the chain is there, or it is one's own turn
//! ```
//! Invariant: a flight is waited for as long as it shows signs of life, and never blocks for good: its
//! client may be gone. One of this process is known to end, and is waited for until then: what it has
//! unpacked may wait long for the layers below. Waiting holds no lock. Called by the scoped snapshotter
//! and by who applies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use types::Mount;

/// How long a flight may show no sign of life: neither made just now, nor being applied to, nor attended.
const PATIENCE: Duration = Duration::from_secs(10);
/// Flights above which dead ones are swept out.
const SWEEP: usize = 64;
/// How the keys of extractions begin, with every client.
const EXTRACTION: &str = "extract-";

/// The flights, by what they make.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    all: Mutex<HashMap<String, Flight>>,
}

#[derive(Debug)]
struct Flight {
    /// The active snapshot.
    key: String,
    /// Where its files go; known when it is made.
    place: Option<String>,
    /// Calls that write there now.
    applies: usize,
    /// Somebody in this process will commit or remove it.
    is_attended: bool,
    sign: Instant,
    /// Closed at the end.
    end: watch::Sender<()>,
}

impl Flight {
    fn is_dead(&self) -> bool {
        self.applies == 0 && !self.is_attended && self.sign.elapsed() > PATIENCE
    }
}

/// A flight that was just begun; it ends here unless its snapshot was made.
#[derive(Debug)]
pub(crate) struct Boarding<'a> {
    flights: &'a Flights,
    key: Option<String>,
}

/// Somebody writes the files of an extraction.
#[derive(Debug)]
pub struct Applying {
    flights: Arc<Flights>,
    place: Option<String>,
}

impl Flights {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Flight>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the flight `target` for the snapshot `key`, after the end of one that is under way.
    pub(crate) async fn board(&self, target: &str, key: &str) -> Boarding<'_> {
        loop {
            let mut end = {
                let mut all = self.all();
                match all.get(target).filter(|flight| !flight.is_dead()) {
                    Some(flight) => flight.end.subscribe(),
                    None => {
                        if all.len() >= SWEEP {
                            all.retain(|_, flight| !flight.is_dead());
                        }
                        all.insert(target.to_owned(), Flight::new(key));
                        return Boarding {
                            flights: self,
                            key: Some(key.to_owned()),
                        };
                    }
                }
            };
            // Looked at again after a while: its client may be gone.
            let _ended = timeout(PATIENCE / 4, end.changed()).await;
        }
    }

    /// Ends the flight of the snapshot `key`, if there is one.
    pub(crate) fn end(&self, key: &str) {
        self.all().retain(|_, flight| flight.key != key);
    }

    /// Notes whether somebody will certainly end the flight of the snapshot `key`.
    pub(crate) fn attend(&self, key: &str, is_attended: bool) {
        for flight in self.all().values_mut() {
            if flight.key == key {
                flight.is_attended = is_attended;
                flight.sign = Instant::now();
            }
        }
    }

    /// Notes that somebody writes to `mounts`.
    pub(crate) fn applying(self: &Arc<Self>, mounts: &[Mount]) -> Applying {
        let place = place(mounts);
        if let Some(place) = &place {
            self.count(place, |applies| applies + 1);
        }
        Applying {
            flights: Arc::clone(self),
            place,
        }
    }

    fn count(&self, place: &str, change: impl Fn(usize) -> usize) {
        for flight in self.all().values_mut() {
            if flight.place.as_deref() == Some(place) {
                flight.applies = change(flight.applies);
                flight.sign = Instant::now();
            }
        }
    }
}

impl Flight {
    fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            place: None,
            applies: 0,
            is_attended: false,
            sign: Instant::now(),
            end: watch::Sender::new(()),
        }
    }
}

impl Boarding<'_> {
    /// The snapshot is there: the flight lasts until its commit or removal.
    pub(crate) fn made(mut self, mounts: &[Mount]) {
        let key = self.key.take();
        for flight in self.flights.all().values_mut() {
            if Some(&flight.key) == key.as_ref() {
                flight.place = place(mounts);
                flight.sign = Instant::now();
            }
        }
    }
}

impl Drop for Boarding<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.flights.end(key);
        }
    }
}

impl Drop for Applying {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            // A flight that came in between has not counted this one.
            self.flights
                .count(place, |applies| applies.saturating_sub(1));
        }
    }
}

/// True for the key of a snapshot that a layer is unpacked to.
pub(crate) fn is_extraction(key: &str) -> bool {
    key.starts_with(EXTRACTION)
}

/// The directory that is written: what bind and overlay mounts of one snapshot have in common.
fn place(mounts: &[Mount]) -> Option<String> {
    let [mount] = mounts else { return None };
    match mount.kind.as_str() {
        "overlay" => mount.option("upperdir").map(ToOwned::to_owned),
        _ => Some(mount.source.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str) -> Vec<Mount> {
        vec![Mount {
            kind: "bind".into(),
            source: source.into(),
            target: String::new(),
            options: vec!["rw".into(), "rbind".into()],
        }]
    }

    fn over(upper: &str) -> Vec<Mount> {
        vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![format!("upperdir={upper}")],
        }]
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_waits_for_the_first_and_others_do_not() {
        let flights = Flights::default();
        flights.board("chain", "a").await.made(&bind("/s/1"));
        drop(flights.board("other", "b").await);
        let second = flights.board("chain", "c");
        tokio::pin!(second);
        let early = timeout(PATIENCE / 2, &mut second).await;
        assert!(early.is_err(), "the first is still at it");
        flights.end("a");
        let begin = Instant::now();
        second.await.made(&bind("/s/2"));
        assert_eq!(begin.elapsed(), Duration::ZERO, "told, not looked for");
        flights.end("c");
        assert!(flights.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_whose_client_is_gone_is_not_waited_for() {
        let flights = Arc::new(Flights::default());
        flights.board("chain", "a").await.made(&bind("/s/1"));
        let begin = Instant::now();
        flights.board("chain", "b").await.made(&bind("/s/2"));
        assert!(begin.elapsed() <= 2 * PATIENCE, "{:?}", begin.elapsed());
        // But as long as somebody writes there it is alive, however the mount is written.
        let applying = flights.applying(&over("/s/2"));
        let waited = timeout(20 * PATIENCE, flights.board("chain", "c")).await;
        waited.unwrap_err();
        drop(applying);
        flights.board("chain", "d").await.made(&bind("/s/4"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attended_flight_is_waited_for_until_its_end() {
        let flights = Flights::default();
        flights.board("chain", "a").await.made(&bind("/s/1"));
        flights.attend("a", true);
        let second = flights.board("chain", "b");
        tokio::pin!(second);
        timeout(20 * PATIENCE, &mut second).await.unwrap_err();
        // It could not be removed: nobody knows of an end any more.
        flights.attend("a", false);
        let begin = Instant::now();
        second.await.made(&bind("/s/2"));
        assert!(begin.elapsed() <= 2 * PATIENCE, "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_prepare_that_failed_or_was_given_up_lets_the_next_one_in() {
        let flights = Flights::default();
        drop(flights.board("chain", "a").await);
        let begin = Instant::now();
        let _second = flights.board("chain", "b").await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_dead_are_swept_out() {
        let flights = Flights::default();
        for n in 0..SWEEP {
            let (target, key) = (format!("chain-{n}"), format!("extract-{n}"));
            flights.board(&target, &key).await.made(&bind(&key));
        }
        tokio::time::advance(2 * PATIENCE).await;
        flights.board("one more", "x").await.made(&bind("/s/x"));
        assert_eq!(flights.all().len(), 1);
    }
}
