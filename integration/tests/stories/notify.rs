//! Under a service manager that wants to be notified: it hears of the daemon, and of nothing that the
//! daemon runs. A runtime that found the variable would wait until its container is ready.

use std::fs;
use std::time::{Duration, Instant};

use integration::{Host, until};

/// What a start takes at most; a runtime that waits for a notification waits for ever.
const START: Duration = integration::PATIENCE;

#[test]
fn what_the_daemon_runs_knows_of_no_service_manager() {
    let host = Host::notifying("notify");
    host.image();
    let begun = Instant::now();
    host.sleeper("c");
    let told = host.ctr([
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "c",
        "sh",
        "-c",
        "echo [$NOTIFY_SOCKET]",
    ]);
    assert_eq!(told.ok(), "[]\n");
    let pid = host.task("c", "RUNNING").expect("runs");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let shim = rest.split_whitespace().nth(1).expect("a parent");
    for pid in [&pid.to_string(), shim] {
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("a process");
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("NOTIFY_SOCKET"), "{environment}");
    }
    host.remove("c");
    let out = host.run(&["--rm"], "r", &["sh", "-c", "echo [$NOTIFY_SOCKET]"]);
    assert_eq!(out.ok(), "[]\n");
    assert!(begun.elapsed() < START, "{:?}", begun.elapsed());
    assert_eq!(host.notices(), ["READY=1"]);
    host.signal(1);
    let mut heard = Vec::new();
    until("a reload is told", || {
        heard.extend(host.notices());
        heard.len() >= 2
    });
    assert!(heard[0].starts_with("RELOADING=1"), "{heard:?}");
    assert_eq!(heard[1], "READY=1");
    host.finish();
}
