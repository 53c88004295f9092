//! The wire messages of containerd's API, for gRPC and ttrpc alike, and the ttrpc stubs.
//!
//! One message world (rust-protobuf) generated from `proto/` at build time; nothing here knows
//! tonic, so the shim can depend on this crate. Modules follow the API's packages. Conversion
//! between messages and the values of `types` lives in [`wire`], [`any`], [`event`] and
//! [`status`] and nowhere else.

pub mod any;
pub mod call;
#[cfg(test)]
mod contract;
pub mod direct;
pub mod event;
pub mod frame;
mod record;
pub mod status;
pub mod wire;

#[doc(hidden)]
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    let_underscore_drop,
    rustdoc::broken_intra_doc_links,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated code is checked by its generator"
)]
pub mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

/// Values shared by all services (`containerd.types`).
pub mod types {
    pub use crate::generated::types::*;
}

/// Process state as the task services report it (`containerd.v1.types`).
pub mod task {
    pub use crate::generated::task_types::*;
}

/// Event payloads (`containerd.events`); those of images are in [`services::images`].
pub mod events {
    pub use crate::generated::event_types::*;
}

/// Event payloads of networks (`containerd.events.network.v1`).
pub mod network_events {
    pub use crate::generated::network_events::*;
}

/// Sources, destinations and progress of a transfer (`containerd.types.transfer`).
pub mod transfer {
    pub use crate::generated::transfer_types::*;
}

/// Options of the runc shim (`containerd.runc.v1`).
pub mod runc {
    pub use crate::generated::runc::*;
}

/// Options of a shim that reads its own file (`runtimeoptions.v1`).
pub mod runtimeoptions {
    pub use crate::generated::runtimeoptions::*;
}

/// Resource usage as a task reports it.
pub mod cgroups {
    pub use crate::generated::cgroups_v1 as v1;
    pub use crate::generated::cgroups_v2 as v2;
}

/// The standard health protocol (`grpc.health.v1`).
pub mod health {
    pub use crate::generated::health::*;
}

/// An error with details (`google.rpc`).
pub mod rpc {
    pub use crate::generated::status::*;
}

/// Requests and responses of the gRPC services, one module per service.
pub mod services {
    pub use crate::generated::{
        attach, containers, content, diff, events, flight, images, introspection, leases, mounts,
        namespaces, network, sandbox, snapshots, streaming, tasks, transfer, version,
    };
}

/// What daemon and shim say to each other over ttrpc.
pub mod shim {
    pub use crate::generated::shim_events as events;
    pub use crate::generated::shim_sandbox as sandbox;
    pub use crate::generated::stdio;
    pub use crate::generated::task_v3 as task;
    pub use crate::generated::{bootstrap, task_v2_ttrpc, task_v3_ttrpc};
    pub use crate::generated::{
        shim_events_ttrpc as events_ttrpc, shim_sandbox_ttrpc as sandbox_ttrpc,
    };
}

/// Google's messages that every service uses.
pub mod well_known {
    pub use protobuf::well_known_types::any::Any;
    pub use protobuf::well_known_types::duration::Duration;
    pub use protobuf::well_known_types::empty::Empty;
    pub use protobuf::well_known_types::field_mask::FieldMask;
    pub use protobuf::well_known_types::struct_::Struct;
    pub use protobuf::well_known_types::timestamp::Timestamp;
}

pub use protobuf::{Enum, EnumOrUnknown, Message, MessageField};
