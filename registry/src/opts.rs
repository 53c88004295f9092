//! How to talk to a registry.

use std::fmt;
use std::time::Duration;

/// Options of a [`crate::Repository`].
#[derive(Clone, Debug, Default)]
pub struct RegistryOpts {
    /// Talk http instead of https.
    pub plain_http: bool,
    /// Accept any certificate.
    pub skip_verify: bool,
    /// Who we are.
    pub credentials: Option<Credentials>,
    /// How long to wait and how often to try.
    pub limits: Limits,
}

/// A user and a password; with an empty user the password is a refresh token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password or refresh token.
    pub secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Deadlines and tries. The defaults give up on a stuck registry within a minute or so.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection.
    pub connect: Duration,
    /// For the head of an answer, from sending the request on.
    pub answer: Duration,
    /// For [`Limits::PROGRESS`] bytes of a body.
    pub read: Duration,
    /// For all tries of one request together; begins anew with each progress.
    pub patience: Duration,
    /// Tries without progress.
    pub attempts: u32,
    /// Pause after the first failed try; doubles each time.
    pub backoff: Duration,
}

impl Limits {
    /// Fewer bytes than this within [`Limits::read`] count as no progress.
    pub const PROGRESS: u64 = 1024;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            read: Duration::from_secs(30),
            patience: Duration::from_secs(45),
            attempts: 5,
            backoff: Duration::from_millis(100),
        }
    }
}
