//! A small web server for those who look: metrics over TCP, and the debug socket.
//!
//! Invariant: looking never costs the daemon more than [`CONNECTIONS`] connections of [`PATIENCE`] each,
//! with one request each; what is beyond waits outside.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use types::{Error, Result};

/// Connections at a time.
const CONNECTIONS: usize = 16;
/// What a connection may take in all.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the head of a request may take.
const HEAD: Duration = Duration::from_secs(5);
/// Pause after a failed `accept`, and between two attempts to bind.
const PAUSE: Duration = Duration::from_secs(1);

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Status.
    pub(crate) status: StatusCode,
    /// Media type.
    pub(crate) media_type: &'static str,
    /// Body.
    pub(crate) body: String,
}

impl Answer {
    /// Text for people.
    pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            media_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// There is no such thing.
    pub(crate) fn absent() -> Self {
        Self::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }
}

/// An address of the configuration.
///
/// # Errors
/// `InvalidArgument` for what is no address and port.
pub(crate) fn address(text: &str) -> Result<SocketAddr> {
    // As Go has it: without a host it is any.
    let full = match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => text.replacen("localhost:", "127.0.0.1:", 1),
    };
    full.parse().map_err(|_| {
        Error::invalid_argument(format_args!("metrics address {text:?} is no host:port"))
    })
}

/// Listens at `address`, unless somebody else does; `None` where that cannot be yet for another reason: a
/// network that is still to come.
///
/// # Errors
/// `Unavailable` when it is taken.
pub(crate) async fn bind(address: SocketAddr) -> Result<Option<TcpListener>> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Error::unavailable(
            format_args!("another process is serving at {address}, where metrics shall be"),
        )),
        Err(_) => Ok(None),
    }
}

/// Listens at `address` as soon as it is free: the daemon before this one may still have it.
pub(crate) async fn bind_late(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !told => {
                tracing::warn!(%address, %error, "metrics are not served yet");
                told = true;
            }
            Err(_) => {}
        }
        sleep(PAUSE).await;
    }
}

/// The connections of a listener, for ever.
pub(crate) fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> + Send {
    futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    })
}

/// Answers on all connections by the path that is asked for, for ever.
pub(crate) async fn serve<S, F, Fut>(connections: impl Stream<Item = io::Result<S>>, answer: F)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(String) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = std::pin::pin!(connections);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match connections.next().await {
            Some(Ok(stream)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    if timeout(PATIENCE, connection(stream, answer)).await.is_err() {
                        tracing::debug!("a slow reader of metrics was cut off");
                    }
                    drop(place);
                });
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "no connection");
                sleep(PAUSE).await;
            }
            None => return,
        }
    }
}

async fn connection<S, F, Fut>(stream: S, answer: F)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(String) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(respond(request, answer).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection failed");
    }
}

async fn respond<F, Fut>(request: Request<Incoming>, answer: F) -> Response<Full<Bytes>>
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Answer>,
{
    // Nobody has to send anything: a body is not even read.
    let answer = match *request.method() {
        Method::GET | Method::HEAD => answer(request.uri().path().to_owned()).await,
        _ => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let media_type = http::HeaderValue::from_static(answer.media_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn addresses_are_those_of_go_s_configuration() {
        for (text, want) in [
            ("127.0.0.1:1338", "127.0.0.1:1338"),
            (":1338", "[::]:1338"),
            ("localhost:1", "127.0.0.1:1"),
            ("[::1]:1338", "[::1]:1338"),
        ] {
            assert_eq!(address(text).unwrap(), want.parse().unwrap());
        }
        for bad in ["", "1338", "/run/x.sock", "host:1", "127.0.0.1:99999"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    async fn ask(address: SocketAddr, request: String) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // A refusal may come before all is sent, and then the rest is reset.
        let _cut = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn a_question_is_answered_and_the_connection_closed() {
        let listener = bind_late("127.0.0.1:0".parse().unwrap()).await;
        let at = listener.local_addr().unwrap();
        let answer = |path: String| async move {
            match path.as_str() {
                "/there" => Answer::text(StatusCode::OK, "here"),
                _ => Answer::absent(),
            }
        };
        let served = tokio::spawn(serve(incoming(listener), answer));
        for (line, status) in [
            ("GET /there?x=1", 200),
            ("GET /", 404),
            ("GET /there/", 404),
            ("PUT /there", 405),
            ("DELETE /there", 405),
        ] {
            let request = format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n");
            let answer = ask(at, request).await;
            let wanted = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&wanted), "{line}: {answer}");
            assert_eq!(answer.ends_with("here"), status == 200, "{line}: {answer}");
        }
        served.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_nothing_is_cut_off_and_others_have_their_turn() {
        let (mut silent, ours) = tokio::io::duplex(64);
        let (mut quick, theirs) = tokio::io::duplex(4096);
        let connections = futures::stream::iter([Ok(ours), Ok(theirs)]);
        let answer = |_: String| async { Answer::text(StatusCode::OK, "here") };
        let served = tokio::spawn(serve(connections, answer));
        quick.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut told = String::new();
        quick.read_to_string(&mut told).await.unwrap();
        assert!(told.ends_with("here"), "{told}");
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).await.unwrap();
        served.await.unwrap();
    }
}
