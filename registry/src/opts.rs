//! How to talk to a registry.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::Semaphore;

use crate::budget::Budget;
use crate::credentials::{Authenticator, Credentials};
use crate::health::Health;
use crate::proxy::Proxies;
use crate::watch::Watch;

/// Options of a [`crate::Repository`].
#[derive(Clone, Debug, Default)]
pub struct RegistryOpts {
    /// Talk http instead of https to the registry that the reference names.
    pub plain_http: bool,
    /// Accept any certificate.
    pub skip_verify: bool,
    /// Who we are: for the registry that the reference names, never for a mirror of it.
    pub credentials: Option<Credentials>,
    /// Asked by the registry when there are no `credentials`, and by mirrors.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// Directories with one directory for each host (`certs.d`), the first that has it is used.
    pub host_dirs: Vec<PathBuf>,
    /// Sent with each request to the registry that the reference names, never to a mirror of it.
    pub headers: HeaderMap,
    /// `http` or `https` for the registry that the reference names, when its hosts file does not say;
    /// empty: https, on this machine http when https does not work.
    pub default_scheme: String,
    /// Certificates and keys for this operation.
    pub tls: TlsFiles,
    /// Proxies; `None`: those of the environment.
    pub proxies: Option<Proxies>,
    /// What is known about hosts; by default shared by the whole process.
    pub health: Health,
    /// For all that is done with the repository together, on top of the limits of each request.
    pub budget: Option<Budget>,
    /// How long to wait and how often to try.
    pub limits: Limits,
    /// Who is told of each request.
    pub watch: Option<Watch>,
    /// Places that connections take which a large blob has besides its first one, where there are some
    /// that nobody waits for; `None`: as many as the process has.
    pub room: Option<Arc<Semaphore>>,
}

/// Files with certificates and keys (PEM).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities that are trusted instead of the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate.
    pub cert: Option<PathBuf>,
    /// Its key; in the file of the certificate when it is not given.
    pub key: Option<PathBuf>,
}

/// Deadlines and tries. The defaults give up on a stuck registry within a minute or so.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection.
    pub connect: Duration,
    /// For the head of an answer, from sending the request on.
    pub answer: Duration,
    /// For whoever knows credentials to say them: a person may have to type.
    pub credentials: Duration,
    /// For the next bytes of a body, and the window in which its speed is measured.
    pub read: Duration,
    /// Bytes per second below which a transfer counts as stuck.
    pub floor: u64,
    /// After this long without an answer a second host is tried as well.
    pub hedge: Duration,
    /// For the next bytes of a body while other hosts could give them; longer, up to `read`, of a host
    /// that is asked again after a silence because no other did better.
    pub stall: Duration,
    /// For all tries of one request together; begins anew with each progress.
    pub patience: Duration,
    /// Tries without progress.
    pub attempts: u32,
    /// Pause after the first failed try; doubles each time.
    pub backoff: Duration,
    /// When a blob comes over several connections.
    pub wide: Wide,
}

/// Several connections for one blob.
#[derive(Clone, Copy, Debug)]
pub struct Wide {
    /// How many; fewer than two: never.
    pub lanes: usize,
    /// Length of the smallest blob that is worth it.
    pub from: u64,
    /// Length of the smallest piece that is worth a request, or two where the registry sends us
    /// elsewhere; 2 MiB at most.
    pub piece: u64,
    /// How long one connection is waited for, to see how fast it is.
    pub after: Duration,
}

impl Limits {
    /// Bytes that a transfer must make in `window`: also in a short one more than a few.
    pub(crate) fn least(&self, window: Duration) -> u64 {
        let bytes = u128::from(self.floor) * window.as_millis() / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(1024)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            credentials: Duration::from_secs(120),
            read: Duration::from_secs(30),
            floor: 256,
            hedge: Duration::from_millis(500),
            stall: Duration::from_secs(2),
            patience: Duration::from_secs(45),
            attempts: 5,
            backoff: Duration::from_millis(100),
            wide: Wide {
                lanes: 4,
                from: 64 << 20,
                piece: 1 << 20,
                after: Duration::from_secs(1),
            },
        }
    }
}
