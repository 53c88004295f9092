//! Conditional references: an image or a blob keeps a snapshot as long as that was used lately.
//!
//! Both ends are labels, so that a use of the snapshot is told to the snapshot alone:
//!
//! ```text
//! on image or blob:  containerd.io/gc.cond.snapshot.<snapshotter>[/<name>] = usedat<24h[,…]|<key>
//! on the snapshot:   containerd.io/gc.cond.value-usedat[…] = <RFC 3339 time>
//! ```
//! Parity: core/metadata/gc.go of 2.3: a reference holds when any of its conditions holds for any
//! value; what cannot be read (an operator other than `<` and `>`, another name) never holds.

use std::time::{Duration, SystemTime};

use types::{Labels, gc_label, go_duration};

use super::link::Node;
use super::mark::time;

/// The one value that conditions know.
const USED_AT: &str = "usedat";

/// A reference and when it holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// What it keeps.
    pub(super) snapshot: Node,
    any: Vec<Test>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    /// The last use is less than so many nanoseconds ago.
    Younger(i64),
    /// It is more.
    Older(i64),
}

impl Condition {
    /// True when it holds for one of the times at which its snapshot was used.
    pub(super) fn holds(&self, used: &[SystemTime], now: SystemTime) -> bool {
        let is_met = |age| self.any.iter().any(|test| test.holds(age));
        used.iter().any(|at| is_met(age(*at, now)))
    }

    /// The first moment after `now` at which it may hold no more.
    pub(super) fn until(&self, used: &[SystemTime], now: SystemTime) -> Option<SystemTime> {
        let limits = self.any.iter().filter_map(|test| match test {
            Test::Younger(limit) => u64::try_from(*limit).ok().map(Duration::from_nanos),
            Test::Older(_) => None,
        });
        let ends = limits.flat_map(|limit| used.iter().filter_map(move |at| at.checked_add(limit)));
        ends.filter(|end| *end > now).min()
    }
}

impl Test {
    fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_at(text.find(['!', '<', '>', '='])?);
        if name != USED_AT {
            return None;
        }
        // `<=` and `>=` fail here: `=` begins no duration.
        let (make, limit): (fn(i64) -> Self, _) = match rest.strip_prefix('<') {
            Some(limit) => (Self::Younger, limit),
            None => (Self::Older, rest.strip_prefix('>')?),
        };
        go_duration(limit).ok().map(make)
    }

    fn holds(self, age: i128) -> bool {
        match self {
            Self::Younger(limit) => age < i128::from(limit),
            Self::Older(limit) => age > i128::from(limit),
        }
    }
}

/// Nanoseconds from `at` to `now`; below zero for a time that is still to come.
fn age(at: SystemTime, now: SystemTime) -> i128 {
    let whole = |nanos: u128| i128::try_from(nanos).unwrap_or(i128::MAX);
    match now.duration_since(at) {
        Ok(past) => whole(past.as_nanos()),
        Err(future) => -whole(future.duration().as_nanos()),
    }
}

/// The conditional references in the labels of an image or a blob.
pub(super) fn conditions(labels: &Labels) -> impl Iterator<Item = Condition> + '_ {
    labels.iter().filter_map(|(label, value)| {
        let rest = label.strip_prefix(gc_label::COND_SNAPSHOT)?;
        let rest = rest.trim_start_matches(['.', '/']);
        let snapshotter = rest.split_once('/').map_or(rest, |(name, _)| name);
        let (any, key) = value.split_once('|')?;
        Some(Condition {
            snapshot: Node::Snapshot(snapshotter.to_owned(), key.to_owned()),
            any: any.split(',').filter_map(Test::parse).collect(),
        })
    })
}

/// The times in the labels of a snapshot at which it was used.
pub(super) fn used_at(labels: &Labels) -> impl Iterator<Item = SystemTime> + '_ {
    labels
        .iter()
        .filter(|(label, _)| label.starts_with(gc_label::COND_USED_AT))
        .filter_map(|(_, value)| time(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000_000;

    fn read(label: &str, value: &str) -> Vec<Condition> {
        conditions(&Labels::new().with(label, value)).collect()
    }

    #[test]
    fn labels_become_conditions() {
        let want = |snapshotter: &str, key: &str, any: &[Test]| {
            vec![Condition {
                snapshot: Node::Snapshot(snapshotter.into(), key.into()),
                any: any.to_vec(),
            }]
        };
        let prefix = "containerd.io/gc.cond.snapshot";
        let day = Test::Younger(24 * HOUR);
        for (suffix, value, found) in [
            (".overlayfs", "usedat<24h|k", want("overlayfs", "k", &[day])),
            ("/overlayfs", "usedat<24h|k", want("overlayfs", "k", &[day])),
            (".native/x", "usedat<24h|a|b", want("native", "a|b", &[day])),
            (
                ".native",
                "usedat<24h,usedat>1h|k",
                want("native", "k", &[day, Test::Older(HOUR)]),
            ),
            (".native", "usedat<=24h|k", want("native", "k", &[])),
            (".native", "usedat==24h,x<1h|k", want("native", "k", &[])),
            (".native", "usedat<nonsense|k", want("native", "k", &[])),
            (".native", "usedat <24h|k", want("native", "k", &[])),
            (".native", "k", vec![]),
        ] {
            assert_eq!(read(&format!("{prefix}{suffix}"), value), found, "{value}");
        }
        assert!(read("containerd.io/gc.ref.snapshot.x", "usedat<1h|k").is_empty());
    }

    #[test]
    fn a_condition_holds_for_any_value_strictly_within_its_limit() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let label = "containerd.io/gc.cond.snapshot.s";
        let minutes = |n: u64| Duration::from_secs(60 * n);
        for (value, used, holds) in [
            ("usedat<1h|k", vec![now - minutes(59)], true),
            ("usedat<1h|k", vec![now - minutes(60)], false),
            ("usedat<1h|k", vec![now - minutes(90), now], true),
            ("usedat<1h|k", vec![now + minutes(90)], true),
            ("usedat<1h|k", vec![], false),
            ("usedat>1h|k", vec![now - minutes(60)], false),
            ("usedat>1h|k", vec![now - minutes(61)], true),
            ("usedat<-1h|k", vec![now + minutes(61)], true),
            ("usedat<5m,usedat>1h|k", vec![now - minutes(30)], false),
            ("usedat<5m,usedat>1h|k", vec![now - minutes(3)], true),
            ("|k", vec![now], false),
        ] {
            let condition = &read(label, value)[0];
            assert_eq!(condition.holds(&used, now), holds, "{value} {used:?}");
        }
    }

    #[test]
    fn snapshots_tell_when_they_were_used() {
        let labels = Labels::new()
            .with(gc_label::COND_USED_AT, "1970-01-01T00:00:01Z")
            .with(
                format!("{}.other", gc_label::COND_USED_AT),
                "1970-01-01T01:00:02+01:00",
            )
            .with(format!("{}.bad", gc_label::COND_USED_AT), "yesterday");
        let used: Vec<_> = used_at(&labels).collect();
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        assert_eq!(used, [second(1), second(2)]);
    }
}
