//! What unit tests of this crate share.
//!
//! A child that any test starts has, for the first moment of its life, a copy of every descriptor of this
//! process: what a test closes is closed a moment later.

use std::path::Path;
use std::time::{Duration, Instant};

use sys::process::Spawn;

/// Longer than anything here takes on the slowest machine.
const SOON: Duration = Duration::from_secs(60);

/// Runs this to its end on a runtime of its own, as the shim does: one thread, with timers and I/O.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// A point in time that nothing which works is late for.
pub(crate) fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(20)
}

/// Waits until something has happened in the kernel, or in another process.
pub(crate) fn until(what: &str, mut has_happened: impl FnMut() -> bool) {
    let give_up = Instant::now() + SOON;
    while !has_happened() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::yield_now();
    }
}

/// Makes a program. By another process: none that any test starts in this moment may have it open for writing,
/// or it could not be started.
pub(crate) fn program(path: &Path, text: &str) {
    let install = Spawn::new("install").args(["-m", "755", "/dev/stdin"]);
    let done = install.arg(path).output(text.as_bytes(), 1024, SOON);
    let done = done.unwrap();
    assert!(done.status.is_success(), "{done:?}");
}

/// Leaves a socket at which nobody listens any more.
pub(crate) fn dead_socket(path: &Path) {
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    until("the listener is closed", || {
        sys::socket::is_deserted(path).unwrap()
    });
}
