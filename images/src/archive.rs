//! Archives with images: OCI layouts and what `docker save` writes, as one tar stream.
//!
//! Invariant: memory is bounded whatever the archive holds. Blobs go straight into the content store,
//! where their digest is checked; only the small documents and the names stay in memory. The order
//! of the entries does not matter, and no name is ever used as a path. What a compressed archive may hold
//! has a ceiling.
//!
//! ```text
//! reader -> gunzip/unzstd -> tar (blocking thread) == channel ==> ingest (task) -> index of the archive
//! ```

mod docker;
mod export;
mod found;
mod import;
mod stream;
mod tar;

pub(crate) use docker::descriptor_json;
pub use export::{ExportOpts, export};
pub use import::{Archive, OnBytes, import, import_within};

pub use crate::plain::Ceilings;
