//! A writer that a pull has begun.
//!
//! Invariant: what brought nothing does not stay. A pull that ends for whatever reason, also because it is
//! given up, takes back the ingest into which not one byte came: there is nothing to resume.

use content::Ingest;
use tokio::runtime::Handle;

/// The writer of a blob; abandoned when it is dropped before anything was written.
#[derive(Debug)]
pub(crate) struct Begun(Option<Box<dyn Ingest>>);

impl Begun {
    pub(crate) fn new(ingest: Box<dyn Ingest>) -> Self {
        Self(Some(ingest))
    }

    /// The writer, for as long as it was not taken.
    pub(crate) fn writer(&mut self) -> types::Result<&mut (dyn Ingest + 'static)> {
        let gone = || types::Error::internal("a writer that is gone");
        self.0.as_deref_mut().ok_or_else(gone)
    }

    /// How many bytes are there.
    pub(crate) fn offset(&self) -> u64 {
        self.0.as_ref().map_or(0, |ingest| ingest.status().offset)
    }

    /// The writer, which ends as its new owner says.
    pub(crate) fn take(mut self) -> types::Result<Box<dyn Ingest>> {
        let gone = || types::Error::internal("a writer that is gone");
        self.0.take().ok_or_else(gone)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(ingest) = self.0.take() else {
            return;
        };
        if ingest.status().offset > 0 {
            return;
        }
        // Without a runtime the process ends: then it waits for the collector.
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn(async move {
                if let Err(error) = ingest.abandon().await {
                    tracing::debug!(%error, "what brought nothing is still there");
                }
            }));
        }
    }
}
