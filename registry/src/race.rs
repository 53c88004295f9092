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

/// The first good answer to `ask` of one of `hosts`, at least one, and who gave it.
///
/// # Errors
/// That of the host which comes last in the configuration, the registry itself: the others may
/// lack what it has. It names them and what they said.
pub(crate) async fn first<T, F>(
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
    let mut began: Vec<(Arc<Host>, Instant)> = Vec::new();
    let mut failures: Vec<(Arc<Host>, Failure)> = Vec::new();
    let mut next = left.next();
    let mut at = Instant::now();
    // The registry itself has said no: those that are still silent have this long to differ.
    let mut give_up: Option<Instant> = None;
    loop {
        let due = running.is_empty() || Instant::now() >= at;
        if due && let Some(host) = next.take() {
            began.push((Arc::clone(&host), Instant::now()));
            let answer = ask(Arc::clone(&host));
            running.push(async move { (host, answer.await) });
            next = left.next();
            at = Instant::now() + hedge;
        }
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
                        at = Instant::now();
                    }
                }
            }
            () = sleep_until(at), if next.is_some() => {}
            () = sleep_until(give_up.unwrap_or(at)), if give_up.is_some() && !running.is_empty() => {
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
fn ended(began: &mut Vec<(Arc<Host>, Instant)>, host: &Arc<Host>) -> Duration {
    let at = began.iter().position(|(asked, _)| Arc::ptr_eq(asked, host));
    at.map_or(Duration::ZERO, |at| began.swap_remove(at).1.elapsed())
}

/// Those that have been asked for longer than it takes and said nothing.
fn silent(began: &[(Arc<Host>, Instant)], health: &Health, hedge: Duration) {
    for (host, since) in began {
        if since.elapsed() >= hedge {
            health.failed(host.origin());
        }
    }
}

fn worst(
    hosts: &[Arc<Host>],
    mut failures: Vec<(Arc<Host>, Failure)>,
    began: &[(Arc<Host>, Instant)],
) -> Failure {
    let place = |host: &Arc<Host>| hosts.iter().position(|h| Arc::ptr_eq(h, host));
    failures.sort_by_key(|(host, _)| place(host));
    let Some((_, (error, wish))) = failures.pop() else {
        return (Error::not_found("no host to ask"), None);
    };
    let said = failures.iter().map(|(host, (error, _))| Blame {
        host: host.root(),
        said: error.to_string(),
    });
    let silent = began.iter().map(|(host, since)| Blame {
        host: host.root(),
        said: format!("silent for {} ms", since.elapsed().as_millis()),
    });
    (blame(error, said.chain(silent)), wish)
}
