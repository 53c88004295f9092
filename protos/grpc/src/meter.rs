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

include!(concat!(env!("OUT_DIR"), "/meters.rs"));

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
            ended: [const { AtomicU64::new(0) }; CODES.len()],
            took: [const { AtomicU64::new(0) }; BUCKETS.len() + 1],
            micros: AtomicU64::new(0),
        }
    }

    /// Calls that have begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
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
    }
}

/// The meters of all methods that there are.
#[must_use]
pub fn all() -> &'static [Meter] {
    &METERS
}

/// A call that is counted when its status is known, or when nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Metered {
    meter: Option<&'static Meter>,
    began: Instant,
}

impl Metered {
    pub(crate) fn begin(meter: Option<&'static Meter>) -> Self {
        meter.map(|meter| meter.begun.fetch_add(1, Ordering::Relaxed));
        Self {
            meter,
            began: Instant::now(),
        }
    }

    /// The same call, in other hands: this one counts nothing any more.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            meter: self.meter.take(),
            began: self.began,
        }
    }

    /// Ends with the status in these headers, if there is one.
    pub(crate) fn seen(&mut self, headers: &http::HeaderMap) {
        let status = headers.get("grpc-status").and_then(|s| s.to_str().ok());
        if let Some(status) = status {
            self.end(status.parse().unwrap_or(UNKNOWN));
        }
    }

    /// Ends well.
    pub(crate) fn well(&mut self) {
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
