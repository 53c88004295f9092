//! What has happened to a container's init, and which calls of the runtime are of no more use then.
//!
//! Invariant: what has happened once stays so.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// A call that puts a process into a container that has ended: it notices by itself at once, or never.
const EXEC_IN_VAIN: Duration = Duration::from_secs(1);
/// One that starts a container whose init was killed and has ended. It may have been killed before, and the
/// call waits for it for ever.
const START_IN_VAIN: Duration = Duration::from_secs(10);

/// What has happened to a container's init.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    /// It was sent a SIGKILL.
    doomed: watch::Sender<bool>,
    /// It has ended.
    over: watch::Sender<bool>,
}

impl Fate {
    /// The init was sent a SIGKILL: nobody may keep it from dying.
    pub(crate) fn doom(&self) {
        self.doomed.send_replace(true);
    }

    /// True when the init was sent a SIGKILL.
    pub(crate) fn is_doomed(&self) -> bool {
        *self.doomed.borrow()
    }

    /// The init has ended: calls that would put something into the container are in vain.
    pub(crate) fn is_over(&self) {
        self.over.send_replace(true);
    }

    /// Waits until the init has ended.
    pub(crate) async fn over(&self) {
        happens(&self.over).await;
    }

    /// Waits until a call of this verb need not be waited for any longer; for ever for one that is of use
    /// whatever happens.
    pub(super) async fn makes_vain(&self, verb: &str) {
        match verb {
            "exec" => {
                self.over().await;
                sleep(EXEC_IN_VAIN).await;
            }
            "start" => {
                // One that ended by itself has run, and the hooks that come after its start are at work.
                happens(&self.doomed).await;
                self.over().await;
                sleep(START_IN_VAIN).await;
            }
            _ => std::future::pending().await,
        }
    }
}

async fn happens(fact: &watch::Sender<bool>) {
    // The sender lives as long as who waits.
    drop(fact.subscribe().wait_for(|is_so| *is_so).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    async fn is_vain(fate: &Fate, verb: &str, seconds: u64) -> bool {
        let limit = Duration::from_secs(seconds);
        timeout(limit, fate.makes_vain(verb)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_init_that_was_killed_makes_its_start_vain() {
        const DAY: u64 = 24 * 3600;
        let (ran, killed) = (Fate::default(), Fate::default());
        killed.doom();
        for fate in [&ran, &killed] {
            assert!(!is_vain(fate, "start", DAY).await, "it lives");
            assert!(!is_vain(fate, "exec", DAY).await, "it lives");
            fate.is_over();
            assert!(is_vain(fate, "exec", 2).await);
            assert!(!is_vain(fate, "delete", DAY).await);
        }
        assert!(
            !is_vain(&ran, "start", DAY).await,
            "its hooks may take long"
        );
        assert!(!is_vain(&killed, "start", 5).await);
        assert!(is_vain(&killed, "start", 11).await);
        // That it was killed is known only when who killed it has returned.
        ran.doom();
        assert!(is_vain(&ran, "start", 11).await);
    }
}
