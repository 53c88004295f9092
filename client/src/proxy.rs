//! The other end of a proxy plugin's socket.
//!
//! Invariant: whatever is at the socket, each call comes to an end; the connection is made when it is
//! needed, and anew when it is lost.

use types::{Namespace, Result, Scope};

use crate::call::{Caller, Limits};
use crate::connect::connect_lazily;

/// Namespace of calls that are nobody's, as those of the collector: proxies need some.
const NAMESPACE: &str = "default";

/// A program that serves plugins of a daemon's. Cheap to clone: they share one connection.
#[derive(Clone, Debug)]
pub struct Proxy {
    caller: Caller,
}

impl Proxy {
    /// The program at the socket `address`, whose calls take no longer than that. Nothing is connected
    /// yet.
    ///
    /// # Errors
    /// `InvalidArgument` for an address that is no Unix socket's.
    pub fn new(address: &str, limits: Limits) -> Result<Self> {
        let namespace: Namespace = NAMESPACE.parse()?;
        let channel = connect_lazily(address, limits.quick)?;
        let caller = Caller::new(channel, Scope::new(namespace)).with_limits(limits);
        Ok(Self { caller })
    }

    /// Who calls.
    #[must_use]
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }
}
