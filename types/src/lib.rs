//! Values that every floor shares: errors, ids, labels, filters, mounts, digests, records.
//!
//! Invariant: values and pure functions only. No I/O, no async, no wire types. Everything that comes
//! from outside is parsed once into one of these types and trusted from there on.

mod any;
mod bundle;
mod check;
mod descriptor;
mod digest;
mod duration;
mod error;
mod event;
mod fields;
mod filter;
mod holders;
mod id;
mod info;
mod json;
mod labels;
mod mount;
pub mod network;
mod platform;
mod record;
mod scope;
pub mod transfer;

pub use any::Any;
pub use bundle::{BUNDLES_DIR, DEFAULT_RUNTIME, Exit, SPEC_URL, bundle_file};
pub use check::{CheckOpts, Fault, Finding, Repair, Report};
pub use descriptor::{Descriptor, media_type};
pub use digest::{Algorithm, Digest};
pub use duration::go_duration;
pub use error::{Code, Context, Error, Errors, Result};
pub use event::{Event, Topic};
pub use fields::Fields;
pub use filter::{Filter, Filterable, Patterns};
pub use holders::Holders;
pub use id::{ContainerId, ExecId, Identifier, IngestRef, LeaseId, Namespace, SnapshotKey};
pub use info::{BlobInfo, Held, IngestStatus, SnapshotInfo, SnapshotKind, Usage};
pub use json::{MAX_JSON, bound_json};
pub use labels::{Labels, gc_label, label};
pub use mount::{
    Activation, ActiveMount, EROFS_IMAGE, EROFS_LAYER, EROFS_PART, IMPLIED_DIRECTORY, Mount,
    UNSETTLED_LAYER,
};
pub use platform::Platform;
pub use record::{
    AnyRef, Container, ContainerRef, Image, ImageRef, Lease, NamespaceInfo, Resource, Runtime,
};
pub use scope::Scope;
