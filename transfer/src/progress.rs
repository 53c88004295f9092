//! Progress, told as it happens. Whoever listens keeps what it wants: nothing is queued here.

use std::fmt;
use std::sync::Arc;

/// Where one blob, layer or name stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Image name, `layer-sha256:...` and the like, or a name in an archive.
    pub reference: String,
    /// What happens to it.
    pub status: Status,
    /// Bytes done.
    pub offset: u64,
    /// Bytes in all; 0 when unknown.
    pub total: u64,
}

/// What happens to a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Its name is being looked up.
    Resolving,
    /// Its name is known.
    Resolved,
    /// It waits for its turn, or for another transfer of it.
    Waiting,
    /// It is coming in from a registry.
    Downloading,
    /// It is coming in from an archive.
    Saving,
    /// It was there already.
    Exists,
    /// It is there now.
    Done,
    /// It is being unpacked.
    Extracting,
    /// It is unpacked.
    Unpacked,
}

impl Status {
    /// The word that displays show.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Resolved => "resolved",
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Saving => "saving",
            Self::Exists => "exists",
            Self::Done => "done",
            Self::Extracting => "extracting",
            Self::Unpacked => "unpacked",
        }
    }
}

type Listener = dyn Fn(&Progress) + Send + Sync;

/// Who listens; nobody by default. Called from the transfer's own task: it must not block.
#[derive(Clone, Default)]
pub struct OnProgress(Option<Arc<Listener>>);

impl OnProgress {
    /// Tells `listener`.
    pub fn new(listener: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    pub(crate) fn tell(&self, reference: &str, status: Status, offset: u64, total: u64) {
        if let Some(listener) = &self.0 {
            listener(&Progress {
                reference: reference.to_owned(),
                status,
                offset,
                total,
            });
        }
    }
}

impl fmt::Debug for OnProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "OnProgress(..)"
        } else {
            "OnProgress"
        })
    }
}
