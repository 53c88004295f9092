//! What workers do, and how often.

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A container says something and ends.
    Run,
    /// A container lives until it is killed.
    Life,
    /// One that lives all the time gets a process more.
    Exec,
    /// A client attaches to a container and talks to it.
    Attach,
    /// The client that is attached all the time says something.
    Talk,
    /// An image comes from the registry, is used, and goes.
    Image,
    /// Those that live all the time are listed.
    Look,
    /// The client of a run, an exec, an attachment or a pull is killed in the middle of it.
    KilledRun,
    KilledExec,
    KilledAttach,
    KilledPull,
    /// The shim of a container is killed.
    KilledShim,
}

impl Operation {
    /// It leaves what its client cannot give up any more.
    pub(crate) fn is_killed(self) -> bool {
        matches!(
            self,
            Self::KilledRun | Self::KilledExec | Self::KilledAttach | Self::KilledPull
        )
    }

    /// It has to do with the worker's image.
    pub(crate) fn is_of_image(self) -> bool {
        matches!(self, Self::Image | Self::KilledPull)
    }
}

/// As often as they come.
pub(crate) const OPERATIONS: [Operation; 21] = [
    Operation::Run,
    Operation::Run,
    Operation::Run,
    Operation::Life,
    Operation::Life,
    Operation::Life,
    Operation::Exec,
    Operation::Exec,
    Operation::Exec,
    Operation::Attach,
    Operation::Attach,
    Operation::Talk,
    Operation::Talk,
    Operation::Image,
    Operation::Image,
    Operation::Look,
    Operation::KilledRun,
    Operation::KilledExec,
    Operation::KilledAttach,
    Operation::KilledPull,
    Operation::KilledShim,
];
