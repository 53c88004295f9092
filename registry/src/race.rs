//! Asking several hosts: the next one early when one is silent, at once when one fails.
//!
//! Invariant: the first good answer wins and the others are dropped; a host that had its chance and
//! stayed silent is put to the back for those who come after.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};
use types::{Code, Error, Result};

use crate::blame::{Blame, blame};
use crate::call::Tries;
use crate::health::Health;
use crate::host::Host;

/// An error, and when the server wants to be asked again.
pub(crate) type Failure = (Error, Option<Duration>);

/// `hosts` in the order in which to ask them: those that are not known to be ill first.
pub(crate) fn in_order(hosts: &[Arc<Host>], health: &Health) -> Vec<Arc<Host>> {
    let (ill, well): (Vec<_>, Vec<_>) = hosts
        .iter()
        .cloned()
        .partition(|host| health.is_ill(host.origin()));
    well.into_iter().chain(ill).collect()
}

/// A host that has not answered yet.
struct Asked {
    host: Arc<Host>,
    since: Instant,
    /// What it had waited for credentials before.
    thought: Duration,
}

impl Asked {
    fn now(host: &Arc<Host>) -> Self {
        Self {
            host: Arc::clone(host),
            since: Instant::now(),
            thought: host.auth.thought.taken(),
        }
    }

    /// How long it has been silent: while it waits for credentials, it is our turn.
    fn silent(&self) -> Duration {
        let thought = self.host.auth.thought.taken() - self.thought;
        self.since.elapsed().saturating_sub(thought)
    }

    /// When to look whether it has been silent for `patience`.
    fn look(&self, patience: Duration) -> Instant {
        let left = patience.saturating_sub(self.silent());
        // It may wait for credentials until then, and after it.
        Instant::now() + left.max(patience / LOOKS)
    }
}

/// Looks at a host within the time that it may be silent.
const LOOKS: u32 = 8;

/// The first good answer to `ask` of one of `hosts`, at least one, and who gave it. What they wait for
/// credentials counts neither as their silence nor for `tries`.
///
/// # Errors
/// That of the host which comes last in the configuration, the registry itself: the others may
/// lack what it has. It names them and what they said.
pub(crate) async fn first<T, F>(
    hosts: &[Arc<Host>],
    health: &Health,
    hedge: Duration,
    tries: &mut Tries,
    ask: impl Fn(Arc<Host>) -> F,
) -> Result<(Arc<Host>, T), Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let thought = || hosts.iter().map(|host| host.auth.thought.taken()).sum();
    let before: Duration = thought();
    let answer = race(hosts, health, hedge, ask).await;
    let after: Duration = thought();
    tries.excuse(after.saturating_sub(before));
    answer
}

async fn race<T, F>(
    hosts: &[Arc<Host>],
    health: &Health,
    hedge: Duration,
    ask: impl Fn(Arc<Host>) -> F,
) -> Result<(Arc<Host>, T), Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut left = in_order(hosts, health).into_iter();
    let mut running = FuturesUnordered::new();
    let mut began: Vec<Asked> = Vec::new();
    let mut failures: Vec<(Arc<Host>, Failure)> = Vec::new();
    let mut next = left.next();
    let mut due = true;
    // The registry itself has said no: those that are still silent have this long to differ.
    let mut give_up: Option<Instant> = None;
    loop {
        if due && let Some(host) = next.take() {
            began.push(Asked::now(&host));
            let answer = ask(Arc::clone(&host));
            running.push(async move { (host, answer.await) });
            next = left.next();
        }
        due = false;
        let at = began
            .last()
            .map_or_else(Instant::now, |last| last.look(hedge));
        tokio::select! {
            Some((host, answer)) = running.next() => {
                let took = ended(&mut began, &host);
                match answer {
                    Ok(answer) => {
                        if took < hedge {
                            health.well(host.origin());
                        }
                        silent(&began, health, hedge);
                        return Ok((host, answer));
                    }
                    Err(failure) => {
                        if failure.0.is(Code::Unavailable) && hosts.len() > 1 {
                            health.failed(host.origin());
                        }
                        tracing::debug!(host = host.root(), error = %failure.0, "host failed");
                        if says_no(hosts, &host, &failure) && !running.is_empty() {
                            give_up = Some(Instant::now() + hedge);
                        }
                        failures.push((host, failure));
                        // No need to wait for the next one's turn.
                        due = true;
                    }
                }
            }
            () = sleep_until(at), if next.is_some() => {
                due = began.last().is_none_or(|last| last.silent() >= hedge);
            }
            () = sleep_until(give_up.unwrap_or(at)), if give_up.is_some() && !running.is_empty() => {
                if began.iter().any(|asked| asked.host.auth.thought.is_asking()) {
                    give_up = Some(Instant::now() + hedge);
                    continue;
                }
                silent(&began, health, hedge);
                return Err(worst(hosts, failures, &began));
            }
            else => return Err(worst(hosts, failures, &began)),
        }
    }
}

/// Whether this is the registry's own last word.
fn says_no(hosts: &[Arc<Host>], host: &Arc<Host>, failure: &Failure) -> bool {
    let is_last = hosts.last().is_some_and(|last| Arc::ptr_eq(last, host));
    is_last && !failure.0.is(Code::Unavailable)
}

/// How long `host` took.
fn ended(began: &mut Vec<Asked>, host: &Arc<Host>) -> Duration {
    let at = began
        .iter()
        .position(|asked| Arc::ptr_eq(&asked.host, host));
    at.map_or(Duration::ZERO, |at| began.remove(at).silent())
}

/// Those that have been asked for longer than it takes and said nothing.
fn silent(began: &[Asked], health: &Health, hedge: Duration) {
    for asked in began {
        if asked.silent() >= hedge {
            health.failed(asked.host.origin());
        }
    }
}

fn worst(hosts: &[Arc<Host>], mut failures: Vec<(Arc<Host>, Failure)>, began: &[Asked]) -> Failure {
    let place = |host: &Arc<Host>| hosts.iter().position(|h| Arc::ptr_eq(h, host));
    failures.sort_by_key(|(host, _)| place(host));
    let Some((_, (error, wish))) = failures.pop() else {
        return (Error::not_found("no host to ask"), None);
    };
    let said = failures.iter().map(|(host, (error, _))| Blame {
        host: host.root(),
        said: error.to_string(),
    });
    let silent = began.iter().map(|asked| Blame {
        host: asked.host.root(),
        said: format!("silent for {} ms", asked.silent().as_millis()),
    });
    (blame(error, said.chain(silent)), wish)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opts::RegistryOpts;

    const SECOND: Duration = Duration::from_secs(1);
    const HEDGE: Duration = Duration::from_millis(500);

    /// A mirror and the registry.
    fn two(health: &Health) -> Vec<Arc<Host>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("r.test")).unwrap();
        let text = "server = \"http://r.test\"\n[host.\"http://m.test\"]\n";
        std::fs::write(dir.path().join("r.test/hosts.toml"), text).unwrap();
        let opts = RegistryOpts {
            host_dirs: vec![dir.path().to_owned()],
            health: health.clone(),
            ..RegistryOpts::default()
        };
        crate::host::hosts(&"r.test/a".parse().unwrap(), &opts).unwrap()
    }

    fn no() -> Failure {
        (Error::not_found("no"), None)
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_our_password_is_not_silent() {
        let health = Health::new();
        let hosts = two(&health);
        let mut tries = Tries::new();
        let began = Instant::now();
        let answer = first(&hosts, &health, HEDGE, &mut tries, |host| async move {
            assert!(host.root().contains("m.test"), "nobody else need be asked");
            tokio::time::sleep(HEDGE - HEDGE / 10).await;
            let asking = host.auth.thought.ask();
            tokio::time::sleep(60 * SECOND).await;
            drop(asking);
            Ok(())
        });
        let (host, ()) = answer.await.map_err(|(error, _)| error).unwrap();
        assert!(began.elapsed() > 60 * SECOND);
        assert!(!health.is_ill(host.origin()));
        // All of the time for more tries is there.
        let limits = crate::Limits::default();
        let again = tries.again(&limits, Error::unavailable("x"), None).await;
        again.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_after_our_password_is_silent() {
        let (health, mut tries) = (Health::new(), Tries::new());
        let hosts = two(&health);
        let answer = first(&hosts, &health, HEDGE, &mut tries, |host| async move {
            if host.root().contains("m.test") {
                let asking = host.auth.thought.ask();
                tokio::time::sleep(60 * SECOND).await;
                drop(asking);
                std::future::pending::<()>().await;
            }
            Ok(Instant::now())
        });
        let began = Instant::now();
        let (_, at) = answer.await.map_err(|(error, _)| error).unwrap();
        let took = at - began - 60 * SECOND;
        assert!(took >= HEDGE && took <= 2 * HEDGE, "{took:?}");
        assert!(health.is_ill(hosts[0].origin()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_registry_that_says_no_waits_for_our_password_elsewhere() {
        for knows in [true, false] {
            let (health, mut tries) = (Health::new(), Tries::new());
            let hosts = two(&health);
            let answer = first(&hosts, &health, HEDGE, &mut tries, |host| async move {
                if host.root().contains("r.test") {
                    return Err(no());
                }
                tokio::time::sleep(HEDGE + HEDGE / 2).await;
                let asking = host.auth.thought.ask();
                tokio::time::sleep(60 * SECOND).await;
                drop(asking);
                if knows { Ok(()) } else { Err(no()) }
            });
            assert_eq!(answer.await.is_ok(), knows);
        }
    }
}
