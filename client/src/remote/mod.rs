//! The traits of the stores, spoken over the wire.
//!
//! Invariant: each type here keeps its trait's contract as far as the other end keeps it; what the
//! protocol cannot say is `NotImplemented`, never guessed.

mod content;
mod diff;
mod images;
mod ingest;
mod snapshots;

#[cfg(test)]
mod tests;

pub use content::RemoteContent;
pub use diff::RemoteDiff;
pub use snapshots::RemoteSnapshotter;
