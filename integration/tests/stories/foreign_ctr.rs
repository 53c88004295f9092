//! Debian's `ctr` 1.6.20, unchanged, against our daemon: the whole list of what users do with it.

use integration::{Host, IMAGE, Program, Registry, Watch, archive, need, until};

#[test]
fn images_content_and_snapshots() {
    let host = Host::new("go-images");
    let version = host.go_ctr(["version"]).ok();
    assert!(
        version.contains("Server:") && version.contains("UUID:"),
        "{version}"
    );
    drop(
        host.go_ctr(["images", "import", &archive().to_string_lossy()])
            .ok(),
    );
    let registry = Registry::start();
    let reference = registry.reference();
    drop(
        host.go_ctr(["images", "pull", "--plain-http", &reference])
            .ok(),
    );
    let table = host.go_ctr(["images", "ls"]).ok();
    assert!(
        table.contains(IMAGE) && table.contains(&reference),
        "{table}"
    );
    let check = host.go_ctr(["images", "check"]).ok();
    assert!(check.contains("complete (2/2)"), "{check}");
    let snapshots = host.go_ctr(["snapshots", "ls"]).ok();
    assert!(snapshots.contains("Committed"), "{snapshots}");
    assert!(host.go_ctr(["snapshots", "tree"]).ok().contains("sha256:"));
    let digest = table
        .lines()
        .find(|l| l.starts_with(IMAGE))
        .and_then(|l| l.split_whitespace().nth(2))
        .expect("digest");
    assert!(host.go_ctr(["content", "ls"]).ok().contains(digest));
    assert!(
        host.go_ctr(["content", "get", digest])
            .ok()
            .contains("schemaVersion")
    );
    assert!(
        host.go_ctr(["namespaces", "ls"])
            .ok()
            .contains(host.namespace())
    );
    drop(host.go_ctr(["leases", "create", "--id", "x"]).ok());
    assert!(host.go_ctr(["leases", "ls"]).ok().contains('x'));
    drop(host.go_ctr(["leases", "delete", "x"]).ok());
    assert!(host.go_ctr(["plugins", "ls"]).ok().contains("overlayfs"));
    let export = host.path("export.tar");
    drop(
        host.go_ctr(["images", "export", &export.to_string_lossy(), IMAGE])
            .ok(),
    );
    drop(host.go_ctr(["images", "rm", IMAGE, &reference]).ok());
    drop(
        host.go_ctr(["images", "import", &export.to_string_lossy()])
            .ok(),
    );
    host.finish();
}

#[test]
fn run_and_tasks() {
    let host = Host::new("go-run");
    drop(
        host.go_ctr(["images", "import", &archive().to_string_lossy()])
            .ok(),
    );
    let out = host.go_ctr([
        "run",
        "--rm",
        IMAGE,
        "r",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(
        (out.code, out.stdout.as_str()),
        (7, "out\n"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("err"), "{}", out.stderr);
    drop(
        host.go_ctr(["run", "-d", "--null-io", IMAGE, "d", "sleep", "1000"])
            .ok(),
    );
    let list = host.go_ctr(["tasks", "ls"]).ok();
    assert!(
        list.lines()
            .any(|l| l.starts_with('d') && l.contains("RUNNING")),
        "{list}"
    );
    let exec = host.go_ctr([
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "d",
        "sh",
        "-c",
        "echo in; exit 5",
    ]);
    assert_eq!(
        (exec.code, exec.stdout.as_str()),
        (5, "in\n"),
        "{}",
        exec.stderr
    );
    drop(host.go_ctr(["tasks", "pause", "d"]).ok());
    assert!(host.go_ctr(["tasks", "ls"]).ok().contains("PAUSED"));
    drop(host.go_ctr(["tasks", "resume", "d"]).ok());
    assert_eq!(host.go_ctr(["tasks", "ps", "d"]).ok().lines().count(), 2);
    // `memory.usage_in_bytes` where control groups have version 1.
    let metrics = host.go_ctr(["tasks", "metrics", "d"]).ok();
    assert!(metrics.contains("memory.usage"), "{metrics}");
    let containers = host.go_ctr(["containers", "ls"]).ok();
    assert!(containers.contains("io.containerd.runc.v2"), "{containers}");
    assert!(
        host.go_ctr(["containers", "info", "d"])
            .ok()
            .contains("\"SnapshotKey\": \"d\"")
    );
    drop(host.go_ctr(["tasks", "kill", "-s", "KILL", "d"]).ok());
    until("it stops", || {
        host.go_ctr(["tasks", "ls"]).ok().contains("STOPPED")
    });
    drop(host.go_ctr(["tasks", "rm", "d"]));
    drop(host.go_ctr(["containers", "rm", "d"]).ok());
    host.finish();
}

#[test]
fn a_terminal() {
    let host = Host::new("go-tty");
    drop(
        host.go_ctr(["images", "import", &archive().to_string_lossy()])
            .ok(),
    );
    let line = format!(
        "{} --address {} -n {} run --rm -t {IMAGE} tty sh -c 'tty; exit 3'",
        need("ctr").display(),
        host.address().display(),
        host.namespace()
    );
    let out = Program::new("script")
        .args(["-qec", &line, "/dev/null"])
        .run();
    assert_eq!(out.code, 3, "{}{}", out.stdout, out.stderr);
    assert!(out.stdout.contains("/dev/pts/0"), "{:?}", out.stdout);
    host.finish();
}

#[test]
fn events() {
    let host = Host::new("go-events");
    drop(
        host.go_ctr(["images", "import", &archive().to_string_lossy()])
            .ok(),
    );
    let mut events = Watch::start(&host, &need("ctr"));
    drop(host.go_ctr(["run", "--rm", IMAGE, "e", "true"]).ok());
    let topics = events.topics_until("/containers/delete");
    let tasks: Vec<_> = topics.iter().filter(|t| t.starts_with("/tasks/")).collect();
    let life = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(tasks, life);
    for want in ["/containers/create", "/snapshot/prepare"] {
        assert!(topics.iter().any(|t| t == want), "{want} in {topics:?}");
    }
    drop(events);
    host.finish();
}
