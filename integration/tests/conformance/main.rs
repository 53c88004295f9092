//! Conformance: what clients rely on, service by service, one test per rule.
//!
//! Every rule that is Go's runs against Debian's containerd 1.6.20, too: a rule that Go does not keep
//! is none. Rules of later generations, and our own, run against our daemon only and say so.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a rule that is broken fails its test"
)]

#[macro_use]
mod peer;
mod bad_input;
mod bad_tasks;
mod cancelled;
mod cancelled_calls;
mod configured;
mod containers;
mod containers_updates;
mod content;
mod diff;
mod events;
mod filters;
mod garbage;
mod gc;
mod gone;
mod heard;
mod images;
mod images_updates;
mod introspection;
mod leased;
mod leases;
mod malformed;
mod many;
mod matrix;
mod mounts;
mod namespaces;
mod running;
mod snapshots;
mod stock;
mod streaming;
mod surface;
mod tasks;
mod transfer;
mod transport;
mod version;
