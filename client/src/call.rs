//! One call: scope, deadline, error.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use types::{Error, LeaseId, Namespace, Result, Scope};

use crate::again::Again;

/// Longest a plain call may take. Calls that wait for something or move data have no limit.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A channel and who calls on it. Cheap to clone; all services of a client share it.
#[derive(Clone, Debug)]
pub struct Caller {
    channel: Channel,
    scope: Scope,
    deadline: Duration,
    /// Of a program that nobody vouches for.
    limits: Option<Limits>,
}

/// How long calls of a program may take that may hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls that only look something up.
    pub quick: Duration,
    /// Every other call, and each step of one that moves data.
    pub whole: Duration,
}

impl Caller {
    /// Calls on `channel` as `scope`.
    #[must_use]
    pub fn new(channel: Channel, scope: Scope) -> Self {
        Self {
            channel,
            scope,
            deadline: DEADLINE,
            limits: None,
        }
    }

    /// The same caller under a lease.
    #[must_use]
    pub fn leased(&self, lease: LeaseId) -> Self {
        let mut made = self.clone();
        made.scope.lease = Some(lease);
        made
    }

    /// The same caller on somebody else's behalf.
    #[must_use]
    pub fn scoped(&self, scope: Scope) -> Self {
        Self {
            scope,
            ..self.clone()
        }
    }

    /// The same caller in another namespace, without a lease.
    #[must_use]
    pub fn in_namespace(&self, namespace: Namespace) -> Self {
        Self {
            scope: Scope::new(namespace),
            ..self.clone()
        }
    }

    /// The same caller with another deadline for plain calls.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// The same caller of a program that may hang: each call comes to an end.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self {
            deadline: limits.whole,
            limits: Some(limits),
            ..self.clone()
        }
    }

    /// Who calls.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    pub(crate) fn channel(&self) -> Again {
        Again::new(self.channel.clone())
    }

    /// A request that must be answered within the deadline.
    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = self.endless(message)?;
        request.set_timeout(self.deadline);
        Ok(request)
    }

    /// A request that only looks something up.
    pub(crate) fn quick<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = self.request(message)?;
        if let Some(limits) = self.limits {
            request.set_timeout(limits.quick);
        }
        Ok(request)
    }

    /// A request that may take as long as it takes, up to the caller's limit if there is one.
    pub(crate) fn endless<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = grpc::request(&self.scope, message)?;
        if let Some(limits) = self.limits {
            request.set_timeout(limits.whole);
        }
        Ok(request)
    }

    /// [`Caller::endless`] for a call that `waits` for what may take any time, else [`Caller::request`].
    pub(crate) fn waiting<T>(&self, waits: bool, message: T) -> Result<Request<T>> {
        if waits {
            self.endless(message)
        } else {
            self.request(message)
        }
    }

    /// One step of a call that only looks something up and answers with a stream: the deadline of its
    /// request is for the head alone.
    pub(crate) async fn step<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        within(self.limits.map(|limits| limits.quick), step).await
    }

    /// All that is in the pages of a list: `call` answers with a stream of them.
    pub(crate) async fn pages<P, T>(
        &self,
        call: impl Future<Output = std::result::Result<Response<Streaming<P>>, Status>>,
        items: impl Fn(P) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let mut stream = self.step(async { done(call.await) }).await?;
        let mut all = Vec::new();
        while let Some(page) = self.step(next(&mut stream)).await? {
            all.extend(items(page)?);
        }
        Ok(all)
    }

    /// One step of a call that moves data, as [`Caller::step`].
    pub(crate) async fn long_step<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        within(self.limits.map(|limits| limits.whole), step).await
    }
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(limit) = limit else {
        return work.await;
    };
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(Error::deadline_exceeded("")),
    }
}

/// The next message of a stream.
pub(crate) async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>> {
    let message = stream.message().await;
    message.map_err(|status| grpc::status::to_error(&status))
}

/// The answer of a call.
pub(crate) fn done<T>(answer: std::result::Result<Response<T>, Status>) -> Result<T> {
    answer.map(Response::into_inner).map_err(|status| {
        // The transport, whose own clock this was, calls it cancelled.
        let is_late = status.code() == tonic::Code::Cancelled
            && status.message() == tonic::TimeoutExpired(()).to_string();
        if is_late {
            return Error::deadline_exceeded("");
        }
        grpc::status::to_error(&status)
    })
}

/// A field that the protocol promises.
pub(crate) fn present<T>(field: protos::MessageField<T>, what: &str) -> Result<T> {
    let missing = || Error::internal(format_args!("answer without {what}"));
    field.into_option().ok_or_else(missing)
}
