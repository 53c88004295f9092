//! The client side of the wire: containerd's services with typed values, and the traits of
//! `content`, `snapshotters`, `diff` and `images` for a store at the other end of a socket.
//!
//! Invariant: no wire type leaves this crate. Messages are made and read at the call and nowhere
//! else, by the `Wire` impls that the server uses too. Used by `ctr`, and by the daemon for proxy
//! plugins ([`remote`]).
//!
//! ```text
//! ctr --> Client --> containers, tasks, images, leases, ...   (records, processes)
//!     `-> remote --> dyn ContentStore, Snapshotter, Applier   (what transfer works on)
//! ```

mod again;
pub mod attach;
mod bytes;
mod call;
mod checkpoint;
mod client;
mod connect;
pub mod fsck;
pub mod holders;
mod json;
mod opaque;
mod proxy;
pub mod remote;
pub mod serve;
mod services;
mod shim;
pub mod spec;
pub mod stdio;
pub mod stream;
pub mod terminal;

pub use bytes::{ByteReader, ByteWriter};
pub use call::{Caller, DEADLINE, Limits};
pub use checkpoint::{CheckpointOptions, any_from_bytes, any_to_bytes};
pub use client::{Client, DEFAULT_SNAPSHOTTER};
pub use connect::{connect, connect_lazily, socket_path};
pub use json::any_json;
pub use proxy::Proxy;
pub use services::{
    Containers, CreateTask, Envelope, Events, ExecTask, Exited, Flight, FlightStage, Flights,
    FlightsOpts, Flown, Follow, Heard, Images, Introspection, Joining, Lease, Leases, Membership,
    Metric, Mounts, Namespaces, Networks, Plugin, PluginFault, Process, ProcessEntry, RuncOptions,
    ServerInfo, Status, StdioPaths, Subscription, Tasks, Version, default_lease_id,
};
