//! How long a host may be silent while others could go on.
//!
//! Invariant: who is silent for the first time is left after the short limit, so that a host that hangs
//! costs one moment; who is asked again because nobody did better has longer, twice as long with each
//! silence of its own, so that each gets as real a turn as the others; and all of them together have no
//! longer than a request has patience. A silence is no failed try: it is paid for in time. So hosts that
//! are slow but well are not given up because there are several of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::host::Host;
use crate::opts::Limits;

/// Who was silent while one blob was read.
#[derive(Debug)]
pub(crate) struct Silences {
    /// Who, once for each time.
    by: Vec<Arc<Host>>,
    /// Since when nobody has been waited for longer than the short limit.
    calm: Instant,
    /// One was noted that nobody has looked at.
    is_new: bool,
}

impl Silences {
    pub(crate) fn new() -> Self {
        Self {
            by: Vec::new(),
            calm: Instant::now(),
            is_new: false,
        }
    }

    /// How long `host` may be silent; others are there, and for all of it is so much time `left`.
    pub(crate) fn allowed(&self, host: &Arc<Host>, limits: &Limits, left: Duration) -> Duration {
        let own = self.by.iter().filter(|silent| Arc::ptr_eq(silent, host));
        let doubled = limits.stall.saturating_mul(1 << own.count().min(16));
        doubled.min(limits.read).min(left.max(limits.stall))
    }

    /// `host` was silent for as long as it may be.
    pub(crate) fn note(&mut self, host: &Arc<Host>) {
        self.by.push(Arc::clone(host));
        self.calm = Instant::now();
        self.is_new = true;
    }

    /// Whether one was noted since this was asked.
    pub(crate) fn take_new(&mut self) -> bool {
        std::mem::take(&mut self.is_new)
    }

    /// Bytes came after `waited`. When they have come quickly for long enough, all is forgotten.
    pub(crate) fn heard(&mut self, waited: Duration, limits: &Limits) {
        if waited > limits.stall {
            self.calm = Instant::now();
        } else if self.calm.elapsed() > limits.read {
            self.by.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;
    use crate::opts::RegistryOpts;

    fn three() -> Vec<Arc<Host>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("r.test")).unwrap();
        let text =
            "server = \"http://r.test\"\n[host.\"http://m.test\"]\n[host.\"http://n.test\"]\n";
        std::fs::write(dir.path().join("r.test/hosts.toml"), text).unwrap();
        let opts = RegistryOpts {
            host_dirs: vec![dir.path().to_owned()],
            health: Health::new(),
            ..RegistryOpts::default()
        };
        crate::host::hosts(&"r.test/a".parse().unwrap(), &opts).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_asked_again_may_be_silent_for_longer() {
        let (hosts, limits) = (three(), Limits::default());
        let mut silences = Silences::new();
        let mut left = limits.patience;
        let turns = [
            (0, 2),
            (1, 2),
            (2, 2),
            (0, 4),
            (1, 4),
            (2, 4),
            (0, 8),
            (1, 8),
            (2, 8),
            // What is left.
            (0, 3),
        ];
        for (who, seconds) in turns {
            let allowed = silences.allowed(&hosts[who], &limits, left);
            assert_eq!(allowed, Duration::from_secs(seconds), "{who}");
            silences.note(&hosts[who]);
            assert!(silences.take_new() && !silences.take_new());
            left -= allowed;
        }
        assert_eq!(left, Duration::ZERO);
        // Without any, no less than the first time.
        assert_eq!(silences.allowed(&hosts[1], &limits, left), limits.stall);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_has_longer_than_one_who_is_alone() {
        let (hosts, limits) = (three(), Limits::default());
        let mut silences = Silences::new();
        for _ in 0..40 {
            silences.note(&hosts[0]);
        }
        let allowed = silences.allowed(&hosts[0], &limits, Duration::MAX);
        assert_eq!(allowed, limits.read);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_is_forgotten_when_bytes_have_come_quickly_for_long() {
        let (hosts, limits) = (three(), Limits::default());
        let host = &hosts[0];
        let mut silences = Silences::new();
        silences.note(host);
        for (waited, seconds) in [(1, 4), (3, 4), (20, 4), (1, 4), (29, 4), (1, 4), (1, 4)] {
            let waited = Duration::from_secs(waited);
            tokio::time::advance(waited).await;
            silences.heard(waited, &limits);
            let allowed = silences.allowed(host, &limits, limits.patience);
            assert_eq!(allowed, Duration::from_secs(seconds), "{waited:?}");
        }
        for _ in 0..30 {
            tokio::time::advance(Duration::from_secs(1)).await;
            silences.heard(Duration::from_secs(1), &limits);
        }
        assert_eq!(
            silences.allowed(host, &limits, limits.patience),
            limits.stall
        );
    }
}
