//! What the labels of a container ask for, and what is to be done about it now.
//!
//! Invariant: pure. What is not known for certain is left alone: a container is started only when there
//! is no task or one that has ended.

use types::Labels;

/// The status that a container is to have.
pub(super) const STATUS: &str = "containerd.io/restart.status";
/// When it is to be started again.
const POLICY: &str = "containerd.io/restart.policy";
/// How often it was.
pub(super) const COUNT: &str = "containerd.io/restart.count";
/// Somebody has stopped it, and meant it.
const EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";
/// Where its output goes.
pub(super) const LOG_URI: &str = "containerd.io/restart.loguri";

/// Policies, as clients are told.
pub(crate) const POLICIES: [&str; 4] = ["no", "always", "on-failure", "unless-stopped"];

/// The task of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Now {
    /// There is none.
    Absent,
    /// It was made and not started.
    Created,
    /// It runs, or is paused.
    Alive,
    /// It has ended with this status.
    Ended(u32),
    /// Its shim does not say.
    Unclear,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Leave,
    /// Start it, with a new task.
    Start,
    /// End its task.
    Stop,
}

/// What a container with these labels needs.
pub(super) fn decide(labels: &Labels, now: Now) -> Step {
    let label = |key: &str| labels.get(key).map_or("", String::as_str);
    match (label(STATUS), now) {
        ("stopped", Now::Created | Now::Alive) => Step::Stop,
        ("running", Now::Absent | Now::Created | Now::Ended(_)) => {
            let stopped = matches!(
                label(EXPLICITLY_STOPPED),
                "1" | "t" | "T" | "true" | "TRUE" | "True"
            );
            match wants(label(POLICY), label(COUNT), stopped, now) {
                Ok(true) => Step::Start,
                Ok(false) => Step::Leave,
                Err(bad) => {
                    tracing::warn!(bad, "restart policy of a container does not fit");
                    Step::Leave
                }
            }
        }
        _ => Step::Leave,
    }
}

/// Whether the policy wants a start; the text that does not fit.
///
/// Parity: core/runtime/restart/restart.go: no policy is "always", and the exit of a task that nobody
/// knows any more is no failure.
fn wants<'a>(policy: &'a str, count: &'a str, stopped: bool, now: Now) -> Result<bool, &'a str> {
    let (name, most) = match policy.split_once(':') {
        Some((name, most)) => (name, Some(most.parse::<u64>().map_err(|_| policy)?)),
        None => (policy, None),
    };
    match (name, most) {
        ("no", None) => Ok(false),
        ("" | "always", None) => Ok(true),
        ("unless-stopped", None) => Ok(!stopped),
        ("on-failure", most) => {
            let failed = matches!(now, Now::Ended(status) if status != 0);
            let so_far = if count.is_empty() {
                0
            } else {
                count.parse::<u64>().map_err(|_| count)?
            };
            Ok(failed && most.is_none_or(|most| most == 0 || so_far < most))
        }
        _ => Err(policy),
    }
}

/// How often a container with these labels was started again.
pub(super) fn count(labels: &Labels) -> u64 {
    let count = labels.get(COUNT).and_then(|count| count.parse().ok());
    count.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    use Now::{Absent, Alive, Created, Ended, Unclear};
    use Step::{Leave, Start, Stop};

    /// Labels, without what they all begin with; the task; what is to be done.
    const TABLE: &[(&str, Now, Step)] = &[
        ("status=running", Absent, Start),
        ("status=running", Ended(0), Start),
        ("status=running policy=always", Ended(137), Start),
        (
            "status=running policy=always explicitly-stopped=true",
            Ended(1),
            Start,
        ),
        ("status=running policy=always", Alive, Leave),
        ("status=running policy=always", Unclear, Leave),
        ("status=running policy=always", Created, Start),
        ("status=running policy=no", Ended(1), Leave),
        ("status=running policy=no", Absent, Leave),
        ("status=running policy=unless-stopped", Ended(0), Start),
        (
            "status=running policy=unless-stopped explicitly-stopped=true",
            Ended(0),
            Leave,
        ),
        (
            "status=running policy=unless-stopped explicitly-stopped=false",
            Ended(0),
            Start,
        ),
        ("status=running policy=on-failure", Ended(0), Leave),
        ("status=running policy=on-failure", Absent, Leave),
        ("status=running policy=on-failure", Ended(3), Start),
        ("status=running policy=on-failure:2", Ended(3), Start),
        (
            "status=running policy=on-failure:2 count=1",
            Ended(3),
            Start,
        ),
        (
            "status=running policy=on-failure:2 count=2",
            Ended(3),
            Leave,
        ),
        (
            "status=running policy=on-failure:0 count=9",
            Ended(3),
            Start,
        ),
        ("status=running policy=on-failure:x", Ended(3), Leave),
        ("status=running policy=on-failure count=x", Ended(3), Leave),
        ("status=running policy=always:3", Ended(3), Leave),
        ("status=running policy=sometimes", Ended(3), Leave),
        ("status=stopped", Alive, Stop),
        ("status=stopped policy=always", Created, Stop),
        ("status=stopped policy=always", Ended(1), Leave),
        ("status=stopped", Absent, Leave),
        ("status=stopped", Unclear, Leave),
        ("status=created policy=always", Absent, Leave),
        ("policy=always", Ended(1), Leave),
    ];

    #[test]
    fn a_policy_decides_by_how_the_task_ended() {
        for (labels, now, step) in TABLE {
            let pairs = labels.split(' ').filter_map(|pair| pair.split_once('='));
            let made = pairs.fold(Labels::new(), |made, (key, value)| {
                made.with(format!("containerd.io/restart.{key}"), value)
            });
            assert_eq!(decide(&made, *now), *step, "{labels} {now:?}");
        }
    }
}
