//! The whole path over a real unix socket: stubs, codec, limits, scope, fallbacks.

use std::path::Path;

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use protos::Message as _;
use protos::services::streaming::StreamInit;
use protos::services::version::VersionResponse;
use protos::well_known::{Any, Empty};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status, Streaming};
use types::{Error, Scope};

use crate::streaming::{StreamingClient, StreamingServer};
use crate::version::{Version, VersionClient, VersionServer};
use crate::{Codec, MAX_MESSAGE, ResponseStream, Routes, serve_duplex, serve_unscoped, status};

/// Limit of the tests' stream, for what the server sends.
const SENT_AT_MOST: usize = 8 << 20;

struct Daemon;

#[tonic::async_trait]
impl Version for Daemon {
    async fn version(&self, request: Request<Empty>) -> Result<Response<VersionResponse>, Status> {
        serve_unscoped(request, |_| async {
            Ok(VersionResponse {
                version: "v2".into(),
                ..Default::default()
            })
        })
        .await
    }
}

#[tonic::async_trait]
impl crate::streaming::Streaming for Daemon {
    type StreamStream = ResponseStream<Any>;

    /// Sends everything back; the namespace comes last.
    async fn stream(
        &self,
        request: Request<Streaming<Any>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        serve_duplex(request, |scope: Scope, mut incoming, sender| async move {
            while let Some(item) = incoming.next().await {
                sender.send(item.map_err(|e| status::to_error(&e))?).await?;
            }
            Err(Error::aborted(scope.namespace))
        })
    }
}

/// A server on a socket of its own; ends with the guard.
struct Serving {
    dir: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn serve() -> Serving {
    let streaming = StreamingServer::new(Daemon).max_encoding_message_size(SENT_AT_MOST);
    let mut routes = Routes::of(VersionServer::new(Daemon));
    routes.add(streaming);
    serve_routes(routes, std::future::pending())
}

fn serve_routes(routes: Routes, stop: impl Future<Output = ()> + Send + 'static) -> Serving {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
    let incoming = UnixListenerStream::new(listener);
    let task = tokio::spawn(crate::connections::serve(routes, incoming, stop));
    Serving { dir, task }
}

async fn connect(dir: &Path) -> Channel {
    let path = dir.join("sock");
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_unary_call_crosses_the_socket() {
    let serving = serve();
    let mut client = VersionClient::new(connect(serving.dir.path()).await);
    let answer = client.version(Empty::new()).await.unwrap().into_inner();
    assert_eq!(answer.version, "v2");
}

#[tokio::test]
async fn a_duplex_stream_carries_large_messages_both_ways_and_ends_with_its_error() {
    let serving = serve();
    let mut client = StreamingClient::new(connect(serving.dir.path()).await);
    // Above tonic's own limit of 4 MiB, below containerd's.
    let large = Any {
        value: vec![7; 6 << 20],
        ..Any::default()
    };
    let small = protos::any::pack(&StreamInit {
        id: "s".into(),
        ..Default::default()
    })
    .unwrap();
    let small = Any {
        type_url: small.type_url,
        value: small.value,
        ..Any::default()
    };
    let sent = vec![small, large];
    let scope = Scope::new("ns".parse().unwrap());
    let request = crate::request(&scope, tokio_stream::iter(sent.clone())).unwrap();
    let mut incoming = client.stream(request).await.unwrap().into_inner();
    for want in sent {
        assert!(incoming.message().await.unwrap().unwrap() == want);
    }
    let error = status::to_error(&incoming.message().await.unwrap_err());
    assert_eq!(error.to_string(), "ns: aborted");
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_by_the_server() {
    let serving = serve();
    let client = StreamingClient::new(connect(serving.dir.path()).await);
    let mut client = client.max_encoding_message_size(2 * MAX_MESSAGE);
    let item = Any {
        value: vec![7; MAX_MESSAGE + 1],
        ..Any::default()
    };
    let scope = Scope::new("ns".parse().unwrap());
    let request = crate::request(&scope, tokio_stream::once(item)).unwrap();
    let mut incoming = client.stream(request).await.unwrap().into_inner();
    let failed = incoming.message().await.unwrap_err();
    assert_eq!(failed.code(), tonic::Code::ResourceExhausted, "{failed}");

    // A unary call is refused before there is a body that could say so.
    let mut unknown = Empty::new();
    unknown
        .special_fields
        .mut_unknown_fields()
        .add_length_delimited(9, vec![7; MAX_MESSAGE]);
    let client = VersionClient::new(connect(serving.dir.path()).await);
    let mut client = client.max_encoding_message_size(2 * MAX_MESSAGE);
    let failed = client.version(unknown).await.unwrap_err();
    let text = format!(
        "grpc: received message larger than max ({} vs. {MAX_MESSAGE})",
        MAX_MESSAGE + 5
    );
    assert_eq!(
        (failed.code(), failed.message()),
        (tonic::Code::ResourceExhausted, text.as_str())
    );
}

#[tokio::test]
async fn an_answer_above_the_limit_is_refused_in_go_s_words() {
    let serving = serve();
    let client = StreamingClient::new(connect(serving.dir.path()).await);
    // What comes back is larger than what the server may send.
    let mut client = client
        .max_encoding_message_size(2 * MAX_MESSAGE)
        .max_decoding_message_size(2 * MAX_MESSAGE);
    let item = |length| Any {
        value: vec![7; length],
        ..Any::default()
    };
    let size = item(SENT_AT_MOST).compute_size();
    let items = tokio_stream::iter([item(1), item(SENT_AT_MOST)]);
    let scope = Scope::new("ns".parse().unwrap());
    let request = crate::request(&scope, items).unwrap();
    let mut incoming = client.stream(request).await.unwrap().into_inner();
    assert_eq!(incoming.message().await.unwrap().unwrap().value.len(), 1);
    let failed = incoming.message().await.unwrap_err();
    let text = format!("grpc: trying to send message larger than max ({size} vs. {SENT_AT_MOST})");
    assert_eq!(
        (failed.code(), failed.message()),
        (tonic::Code::ResourceExhausted, text.as_str())
    );
}

#[tokio::test]
async fn what_is_not_served_is_named_in_go_s_words() {
    let serving = serve();
    let channel = connect(serving.dir.path()).await;
    for (path, text) in [
        (
            "/no.such.v1.Service/Get",
            "unknown service no.such.v1.Service",
        ),
        (
            "/containerd.services.version.v1.Version/Nope",
            "unknown method Nope for service containerd.services.version.v1.Version",
        ),
        (
            "/containerd.services.version.v1.Version/",
            "unknown method  for service containerd.services.version.v1.Version",
        ),
        (
            "/containerd.services.version.v1.Version/Version/x",
            "unknown service containerd.services.version.v1.Version/Version",
        ),
        ("/nothing", "malformed method name: \"/nothing\""),
    ] {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let answer: Result<Response<Empty>, Status> = client
            .unary(
                Request::new(Empty::new()),
                path.parse().unwrap(),
                Codec::<Empty, Empty>::default(),
            )
            .await;
        let status = answer.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::Unimplemented, text)
        );
    }
}

/// Routes to one method, which does as its caller's namespace says.
struct Odd(tokio::sync::Semaphore);

#[tonic::async_trait]
impl Version for Odd {
    async fn version(&self, request: Request<Empty>) -> Result<Response<VersionResponse>, Status> {
        match request.metadata().get(crate::NAMESPACE).map(AsRef::as_ref) {
            Some(b"wait") => drop(self.0.acquire().await),
            Some(b"go") => self.0.add_permits(1),
            _ => panic!("outside of any body"),
        }
        Ok(Response::new(VersionResponse::new()))
    }
}

fn odd(namespace: &'static str) -> Request<Empty> {
    let mut request = Request::new(Empty::new());
    request
        .metadata_mut()
        .insert(crate::NAMESPACE, namespace.parse().unwrap());
    request
}

#[tokio::test]
async fn calls_of_one_connection_wait_for_each_other_and_a_panic_ends_one_of_them() {
    let odd_one = Odd(tokio::sync::Semaphore::new(0));
    let serving = serve_routes(
        Routes::of(VersionServer::new(odd_one)),
        std::future::pending(),
    );
    let client = VersionClient::new(connect(serving.dir.path()).await);
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.version(odd("wait")).await })
        })
        .collect();
    let panicked = client.clone().version(odd("panic")).await.unwrap_err();
    assert_eq!(panicked.code(), tonic::Code::Cancelled, "{panicked}");
    for _ in 0..100 {
        client.clone().version(odd("go")).await.unwrap();
    }
    for waited in waiting {
        waited.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_ends_with_its_last_call() {
    let odd_one = Odd(tokio::sync::Semaphore::new(0));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let mut serving = serve_routes(Routes::of(VersionServer::new(odd_one)), stopped);
    let mut client = VersionClient::new(connect(serving.dir.path()).await);
    // The server has this one before it hears of the end.
    client.version(odd("go")).await.unwrap();
    let waiting = client.version(odd("wait"));
    waiting.await.unwrap();
    stop.send(()).unwrap();
    (&mut serving.task).await.unwrap();
    client.version(odd("go")).await.unwrap_err();
    UnixStream::connect(serving.dir.path().join("sock"))
        .await
        .unwrap_err();
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert(crate::NAMESPACE, "n".parse().unwrap());
    request
}

#[tokio::test]
async fn a_server_that_is_stopped_does_not_wait_for_a_stream_without_an_end() {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let mut serving = serve_routes(Routes::of(StreamingServer::new(Daemon)), stopped);
    let mut client = StreamingClient::new(connect(serving.dir.path()).await);
    let (open, items) = tokio::sync::mpsc::channel(1);
    open.send(Any::default()).await.unwrap();
    let items = tokio_stream::wrappers::ReceiverStream::new(items);
    let mut answers = client
        .stream(in_namespace(items))
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap().unwrap();
    stop.send(()).unwrap();
    let end = answers.message().await.unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end}");
    drop((open, answers));
    (&mut serving.task).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_just_made_when_the_server_stops_gets_its_first_answer() {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let mut serving = serve_routes(Routes::of(VersionServer::new(Daemon)), stopped);
    // Taken before the server hears of the end: its last one is.
    let fresh = UnixStream::connect(serving.dir.path().join("sock"))
        .await
        .unwrap();
    let mut other = VersionClient::new(connect(serving.dir.path()).await);
    other.version(Empty::new()).await.unwrap();
    stop.send(()).unwrap();
    tokio::task::yield_now().await;
    let mut fresh = Some(TokioIo::new(fresh));
    let connector = tower::service_fn(move |_: Uri| {
        let fresh = fresh.take();
        async move { fresh.ok_or_else(|| std::io::Error::other("it was lost")) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .unwrap();
    let answer = VersionClient::new(channel).version(Empty::new()).await;
    assert_eq!(answer.unwrap().into_inner().version, "v2");
    (&mut serving.task).await.unwrap();
}

type Frames = futures::stream::BoxStream<'static, Result<http_body::Frame<Bytes>, Status>>;
type RawBody = http_body_util::StreamBody<Frames>;

/// A connection below the stubs.
async fn connect_raw(dir: &Path) -> hyper::client::conn::http2::SendRequest<RawBody> {
    let stream = UnixStream::connect(dir.join("sock")).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    drop(tokio::spawn(connection));
    sender
}

fn raw(method: &str, timeout: Option<&str>, frames: Frames) -> http::Request<RawBody> {
    let service = method.split('/').next().unwrap().to_lowercase();
    let path = format!("http://localhost/containerd.services.{service}.v1.{method}");
    let mut request = http::Request::post(path).header("content-type", "application/grpc");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    request
        .body(http_body_util::StreamBody::new(frames))
        .unwrap()
}

/// A frame of a message that is whole: a field that nobody knows, of that many bytes.
fn whole(length: u32) -> Bytes {
    let mut frame = vec![0];
    frame.extend(length.to_be_bytes());
    frame.resize(5 + length as usize, 0);
    // Field 15, of bytes, their length in four groups of seven bits.
    let rest = length - 5;
    let group = |n: u32| u8::try_from(rest >> (7 * n) & 0x7f).unwrap();
    frame[5..10].copy_from_slice(&[
        15 << 3 | 2,
        group(0) | 0x80,
        group(1) | 0x80,
        group(2) | 0x80,
        group(3),
    ]);
    frame.into()
}

#[tokio::test]
async fn a_call_whose_message_never_comes_ends_with_its_deadline() {
    let serving = serve();
    let mut sender = connect_raw(serving.dir.path()).await;
    let never = Box::pin(futures::stream::pending());
    let request = raw("Version/Version", Some("50m"), never);
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4");
    // As in Go, whose answers without a message say nothing of a length.
    assert!(!answer.headers().contains_key("content-length"));
}

/// Who ends a call's only message says so: until then it is held, and counts for its connection.
#[tokio::test]
async fn whole_messages_of_calls_that_do_not_begin_are_bounded() {
    const LENGTH: u32 = 15 << 20;
    let serving = serve();
    let mut sender = connect_raw(serving.dir.path()).await;
    let mut other = connect_raw(serving.dir.path()).await;
    let data = || {
        // In pieces: the next one is asked for when there is room for it on the way.
        let mut left = whole(LENGTH);
        futures::stream::iter(std::iter::from_fn(move || {
            let piece = left.split_to(left.len().min(256 << 10));
            (!piece.is_empty()).then(|| Ok(http_body::Frame::data(piece)))
        }))
    };
    let mut open = futures::stream::FuturesUnordered::new();
    for _ in 0..11 {
        // One after the other: most of a message has gone when its client looks for the next one.
        let (gone, is_gone) = tokio::sync::oneshot::channel();
        let end = futures::stream::once(async move {
            gone.send(()).unwrap();
            std::future::pending().await
        });
        let frames = Box::pin(data().chain(end));
        open.push(sender.send_request(raw("Version/Version", None, frames)));
        // The last one may be refused before.
        let _gone_or_refused = is_gone.await;
    }
    // There is room for ten.
    let refused = futures::StreamExt::next(&mut open);
    let refused = tokio::time::timeout(std::time::Duration::from_secs(60), refused).await;
    let answer = refused.expect("a refusal").unwrap().unwrap();
    assert_eq!(answer.headers()["grpc-status"], "8");
    for _ in 0..5 {
        let request = raw("Version/Version", None, Box::pin(data()));
        let answer = other.send_request(request).await.unwrap();
        assert!(!answer.headers().contains_key("grpc-status"));
    }
    assert!(futures::FutureExt::now_or_never(futures::StreamExt::next(&mut open)).is_none());
}

/// Many calls that each take long: another connection is answered before they all are.
#[tokio::test]
async fn calls_of_one_connection_do_not_keep_another_from_its_turn() {
    struct Slow(std::sync::atomic::AtomicUsize);

    #[tonic::async_trait]
    impl Version for Slow {
        async fn version(&self, _: Request<Empty>) -> Result<Response<VersionResponse>, Status> {
            let count = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let begin = std::time::Instant::now();
            while begin.elapsed() < std::time::Duration::from_millis(2) {
                std::hint::spin_loop();
            }
            Ok(Response::new(VersionResponse {
                version: count.to_string(),
                ..Default::default()
            }))
        }
    }

    const MANY: usize = 200;
    let routes = Routes::of(VersionServer::new(Slow(0.into())));
    let serving = serve_routes(routes, std::future::pending());
    let busy = VersionClient::new(connect(serving.dir.path()).await);
    let other = VersionClient::new(connect(serving.dir.path()).await);
    let calls = (0..MANY).map(|_| {
        let mut client = busy.clone();
        async move { client.version(Empty::new()).await.unwrap() }
    });
    let first = async {
        let mut client = other.clone();
        client.version(Empty::new()).await.unwrap().into_inner()
    };
    let (_, answer) = tokio::join!(futures::future::join_all(calls), first);
    let turn: usize = answer.version.parse().unwrap();
    assert!(turn < MANY / 2, "it was the {turn}th to have its turn");
}

#[tokio::test]
async fn messages_of_streams_are_counted_both_ways() {
    let meter = |path: &str| {
        let mut all = crate::meter::all().iter();
        all.find(|meter| meter.path == path).unwrap()
    };
    let stream = meter("/containerd.services.streaming.v1.Streaming/Stream");
    let before = (stream.received(), stream.sent());
    let serving = serve();
    let mut client = StreamingClient::new(connect(serving.dir.path()).await);
    let messages: Vec<_> = (0..5).map(|_| Any::new()).collect();
    let request = in_namespace(tokio_stream::iter(messages));
    let mut answers = client.stream(request).await.unwrap().into_inner();
    let mut heard = 0;
    while let Ok(Some(_)) = answers.message().await {
        heard += 1;
    }
    assert!(heard > 0);
    let now = (stream.received(), stream.sent());
    // Other tests use it as well.
    assert!(
        now.0 >= before.0 + 5 && now.1 >= before.1 + heard,
        "{now:?}"
    );
}
