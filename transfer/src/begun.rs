//! A writer that a pull has begun.
//!
//! Invariant: what brought nothing does not stay. A pull that ends for whatever reason, also because it is
//! given up, takes back the ingest into which not one byte came: there is nothing to resume.

use std::sync::Arc;

use content::{ContentStore, Ingest, IngestSpec};
use tokio::runtime::Handle;
use tracing::Instrument as _;
use types::{Error, Result};

/// The writer of a blob; abandoned when it is dropped before anything was written.
#[derive(Debug)]
pub(crate) struct Begun(Option<Box<dyn Ingest>>);

impl Begun {
    /// Begins one. A store has made it before it says so: whoever does not wait for the answer leaves it to
    /// a task that does, and has nothing.
    pub(crate) async fn open(store: &Arc<dyn ContentStore>, spec: IngestSpec) -> Result<Self> {
        let store = Arc::clone(store);
        let open = async move { store.ingest(spec).await.map(|ingest| Self(Some(ingest))) };
        let open = recorder::carry(open.in_current_span());
        tokio::spawn(open).await.map_err(Error::internal)?
    }

    /// Takes away what came, also when nobody waits for it.
    pub(crate) async fn abandon(self) -> Result<()> {
        let ingest = self.take()?;
        let abandon = async move { ingest.abandon().await };
        let abandon = recorder::carry(abandon.in_current_span());
        tokio::spawn(abandon).await.map_err(Error::internal)?
    }

    /// The writer, for as long as it was not taken.
    pub(crate) fn writer(&mut self) -> Result<&mut (dyn Ingest + 'static)> {
        let gone = || Error::internal("a writer that is gone");
        self.0.as_deref_mut().ok_or_else(gone)
    }

    /// How many bytes are there.
    pub(crate) fn offset(&self) -> u64 {
        self.0.as_ref().map_or(0, |ingest| ingest.status().offset)
    }

    /// The writer, which ends as its new owner says.
    pub(crate) fn take(mut self) -> Result<Box<dyn Ingest>> {
        let gone = || Error::internal("a writer that is gone");
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use images::testsuite::Store;

    use super::*;

    /// Of another name each time: that of one which goes is taken until it has gone.
    fn spec(name: &str) -> IngestSpec {
        IngestSpec {
            reference: name.parse().unwrap(),
            total: Some(1),
            expected: None,
        }
    }

    async fn is_empty(store: &Store) {
        let ended = async {
            while !store.ingests().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
        ended.expect("it stays");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_nobody_waits_for_any_more_does_not_stay() {
        let store = Store::default();
        let shared: Arc<dyn ContentStore> = Arc::new(store.clone());
        // As far as it is made and not yet said.
        for turns in 0..20 {
            let mut open = Box::pin(Begun::open(&shared, spec(&turns.to_string())));
            for _ in 0..turns {
                tokio::task::yield_now().await;
                if let Some(begun) = futures::FutureExt::now_or_never(&mut open) {
                    drop(begun.unwrap());
                    break;
                }
            }
            drop(open);
            is_empty(&store).await;
        }
        let mut begun = Begun::open(&shared, spec("given-up")).await.unwrap();
        begun.writer().unwrap().write("x".into()).await.unwrap();
        let abandoned = futures::FutureExt::now_or_never(begun.abandon());
        drop(abandoned);
        is_empty(&store).await;
        let mut begun = Begun::open(&shared, spec("layer")).await.unwrap();
        begun.writer().unwrap().write("x".into()).await.unwrap();
        drop(begun);
        assert_eq!(store.ingests(), ["layer"]);
    }
}
