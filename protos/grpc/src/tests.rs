//! The whole path over a real unix socket: stubs, codec, limits, scope, fallbacks.

mod limits;
mod turns;

use std::path::Path;

use hyper_util::rt::TokioIo;
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
use crate::{Codec, ResponseStream, Routes, serve_duplex, serve_unscoped, status};

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

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert(crate::NAMESPACE, "n".parse().unwrap());
    request
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
