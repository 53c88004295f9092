//! Traces for OpenTelemetry: what the flight recorder keeps, as spans to a collector, as OTLP in JSON over
//! HTTP.
//!
//! Invariant: nobody waits for a collector. Spans that find the queue full, or that the collector does not
//! take, are dropped and counted.
//!
//! ```text
//! recorder ── finished flight ──> Queue (bounded) ── every delay, or a batch ──> POST /v1/traces
//! ```

mod document;
mod settings;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use recorder::Told;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use types::{Error, Result};

use self::settings::Settings;

/// Port of collectors that speak OTLP over HTTP.
const PORT: u16 = 4318;

/// Spans since the start: sent, dropped.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

static COUNTS: OnceLock<Arc<Counts>> = OnceLock::new();
static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// Memory of the flights that wait, at most, however many there may be by the settings.
const QUEUED: usize = 8 << 20;

/// Flights that wait to be sent, and their size.
#[derive(Debug, Default)]
struct Waiting {
    flights: VecDeque<Told>,
    size: usize,
}

/// Flights that wait to be sent.
#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    limit: usize,
    batch: usize,
    full: Notify,
    counts: Arc<Counts>,
}

impl Queue {
    fn new(settings: &Settings, counts: Arc<Counts>) -> Self {
        Self {
            waiting: Mutex::default(),
            limit: settings.queue,
            batch: settings.batch.min(settings.queue),
            full: Notify::new(),
            counts,
        }
    }

    fn push(&self, told: &Told) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let size = told.size();
        if waiting.flights.len() >= self.limit || waiting.size + size > QUEUED {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.size += size;
        waiting.flights.push_back(told.clone());
        if waiting.flights.len() == self.batch {
            self.full.notify_one();
        }
    }

    fn take(&self) -> Vec<Told> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.flights.len().min(self.batch);
        let taken: Vec<_> = waiting.flights.drain(..count).collect();
        let size: usize = taken.iter().map(Told::size).sum();
        waiting.size = waiting.size.saturating_sub(size);
        taken
    }
}

/// Starts to send traces, if the environment asks for them. What it asks for and cannot be done is a
/// warning: nobody's containers depend on it.
pub(crate) fn start() {
    let settings = match settings::read(&|name| std::env::var(name).ok()) {
        Ok(Some(settings)) => settings,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(error, "no traces are sent");
            return;
        }
    };
    // One for the process: a daemon whose successor has failed begins to serve once more.
    let queue = QUEUE.get_or_init(|| {
        let counts = Arc::clone(COUNTS.get_or_init(Arc::default));
        Arc::new(Queue::new(&settings, counts))
    });
    let (queue, filled) = (Arc::clone(queue), Arc::clone(queue));
    // As by the sampler `parentbased_always_on`: whose caller keeps nothing is not kept here.
    recorder::on_finish(move |told| {
        if told.origin.is_none_or(|origin| origin.sampled) {
            filled.push(told);
        }
    });
    tracing::info!(endpoint = %settings.endpoint, "traces are sent");
    tokio::spawn(async move { run(&queue, &settings).await });
}

/// Spans that were sent and that were dropped; none when no traces are wanted.
pub(crate) fn counts() -> Option<(u64, u64)> {
    let counts = COUNTS.get()?;
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Some((load(&counts.sent), load(&counts.dropped)))
}

/// Sends what comes, for ever.
async fn run(queue: &Queue, settings: &Settings) {
    let mut is_told = false;
    loop {
        // Either way it is time to look.
        let _early = timeout(settings.delay, queue.full.notified()).await;
        loop {
            let batch = queue.take();
            if batch.is_empty() {
                break;
            }
            let count = batch.len() as u64;
            let sent = timeout(settings.timeout, send(settings, &batch)).await;
            let sent = sent.unwrap_or_else(|_| Err(Error::deadline_exceeded("")));
            match sent {
                Ok(()) => {
                    queue.counts.sent.fetch_add(count, Ordering::Relaxed);
                    is_told = false;
                }
                Err(error) => {
                    queue.counts.dropped.fetch_add(count, Ordering::Relaxed);
                    // Once, until it goes well again.
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(%error, endpoint = %settings.endpoint, "traces are dropped");
                    }
                    break;
                }
            }
        }
    }
}

/// Sends one batch over a connection of its own.
async fn send(settings: &Settings, batch: &[Told]) -> Result<()> {
    let endpoint = &settings.endpoint;
    let host = endpoint.host().unwrap_or_default();
    let port = endpoint.port_u16().unwrap_or(PORT);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await;
    let stream = stream.map_err(|e| Error::os(format_args!("connect {host}:{port}"), e))?;
    let made = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(Error::unknown)?;
    let path = endpoint.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::post(path)
        .header(HOST, format!("{host}:{port}"))
        .header(CONTENT_TYPE, "application/json");
    for (name, value) in &settings.headers {
        request = request.header(name, value);
    }
    let text = document::of(&settings.resource, batch);
    let request = request.body(Full::new(Bytes::from(text)));
    let request = request.map_err(Error::invalid_argument)?;
    // It ends with the collector's answer, or without one: then the request says so.
    let driven = Driven(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the collector");
        }
    }));
    let answer = sender.send_request(request).await.map_err(Error::unknown)?;
    drop(driven);
    match answer.status() {
        StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(()),
        other => Err(Error::unknown(format_args!(
            "the collector answers {other}"
        ))),
    }
}

/// A connection that is given up with its request.
struct Driven(JoinHandle<()>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn settings(port: u16) -> Settings {
        Settings {
            endpoint: format!("http://127.0.0.1:{port}/v1/traces")
                .parse()
                .unwrap(),
            headers: vec![("api-key".parse().unwrap(), "k".parse().unwrap())],
            resource: vec![("service.name".into(), "containerd".into())],
            queue: 3,
            delay: Duration::from_millis(10),
            batch: 2,
            timeout: Duration::from_secs(60),
        }
    }

    fn told(subject: &str) -> Told {
        Told {
            name: "/x.Tasks/Create",
            namespace: "ns".into(),
            subject: subject.into(),
            at: SystemTime::now(),
            origin: None,
            took: Duration::from_millis(3),
            over: true,
            error: None,
            stages: Vec::new(),
            more: 0,
        }
    }

    #[test]
    fn large_flights_wait_in_a_bounded_memory() {
        let mut settings = settings(1);
        (settings.queue, settings.batch) = (1 << 20, 1);
        let queue = Queue::new(&settings, Arc::default());
        let large = told(&"x".repeat(1 << 20));
        for _ in 0..10 {
            queue.push(&large);
        }
        let dropped = queue.counts.dropped.load(Ordering::Relaxed);
        assert_eq!(
            (queue.waiting.lock().unwrap().flights.len(), dropped),
            (7, 3)
        );
        // What is taken makes room.
        assert_eq!(queue.take().len(), 1);
        queue.push(&large);
        assert_eq!(queue.counts.dropped.load(Ordering::Relaxed), dropped);
    }

    /// Reads one request and answers with `status`; the request's text.
    async fn collect(listener: &TcpListener, status: u16) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        while !text.ends_with("]}]}]}") {
            let mut part = [0; 4096];
            let count = stream.read(&mut part).await.unwrap();
            assert!(count > 0, "{text}");
            text += std::str::from_utf8(&part[..count]).unwrap();
        }
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        text
    }

    #[tokio::test]
    async fn what_has_ended_is_sent_and_what_is_not_taken_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = settings(listener.local_addr().unwrap().port());
        let queue = Arc::new(Queue::new(&settings, Arc::default()));
        for subject in ["a", "b", "c", "over"] {
            queue.push(&told(subject));
        }
        let sending = Arc::clone(&queue);
        let running = tokio::spawn(async move { run(&sending, &settings).await });
        let first = collect(&listener, 200).await;
        assert!(first.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{first}");
        assert!(first.contains("api-key: k\r\n"), "{first}");
        assert!(
            first.contains("\"a\"") && first.contains("\"b\""),
            "{first}"
        );
        let second = collect(&listener, 503).await;
        assert!(
            second.contains("\"c\"") && !second.contains("\"over\""),
            "{second}"
        );
        let counts = &queue.counts;
        // One found no room, one was refused.
        let counted = async {
            while counts.dropped.load(Ordering::Relaxed) < 2 {
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(60);
        timeout(limit, counted).await.unwrap();
        assert_eq!(counts.sent.load(Ordering::Relaxed), 2);
        running.abort();
    }
}
