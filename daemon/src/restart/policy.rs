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
/// A start is under way since a task ended with this status: that task is gone, and what it was ended with
/// would be with it. [`MADE`] behind the status: the task that follows is there, and about to be started.
pub(super) const PENDING: &str = "containerd.io/restart.pending";
/// From here on a task that is gone was started, or deleted by somebody else.
const MADE: &str = " made";
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
    /// Forget the start that was under way: it has come about, or is not wanted any more.
    Settle,
}

/// What a container with these labels needs.
pub(super) fn decide(labels: &Labels, now: Now) -> Step {
    let label = |key: &str| labels.get(key).map_or("", String::as_str);
    match (label(STATUS), now) {
        ("stopped", Now::Created | Now::Alive) => Step::Stop,
        (_, Now::Alive | Now::Ended(0)) if labels.get(PENDING).is_some() => Step::Settle,
        // The task that was made has come to its end.
        (_, Now::Absent | Now::Ended(_)) if is_made(labels) => Step::Settle,
        ("stopped", Now::Absent | Now::Ended(_)) if labels.get(PENDING).is_some() => Step::Settle,
        ("running", Now::Absent | Now::Created | Now::Ended(_)) => {
            let stopped = matches!(
                label(EXPLICITLY_STOPPED),
                "1" | "t" | "T" | "true" | "TRUE" | "True"
            );
            match wants(
                label(POLICY),
                label(COUNT),
                stopped,
                has_failed(labels, now),
            ) {
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

/// Whether the task ended with a failure; one that is gone, as the start tells that was to follow it.
fn has_failed(labels: &Labels, now: Now) -> bool {
    match now {
        Now::Ended(status) => status != 0,
        Now::Absent | Now::Created => labels.get(PENDING).is_some(),
        Now::Alive | Now::Unclear => false,
    }
}

/// The label that is to be set before a task that has ended like this is deleted: without it the start that
/// follows would not be made again if it were cut off.
pub(super) fn pending(labels: &Labels, now: Now) -> Option<String> {
    match now {
        Now::Ended(status) if decide(labels, Now::Absent) != Step::Start => {
            Some(status.to_string())
        }
        _ => None,
    }
}

/// How the task had ended that a start follows which is under way.
pub(super) fn under_way(labels: &Labels) -> Option<String> {
    let pending = labels.get(PENDING)?;
    Some(pending.strip_suffix(MADE).unwrap_or(pending).to_owned())
}

/// The same once the task that follows is made.
pub(super) fn made(status: &str) -> String {
    format!("{status}{MADE}")
}

fn is_made(labels: &Labels) -> bool {
    let pending = labels.get(PENDING);
    pending.is_some_and(|pending| pending.ends_with(MADE))
}

/// True when a start that was under way has come about: it counts.
pub(super) fn has_begun(labels: &Labels, now: Now) -> bool {
    is_made(labels) && matches!(now, Now::Alive | Now::Ended(_))
}

/// Whether the policy wants a start; the text that does not fit.
///
/// Parity: core/runtime/restart/restart.go: no policy is "always", and the exit of a task that nobody
/// knows any more is no failure.
fn wants<'a>(
    policy: &'a str,
    count: &'a str,
    stopped: bool,
    failed: bool,
) -> Result<bool, &'a str> {
    let (name, most) = match policy.split_once(':') {
        Some((name, most)) => (name, Some(most.parse::<u64>().map_err(|_| policy)?)),
        None => (policy, None),
    };
    match (name, most) {
        ("no", None) => Ok(false),
        ("" | "always", None) => Ok(true),
        ("unless-stopped", None) => Ok(!stopped),
        ("on-failure", most) => {
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
    use Step::{Leave, Settle, Start, Stop};

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
        ("status=running policy=on-failure pending=3", Absent, Start),
        ("status=running policy=on-failure pending=3", Created, Start),
        (
            "status=running policy=on-failure:2 count=2 pending=3",
            Absent,
            Leave,
        ),
        ("status=running policy=on-failure pending=3", Unclear, Leave),
        ("status=running policy=on-failure pending=3", Alive, Settle),
        (
            "status=running policy=on-failure pending=3",
            Ended(0),
            Settle,
        ),
        (
            "status=running policy=on-failure pending=3",
            Ended(4),
            Start,
        ),
        (
            "status=running policy=on-failure:1 pending=3",
            Absent,
            Start,
        ),
        (
            "status=running policy=on-failure:1 pending=3+made",
            Created,
            Start,
        ),
        // Its owner has deleted it, however it ended.
        (
            "status=running policy=on-failure pending=3+made",
            Absent,
            Settle,
        ),
        (
            "status=running policy=on-failure pending=3+made",
            Ended(4),
            Settle,
        ),
        (
            "status=running policy=on-failure pending=3+made",
            Unclear,
            Leave,
        ),
        ("status=stopped pending=3", Alive, Stop),
        ("status=stopped pending=3", Absent, Settle),
        ("status=stopped pending=3", Ended(3), Settle),
        ("status=stopped pending=3", Unclear, Leave),
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
            assert_eq!(decide(&parse(labels), *now), *step, "{labels} {now:?}");
        }
    }

    fn parse(labels: &str) -> Labels {
        let pairs = labels.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.fold(Labels::new(), |made, (key, value)| {
            let value = value.replace('+', " ");
            made.with(format!("containerd.io/restart.{key}"), value)
        })
    }

    #[test]
    fn a_start_counts_when_its_task_was_made_and_has_begun() {
        for (labels, now, begun) in [
            ("pending=3", Alive, false),
            ("pending=3", Ended(3), false),
            ("pending=3+made", Created, false),
            ("pending=3+made", Absent, false),
            ("pending=3+made", Alive, true),
            ("pending=3+made", Ended(3), true),
        ] {
            assert_eq!(has_begun(&parse(labels), now), begun, "{labels} {now:?}");
        }
        assert_eq!(parse("pending=3+made").get(PENDING), Some(&made("3")));
        for labels in ["pending=3+made", "pending=3"] {
            assert_eq!(under_way(&parse(labels)), Some("3".into()));
        }
        assert_eq!(under_way(&Labels::new()), None);
    }

    #[test]
    fn only_a_start_that_the_exit_asks_for_is_noted() {
        let labels = |policy: &str| {
            let running = Labels::new().with(STATUS, "running");
            running.with(POLICY, policy)
        };
        assert_eq!(pending(&labels("on-failure"), Ended(3)), Some("3".into()));
        for (policy, now) in [
            ("always", Ended(3)),
            ("on-failure", Absent),
            ("on-failure", Created),
        ] {
            assert_eq!(pending(&labels(policy), now), None, "{policy} {now:?}");
        }
    }
}
