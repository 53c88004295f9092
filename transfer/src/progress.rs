//! Progress, told as it happens. Whoever listens keeps what it wants: nothing is queued here.

use std::fmt;
use std::sync::Arc;

use types::Descriptor;

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
    /// It is going out to a registry.
    Uploading,
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
            Self::Uploading => "uploading",
            Self::Exists => "exists",
            Self::Done => "done",
            Self::Extracting => "extracting",
            Self::Unpacked => "unpacked",
        }
    }
}

type Listener = dyn Fn(&Progress) + Send + Sync;
type Family = dyn Fn(&str, &Descriptor) + Send + Sync;
type Delays = dyn Fn(&str) + Send + Sync;

/// Who listens; nobody by default. Called from the transfer's own task: it must not block.
#[derive(Clone, Default)]
pub struct OnProgress {
    listener: Option<Arc<Listener>>,
    family: Option<Arc<Family>>,
    delays: Option<Arc<Delays>>,
}

impl OnProgress {
    /// Tells `listener`.
    pub fn new(listener: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        Self {
            listener: Some(Arc::new(listener)),
            ..Self::default()
        }
    }

    /// Also tells `family` what belongs to what: the reference of a parent, as in [`Progress`], and
    /// one child, before anything is told of that child.
    #[must_use]
    pub fn with_family(self, family: impl Fn(&str, &Descriptor) + Send + Sync + 'static) -> Self {
        Self {
            family: Some(Arc::new(family)),
            ..self
        }
    }

    /// Also tells `delays` of each pause before a registry is tried again: how long, and why, in one line.
    #[must_use]
    pub fn with_delays(self, delays: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            delays: Some(Arc::new(delays)),
            ..self
        }
    }

    pub(crate) fn delay(&self, text: &str) {
        if let Some(delays) = &self.delays {
            delays(text);
        }
    }

    pub(crate) fn child(&self, parent: &str, child: &Descriptor) {
        if let Some(family) = &self.family {
            family(parent, child);
        }
    }

    pub(crate) fn tell(&self, reference: &str, status: Status, offset: u64, total: u64) {
        if let Some(listener) = &self.listener {
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
        f.write_str(if self.listener.is_some() {
            "OnProgress(..)"
        } else {
            "OnProgress"
        })
    }
}
