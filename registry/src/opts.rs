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
    /// For the next bytes of a body, and the window in which its speed is measured.
    pub read: Duration,
    /// Bytes per second below which a transfer counts as stuck.
    pub floor: u64,
    /// For all tries of one request together; begins anew with each progress.
    pub patience: Duration,
    /// Tries without progress.
    pub attempts: u32,
    /// Pause after the first failed try; doubles each time.
    pub backoff: Duration,
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
            read: Duration::from_secs(30),
            floor: 256,
            patience: Duration::from_secs(45),
            attempts: 5,
            backoff: Duration::from_millis(100),
        }
    }
}
