//! How long a call of the runtime may take before it counts as hung.

use std::time::Duration;

/// A call that makes or starts a process: its hooks may well load drivers or call out. As long as the
/// kubelet waits by default: when it asks again, the way is free.
const MAKING: Duration = Duration::from_secs(120);
/// A call about what is there. The slowest of them gives the kernel ten seconds to end everything and
/// let the control group go.
const ASKING: Duration = Duration::from_secs(30);
/// A call that writes or reads all memory of a container: 100 GiB at 100 MB/s, twice.
const SAVING: Duration = Duration::from_secs(3600);
/// How long the end of a killed runtime may take.
pub(super) const KILLED: Duration = Duration::from_secs(10);

/// Variable with the seconds that every call may take, for hosts where the limits do not fit.
const VARIABLE: &str = "CONTAINERD_SHIM_RUNTIME_TIMEOUT";

/// The limits of one shim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// One for all, when it was told.
    told: Option<Duration>,
}

impl Limits {
    /// As the environment says.
    pub(crate) fn from_environment() -> Self {
        Self::parse(std::env::var(VARIABLE).ok().as_deref())
    }

    fn parse(seconds: Option<&str>) -> Self {
        let seconds = seconds.and_then(|text| text.trim().parse().ok());
        let told = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Self {
            told: told.filter(|told| !told.is_zero()),
        }
    }

    /// The limit of a call by its verb.
    pub(crate) fn of(self, verb: &str) -> Duration {
        self.told.unwrap_or(match verb {
            "create" | "start" | "exec" => MAKING,
            "checkpoint" | "restore" => SAVING,
            _ => ASKING,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_from_the_verb_unless_told() {
        let limits = Limits::parse(None);
        assert_eq!((limits.of("exec"), limits.of("kill")), (MAKING, ASKING));
        assert_eq!(limits.of("restore"), SAVING);
        let told = Limits::parse(Some("1.5"));
        for verb in ["create", "delete", "checkpoint"] {
            assert_eq!(told.of(verb), Duration::from_millis(1500));
        }
        for nonsense in ["", "0", "-1", "soon", "inf", "1e300"] {
            assert_eq!(
                Limits::parse(Some(nonsense)),
                Limits::default(),
                "{nonsense}"
            );
        }
    }
}
