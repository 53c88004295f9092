//! Differ: archives onto file systems and back.
//!
//! Invariant: nothing outside the mounted tree is ever read or written, whatever the archive says.
//! Mounts come from any snapshotter; content goes through any [`content::ContentStore`].

mod apply;
mod compare;
mod compression;
mod external;
mod extract;
mod lower;
mod mounts;
mod processor;
mod root;
mod scan;
mod seen;
mod stream;
mod tar;
#[cfg(test)]
mod testing;
#[cfg(any(test, feature = "testsuite"))]
pub mod testsuite;
mod windows;
mod work;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use content::{Blob, ContentStore};
use types::{Any, Descriptor, IngestRef, Labels, Mount, Result, Scope};

pub use apply::Walking;
pub use apply::erofs::{Erofs, ErofsOpts};
pub use extract::{Limits, Target, TreeOpts, UNSUSPECTED, apply_tar};
pub use processor::Processor;
pub use root::Root;
pub use scan::{Contents, scan};
pub use work::Stop;

/// How to apply.
#[derive(Clone, Debug, Default)]
pub struct ApplyOpts {
    /// Payloads of stream processors, by processor id.
    pub payloads: Vec<(String, Any)>,
    /// Flush the file system before answering.
    pub sync: bool,
    /// The layer's bytes, where the store does not have them yet: [`Applier::follows`].
    pub blob: Option<Arc<dyn Blob>>,
    /// Who asks: for a differ that finds the content store by itself.
    pub scope: Option<Scope>,
}

/// How to compare.
#[derive(Clone, Debug, Default)]
pub struct CompareOpts {
    /// Media type of the result; empty: gzip.
    pub media_type: String,
    /// Name of the ingest; chosen when absent.
    pub reference: Option<IngestRef>,
    /// Labels of the resulting blob.
    pub labels: Labels,
    /// Clamp of all times in the archive.
    pub source_date_epoch: Option<SystemTime>,
    /// As [`ApplyOpts::scope`].
    pub scope: Option<Scope>,
}

/// Unpacks layer archives.
#[async_trait]
pub trait Applier: Send + Sync + fmt::Debug {
    /// Applies the blob `layer` of `store` to `mounts` and returns the descriptor of the
    /// *uncompressed* stream.
    ///
    /// # Errors
    /// `NotImplemented` for a media type that is not handled here; `NotFound` for the blob;
    /// `InvalidArgument` for a damaged or hostile archive and for a mount without a type;
    /// `FailedPrecondition` when the blob does not have the descriptor's digest; `Unavailable` when a
    /// layer that comes in cannot be read along, now or any more.
    async fn apply(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor>;

    /// True when [`ApplyOpts::blob`] is read instead of the store's: a layer can be unpacked while it
    /// comes in. Its digest is verified at the end all the same.
    fn follows(&self) -> bool {
        false
    }

    /// True when a layer may be given to it without its parents: it takes an overlay of an upper directory
    /// and nothing below, and marks there what it cannot decide ([`types::UNSETTLED_LAYER`]). Others would
    /// try to mount that, or leave what nobody settles.
    fn settles(&self) -> bool {
        false
    }

    /// True when [`ApplyOpts::sync`] can be relied on: what it has answered for is on the disk. Others may
    /// not know the wish, or take it lightly.
    fn flushes(&self) -> bool {
        false
    }
}

/// Makes layer archives.
#[async_trait]
pub trait Comparer: Send + Sync + fmt::Debug {
    /// Writes what changed from `lower` to `upper` as a blob of `store`.
    ///
    /// # Errors
    /// `NotImplemented` for a media type that is not handled here; `InvalidArgument` for a mount
    /// without a type.
    async fn compare(
        &self,
        store: &Arc<dyn ContentStore>,
        lower: &[Mount],
        upper: &[Mount],
        opts: CompareOpts,
    ) -> Result<Descriptor>;
}
