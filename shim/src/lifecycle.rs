//! The life of a process as a pure machine.
//!
//! ```text
//!   Created ──Start──> Running ──Pause──> Pausing ──PauseDone──> Paused
//!      │                  │ ^                │ └─PauseFailed─┐      │
//!      │                  │ └────────────────┴───────────────┴─Resume
//!      └──────Exited──────┴──────────────────┴──────────────────────┴──> Stopped ──Delete──> Deleted
//! ```
//! Invariant: every pair of phase and input is decided here, one by one; no I/O. An exit happens once
//! and nothing but a deletion follows it.

#![deny(clippy::wildcard_enum_match_arm)]

use types::Exit;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Made (an init: by the runtime; an exec: only known), not started.
    Created,
    /// Runs.
    Running,
    /// Is being frozen.
    Pausing,
    /// Frozen.
    Paused,
    /// Ended, and how.
    Stopped(Exit),
    /// Gone; nothing may be asked of it any more.
    Deleted,
}

/// What can happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// It was started.
    Start,
    /// It shall be frozen.
    Pause,
    /// It is frozen.
    PauseDone,
    /// It could not be frozen.
    PauseFailed,
    /// It runs again.
    Resume,
    /// A signal, or another request that needs a live process, came.
    Touch,
    /// An image of it shall be written.
    Checkpoint,
    /// It ended.
    Exited(Exit),
    /// Its record goes.
    Delete,
}

/// Why an input is not possible now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It has not been started.
    NotStarted,
    /// It has been started already.
    Started,
    /// It is frozen, or on the way.
    Paused,
    /// It is not frozen.
    NotPaused,
    /// It has ended.
    Stopped,
    /// It has not ended.
    Alive,
    /// There is no such process any more.
    Deleted,
}

impl Denied {
    /// The reason in words.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::NotStarted => "process is not started",
            Self::Started => "process is already started",
            Self::Paused => "process is paused",
            Self::NotPaused => "process is not paused",
            Self::Stopped => "process already finished",
            Self::Alive => "cannot delete a running process",
            Self::Deleted => "process is deleted",
        }
    }
}

impl Phase {
    /// The next phase.
    #[expect(clippy::match_same_arms, reason = "a table: one cell after the other")]
    pub(crate) fn step(self, input: Input) -> Result<Self, Denied> {
        use Input as I;
        use Phase as P;
        match (self, input) {
            (P::Created, I::Start) => Ok(P::Running),
            (P::Created, I::Pause | I::PauseDone | I::PauseFailed | I::Resume | I::Checkpoint) => {
                Err(Denied::NotStarted)
            }
            (P::Created, I::Touch) => Ok(P::Created),
            (P::Created, I::Exited(exit)) => Ok(P::Stopped(exit)),
            // The runtime ends and removes what was never started.
            (P::Created, I::Delete) => Ok(P::Deleted),

            (P::Running, I::Start) => Err(Denied::Started),
            (P::Running, I::Pause) => Ok(P::Pausing),
            (P::Running, I::PauseDone | I::PauseFailed | I::Resume) => Err(Denied::NotPaused),
            (P::Running, I::Touch | I::Checkpoint) => Ok(P::Running),
            (P::Running, I::Exited(exit)) => Ok(P::Stopped(exit)),
            (P::Running, I::Delete) => Err(Denied::Alive),

            (P::Pausing, I::Start) => Err(Denied::Started),
            (P::Pausing, I::Pause | I::Resume | I::Checkpoint) => Err(Denied::Paused),
            (P::Pausing, I::PauseDone) => Ok(P::Paused),
            (P::Pausing, I::PauseFailed) => Ok(P::Running),
            (P::Pausing, I::Touch) => Ok(P::Pausing),
            (P::Pausing, I::Exited(exit)) => Ok(P::Stopped(exit)),
            (P::Pausing, I::Delete) => Err(Denied::Alive),

            (P::Paused, I::Start) => Err(Denied::Started),
            (P::Paused, I::Pause | I::PauseDone | I::PauseFailed) => Err(Denied::Paused),
            (P::Paused, I::Resume) => Ok(P::Running),
            (P::Paused, I::Touch | I::Checkpoint) => Ok(P::Paused),
            (P::Paused, I::Exited(exit)) => Ok(P::Stopped(exit)),
            (P::Paused, I::Delete) => Err(Denied::Alive),

            (
                P::Stopped(_),
                I::Start | I::Pause | I::Resume | I::Touch | I::Checkpoint | I::Exited(_),
            ) => Err(Denied::Stopped),
            // It ended while the runtime was freezing it.
            (P::Stopped(exit), I::PauseDone | I::PauseFailed) => Ok(P::Stopped(exit)),
            (P::Stopped(_), I::Delete) => Ok(P::Deleted),

            (
                P::Deleted,
                I::Start
                | I::Pause
                | I::PauseDone
                | I::PauseFailed
                | I::Resume
                | I::Touch
                | I::Checkpoint
                | I::Exited(_)
                | I::Delete,
            ) => Err(Denied::Deleted),
        }
    }

    /// How it ended.
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            Self::Created | Self::Running | Self::Pausing | Self::Paused | Self::Deleted => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::SystemTime;

    const EXIT: Exit = Exit {
        pid: 7,
        status: 3,
        at: SystemTime::UNIX_EPOCH,
    };
    const OTHER: Exit = Exit {
        pid: 7,
        status: 9,
        at: SystemTime::UNIX_EPOCH,
    };
    const PHASES: [Phase; 6] = [
        Phase::Created,
        Phase::Running,
        Phase::Pausing,
        Phase::Paused,
        Phase::Stopped(EXIT),
        Phase::Deleted,
    ];
    const INPUTS: [Input; 9] = [
        Input::Start,
        Input::Pause,
        Input::PauseDone,
        Input::PauseFailed,
        Input::Resume,
        Input::Touch,
        Input::Checkpoint,
        Input::Exited(OTHER),
        Input::Delete,
    ];

    #[test]
    fn every_cell_is_as_the_table_says() {
        use Denied as D;
        use Phase as P;
        let gone = Err(D::Deleted);
        let ended = Err(D::Stopped);
        let keep = Ok(P::Stopped(EXIT));
        let stop = Ok(P::Stopped(OTHER));
        let not = Err(D::NotStarted);
        #[rustfmt::skip]
        let table: [[Result<P, D>; 9]; 6] = [
            // Start          Pause             PauseDone          PauseFailed        Resume             Touch           Checkpoint        Exited  Delete
            [Ok(P::Running),  not,              not,               not,               not,               Ok(P::Created), not,              stop,   Ok(P::Deleted)],
            [Err(D::Started), Ok(P::Pausing),   Err(D::NotPaused), Err(D::NotPaused), Err(D::NotPaused), Ok(P::Running), Ok(P::Running),   stop,   Err(D::Alive)],
            [Err(D::Started), Err(D::Paused),   Ok(P::Paused),     Ok(P::Running),    Err(D::Paused),    Ok(P::Pausing), Err(D::Paused),   stop,   Err(D::Alive)],
            [Err(D::Started), Err(D::Paused),   Err(D::Paused),    Err(D::Paused),    Ok(P::Running),    Ok(P::Paused),  Ok(P::Paused),    stop,   Err(D::Alive)],
            [ended,           ended,            keep,              keep,              ended,             ended,          ended,            ended,  Ok(P::Deleted)],
            [gone,            gone,             gone,              gone,              gone,              gone,           gone,             gone,   gone],
        ];
        for (phase, row) in PHASES.into_iter().zip(table) {
            for (input, want) in INPUTS.into_iter().zip(row) {
                assert_eq!(phase.step(input), want, "{phase:?} {input:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_exit_is_taken_once_and_kept(inputs in proptest::collection::vec(0..INPUTS.len(), 0..40)) {
            let mut phase = Phase::Created;
            let mut exits = 0;
            let mut deleted = false;
            for input in inputs.into_iter().map(|n| INPUTS[n]) {
                let Ok(next) = phase.step(input) else { continue };
                prop_assert!(!deleted, "something followed a deletion");
                if phase.exit().is_some() {
                    prop_assert!(next == phase || next == Phase::Deleted);
                }
                exits += usize::from(matches!(input, Input::Exited(_)));
                deleted = next == Phase::Deleted;
                phase = next;
            }
            prop_assert!(exits <= 1);
        }
    }
}
