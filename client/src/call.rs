//! One call: scope, deadline, error.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use types::{LeaseId, Namespace, Result, Scope};

/// Longest a plain call may take. Calls that wait for something or move data have no limit.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A channel and who calls on it. Cheap to clone; all services of a client share it.
#[derive(Clone, Debug)]
pub struct Caller {
    channel: Channel,
    scope: Scope,
    deadline: Duration,
}

impl Caller {
    /// Calls on `channel` as `scope`.
    #[must_use]
    pub fn new(channel: Channel, scope: Scope) -> Self {
        Self {
            channel,
            scope,
            deadline: DEADLINE,
        }
    }

    /// The same caller under a lease.
    #[must_use]
    pub fn leased(&self, lease: LeaseId) -> Self {
        let mut made = self.clone();
        made.scope.lease = Some(lease);
        made
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

    /// Who calls.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request that must be answered within the deadline.
    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = self.endless(message)?;
        request.set_timeout(self.deadline);
        Ok(request)
    }

    /// A request that may take as long as it takes.
    pub(crate) fn endless<T>(&self, message: T) -> Result<Request<T>> {
        grpc::request(&self.scope, message)
    }
}

/// The answer of a call.
pub(crate) fn done<T>(answer: std::result::Result<Response<T>, Status>) -> Result<T> {
    answer
        .map(Response::into_inner)
        .map_err(|status| grpc::status::to_error(&status))
}

/// A field that the protocol promises.
pub(crate) fn present<T>(field: protos::MessageField<T>, what: &str) -> Result<T> {
    let missing = || types::Error::internal(format_args!("answer without {what}"));
    field.into_option().ok_or_else(missing)
}
