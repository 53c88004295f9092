//! Who decides whether an image may come in.

mod bindir;

use std::fmt;

use async_trait::async_trait;
use types::{Descriptor, Result};

pub use bindir::{BinDir, BinDirOpts};

/// What a verifier says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// It may come in.
    pub ok: bool,
    /// Why, or why not.
    pub reason: String,
}

/// Judges images by name and digest, before anything of them is fetched.
#[async_trait]
pub trait Verifier: Send + Sync + fmt::Debug {
    /// Judges the image `name`, whose tag points at `target` now. Dropping the future gives up.
    ///
    /// # Errors
    /// When it cannot tell: such an image does not come in either.
    async fn verify(&self, name: &str, target: &Descriptor) -> Result<Judgement>;
}
