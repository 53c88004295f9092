//! What tests of several modules here share.
//!
//! Invariant: nothing here depends on how long anything takes. A child that any test makes has a copy of
//! every descriptor for the first moment of its life; so an end that a test closes is closed a moment later.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::process::Spawn;

/// Longer than anything here takes on the slowest machine.
const SOON: Duration = Duration::from_secs(60);

/// Names the test that a process is for.
const SCENARIO: &str = "SYS_TEST_SCENARIO";

/// Runs `scenario` alone in a new process unless this is that process: this same test binary again, with a
/// variable set. For what belongs to the whole process. `name` is the test's, with its modules.
pub(crate) fn alone(name: &str, scenario: fn()) {
    if std::env::var_os(SCENARIO).is_some_and(|v| v == name) {
        scenario();
        return;
    }
    let output = Spawn::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(SCENARIO, name)
        .output(b"", 1 << 20, SOON)
        .unwrap();
    let text = String::from_utf8_lossy(&output.text);
    assert!(
        output.status.is_success() && text.contains("1 passed"),
        "{text}"
    );
}

/// Waits until something has happened.
pub(crate) fn until(what: &str, mut has_happened: impl FnMut() -> bool) {
    let give_up = Instant::now() + SOON;
    while !has_happened() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::yield_now();
    }
}

/// Leaves a socket at which nobody listens any more.
pub(crate) fn dead_socket(path: &Path) {
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    deserted(path);
}

/// Waits until nobody has the listener of a socket open any more.
pub(crate) fn deserted(path: &Path) {
    until("the listener is closed", || {
        crate::socket::is_deserted(path).unwrap()
    });
}
