//! Networks of containers: network namespaces, interfaces, and the drivers that join the two.
//!
//! Invariant: a change is whole or undone, and a name means the same before and after a restart: what
//! exists is read from the kernel, never from memory. Called by the daemon, which keeps the records.
//!
//! ```text
//! Networks (by name, with records)   NetworkDriver: bridge (native) | cni (programs)
//!     `-- store -- netns, link           `-- netns, link, nft          `-- sys::process
//! ```

pub mod bridge;
pub mod cni;
mod conntrack;
mod grave;
mod link;
mod netns;
mod networks;
pub mod nft;
mod record;
mod store;
#[cfg(test)]
mod testing;
#[cfg(any(test, feature = "testsuite"))]
pub mod testsuite;
mod turns;
mod undo;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use types::network::{Joined, NetRequest, NetResult, TenantId};
use types::{Error, Errors, Finding, Namespace, Repair, Result};

pub use networks::{Hold, NamespaceOpts, Networks, OpenOpts, Publisher};
pub use undo::Undo;

/// A container may be made after it was joined, but not for ever.
const SOON: Duration = Duration::from_mins(1);

/// Joins containers to networks.
///
/// A driver writes down what it is about to do before it does it, so that [`NetworkDriver::teardown`]
/// also finds what an attempt has left that was killed half-way. Methods may be called concurrently;
/// those for one container are called one after another. A cancelled call leaves nothing that a
/// teardown does not find.
#[async_trait]
pub trait NetworkDriver: Send + Sync + fmt::Debug {
    /// Compares what the request's set-up has made with what is there.
    ///
    /// # Errors
    /// `NotFound` for what was never set up, `FailedPrecondition` with the name of what is missing or
    /// has become other, `DeadlineExceeded`.
    async fn check(&self, request: &NetRequest) -> Result<()>;

    /// Joins the network namespace to the networks. Done again for what is there already, it answers
    /// as the first time.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be, `NotFound` for networks, namespaces and programs that are
    /// missing, `AlreadyExists` for names, addresses and ports that are taken, `FailedPrecondition`,
    /// `DeadlineExceeded`. On failure everything is as it was before.
    async fn setup(&self, request: &NetRequest) -> Result<NetResult>;

    /// Takes away all that was set up, going on past failures. Nothing left to take away is no error,
    /// nor is a network namespace that is gone.
    ///
    /// # Errors
    /// All that failed; the next call goes on where this one could not.
    async fn teardown(&self, request: &NetRequest) -> Result<(), Errors>;

    /// Whether it can set up anything now; what may keep packets from where they should go, and is not the
    /// driver's to change.
    ///
    /// # Errors
    /// `Unavailable` with the reason.
    async fn status(&self) -> Result<Vec<String>>;

    /// The attachments on record, of a tenant or of all, by their owners; with `look` each with what a
    /// [`NetworkDriver::check`] finds. One that is there and has lost its record is told as damaged.
    ///
    /// # Errors
    /// The errno of reading records. What is damaged is told as such.
    async fn list(&self, tenant: Option<&Namespace>, look: bool) -> Result<Vec<Joined>>;

    /// Compares records with what is there, both ways; `lost` are containers that are no more. What is
    /// repaired is made again or taken away.
    ///
    /// # Errors
    /// Those of looking.
    async fn inspect(&self, lost: &BTreeSet<TenantId>, repair: bool) -> Result<Vec<Finding>>;

    /// Has whoever does a network's work forget every attachment but those on record here. Only for a
    /// network that nobody else uses: what others have attached would be forgotten, too.
    ///
    /// # Errors
    /// `NotFound` for the network, `NotImplemented`, else all that failed.
    async fn collect(&self, network: &str) -> Result<()> {
        Err(Error::not_implemented(format_args!(
            "network {network:?}: nobody but this driver knows of its attachments"
        )))
    }
}

/// What became of a fault that `repair` can do something about, when that is wanted.
fn repaired(wanted: bool, repair: impl FnOnce() -> Result<()>) -> Repair {
    if !wanted {
        return Repair::Possible;
    }
    match repair() {
        Ok(()) => Repair::Done,
        Err(error) => {
            tracing::warn!(%error, "fault of a network is not repaired");
            Repair::Impossible
        }
    }
}
