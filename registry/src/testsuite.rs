//! A registry on the loopback for tests, which can misbehave in every way a script wants.
//!
//! Each request goes to a handler that says what to answer; answers are written by hand, so that a
//! body can be short, cut off, too long or never come.

#![expect(
    clippy::unwrap_used,
    reason = "a failed check is a panic: this is test code that other crates call"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use types::{Algorithm, Descriptor, Digest, Labels};

/// How many challenges a `WWW-Authenticate` header of these bytes holds: for fuzz targets.
#[must_use]
pub fn challenges(value: &[u8]) -> usize {
    crate::challenge::count(value)
}

/// What is shown of an error answer with this body: for fuzz targets.
#[must_use]
pub fn error_text(body: &[u8]) -> String {
    crate::http::message(body)
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Query without the question mark.
    pub query: String,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body; a part of it when the connection was cut.
    pub body: Bytes,
}

impl Request {
    /// A header's value; empty when it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What to answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Status; 0: never answer.
    pub status: u16,
    /// Headers besides the length.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Say nothing more after so many bytes of the body.
    pub stall: Option<usize>,
    /// Pause before the body.
    pub late: Option<Duration>,
    /// Pause before each byte of the body.
    pub drip: Option<Duration>,
    /// Bytes of the body per second.
    pub rate: Option<usize>,
    /// Say a part again and again until the client has enough.
    pub endless: Option<Part>,
}

/// A part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The headers.
    Head,
    /// The body.
    Body,
}

impl Reply {
    /// An answer with an empty body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// The same with a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The same with a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// A server on 127.0.0.1; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    host: String,
    log: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts answering with `handler`.
    pub async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_hanging_up(|_| None, handler).await
    }

    /// The same, but of requests for which `cut` has a number only so many bytes of the body are
    /// read; then the connection is closed. They are noted all the same.
    pub async fn start_hanging_up(
        cut: impl Fn(&Request) -> Option<usize> + Send + Sync + 'static,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let shared = (Arc::new(cut), Arc::new(handler), Arc::clone(&log));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                // Small pieces are to go out as they are.
                stream.set_nodelay(true).unwrap();
                let (cut, handler, seen) = shared.clone();
                connections.spawn(async move {
                    let Some(mut request) = read(&mut stream).await else {
                        return;
                    };
                    let cut = cut(&request);
                    read_body(&mut stream, &mut request, cut.unwrap_or(usize::MAX)).await;
                    seen.lock().unwrap().push(request.clone());
                    if cut.is_none() {
                        answer(stream, &request, handler(&request)).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { host, log, task }
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Blobs and manifests of repository `r`, served as the distribution specification says.
#[derive(Clone, Debug, Default)]
pub struct Content {
    files: BTreeMap<String, File>,
}

/// A document or a blob; hashed once, as it may be large.
#[derive(Clone, Debug)]
struct File {
    media_type: String,
    data: Bytes,
    digest: Digest,
}

impl Content {
    /// Adds a blob, or a manifest that tags may name.
    pub fn add(&mut self, media_type: &str, data: impl Into<Bytes>, tags: &[&str]) -> Descriptor {
        let data = data.into();
        let hash = Sha256::digest(&data);
        let digest = Digest::from_bytes(Algorithm::Sha256, &hash).unwrap();
        let size = data.len() as u64;
        let kind = if media_type.contains("manifest") || media_type.contains("index") {
            "manifests"
        } else {
            "blobs"
        };
        for name in tags.iter().copied().chain([digest.as_str()]) {
            let file = File {
                media_type: media_type.to_owned(),
                data: data.clone(),
                digest: digest.clone(),
            };
            self.files.insert(format!("/v2/r/{kind}/{name}"), file);
        }
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            annotations: Labels::new(),
        }
    }

    /// The answer to `request`; 404 for what is not there.
    #[must_use]
    pub fn reply(&self, request: &Request) -> Reply {
        let Some(file) = self.files.get(&request.path) else {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            return Reply::status(404).body(body);
        };
        let File {
            media_type,
            data,
            digest,
        } = file;
        let reply = |status| {
            Reply::status(status)
                .with("content-type", media_type)
                .with("docker-content-digest", digest.as_str())
        };
        let range = request.header("range").strip_prefix("bytes=");
        match range.and_then(|range| range.split_once('-')) {
            None => reply(200).body(data.clone()),
            Some((from, last)) => {
                let from: usize = from.parse().unwrap();
                let end = last.parse().map_or(data.len(), |last: usize| last + 1);
                let range = format!("bytes {from}-{}/{}", end - 1, data.len());
                reply(206)
                    .with("content-range", range)
                    .body(data.slice(from..end))
            }
        }
    }
}

/// Between two pieces of a body with a rate.
const TICK: Duration = Duration::from_millis(20);
/// First byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 22;

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head == [TLS_HANDSHAKE] {
            // As servers do that are spoken to by TLS where they do not expect it.
            let text = b"HTTP/1.0 400 Bad Request\r\n\r\nthis is no TLS server\n";
            let _sent = stream.write_all(text).await;
            let _closed = stream.shutdown().await;
            return None;
        }
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Some(Request {
        method,
        path: path.into(),
        query: query.into(),
        headers,
        body: Bytes::new(),
    })
}

async fn read_body(stream: &mut TcpStream, request: &mut Request, most: usize) {
    let length: usize = request.header("content-length").parse().unwrap_or_default();
    let mut body = vec![0; length.min(most)];
    // A client that gives up sends less.
    let _read = stream.read_exact(&mut body).await;
    request.body = body.into();
}

async fn answer(mut stream: TcpStream, request: &Request, reply: Reply) {
    if reply.status == 0 {
        std::future::pending::<()>().await;
    }
    let mut head = format!("HTTP/1.1 {} Word\r\nconnection: close\r\n", reply.status);
    if reply.endless.is_none()
        && reply
            .headers
            .iter()
            .all(|(name, _)| name != "content-length" && name != "transfer-encoding")
    {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if reply.endless == Some(Part::Head) {
        head += "x-endless: ";
    } else {
        head += "\r\n";
    }
    // The client may have gone: that is its business.
    let _sent = stream.write_all(head.as_bytes()).await;
    if reply.endless.is_some() {
        while stream.write_all(&[b' '; 8192]).await.is_ok() {}
        return;
    }
    if request.method != "HEAD" {
        if let Some(pause) = reply.late {
            tokio::time::sleep(pause).await;
        }
        let end = reply.cut.or(reply.stall).unwrap_or(reply.body.len());
        match (reply.drip, reply.rate) {
            (Some(pause), _) => trickle(&mut stream, &reply.body[..end], 1, pause).await,
            (None, Some(rate)) => {
                let piece = rate.div_ceil(50);
                trickle(&mut stream, &reply.body[..end], piece, TICK).await;
            }
            (None, None) => drop(stream.write_all(&reply.body[..end]).await),
        }
        let _sent = stream.flush().await;
        if reply.stall.is_some() {
            std::future::pending::<()>().await;
        }
    }
    let _closed = stream.shutdown().await;
}

/// Sends a piece after each pause.
async fn trickle(stream: &mut TcpStream, body: &[u8], piece: usize, pause: Duration) {
    let mut tick = tokio::time::interval(pause);
    // A machine that was busy elsewhere makes the line slower, never faster for a moment.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick.tick().await;
    for piece in body.chunks(piece) {
        tick.tick().await;
        if stream.write_all(piece).await.is_err() {
            return;
        }
    }
}
