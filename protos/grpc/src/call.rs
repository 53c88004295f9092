//! One call from its begin to its answer: its span, its deadline, the server's end.
//!
//! Invariant: what changes something comes to its end; what only waits or tells ends with the first of its
//! client, its deadline and its server.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use recorder::{Flown, Origin};
use tokio::sync::watch;
use tokio::task::JoinError;
use tonic::{Request, Response, Status};
use tracing::Span;
use tracing::instrument::{Instrument, Instrumented};
use types::{Error, Result};

use crate::detached::{Detached, Work};
use crate::halves::Halves;
use crate::scope::Tenant;
use crate::status;
use crate::stream::Sender;

/// Work in the span of its call, and told of by the recorder.
pub(crate) type Observed<F> = Instrumented<Flown<F>>;

/// The path of the method called; put into a request's extensions by [`crate::Routes`].
#[derive(Clone, Copy)]
pub(crate) struct Method(pub(crate) &'static str);

/// The connection that a call came in by; put into a request's extensions by
/// [`crate::connections::serve`].
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// Completes when the server is about to end.
    pub(crate) ending: watch::Receiver<()>,
    /// The process that made it, if it is one of ours to see.
    pub(crate) pid: Option<u32>,
    /// What has come of its messages that are not whole.
    pub(crate) halves: Arc<Halves>,
}

/// The process that a call comes from: the one that made its connection. None for one in a pid namespace
/// that this process does not see.
#[must_use]
pub fn peer_pid<Q>(request: &Request<Q>) -> Option<u32> {
    request.extensions().get::<Connection>()?.pid
}

/// What calls that only wait or tell still get when the server is about to end: time for what is under
/// way, not for what may take for ever.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);

/// One call: its span, its deadline, and the server's end.
pub(crate) struct Call {
    /// The method, empty when it is not known.
    name: &'static str,
    /// The caller's trace.
    origin: Option<Origin>,
    span: Span,
    timeout: Option<Duration>,
    connection: Option<Connection>,
}

impl Call {
    pub(crate) fn of<Q>(request: &Request<Q>) -> Self {
        let called = request.extensions().get::<Method>();
        let name = called.map_or("", |called| called.0);
        let span = tracing::info_span!("grpc", method = name, namespace = tracing::field::Empty);
        let origin = request.metadata().get("traceparent");
        let origin = origin.and_then(|origin| origin.to_str().ok()?.parse().ok());
        Self {
            name,
            origin,
            span,
            timeout: timeout(request.metadata().as_ref()),
            connection: request.extensions().get::<Connection>().cloned(),
        }
    }

    /// Whom the call is for, also in its span.
    pub(crate) fn tenant<T: Tenant, Q>(&self, request: &Request<Q>) -> Result<T> {
        let tenant = T::of(request.metadata())?;
        if let Some(namespace) = tenant.namespace() {
            self.span.record("namespace", namespace.as_str());
        }
        Ok(tenant)
    }

    /// Completes when the call must end, with the reason: its deadline, or the server's end.
    pub(crate) fn late(&self) -> impl Future<Output = Error> + Send + use<> {
        let (deadline, end) = (until(self.timeout), ending(self.connection.clone()));
        async {
            tokio::select! {
                () = deadline => Error::deadline_exceeded(""),
                () = end => leaving(),
            }
        }
    }

    /// Runs `work` to its end, also when the caller goes away.
    pub(crate) async fn detached<R: Send + 'static>(&self, work: Work<R>) -> Result<R> {
        self.within(Detached::new(self.observed(work))).await
    }

    /// The same in the call's span, as a flight that the recorder tells of.
    pub(crate) fn observed<R, F>(&self, work: F) -> Observed<F>
    where
        F: Future<Output = Result<R>>,
    {
        recorder::fly_from(self.name, self.origin, work).instrument(self.span.clone())
    }

    /// Runs `work` until the deadline.
    pub(crate) async fn within<R>(
        &self,
        mut work: impl Future<Output = Result<R>> + Unpin,
    ) -> Result<R> {
        match self.timeout {
            Some(timeout) => tokio::time::timeout(timeout, &mut work)
                .await
                .unwrap_or_else(|_| Err(Error::deadline_exceeded(""))),
            None => work.await,
        }
    }

    /// Runs `work`, which changes nothing, until the deadline or the server's end.
    pub(crate) async fn patiently<R>(
        &self,
        work: impl Future<Output = Result<R>> + Unpin,
    ) -> Result<R> {
        tokio::select! {
            done = self.within(work) => done,
            () = ending(self.connection.clone()) => Err(leaving()),
        }
    }

    /// Runs `work` on a task of its own and sends its error, if any, as the end of the stream.
    pub(crate) fn feed<R: Send + 'static>(
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
async fn ending(connection: Option<Connection>) {
    let Some(mut connection) = connection else {
        return std::future::pending().await;
    };
    // A server that is gone has ended, too.
    let _told = connection.ending.changed().await;
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
            let headers = [("grpc-timeout".parse().unwrap(), text.parse().unwrap())];
            let made = timeout(&headers.into_iter().collect::<HeaderMap>());
            assert_eq!(made, want, "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn a_call_is_part_of_its_callers_trace() {
        let mut request = Request::new(());
        assert_eq!(Call::of(&request).origin, None);
        let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let metadata = request.metadata_mut();
        metadata.insert("traceparent", context.parse().unwrap());
        let origin = Call::of(&request).origin.unwrap();
        assert_eq!(
            (origin.parent, origin.sampled),
            (0x00f0_67aa_0ba9_02b7, true)
        );
        request
            .metadata_mut()
            .insert("traceparent", "none".parse().unwrap());
        assert_eq!(Call::of(&request).origin, None);
    }
}
