//! Work that ends also when its caller goes away.
//!
//! Invariant: between a backend's work and its record no cancelled request can stop. A caller that is
//! gone finds what it asked for made whole, as if the answer had been lost on its way.

use std::future::Future;

use tracing::Instrument as _;
use types::{Error, Result};

/// Runs `work` to its end, whatever becomes of the caller.
///
/// # Errors
/// Those of the work; `Internal` when it panicked.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(recorder::carry(work.in_current_span())).await {
        Ok(done) => done,
        Err(error) => Err(Error::internal("metadata task failed").with_source(error)),
    }
}
