//! Asking several hosts: the next one early when one is silent, at once when one fails.
//!
//! Invariant: the first good answer wins and the others are dropped; a host that had its chance and
//! stayed silent is put to the back for those who come after. A host that wants to be left alone is not
//! asked before that where another one may be.

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

/// A host that failed, and how.
type Failed = (Arc<Host>, Failure);

/// `hosts` in the order in which to ask them: those that are not known to be ill first, then those that
/// have been so for longest.
pub(crate) fn in_order(hosts: &[Arc<Host>], health: &Health) -> Vec<Arc<Host>> {
    let mut hosts = hosts.to_vec();
    // `None` comes before all moments; each host is asked about once, while others may change it.
    hosts.sort_by_cached_key(|host| health.ill(host.origin()));
    hosts
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
    let (left, mut failures) = who_may(in_order(hosts, health), health);
    let mut left = left.into_iter();
    let mut running = FuturesUnordered::new();
    let mut began: Vec<Asked> = Vec::new();
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
                        if let (true, Some(wish)) = (failure.0.is(Code::Unavailable), failure.1) {
                            health.wants_rest(host.origin(), wish);
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

/// Those of `hosts` that may be asked now, and the answers that the others would give. When none may, all are
/// asked: who has no other one asks as ever, and others may get an answer where one did not.
fn who_may(hosts: Vec<Arc<Host>>, health: &Health) -> (Vec<Arc<Host>>, Vec<Failed>) {
    let (mut may, mut others) = (Vec::new(), Vec::new());
    for host in hosts {
        match health.rest(host.origin()) {
            Some(rest) => others.push((host, rest)),
            None => may.push(host),
        }
    }
    if may.is_empty() {
        return (others.into_iter().map(|(host, _)| host).collect(), vec![]);
    }
    let rests = |(host, rest): (Arc<Host>, Duration)| {
        let error = Error::unavailable("not asked: it wants to be left alone");
        let error = error.ctx(host.root().to_owned());
        (host, (error, Some(rest)))
    };
    (may, others.into_iter().map(rests).collect())
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

fn worst(hosts: &[Arc<Host>], mut failures: Vec<Failed>, began: &[Asked]) -> Failure {
    let place = |host: &Arc<Host>| hosts.iter().position(|h| Arc::ptr_eq(h, host));
    failures.sort_by_key(|(host, _)| place(host));
    // The host that may be asked first decides; `None`, the usual pause, comes before all wishes.
    let helps = failures
        .iter()
        .filter(|(_, (e, _))| e.is(Code::Unavailable));
    let helps = helps.map(|(_, (_, wish))| *wish);
    let wish = helps.chain(began.iter().map(|_| None)).min().flatten();
    let Some((_, (error, _))) = failures.pop() else {
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
        let mut tries = Tries::new(None);
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
        let (health, mut tries) = (Health::new(), Tries::new(None));
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
            let (health, mut tries) = (Health::new(), Tries::new(None));
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

    #[tokio::test(start_paused = true)]
    async fn the_host_that_may_be_asked_first_decides_when_to_ask_again() {
        let wish = |seconds| Some(seconds * SECOND);
        // What the mirror and the registry want at first; when the mirror is asked again.
        for (mirror, registry, again) in [
            (None, wish(3600), Some(Duration::ZERO)),
            (wish(10), wish(3600), Some(10 * SECOND)),
            (wish(3600), wish(3600), None),
        ] {
            let (health, mut tries) = (Health::new(), Tries::new(None));
            let (hosts, began) = (two(&health), Instant::now());
            let asked = std::sync::Mutex::new(Vec::new());
            let done = loop {
                let answer = first(&hosts, &health, HEDGE, &mut tries, |host| {
                    let mut asked = asked.lock().unwrap();
                    let is_mirror = host.root().contains("m.test");
                    let is_first = !asked.contains(&is_mirror);
                    asked.push(is_mirror);
                    let wish = if is_mirror { mirror } else { registry };
                    let failure = || (Error::unavailable("429"), wish);
                    std::future::ready(if is_first { Err(failure()) } else { Ok(()) })
                });
                let (error, wish) = match answer.await {
                    Ok((host, ())) => break Some(host),
                    Err(failure) => failure,
                };
                let limits = crate::Limits::default();
                if tries.again(&limits, error, wish).await.is_err() {
                    break None;
                }
            };
            let took = began.elapsed();
            if let Some(again) = again {
                assert!(done.unwrap().root().contains("m.test"));
                assert!(took > again && took < again + 10 * SECOND, "{took:?}");
                assert_eq!(*asked.lock().unwrap(), [true, false, true]);
            } else {
                assert!(done.is_none() && took.is_zero(), "{took:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_to_be_left_alone_is_asked_where_nobody_else_may_be() {
        for (resting, want) in [(1, "m.test"), (2, "r.test")] {
            let (health, mut tries) = (Health::new(), Tries::new(None));
            let hosts = two(&health);
            for host in hosts.iter().rev().take(resting) {
                health.wants_rest(host.origin(), 60 * SECOND);
            }
            let answer = first(&hosts, &health, HEDGE, &mut tries, |host| async move {
                match host.root().contains("m.test") {
                    true => Err(no()),
                    false => Ok(()),
                }
            });
            match answer.await {
                Ok((host, ())) => assert!(host.root().contains(want)),
                Err((error, wish)) => {
                    assert_eq!((want, wish), ("m.test", Some(60 * SECOND)));
                    assert!(error.is(Code::Unavailable), "{error}");
                    assert!(error.to_string().contains("left alone"), "{error}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_answered_for_good_is_not_left_alone() {
        let (health, mut tries) = (Health::new(), Tries::new(None));
        let hosts = two(&health);
        let answer = first(&hosts, &health, HEDGE, &mut tries, |host| async move {
            let error = match host.root().contains("m.test") {
                true => Error::not_found("404"),
                false => Error::unavailable("429"),
            };
            Err::<(), _>((error, Some(60 * SECOND)))
        });
        let (error, _) = answer.await.map(drop).unwrap_err();
        assert!(error.is(Code::Unavailable), "{error}");
        let rests = [0, 1].map(|at: usize| health.rest(hosts[at].origin()).is_some());
        assert_eq!(rests, [false, true]);
    }
}
