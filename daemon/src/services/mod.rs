//! One module per service of the wire: decode, one call below, encode.
//!
//! Invariant: no state and no rules here. Whatever a method decides is decided by the part that it
//! calls; whatever is common to all methods is in `grpc::serve`.

pub(crate) mod attach;
pub(crate) mod containers;
pub(crate) mod content;
pub(crate) mod diff;
pub(crate) mod events;
pub(crate) mod flights;
pub(crate) mod health;
pub(crate) mod images;
pub(crate) mod introspection;
pub(crate) mod leases;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod network;
pub(crate) mod snapshots;
pub(crate) mod streaming;
pub(crate) mod tasks;
pub(crate) mod transfer;
pub(crate) mod version;

use grpc::{filter, known};

#[cfg(test)]
mod tests;
