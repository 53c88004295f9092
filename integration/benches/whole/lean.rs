//! A client that takes answers as bytes: what it costs is the same for every daemon, and as little as
//! can be. For calls that are short, and for answers that are large: a client that decoded them, with
//! queues of its own, would be most of what is measured.

use std::path::Path;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use protos::Message;
use tokio::net::UnixStream;

/// Flag and length before a message.
const HEAD: usize = 5;

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Lean(SendRequest<Full<Bytes>>);

impl Lean {
    /// Connects; must be called in the runtime that the connection lives in.
    pub(crate) async fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.expect("connect");
        let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = made.expect("HTTP/2");
        drop(tokio::spawn(connection));
        Self(sender)
    }

    /// Calls a method and returns the length of its answer in bytes, heads of messages included.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        namespace: &str,
        message: &impl Message,
    ) -> usize {
        let mut answer = self.send(method, namespace, message).await;
        let (mut len, mut status) = (0, None);
        while let Some(frame) = answer.frame().await {
            let frame = frame.expect("a frame");
            if let Some(data) = frame.data_ref() {
                len += data.len();
            }
            if let Some(trailers) = frame.trailers_ref() {
                status = trailers.get("grpc-status").cloned();
            }
        }
        assert_eq!(status.expect("trailers"), "0", "status of {method}");
        len
    }

    /// Calls a method whose answer is a stream.
    pub(crate) async fn stream(
        &mut self,
        method: &str,
        namespace: &str,
        message: &impl Message,
    ) -> Messages {
        Messages {
            body: self.send(method, namespace, message).await,
            read: BytesMut::new(),
        }
    }

    async fn send(&mut self, method: &str, namespace: &str, message: &impl Message) -> Incoming {
        let message = message.write_to_bytes().expect("encode");
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).expect("small").to_be_bytes());
        body.extend(message);
        let request = Request::post(format!("http://localhost/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", namespace)
            .body(Full::new(body.into()));
        let answer = self.0.send_request(request.expect("a request")).await;
        answer.expect("an answer").into_body()
    }
}

/// Messages of a stream, as they are.
#[derive(Debug)]
pub(crate) struct Messages {
    body: Incoming,
    read: BytesMut,
}

impl Messages {
    /// The next one.
    pub(crate) async fn next(&mut self) -> Bytes {
        loop {
            if let Some((head, rest)) = self.read.split_first_chunk::<HEAD>() {
                let [_, a, b, c, d] = *head;
                let len = u32::from_be_bytes([a, b, c, d]) as usize;
                if rest.len() >= len {
                    self.read.advance(HEAD);
                    return self.read.split_to(len).freeze();
                }
            }
            let frame = self.body.frame().await.expect("a message");
            let data = frame.expect("a frame").into_data().expect("no end");
            self.read.extend_from_slice(&data);
        }
    }
}
