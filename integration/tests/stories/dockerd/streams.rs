//! Streams: terminals, input, logs, attached clients, events.

use std::io::{BufRead as _, BufReader};

use integration::{Docker, until};

use super::{prints, story};

#[test]
fn streams_and_events_arrive() {
    story("docker-streams", |docker, _| {
        terminals(docker);
        input(docker);
        logs(docker);
        attached(docker);
        events(docker);
    });
}

/// The client tells the size a moment after the start.
const SIZE: &str = "until test \"$(stty size 2>/dev/null)\" = \"33 77\"; do usleep 10000; done; \
                    tty; exit 3";

fn terminals(docker: &Docker) {
    let out = docker.in_terminal(33, 77, &format!("run --rm -it busybox sh -c '{SIZE}'"));
    assert_eq!(out.code, 3, "{out:?}");
    assert!(out.stdout.ends_with("/dev/pts/0\r\n"), "{out:?}");
    docker.script("-t", "tty", "exec sleep 1000");
    let out = docker.in_terminal(33, 77, &format!("exec -it tty sh -c '{SIZE}'"));
    assert_eq!(out.code, 3, "{out:?}");
    assert!(out.stdout.contains("/dev/pts/"), "{out:?}");
    prints(docker, &["rm", "-f", "tty"], "tty\n", 0);
}

fn input(docker: &Docker) {
    // More than any buffer on the way.
    let many = "0123456789abcde\n".repeat(65536);
    let piped = docker
        .program()
        .args(["run", "--rm", "-i", "busybox", "cat"]);
    let out = piped.input(many.as_bytes()).run();
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(
        out.stdout == many,
        "{} of {} bytes",
        out.stdout.len(),
        many.len()
    );
    docker.script("", "input", "exec sleep 1000");
    let piped = docker
        .program()
        .args(["exec", "-i", "input", "sh", "-c", "cat; exit 6"]);
    let out = piped.input(b"from the client\n").run();
    assert_eq!(
        (out.code, &*out.stdout),
        (6, "from the client\n"),
        "{out:?}"
    );
    prints(docker, &["rm", "-f", "input"], "input\n", 0);
}

/// Makes the file that a container waits for. If that ends, who made the file may be killed before it does.
fn go_on(docker: &Docker, name: &str, file: &str) {
    let told = docker.run(["exec", name, "touch", file]);
    assert!([0, 137].contains(&told.code), "{told:?}");
}

fn logs(docker: &Docker) {
    // It lives until it is followed: a follower that comes at its end may be told of nothing more.
    // What is said to two streams at once has no order: the second is used when the first has arrived.
    let script = "echo 1; until test -e /go; do usleep 10000; done; echo 2; echo 3; \
                  until test -e /go2; do usleep 10000; done; echo err >&2";
    docker.script("", "log", script);
    // Follows it to its end.
    let followed = std::thread::scope(|scope| {
        let follower = docker.program().args(["logs", "-f", "log"]);
        let followed = scope.spawn(|| follower.run());
        docker.until_asked("/logs?follow=1");
        go_on(docker, "log", "/go");
        until("it is in the log", || docker.ok("logs log").contains('3'));
        go_on(docker, "log", "/go2");
        followed.join().expect("join")
    });
    assert_eq!(
        (&*followed.stdout, &*followed.stderr),
        ("1\n2\n3\n", "err\n")
    );
    prints(docker, &["logs", "--tail", "1", "log"], "", 0);
    prints(docker, &["logs", "--tail", "2", "log"], "3\n", 0);
    prints(docker, &["rm", "log"], "log\n", 0);
}

/// A client that comes while it runs, and one that is there from the start.
fn attached(docker: &Docker) {
    let script = "until test -e /go; do echo tick; usleep 10000; done; echo seen; exit 8";
    docker.script("", "attached", script);
    let mut attach = docker.spawn(&["attach", "--no-stdin", "attached"]);
    let mut lines = BufReader::new(attach.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    assert_eq!(first, "tick");
    go_on(docker, "attached", "/go");
    let last = lines.last().expect("a line").expect("text");
    assert_eq!(last, "seen");
    assert_eq!(attach.wait().expect("wait").code(), Some(8));
    prints(docker, &["logs", "--tail", "1", "attached"], "seen\n", 0);
    let script = "read line; echo $line; exit 9";
    let create = [
        "create", "-i", "--name", "reads", "busybox", "sh", "-c", script,
    ];
    assert_eq!(docker.run(create).ok().trim().len(), 64);
    let start = docker.program().args(["start", "-ai", "reads"]);
    let out = start.input(b"typed\n").run();
    assert_eq!((out.code, &*out.stdout), (9, "typed\n"), "{out:?}");
    prints(docker, &["rm", "attached", "reads"], "attached\nreads\n", 0);
}

/// The stream of one container's, from before it is there to its removal.
fn events(docker: &Docker) {
    let format = "{{.Action}} {{index .Actor.Attributes \"exitCode\"}}";
    let mut watch = docker.spawn(&[
        "events",
        "--since",
        "1",
        "--filter",
        "container=told",
        "--filter",
        "type=container",
        "--format",
        format,
    ]);
    docker.script("--rm", "told", "exit 4");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "destroy") {
        let line = lines.next().expect("a line").expect("text");
        seen.push(line.trim().to_owned());
    }
    watch.kill().expect("kill");
    watch.wait().expect("wait");
    assert_eq!(seen, ["create", "start", "die 4", "destroy"]);
    until("it is gone", || docker.ok("ps -aq").is_empty());
}
