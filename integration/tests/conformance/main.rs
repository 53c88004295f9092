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
mod images;
mod namespaces;
