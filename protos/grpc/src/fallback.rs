//! Answers for what is not served, in the words of Go's gRPC: clients fall back on them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body::Frame;
use http_body_util::BodyExt as _;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, Service};

use crate::{Method, status};

/// The same routes with an answer for unknown services and methods; put on last. Also notes the
/// method's path in each request, for the spans of [`crate::serve`].
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
    O: http_body::Body<Data = Bytes> + Send + 'static,
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
        if let Some(path) = &path {
            request.extensions_mut().insert(Method(path.clone()));
        }
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let path = path.as_ref().map_or("", |p| p.path());
            match split(path) {
                Some((service, method)) if is_nameless(answer.headers()) => {
                    let text = format!("unknown method {method} for service {service}");
                    Ok(Status::unimplemented(text).into_http())
                }
                _ => Ok(match sized(answer.headers()) {
                    Some(refused) => refused.into_http(),
                    None => answer.map(|body| Body::new(body.map_frame(renamed))),
                }),
            }
        })
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
