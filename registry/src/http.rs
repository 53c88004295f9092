//! One HTTP request and the reading of its answer, with deadlines and limits.
//!
//! Failures that may pass by themselves have class `Unavailable`; nothing else has.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::PROXY_AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use recorder::On;
use tokio::time::{Instant, timeout};
use types::{Code, Error, Result};

use crate::body::{Outgoing, Sent};
use crate::connect::Connector;
use crate::opts::Limits;
use crate::proxy::Proxies;
use crate::tls::{self, Trust};
use crate::url::{self, Origin};
use crate::watch::Watch;

/// Largest error document that is read.
const MAX_ERROR: usize = 64 * 1024;
/// Largest head of an answer.
const MAX_HEAD: usize = 1 << 20;
/// Longest text of a server that is shown.
const MAX_TEXT: usize = 300;
/// Parity: net/http: the words by which people find `--plain-http`.
const PLAIN_ANSWER: &str = "http: server gave HTTP response to HTTPS client";
/// What the TLS client says when the server hangs up instead of greeting.
const NO_HANDSHAKE: &str = "tls handshake eof";
/// Connections kept for a while after their last use.
const IDLE: Duration = Duration::from_secs(30);

/// The HTTP client: plain and, when first needed, TLS.
#[derive(Debug)]
pub(crate) struct Http {
    limits: Limits,
    trust: Trust,
    proxies: Arc<Proxies>,
    watch: Option<Watch>,
    connector: Connector,
    plain: Client<Connector, Outgoing>,
    tls: OnceLock<Client<HttpsConnector<Connector>, Outgoing>>,
}

impl Http {
    pub(crate) fn new(
        limits: Limits,
        trust: Trust,
        proxies: Arc<Proxies>,
        watch: Option<Watch>,
    ) -> Self {
        let connector = Connector::new(Arc::clone(&proxies), limits.connect, &trust);
        Self {
            limits,
            trust,
            proxies,
            watch,
            plain: builder().build(connector.clone()),
            connector,
            tls: OnceLock::new(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Sends one request and waits for the head of the answer.
    pub(crate) async fn send(&self, request: Request<Outgoing>) -> Result<Response<Incoming>> {
        self.send_watched(request, &Sent::default()).await
    }

    /// The same for a body that takes its time: as long as enough of it goes out, all is well.
    pub(crate) async fn send_watched(
        &self,
        request: Request<Outgoing>,
        gone: &Sent,
    ) -> Result<Response<Incoming>> {
        let shown = format!("{} {}", request.method(), url::shown(request.uri()));
        let _waiting = recorder::stage("answer of registry", || On::named(shown.clone()));
        let Some(watch) = &self.watch else {
            return self.answer(request, gone, shown).await;
        };
        watch.asked(&request);
        let began = Instant::now();
        let answer = self.answer(request, gone, shown.clone()).await;
        match &answer {
            Ok(answer) => watch.answered(&shown, answer, began.elapsed()),
            Err(error) => watch.failed(&shown, error, began.elapsed()),
        }
        answer
    }

    async fn answer(
        &self,
        request: Request<Outgoing>,
        gone: &Sent,
        shown: String,
    ) -> Result<Response<Incoming>> {
        let mut patience = (self.limits.connect + self.limits.answer).min(self.limits.patience);
        let mut sent = pin!(self.pass(request));
        let mut before = 0;
        loop {
            let error = match timeout(patience, &mut sent).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => {
                    let now = gone.bytes();
                    if now - before >= self.limits.least(patience) {
                        before = now;
                        patience = self.limits.answer;
                        continue;
                    }
                    Error::unavailable("no answer from the registry in time")
                }
            };
            return Err(match gone.error() {
                Some(source) => source,
                None => error.ctx(shown),
            });
        }
    }

    async fn pass(&self, mut request: Request<Outgoing>) -> Result<Response<Incoming>> {
        let answer = if request.uri().scheme_str() == Some("https") {
            self.tls()?.request(request).await
        } else {
            // A proxy that passes plain requests on reads its own header in each of them.
            let proxy = self.proxies.for_origin(&Origin::of(request.uri())?)?;
            if let Some(value) = proxy.and_then(|proxy| proxy.authorization())
                && let Ok(mut value) = HeaderValue::try_from(value)
            {
                value.set_sensitive(true);
                request.headers_mut().insert(PROXY_AUTHORIZATION, value);
            }
            self.plain.request(request).await
        };
        answer.map_err(|error| failure(&error))
    }

    fn tls(&self) -> Result<&Client<HttpsConnector<Connector>, Outgoing>> {
        if self.tls.get().is_none() {
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(tls::config(&self.trust)?)
                .https_only()
                .enable_http1()
                .wrap_connector(self.connector.clone());
            // Another request may have been first: then its client is kept.
            let _kept = self.tls.set(builder().build(connector));
        }
        self.tls
            .get()
            .ok_or_else(|| Error::internal("no TLS client"))
    }
}

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http1_max_buf_size(MAX_HEAD)
        .pool_max_idle_per_host(4);
    builder
}

/// Whether a request failed because the server that it went to does not speak TLS.
pub(crate) fn is_no_tls(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<NoTls>())
}

/// Marks such an error. Texts do not: they also hold what servers and proxies say.
#[derive(Debug)]
struct NoTls;

impl std::fmt::Display for NoTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no TLS there")
    }
}

impl std::error::Error for NoTls {}

/// A failed request. A refused certificate stays refused; all else may pass.
fn failure(error: &(dyn std::error::Error + 'static)) -> Error {
    if let Some(tls) = tls_error(error) {
        return match tls {
            rustls::Error::InvalidMessage(_) => Error::unknown(PLAIN_ANSWER).with_source(NoTls),
            tls => Error::unknown(format_args!("tls: {tls}")),
        };
    }
    let (mut text, mut is_no_tls) = (String::new(), false);
    let mut at = Some(error);
    while let Some(error) = at {
        let this = error.to_string();
        let this = this.split(" (os error ").next().unwrap_or_default();
        is_no_tls |= this == NO_HANDSHAKE;
        // The client's own words say nothing; layers repeat what is below them.
        let said = this.starts_with("client error") || text.contains(this);
        if !said {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{this}");
        }
        at = error.source();
    }
    match is_no_tls {
        true => Error::unavailable(text).with_source(NoTls),
        false => Error::unavailable(text),
    }
}

/// The TLS error in a chain of errors, also inside I/O errors.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    let inside = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    let next = match inside {
        Some(inside) => Some(inside as &(dyn std::error::Error + 'static)),
        None => error.source(),
    };
    next.and_then(tls_error)
}

/// The next piece of a body; `None` at its end.
pub(crate) async fn next(body: &mut Incoming, deadline: Duration) -> Result<Option<Bytes>> {
    loop {
        match timeout(deadline, body.frame()).await {
            Err(_) => return Err(Error::unavailable("no data from the registry in time")),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(failure(&error)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A whole body of at most `limit` bytes.
pub(crate) async fn whole(mut body: Incoming, limit: usize, deadline: Duration) -> Result<Bytes> {
    let mut all = BytesMut::new();
    let read = async {
        while let Some(data) = next(&mut body, deadline).await? {
            if all.len() + data.len() > limit {
                return Err(Error::resource_exhausted(format_args!(
                    "answer of the registry is larger than {limit} bytes"
                )));
            }
            all.extend_from_slice(&data);
        }
        Ok(())
    };
    match timeout(deadline, read).await {
        Ok(done) => done.map(|()| all.freeze()),
        Err(_) => Err(Error::unavailable(
            "no complete answer from the registry in time",
        )),
    }
}

/// The error that a status is, with what the server says about it.
pub(crate) async fn status_error(answer: Response<Incoming>, deadline: Duration) -> Error {
    let status = answer.status();
    let said = match whole(answer.into_body(), MAX_ERROR, deadline).await {
        Ok(body) => message(&body),
        Err(_) => String::new(),
    };
    let separator = if said.is_empty() { "" } else { ": " };
    Error::new(
        class(status),
        format_args!("unexpected status {status}{separator}{said}"),
    )
}

/// The class of a status.
pub(crate) fn class(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 | 410 => Code::NotFound,
        405 | 501 => Code::NotImplemented,
        413 => Code::ResourceExhausted,
        408 | 425 | 429 | 500..=599 => Code::Unavailable,
        416 => Code::OutOfRange,
        _ => Code::Unknown,
    }
}

/// What an error document says, fit for one line.
pub(crate) fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        code: Option<String>,
        message: Option<String>,
    }
    let text = match serde_json::from_slice::<Document>(body) {
        Ok(document) => {
            let items = document.errors.into_iter().take(3).map(|item| {
                let parts = [item.code, item.message].into_iter().flatten();
                parts
                    .filter(|part| !part.is_empty())
                    .collect::<Vec<_>>()
                    .join(": ")
            });
            items.collect::<Vec<_>>().join(", ")
        }
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT)])
            .trim()
            .to_owned(),
    };
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_TEXT)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_short_line() {
        let json = br#"{"errors":[{"code":"DENIED","message":"no\nway"},{"message":"x"}]}"#;
        assert_eq!(message(json), "DENIED: no way, x");
        assert_eq!(message(b"<html>\x1b[2J</html>\n"), "<html> [2J</html>");
        assert_eq!(message(&[b'x'; 100_000]).len(), MAX_TEXT);
        assert_eq!(message(b""), "");
    }

    #[test]
    fn tls_errors_are_found_and_do_not_pass() {
        let tls = std::io::Error::other(rustls::Error::HandshakeNotComplete);
        let error = failure(&std::io::Error::other(tls));
        assert!(
            error.is(Code::Unknown) && error.to_string().starts_with("tls: "),
            "{error}"
        );
        let said = std::io::Error::other(format!("proxy: 503 {NO_HANDSHAKE}"));
        for (error, is_it) in [
            (std::io::Error::other(NO_HANDSHAKE), true),
            (said, false),
            (std::io::Error::other(PLAIN_ANSWER), false),
        ] {
            let error = failure(&error).ctx("GET").ctx("r.test");
            assert_eq!(is_no_tls(&error), is_it, "{error}");
        }
        let error = failure(&std::io::Error::from_raw_os_error(111));
        assert!(error.is(Code::Unavailable));
        assert_eq!(error.to_string(), "Connection refused: unavailable");
    }

    #[test]
    fn only_what_may_pass_is_unavailable() {
        for (status, code) in [
            (404, Code::NotFound),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (429, Code::Unavailable),
            (503, Code::Unavailable),
            (405, Code::NotImplemented),
            (418, Code::Unknown),
        ] {
            assert_eq!(class(StatusCode::from_u16(status).unwrap()), code);
        }
    }
}
