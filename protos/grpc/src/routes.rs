//! Routes: from the path of a call to the server of its service, and what is the same for all of them.
//!
//! Invariant: whatever comes in is answered, and counted if it is served. What is not served is refused
//! in the words of Go's gRPC: clients fall back on them. On its way a call is boxed once, by its server;
//! what goes around it here is small and stays in place.
//!
//! ```text
//! request ─ path ─┬─ known ─> server ─> head ─> Answered: body, then its status ─> meter
//!                 `─ else ──> refusal
//! ```

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use types::Error;

use crate::call::{Connection, Method, timeout};
use crate::halves::Half;
use crate::meter::{self, Messages, Meter, Metered};
use crate::{status, written};

/// How much later than a call's own end its deadline is kept here: the call knows better words.
const BEHIND: Duration = Duration::from_millis(5);

/// What a body fails with: the connection's error, or the status of a refusal.
type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// What a generated server makes of a call.
type Running = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
type Serve = dyn Fn(Request<Asked>) -> Running + Send + Sync;

/// The methods that a socket serves, by their paths.
#[derive(Default)]
pub struct Routes(HashMap<&'static str, Route>);

/// Where the calls of one method go.
struct Route {
    meter: &'static Meter,
    serve: Arc<Serve>,
}

impl Routes {
    /// The methods of one service.
    #[must_use]
    pub fn of<S>(server: S) -> Self
    where
        S: Service<Request<Asked>, Response = Response<Body>>,
        S: Service<Request<Asked>, Error = Infallible, Future = Running>,
        S: NamedService + Clone + Send + Sync + 'static,
    {
        let mut routes = Self::default();
        routes.add(server);
        routes
    }

    /// Adds the methods of a service, a generated one: it is ready at any time.
    pub fn add<S>(&mut self, server: S)
    where
        S: Service<Request<Asked>, Response = Response<Body>>,
        S: Service<Request<Asked>, Error = Infallible, Future = Running>,
        S: NamedService + Clone + Send + Sync + 'static,
    {
        let serve: Arc<Serve> = Arc::new(move |request| server.clone().call(request));
        let methods = meter::all().iter().filter(|meter| {
            let named = split(meter.path);
            named.is_some_and(|(service, _)| service == S::NAME)
        });
        if methods.clone().next().is_none() {
            // It would be there for nobody, and nobody would know why.
            tracing::error!(
                service = S::NAME,
                "none of its methods is known: it is not served"
            );
        }
        self.0.extend(methods.map(|meter| {
            let serve = Arc::clone(&serve);
            (meter.path, Route { meter, serve })
        }));
    }

    /// Begins a call.
    pub(crate) fn call(&self, request: Request<Incoming>) -> Answer {
        // A client may never send what its call is about: then the call does not begin.
        let limit = timeout(request.headers());
        let path = request.uri().path();
        let route = self.0.get(path);
        let metered = Metered::begin(route.map(|route| route.meter));
        let running = match route {
            Some(route) => {
                let meter = route.meter;
                let connection = request.extensions().get::<Connection>();
                let halves = connection.map(|connection| Arc::clone(&connection.halves));
                let mut request = request.map(|body| Asked {
                    body,
                    meter,
                    heard: Messages::default(),
                    come: 0,
                    half: Half::new(halves),
                });
                request.extensions_mut().insert(Method(route.meter.path));
                (route.serve)(request)
            }
            None => Box::pin(ready(Ok(self.refusal(path).into_http()))),
        };
        Answer {
            running,
            limit,
            late: None,
            metered,
        }
    }

    /// What a client is told whose method is not served.
    fn refusal(&self, path: &str) -> Status {
        Status::unimplemented(match split(path) {
            Some((service, method)) if self.has(service) => {
                format!("unknown method {method} for service {service}")
            }
            Some((service, _)) => format!("unknown service {service}"),
            None => format!("malformed method name: {path:?}"),
        })
    }

    fn has(&self, service: &str) -> bool {
        let mut served = self.0.keys().filter_map(|path| split(path));
        served.any(|(name, _)| name == service)
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// `/service/method` as gRPC splits it.
fn split(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.rsplit_once('/')
}

/// A call until its answer begins: a stream may stay open for days, and this is gone then.
pub(crate) struct Answer {
    running: Running,
    /// The client's patience; from the first time on that the call has to wait.
    limit: Option<Duration>,
    late: Option<Pin<Box<Sleep>>>,
    metered: Metered,
}

impl Answer {
    /// Completes with the deadline, never without one.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(limit) = self.limit.take() {
            let late = tokio::time::sleep(limit.saturating_add(BEHIND));
            self.late = Some(Box::pin(late));
        }
        match &mut self.late {
            Some(late) => late.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// The answer in Go's words, counted with its status.
    fn finish(&mut self, answer: Response<Body>) -> Response<Answered> {
        let mut metered = self.metered.take();
        let answer = match sized(answer.headers()) {
            Some(refused) => refused.into_http(),
            None => answer,
        };
        metered.seen(answer.headers());
        if written::is_written(answer.extensions()) {
            metered.well();
        }
        written::in_pieces(answer).map(|body| Answered { body, metered })
    }
}

impl Future for Answer {
    type Output = Result<Response<Answered>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match self.running.as_mut().poll(cx) {
            Poll::Ready(Ok(answer)) => answer,
            Poll::Pending if self.poll_late(cx).is_pending() => return Poll::Pending,
            Poll::Pending => {
                Status::deadline_exceeded(Error::deadline_exceeded("").to_string()).into_http()
            }
        };
        Poll::Ready(Ok(self.finish(answer)))
    }
}

/// The body of a question, whose messages are counted, and what has come of one that is held.
#[derive(Debug)]
pub struct Asked {
    body: Incoming,
    meter: &'static Meter,
    heard: Messages,
    /// Bytes of all of it.
    come: usize,
    half: Half,
}

impl Asked {
    /// Counts what has come. A call of one message begins when its client has said that there is no other:
    /// until then the message is held, whole or not, and this with it.
    fn hear(&mut self, data: &[u8]) -> Result<(), Status> {
        self.meter.hear(&mut self.heard, data);
        self.come = self.come.saturating_add(data.len());
        self.half.come(if self.meter.is_of_one_message() {
            self.come
        } else {
            self.heard.half()
        })
    }
}

impl http_body::Body for Asked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(refused) = this.hear(data)
        {
            return Poll::Ready(Some(Err(refused.into())));
        }
        polled.map_err(BoxError::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer: in Go's words, and counted at its end.
pub(crate) struct Answered {
    body: Body,
    metered: Metered,
}

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return Poll::Pending;
        };
        let frame = frame.map(|frame| frame.map(renamed));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                self.metered.say(data);
            }
            if let Some(trailers) = frame.trailers_ref() {
                self.metered.seen(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The refusal of a message over the limit, if these headers say so. A generated server refuses a
/// request before any body runs, but an answer only when its head has gone out: in the trailers.
fn sized(headers: &HeaderMap) -> Option<Status> {
    let is_out_of_range = |code: &http::HeaderValue| code == "11";
    if !headers.get("grpc-status").is_some_and(is_out_of_range) {
        return None;
    }
    status::too_large(&Status::from_header_map(headers)?)
}

/// The frame, with Go's words in place of others.
fn renamed(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            let refused = sized(&trailers);
            // It is made of a code and a text, which fit into headers.
            let _fits = refused.map(|refused| refused.add_header(&mut trailers));
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

#[cfg(test)]
mod tests;
