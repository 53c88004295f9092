//! Messages that are too large, too many at once, or never whole.

use bytes::Bytes;
use hyper_util::rt::TokioExecutor;
use protos::Message as _;

use super::*;
use crate::MAX_MESSAGE;

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
