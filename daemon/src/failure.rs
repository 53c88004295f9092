//! How the daemon ends when it cannot do what it was asked: the error, and a code for scripts. The codes
//! are those of sysexits(3).

use types::{Code, Error};

/// Something failed that no other code is for.
const OTHER: u8 = 1;
/// The command line is wrong: clap's own.
pub(crate) const USAGE: u8 = 2;
/// A file cannot be made or written: a disk that is read-only or full, a directory of somebody else.
const CANNOT_CREATE: u8 = 73;
/// Another daemon has the root, the state or a socket: later it may work.
const HELD: u8 = 75;
/// The configuration is wrong: it will not work before somebody has changed it.
const CONFIG: u8 = 78;

/// What `--help` says of it.
pub(crate) const HELP: &str = "Exit codes: 0 it was done; 1 it failed; 2 wrong arguments; 73 a file cannot be \
    made or written; 75 another daemon has the root, the state or a socket; 78 the configuration is wrong";

/// Errors of the kernel that say that a file cannot be written.
const UNWRITABLE: [i32; 5] = [
    1,   // EPERM
    13,  // EACCES
    28,  // ENOSPC
    30,  // EROFS
    122, // EDQUOT
];

/// An error and its code.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What happened.
    pub(crate) error: Error,
    /// What the process ends with.
    pub(crate) code: u8,
}

impl Failure {
    /// The configuration is wrong, or the file cannot be read.
    pub(crate) fn config(error: Error) -> Self {
        Self {
            error,
            code: CONFIG,
        }
    }

    /// Something that one daemon has at a time cannot be had.
    pub(crate) fn place(error: Error) -> Self {
        match error.code() {
            Code::FailedPrecondition | Code::Unavailable => Self { error, code: HELD },
            _ => error.into(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let is_unwritable = error
            .errno()
            .is_some_and(|errno| UNWRITABLE.contains(&errno));
        let code = if is_unwritable { CANNOT_CREATE } else { OTHER };
        Self { error, code }
    }
}
