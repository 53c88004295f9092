//! Answers for what is not served, in the words of Go's gRPC: clients fall back on them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, Service};

use crate::meter::{self, Metered};
use crate::{Method, status, written};

/// The same routes with an answer for unknown services and methods; put on last. Also notes the
/// method in each request, for the spans and flights of [`crate::serve`], and counts the calls.
#[must_use]
pub fn routes(routes: Routes) -> Routes {
    let known = routes.into_axum_router();
    Routes::from(known.layer(Named).fallback(unknown_service))
}

async fn unknown_service(uri: Uri) -> Response<Body> {
    let text = match split(uri.path()) {
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: {:?}", uri.path()),
    };
    Status::unimplemented(text).into_http()
}

/// `/service/method` as gRPC splits it.
fn split(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.rsplit_once('/')
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Debug)]
struct Named;

impl<S> Layer<S> for Named {
    type Service = NamedMethods<S>;

    fn layer(&self, inner: S) -> NamedMethods<S> {
        NamedMethods(inner)
    }
}

/// Puts Go's words in place of what generated servers say on their own: nothing when they have no
/// such method, another class when a message is over the limit.
#[derive(Clone, Debug)]
struct NamedMethods<S>(S);

impl<S, B, O> Service<Request<B>> for NamedMethods<S>
where
    S: Service<Request<B>, Response = Response<O>, Error = Infallible>,
    S::Future: Send + 'static,
    O: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    O::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let path = request.uri().path_and_query().cloned();
        let meter = meter::of(request.uri().path());
        let mut metered = Metered::begin(meter);
        if let Some(path) = &path {
            let known = meter.map(|meter| meter.path);
            let path = path.clone();
            request.extensions_mut().insert(Method { path, known });
        }
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let path = path.as_ref().map_or("", |p| p.path());
            let refused = match split(path) {
                Some((service, method)) if is_nameless(answer.headers()) => {
                    let text = format!("unknown method {method} for service {service}");
                    Some(Status::unimplemented(text))
                }
                _ => sized(answer.headers()),
            };
            if let Some(refused) = refused {
                let answer = refused.into_http();
                metered.seen(answer.headers());
                return Ok(answer);
            }
            metered.seen(answer.headers());
            if written::is_written(answer.extensions()) {
                // This body gives way to another one.
                metered.well();
            }
            Ok(answer.map(|body| Body::new(Answered { body, metered })))
        })
    }
}

/// The body of an answer: in Go's words, and counted at its end.
struct Answered<B> {
    body: B,
    metered: Metered,
}

impl<B> http_body::Body for Answered<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return Poll::Pending;
        };
        let frame = frame.map(|frame| frame.map(renamed));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.metered.seen(trailers);
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

/// True for the answer of a generated server to a method that it does not have: a method that
/// answers Unimplemented itself always says why.
fn is_nameless(headers: &HeaderMap) -> bool {
    let is = |code: &http::HeaderValue| code == "12";
    headers.get("grpc-status").is_some_and(is) && !headers.contains_key("grpc-message")
}
