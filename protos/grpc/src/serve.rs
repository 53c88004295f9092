//! What every call has in common: scope, span, deadline, an end that it comes to, error to status.
//!
//! A body of [`serve`] runs to its end even when the client hangs up or its deadline passes: a
//! mutation is never left half-done. What may be dropped at any await (waiting, listing) uses
//! [`serve_cancellable`], [`serve_unscoped_cancellable`] or a stream.

use std::future::Future;

use tonic::{Request, Response, Status, Streaming};
use types::{Result, Scope};

use crate::call::Call;
use crate::scope::{Anybody, Tenant};
use crate::stream::{ResponseStream, Sender, channel};

/// Messages that a streaming body may be ahead of its client.
const AHEAD: usize = 4;

/// Serves one call of a namespaced service.
///
/// # Errors
/// Those of [`crate::scope()`] and of the body; `DeadlineExceeded` when the client's time is over (the
/// body goes on); `Internal` when the body panics.
pub async fn serve<Q, R, F, Fut>(request: Request<Q>, body: F) -> Result<Response<R>, Status>
where
    Q: Send + 'static,
    R: Send + 'static,
    F: FnOnce(Scope, Q) -> Fut + Send + 'static,
    Fut: Future<Output = Result<R>> + Send + 'static,
{
    serve_tenant(request, body).await
}

/// Serves one call of a service that knows no namespaces.
///
/// # Errors
/// As [`serve`], without those of the scope.
pub async fn serve_unscoped<Q, R, F, Fut>(
    request: Request<Q>,
    body: F,
) -> Result<Response<R>, Status>
where
    Q: Send + 'static,
    R: Send + 'static,
    F: FnOnce(Q) -> Fut + Send + 'static,
    Fut: Future<Output = Result<R>> + Send + 'static,
{
    serve_tenant(request, |_: Anybody, message| body(message)).await
}

/// Serves one call of a service that may know namespaces.
///
/// # Errors
/// As [`serve`].
pub async fn serve_tenant<T, Q, R, F, Fut>(
    request: Request<Q>,
    body: F,
) -> Result<Response<R>, Status>
where
    T: Tenant,
    Q: Send + 'static,
    R: Send + 'static,
    F: FnOnce(T, Q) -> Fut + Send + 'static,
    Fut: Future<Output = Result<R>> + Send + 'static,
{
    let call = Call::of(&request);
    let done = match call.tenant(&request) {
        Ok(tenant) => {
            let message = request.into_inner();
            let work = Box::pin(async move { body(tenant, message).await });
            call.detached(work).await
        }
        Err(error) => Err(error),
    };
    call.answer(done)
}

/// Serves one call whose body changes nothing: it is dropped when the client hangs up or its
/// deadline passes. For calls that wait.
///
/// # Errors
/// As [`serve`].
pub async fn serve_cancellable<Q, R, F, Fut>(
    request: Request<Q>,
    body: F,
) -> Result<Response<R>, Status>
where
    F: FnOnce(Scope, Q) -> Fut,
    Fut: Future<Output = Result<R>>,
{
    let call = Call::of(&request);
    let done = match call.tenant(&request) {
        Ok(scope) => {
            let work = Box::pin(body(scope, request.into_inner()));
            call.patiently(call.observed(work)).await
        }
        Err(error) => Err(error),
    };
    call.answer(done)
}

/// As [`serve_cancellable`], for services that know no namespaces.
///
/// # Errors
/// As [`serve`], without those of the scope.
pub async fn serve_unscoped_cancellable<Q, R, F, Fut>(
    request: Request<Q>,
    body: F,
) -> Result<Response<R>, Status>
where
    F: FnOnce(Q) -> Fut,
    Fut: Future<Output = Result<R>>,
{
    let call = Call::of(&request);
    let work = Box::pin(body(request.into_inner()));
    let done = call.patiently(call.observed(work)).await;
    call.answer(done)
}

/// Serves a call that answers with a stream; the body is dropped when the client hangs up.
///
/// # Errors
/// Those of [`crate::scope()`]. An error of the body ends the stream.
pub fn serve_stream<T, Q, R, F, Fut>(
    request: Request<Q>,
    body: F,
) -> Result<Response<ResponseStream<R>>, Status>
where
    T: Tenant,
    R: Send + 'static,
    F: FnOnce(T, Q, Sender<R>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    streaming(request, body, true)
}

/// As [`serve_stream`], for services that know no namespaces.
///
/// # Errors
/// None at once. An error of the body ends the stream.
pub fn serve_unscoped_stream<Q, R, F, Fut>(
    request: Request<Q>,
    body: F,
) -> Result<Response<ResponseStream<R>>, Status>
where
    R: Send + 'static,
    F: FnOnce(Q, Sender<R>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    serve_stream(request, |_: Anybody, message, sender| body(message, sender))
}

/// Serves a call with streams both ways. The body is not dropped when the client hangs up: its
/// incoming stream ends or fails and its sends fail, so that it can leave things in order.
///
/// # Errors
/// Those of [`crate::scope()`]. An error of the body ends the stream.
pub fn serve_duplex<T, Q, R, F, Fut>(
    request: Request<Streaming<Q>>,
    body: F,
) -> Result<Response<ResponseStream<R>>, Status>
where
    T: Tenant,
    R: Send + 'static,
    F: FnOnce(T, Streaming<Q>, Sender<R>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    streaming(request, body, false)
}

fn streaming<T, Q, R, F, Fut>(
    request: Request<Q>,
    body: F,
    droppable: bool,
) -> Result<Response<ResponseStream<R>>, Status>
where
    T: Tenant,
    R: Send + 'static,
    F: FnOnce(T, Q, Sender<R>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let call = Call::of(&request);
    match call.tenant(&request) {
        Ok(tenant) => {
            let (sender, stream) = channel(AHEAD);
            let work = body(tenant, request.into_inner(), Sender(sender.0.clone()));
            call.feed(work, sender, droppable);
            Ok(Response::new(stream))
        }
        Err(error) => call.answer(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tokio_stream::StreamExt;
    use types::Error;

    fn called(pairs: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        for (key, value) in pairs {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        request
    }

    #[tokio::test]
    async fn the_body_gets_the_scope_and_its_error_becomes_a_status() {
        let request = called(&[(crate::NAMESPACE, "a")]);
        let answer = serve(request, |scope, ()| async move {
            Ok(scope.namespace.to_string())
        });
        assert_eq!(answer.await.unwrap().into_inner(), "a");

        let request = called(&[(crate::NAMESPACE, "a")]);
        let answer = serve::<_, (), _, _>(request, |_, ()| async { Err(Error::not_found("x")) });
        let status = answer.await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::NotFound, "x: not found")
        );

        let answer = serve(called(&[]), |_, ()| async { Ok(()) });
        assert_eq!(
            answer.await.unwrap_err().code(),
            tonic::Code::FailedPrecondition
        );
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_of_that_call() {
        let body = |()| async { if true { panic!("bug") } else { Ok(()) } };
        let status = serve_unscoped(called(&[]), body).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
    }

    #[tokio::test]
    async fn a_body_runs_on_when_its_client_hangs_up() {
        let (go, wait) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel::<()>();
        let call = serve_unscoped(called(&[("grpc-timeout", "1m")]), |()| async {
            wait.await.unwrap();
            tell.send(()).unwrap();
            Ok(())
        });
        let status = call.await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert_eq!(status.message(), "context deadline exceeded");
        go.send(()).unwrap();
        told.await.unwrap();
    }

    #[tokio::test]
    async fn a_cancellable_body_ends_with_its_deadline() {
        let (held, gone) = oneshot::channel::<()>();
        let request = called(&[(crate::NAMESPACE, "a"), ("grpc-timeout", "1m")]);
        let call = serve_cancellable::<_, (), _, _>(request, |_, ()| async move {
            let _held = held;
            std::future::pending().await
        });
        assert_eq!(
            call.await.unwrap_err().code(),
            tonic::Code::DeadlineExceeded
        );
        assert!(gone.await.is_err());

        let (held, gone) = oneshot::channel::<()>();
        let request = called(&[("grpc-timeout", "1m")]);
        let call = serve_unscoped_cancellable::<_, (), _, _>(request, |()| async move {
            let _held = held;
            std::future::pending().await
        });
        assert_eq!(
            call.await.unwrap_err().code(),
            tonic::Code::DeadlineExceeded
        );
        assert!(gone.await.is_err());
    }

    #[tokio::test]
    async fn the_error_of_a_stream_is_its_last_item() {
        let request = called(&[(crate::NAMESPACE, "a")]);
        let answer = serve_stream(request, |_: Scope, (), sender: Sender<u8>| async move {
            sender.send(1).await?;
            Err(Error::aborted("cut"))
        });
        let items: Vec<_> = answer.unwrap().into_inner().collect().await;
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].as_ref().unwrap_err().message(), "cut: aborted");
    }

    #[tokio::test]
    async fn a_stream_body_ends_when_nobody_listens() {
        let (held, gone) = oneshot::channel::<()>();
        let answer = serve_unscoped_stream(called(&[]), |(), _sender: Sender<u8>| async move {
            let _held = held;
            std::future::pending().await
        });
        drop(answer);
        assert!(gone.await.is_err());
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_deadline() {
        let (held, gone) = oneshot::channel::<()>();
        let request = called(&[("grpc-timeout", "1m")]);
        let answer = serve_unscoped_stream(request, |(), _sender: Sender<u8>| async move {
            let _held = held;
            std::future::pending().await
        });
        let items: Vec<_> = answer.unwrap().into_inner().collect().await;
        assert_eq!(items.len(), 1);
        let status = items[0].as_ref().unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        gone.await.unwrap_err();
    }
}
