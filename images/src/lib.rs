//! Images: the documents that describe them, which platform to take, what they refer to, and the
//! archives they travel in.
//!
//! Invariant: everything read here is foreign. A document has a size limit before its first byte is
//! read, says itself what it is (one that could be read as an index *and* as a manifest is refused),
//! and a walk over documents has a depth and a width limit. Called by `transfer`, `client` and `cri`.
//!
//! ```text
//! index --> manifest --> config (diff ids, platform, process defaults)
//!   |           `------> layers
//!   `--> index ...
//! ```

pub mod archive;
mod blob;
mod convert;
mod few;
mod gc;
mod media;
mod model;
pub mod name;
mod plain;
mod platforms;
mod rootfs;
mod store;
#[cfg(any(test, feature = "testsuite"))]
pub mod testsuite;
mod verify;
mod walk;

pub use blob::{digest_of, put_blob, read_blob};
pub use compression::Compression as Compress;
pub use convert::{ConvertOpts, Family, convert};
pub use few::MAX_CHILDREN;
pub use gc::{child_labels, label_children};
pub use media::{
    is_config, is_docker, is_index, is_layer, is_manifest, is_non_distributable, ref_key,
};
pub use model::{Config, Entry, Index, Manifest, ProcessDefaults, json};
pub use platforms::PlatformSet;
pub use rootfs::{chain_ids, chain_of};
pub use store::{ImageStore, record};
pub use verify::{BinDir, BinDirOpts, Judgement, Verifier};
pub use walk::{
    Frontier, children, config, find_manifest, manifests, read_config, read_index, read_manifest,
};

/// Largest index or manifest.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image config.
pub const MAX_CONFIG: u64 = 8 << 20;
