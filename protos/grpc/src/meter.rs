//! What is counted of each method: calls begun, calls ended by code, how long they took.
//!
//! Invariant: counting costs no lock and no allocation, and the counters are there from the start: a
//! method that nobody called is one with zeros.
//!
//! ```text
//! Routes ─ request ─> begin ─> body ─ its status ─> end
//!                           `──── dropped before ───> end: Canceled
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

include!(concat!(env!("OUT_DIR"), "/meters.rs"));

/// A call has ended since somebody waited for that.
static USED: Notify = Notify::const_new();

/// Waits until a call ends, or has ended since the last wait: for one waiter, who does after work what an
/// idle daemon need not do. Cancel safe.
pub async fn used() {
    USED.notified().await;
}

/// Codes of gRPC, by number, in the words of Go's metrics.
pub const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const OK: usize = 0;
const CANCELED: usize = 1;
const UNKNOWN: usize = 2;

/// Upper ends of the histogram's buckets in microseconds: those of Go's client library, and three below
/// them, since most calls here are that quick.
pub const BUCKETS: [u64; 14] = [
    100, 500, 1000, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// The counters of one method.
#[derive(Debug)]
pub struct Meter {
    /// Its path, `/package.Service/Method`.
    pub path: &'static str,
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`.
    pub kind: &'static str,
    begun: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    ended: [AtomicU64; CODES.len()],
    took: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Meter {
    const fn new(path: &'static str, kind: &'static str) -> Self {
        Self {
            path,
            kind,
            begun: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            ended: [const { AtomicU64::new(0) }; CODES.len()],
            took: [const { AtomicU64::new(0) }; BUCKETS.len() + 1],
            micros: AtomicU64::new(0),
        }
    }

    /// Its calls take one message each.
    pub(crate) fn is_of_one_message(&self) -> bool {
        matches!(self.kind, "unary" | "server_stream")
    }

    /// Calls that have begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Messages of clients: those whose begin has come.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Messages to clients.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Counts the messages that begin in a part of a call's incoming bytes.
    pub(crate) fn hear(&self, messages: &mut Messages, part: &[u8]) {
        self.received
            .fetch_add(messages.begun(part), Ordering::Relaxed);
    }

    /// Calls that have ended, by code.
    pub fn ended(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.ended.iter().map(|n| n.load(Ordering::Relaxed));
        CODES.into_iter().zip(counts)
    }

    /// Calls by how long they took: one count for each of [`BUCKETS`] and one for what took longer.
    pub fn took(&self) -> impl Iterator<Item = u64> {
        self.took.iter().map(|n| n.load(Ordering::Relaxed))
    }

    /// How long all of them took together.
    #[must_use]
    pub fn total(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    fn add(&self, code: usize, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|end| *end < micros);
        for count in [self.ended.get(code), self.took.get(bucket)] {
            count.map(|count| count.fetch_add(1, Ordering::Relaxed));
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
        USED.notify_one();
    }
}

/// The meters of all methods that there are.
#[must_use]
pub fn all() -> &'static [Meter] {
    &METERS
}

/// Where in its messages a stream of bytes is: each is a flag, a length and that many bytes.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// What has come of the head of the next message.
    head: [u8; 5],
    have: usize,
    /// What is to come of this one.
    left: usize,
    /// All of this one.
    length: usize,
}

impl Messages {
    /// How many begin in this part: whose head is complete with it.
    pub(crate) fn begun(&mut self, mut part: &[u8]) -> u64 {
        let mut count = 0;
        while !part.is_empty() {
            let skipped = self.left.min(part.len());
            self.left -= skipped;
            part = part.get(skipped..).unwrap_or_default();
            let room = self.head.get_mut(self.have..).unwrap_or_default();
            let (taken, rest) = part.split_at(room.len().min(part.len()));
            for (to, from) in room.iter_mut().zip(taken) {
                *to = *from;
            }
            self.have += taken.len();
            part = rest;
            if self.have == self.head.len() {
                let [_, length @ ..] = self.head;
                self.length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.left = self.length;
                self.have = 0;
                count += 1;
            }
        }
        count
    }

    /// What has come of a message that is not whole yet.
    pub(crate) fn half(&self) -> usize {
        match self.left {
            0 => 0,
            left => self.length - left,
        }
    }
}

/// A call that is counted when its status is known, or when nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Metered {
    meter: Option<&'static Meter>,
    began: Instant,
    said: Messages,
}

impl Metered {
    pub(crate) fn begin(meter: Option<&'static Meter>) -> Self {
        meter.map(|meter| meter.begun.fetch_add(1, Ordering::Relaxed));
        Self {
            meter,
            began: Instant::now(),
            said: Messages::default(),
        }
    }

    /// Counts what a part of the answer says, as long as the call is not over.
    pub(crate) fn say(&mut self, part: &[u8]) {
        if let Some(meter) = self.meter {
            meter
                .sent
                .fetch_add(self.said.begun(part), Ordering::Relaxed);
        }
    }

    /// The same call, in other hands: this one counts nothing any more.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            meter: self.meter.take(),
            began: self.began,
            said: std::mem::take(&mut self.said),
        }
    }

    /// Ends with the status in these headers, if there is one.
    pub(crate) fn seen(&mut self, headers: &http::HeaderMap) {
        let status = headers.get("grpc-status").and_then(|s| s.to_str().ok());
        if let Some(status) = status {
            self.end(status.parse().unwrap_or(UNKNOWN));
        }
    }

    /// Ends well, with an answer of one message.
    pub(crate) fn well(&mut self) {
        if let Some(meter) = self.meter {
            meter.sent.fetch_add(1, Ordering::Relaxed);
        }
        self.end(OK);
    }

    fn end(&mut self, code: usize) {
        if let Some(meter) = self.meter.take() {
            meter.add(code.min(CODES.len() - 1), self.began.elapsed());
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.end(CANCELED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_code_and_time() {
        static METER: Meter = Meter::new("/t.S/M", "unary");
        let headers = |code: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-status", code.parse().unwrap());
            headers
        };
        for code in ["0", "5", "5", "99"] {
            let mut metered = Metered::begin(Some(&METER));
            metered.seen(&http::HeaderMap::new());
            metered.seen(&headers(code));
            metered.seen(&headers("0"));
        }
        drop(Metered::begin(Some(&METER)));
        METER.add(0, Duration::from_secs(60));
        let ended: Vec<_> = METER.ended().filter(|(_, n)| *n > 0).collect();
        let want = [
            ("OK", 2),
            ("Canceled", 1),
            ("NotFound", 2),
            ("Unauthenticated", 1),
        ];
        assert_eq!((METER.begun(), ended.as_slice()), (5, &want[..]));
        assert_eq!(METER.took().sum::<u64>(), 6);
        assert_eq!(METER.took().last(), Some(1));
        assert!(METER.total() >= Duration::from_secs(60));
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let message = |length: u8| [&[0, 0, 0, 0, length][..], &vec![1; length.into()]].concat();
        let all = [message(0), message(3), message(200), message(0)].concat();
        for size in [1, 2, 3, 5, 6, 7, 200, all.len()] {
            let mut messages = Messages::default();
            let begun: u64 = all.chunks(size).map(|part| messages.begun(part)).sum();
            assert_eq!(begun, 4, "in parts of {size}");
        }
        let mut halves = Messages::default();
        let parts = all.chunks(100).map(|part| {
            halves.begun(part);
            halves.half()
        });
        // A head of five bytes, one of five and three more, another head: 82 of 200, 182, all.
        assert_eq!(parts.collect::<Vec<_>>(), [82, 182, 0]);
        let mut cut = Messages::default();
        assert_eq!((cut.begun(&[0; 4]), cut.begun(&[])), (0, 0));
        // Longer than anything that comes.
        let mut long = Messages::default();
        assert_eq!((long.begun(&[0xff; 5]), long.begun(&[0; 100])), (1, 0));
    }

    #[test]
    fn the_methods_of_all_services_have_meters() {
        let of = |path: &str| all().iter().find(|meter| meter.path == path);
        let version = of("/containerd.services.version.v1.Version/Version").unwrap();
        assert_eq!(version.kind, "unary");
        let write = of("/containerd.services.content.v1.Content/Write").unwrap();
        assert_eq!(write.kind, "bidi_stream");
        assert!(of("/no.such.Service/Method").is_none());
        assert!(all().len() > 80);
    }
}
