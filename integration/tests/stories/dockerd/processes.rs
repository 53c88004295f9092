//! Processes: codes, signals, states, execs, and what is told of them.

use integration::{Docker, until};

use super::{prints, runs, story};

#[test]
fn containers_run_are_asked_and_end() {
    story("docker-processes", |docker, _| {
        codes(docker);
        execs(docker);
        states(docker);
        signals(docker);
        names(docker);
    });
}

fn codes(docker: &Docker) {
    runs(docker, "", "echo hello; exit 3", "hello\n", 3);
    runs(
        docker,
        "--user 1000:1001",
        "id -u; id -g",
        "1000\n1001\n",
        0,
    );
    runs(
        docker,
        "--init",
        "cat /proc/1/comm; exit 4",
        "docker-init\n",
        4,
    );
    runs(docker, "-e A=b -w /tmp", "echo $A $PWD", "b /tmp\n", 0);
    runs(docker, "--hostname here", "hostname", "here\n", 0);
    runs(docker, "--init", "kill -9 $$", "", 137);
    let none = docker.run(["run", "--name", "none", "busybox", "/no/such"]);
    assert_eq!(none.code, 127, "{none:?}");
    assert!(none.stderr.contains("/no/such"), "{none:?}");
    prints(docker, &["rm", "none"], "none\n", 0);
}

fn execs(docker: &Docker) {
    docker.script("", "live", "exec sleep 1000");
    prints(docker, &["exec", "live", "echo", "in"], "in\n", 0);
    prints(docker, &["exec", "live", "sh", "-c", "exit 7"], "", 7);
    let as_user = [
        "exec",
        "-u",
        "1000",
        "-e",
        "A=b",
        "live",
        "sh",
        "-c",
        "id -u; echo $A",
    ];
    prints(docker, &as_user, "1000\nb\n", 0);
    let none = docker.run(["exec", "live", "/no/such"]);
    assert!([126, 127].contains(&none.code), "{none:?}");
    // It goes on without a client.
    prints(
        docker,
        &["exec", "-d", "live", "sh", "-c", "echo done >/told"],
        "",
        0,
    );
    until("the exec has run", || {
        docker.run(["exec", "live", "cat", "/told"]).stdout == "done\n"
    });
    let top = docker.ok("top live");
    let processes: Vec<_> = top.lines().skip(1).collect();
    let is_sleep = |line: &&str| line.ends_with("sleep 1000");
    assert!(
        processes.len() == 1 && processes.iter().all(is_sleep),
        "{top}"
    );
    prints(docker, &["rm", "-f", "live"], "live\n", 0);
}

fn states(docker: &Docker) {
    docker.script("", "state", "exec sleep 1000");
    let status = || docker.inspect("state", "{{.State.Status}}");
    assert_eq!(status(), "running");
    prints(docker, &["pause", "state"], "state\n", 0);
    assert_eq!(status(), "paused");
    let refused = docker.run(["exec", "state", "true"]).err();
    assert!(refused.contains("is paused"), "{refused}");
    prints(docker, &["unpause", "state"], "state\n", 0);
    assert_eq!(status(), "running");
    let before = docker.pid("state");
    prints(docker, &["restart", "-t", "0", "state"], "state\n", 0);
    assert_ne!(docker.pid("state"), before);
    prints(docker, &["stop", "-t", "0", "state"], "state\n", 0);
    assert_eq!(
        docker.inspect("state", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 137"
    );
    prints(docker, &["start", "state"], "state\n", 0);
    assert_eq!(status(), "running");
    prints(docker, &["rm", "-f", "state"], "state\n", 0);
    let gone = docker.run(["inspect", "state"]).err();
    assert!(gone.contains("No such object: state"), "{gone}");
}

fn signals(docker: &Docker) {
    let script = "trap 'echo got; exit 9' USR1; trap 'exit 5' TERM; echo ready; \
                  while :; do usleep 10000; done";
    for (name, args, code) in [
        ("killed", ["kill", "-s", "USR1", "killed"], "9"),
        ("stopped", ["stop", "-t", "50", "stopped"], "5"),
        ("hard", ["kill", "-s", "KILL", "hard"], "137"),
    ] {
        docker.script("", name, script);
        until("it handles signals", || {
            docker.ok(&format!("logs {name}")) == "ready\n"
        });
        std::thread::scope(|scope| {
            // Asked before and after the end.
            let waits = scope.spawn(|| docker.ok(&format!("wait {name}")));
            docker.until_asked(&format!("/containers/{name}/wait"));
            prints(docker, &args, &format!("{name}\n"), 0);
            assert_eq!(waits.join().expect("wait").trim(), code);
        });
        prints(docker, &["wait", name], &format!("{code}\n"), 0);
    }
    prints(docker, &["logs", "killed"], "ready\ngot\n", 0);
    let all = ["rm", "killed", "stopped", "hard"];
    prints(docker, &all, "killed\nstopped\nhard\n", 0);
}

fn names(docker: &Docker) {
    docker.script("--label kept=yes", "old", "exec sleep 1000");
    prints(docker, &["rename", "old", "new"], "", 0);
    let list = ["ps", "--filter", "label=kept=yes", "--format", "{{.Names}}"];
    prints(docker, &list, "new\n", 0);
    let twice = docker.run(["run", "--name", "new", "busybox", "true"]);
    assert_eq!(twice.code, 125, "{twice:?}");
    let refused = docker.run(["rm", "new"]).err();
    assert!(
        refused.contains("cannot remove a running container"),
        "{refused}"
    );
    prints(docker, &["rm", "-f", "new"], "new\n", 0);
}
