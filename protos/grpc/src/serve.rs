//! What every call has in common: scope, span, deadline, an end that it comes to, error to status.
//!
//! A body of [`serve`] runs to its end even when the client hangs up or its deadline passes: a
//! mutation is never left half-done. What may be dropped at any await (waiting, listing) uses
//! [`serve_cancellable`], [`serve_unscoped_cancellable`] or a stream.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use http::HeaderMap;
use recorder::Flown;
use tokio::sync::watch;
use tokio::task::JoinError;
use tonic::{Request, Response, Status, Streaming};
use tracing::Span;
use tracing::instrument::{Instrument, Instrumented};
use types::{Error, Result, Scope};

use crate::detached::{Detached, Work};
use crate::scope::{Anybody, Tenant};
use crate::status;
use crate::stream::{ResponseStream, Sender, channel};

/// Messages that a streaming body may be ahead of its client.
const AHEAD: usize = 4;

/// Work in the span of its call, and told of by the recorder.
pub(crate) type Observed<F> = Instrumented<Flown<F>>;

/// The path of the method called; put into a request's extensions by [`crate::Routes`].
#[derive(Clone, Copy)]
pub(crate) struct Method(pub(crate) &'static str);

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

/// Completes when the server is about to end; put into a request's extensions by
/// [`crate::connections::serve`].
#[derive(Clone, Debug)]
pub(crate) struct Ending(pub(crate) watch::Receiver<()>);

/// What calls that only wait or tell still get when the server is about to end: time for what is under
/// way, not for what may take for ever.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);

/// One call: its span, its deadline, and the server's end.
pub(crate) struct Call {
    /// The method, empty when it is not known.
    name: &'static str,
    span: Span,
    timeout: Option<Duration>,
    ending: Option<Ending>,
}

impl Call {
    pub(crate) fn of<Q>(request: &Request<Q>) -> Self {
        let called = request.extensions().get::<Method>();
        let name = called.map_or("", |called| called.0);
        let span = tracing::info_span!("grpc", method = name, namespace = tracing::field::Empty);
        Self {
            name,
            span,
            timeout: timeout(request.metadata().as_ref()),
            ending: request.extensions().get::<Ending>().cloned(),
        }
    }

    /// Whom the call is for, also in its span.
    fn tenant<T: Tenant, Q>(&self, request: &Request<Q>) -> Result<T> {
        let tenant = T::of(request.metadata())?;
        if let Some(namespace) = tenant.namespace() {
            self.span.record("namespace", namespace.as_str());
        }
        Ok(tenant)
    }

    /// Completes when the call must end, with the reason: its deadline, or the server's end.
    pub(crate) fn late(&self) -> impl Future<Output = Error> + Send + use<> {
        let (deadline, end) = (until(self.timeout), ending(self.ending.clone()));
        async {
            tokio::select! {
                () = deadline => Error::deadline_exceeded(""),
                () = end => leaving(),
            }
        }
    }

    /// Runs `work` to its end, also when the caller goes away.
    async fn detached<R: Send + 'static>(&self, work: Work<R>) -> Result<R> {
        self.within(Detached::new(self.observed(work))).await
    }

    /// The same in the call's span, as a flight that the recorder tells of.
    fn observed<R, F>(&self, work: F) -> Observed<F>
    where
        F: Future<Output = Result<R>>,
    {
        recorder::fly(self.name, work).instrument(self.span.clone())
    }

    /// Runs `work` until the deadline.
    async fn within<R>(&self, mut work: impl Future<Output = Result<R>> + Unpin) -> Result<R> {
        match self.timeout {
            Some(timeout) => tokio::time::timeout(timeout, &mut work)
                .await
                .unwrap_or_else(|_| Err(Error::deadline_exceeded(""))),
            None => work.await,
        }
    }

    /// Runs `work`, which changes nothing, until the deadline or the server's end.
    async fn patiently<R>(&self, work: impl Future<Output = Result<R>> + Unpin) -> Result<R> {
        tokio::select! {
            done = self.within(work) => done,
            () = ending(self.ending.clone()) => Err(leaving()),
        }
    }

    /// Runs `work` on a task of its own and sends its error, if any, as the end of the stream.
    fn feed<R: Send + 'static>(
        self,
        work: impl Future<Output = Result<()>> + Send + 'static,
        sender: Sender<R>,
        droppable: bool,
    ) {
        tokio::spawn(async move {
            let mut task = tokio::spawn(self.observed(work));
            let done = tokio::select! {
                done = &mut task => done,
                () = sender.closed(), if droppable => {
                    task.abort();
                    return;
                }
                reason = self.late() => {
                    if droppable {
                        task.abort();
                    }
                    Ok(Err(reason))
                }
            };
            let done = done.unwrap_or_else(|e| Err(broken(e)));
            if let Err(failed) = self.answer(done) {
                // The client may be gone; then nobody is left to tell.
                let _gone = sender.0.send(Err(failed)).await;
            }
        });
    }

    pub(crate) fn answer<R>(&self, done: Result<R>) -> Result<Response<R>, Status> {
        done.map(Response::new).map_err(|error| {
            let _in = self.span.enter();
            tracing::debug!(?error, "call failed");
            status::from_error(&error)
        })
    }
}

/// Waits for the deadline, for ever if there is none.
async fn until(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

/// Completes a while after the server was told to end, never without one that tells.
async fn ending(told: Option<Ending>) {
    let Some(Ending(mut told)) = told else {
        return std::future::pending().await;
    };
    // A server that is gone has ended, too.
    let _told = told.changed().await;
    tokio::time::sleep(PATIENCE).await;
}

/// What a client may do is ask again: nothing was changed, and the next server waits already.
fn leaving() -> Error {
    Error::unavailable("this daemon is about to end: ask again")
}

/// The error of a body that did not come to its end.
fn broken(error: JoinError) -> Error {
    if error.is_cancelled() {
        return Error::cancelled("");
    }
    panicked(&error).with_source(error)
}

/// The error of a body that panicked.
pub(crate) fn panicked(what: &dyn fmt::Display) -> Error {
    tracing::error!("call panicked: {what}");
    Error::internal("panic while serving the call")
}

/// The client's timeout (gRPC over HTTP/2: at most eight digits and a unit).
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tokio_stream::StreamExt;

    fn called(pairs: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        for (key, value) in pairs {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        request
    }

    #[test]
    fn timeouts_follow_the_grpc_grammar() {
        for (text, want) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("2H", Some(Duration::from_secs(7200))),
            ("250m", Some(Duration::from_millis(250))),
            ("123456789S", None),
            ("S", None),
            ("-1S", None),
            ("1x", None),
        ] {
            let made = timeout(called(&[("grpc-timeout", text)]).metadata().as_ref());
            assert_eq!(made, want, "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
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
