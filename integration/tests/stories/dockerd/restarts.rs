//! Restart policies and health checks.

use integration::{Docker, until};

use super::{prints, story};

#[test]
fn policies_start_again_and_checks_are_made() {
    story("docker-restarts", |docker, _| {
        always(docker);
        on_failure(docker);
        health(docker);
    });
}

fn restarts(docker: &Docker, name: &str) -> u32 {
    let count = docker.inspect(name, "{{.RestartCount}}");
    count.parse().expect("a number")
}

fn always(docker: &Docker) {
    docker.script("--restart always", "again", "echo began; exit 1");
    until("it was started again", || restarts(docker, "again") >= 2);
    until("each time it runs", || {
        docker.ok("logs again").lines().count() >= 3
    });
    prints(docker, &["stop", "again"], "again\n", 0);
    let template = "{{.State.Status}} {{.State.Restarting}}";
    assert_eq!(docker.inspect("again", template), "exited false");
    prints(docker, &["rm", "again"], "again\n", 0);
}

fn on_failure(docker: &Docker) {
    let ends = |name: &str| docker.inspect(name, "{{.State.Status}} {{.State.ExitCode}}");
    docker.script("--restart on-failure:2", "twice", "echo began; exit 3");
    until("it is given up", || {
        ends("twice") == "exited 3" && restarts(docker, "twice") == 2
    });
    prints(docker, &["logs", "twice"], "began\nbegan\nbegan\n", 0);
    docker.script("--restart on-failure:2", "once", "echo began");
    until("it has ended", || ends("once") == "exited 0");
    prints(docker, &["logs", "once"], "began\n", 0);
    prints(docker, &["rm", "twice", "once"], "twice\nonce\n", 0);
}

/// A check is an exec.
fn health(docker: &Docker) {
    let args = [
        "run",
        "-d",
        "--name",
        "checked",
        "--health-cmd",
        "test ! -e /sick",
        "--health-interval",
        "100ms",
        "--health-retries",
        "2",
        "busybox",
        "sleep",
        "1000",
    ];
    drop(docker.run(args).ok());
    let health = || docker.inspect("checked", "{{.State.Health.Status}}");
    until("it is healthy", || health() == "healthy");
    prints(docker, &["exec", "checked", "touch", "/sick"], "", 0);
    until("it is unhealthy", || health() == "unhealthy");
    prints(docker, &["exec", "checked", "rm", "/sick"], "", 0);
    until("it is healthy again", || health() == "healthy");
    prints(docker, &["rm", "-f", "checked"], "checked\n", 0);
}
