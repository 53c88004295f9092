//! What the tests of this crate share.
//!
//! A child that any test starts has, for the first moment of its life, a copy of every descriptor of this
//! process: what a test closes is closed a moment later.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use sys::process::Spawn;

/// Longer than anything here takes on the slowest machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes a program. By another process: none that any test starts in this moment may have it open for writing,
/// or it could not be started.
pub(crate) fn program(path: &Path, text: &str) {
    let install = Spawn::new("install").args(["-m", "755", "/dev/stdin"]);
    let done = install.arg(path).output(text.as_bytes(), 1024, LIMIT);
    let done = done.unwrap();
    assert!(done.status.is_success(), "{done:?}");
}

/// Leaves a socket at which nobody listens any more.
pub(crate) fn dead_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    deserted(path);
}

/// Waits until nobody has the listener of a socket open any more.
pub(crate) fn deserted(path: &Path) {
    let begun = Instant::now();
    while !sys::socket::is_deserted(path).unwrap() {
        assert!(begun.elapsed() < LIMIT, "the listener stays open");
        std::thread::yield_now();
    }
}
