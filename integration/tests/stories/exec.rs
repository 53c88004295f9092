//! Additional processes in a task.

use integration::{Host, Oci, Program, until};

fn story(host: Host) {
    host.image();
    host.sleeper("s");
    let out = host.ctr([
        "tasks",
        "exec",
        "--exec-id",
        "e1",
        "s",
        "sh",
        "-c",
        "echo in; exit 5",
    ]);
    assert_eq!(
        (out.code, out.stdout.as_str()),
        (5, "in\n"),
        "{}",
        out.stderr
    );
    // The id is free again.
    let again = host
        .ctr([
            "tasks",
            "exec",
            "--exec-id",
            "e1",
            "s",
            "cat",
            "/etc/passwd",
        ])
        .ok();
    assert!(again.starts_with("root:x:0:0:"));
    let missing = host
        .ctr(["tasks", "exec", "--exec-id", "e2", "s", "/no/such/program"])
        .err();
    // crun writes it with a capital.
    let text = missing.to_lowercase();
    assert!(text.contains("no such file or directory"), "{missing}");
    assert_eq!(missing.trim_end().lines().count(), 1, "{missing}");
    host.remove("s");
    host.finish();
}

#[test]
fn exec_runs_and_returns_its_code_with_runc() {
    story(Host::new("exec-runc"));
}

#[test]
fn exec_runs_and_returns_its_code_with_crun() {
    story(Host::with("exec-crun", Oci::Crun));
}

#[test]
fn a_detached_exec_is_listed_and_killed_by_its_id() {
    let host = Host::new("exec-detached");
    host.image();
    host.sleeper("s");
    // The fifos of a detached exec are its user's: keep them where the test clears up.
    let fifos = host.path("fifo").to_string_lossy().into_owned();
    let exec = [
        "tasks",
        "exec",
        "-d",
        "--fifo-dir",
        &fifos,
        "--exec-id",
        "bg",
    ];
    let program = host.ctr_program().args(exec);
    drop(program.args(["s", "sleep", "999"]).run().ok());
    until("ps shows two processes", || {
        host.ctr(["tasks", "ps", "s"]).ok().lines().count() == 3
    });
    drop(
        host.ctr(["tasks", "kill", "--exec-id", "bg", "-s", "KILL", "s"])
            .ok(),
    );
    until("ps shows one process", || {
        host.ctr(["tasks", "ps", "s"]).ok().lines().count() == 2
    });
    host.remove("s");
    host.finish();
}

#[test]
fn a_background_child_does_not_delay_the_exit() {
    let host = Host::new("exec-child");
    host.image();
    host.sleeper("s");
    let out = host
        .ctr_program()
        .args([
            "tasks",
            "exec",
            "--exec-id",
            "e",
            "s",
            "sh",
            "-c",
            "sleep 998 & echo started",
        ])
        .run();
    assert_eq!(
        (out.code, out.stdout.as_str()),
        (0, "started\n"),
        "{}",
        out.stderr
    );
    host.remove("s");
    host.finish();
}

#[test]
fn exec_with_a_terminal() {
    let host = Host::new("exec-tty");
    host.image();
    host.sleeper("s");
    let line = format!(
        "{} --address {} -n {} tasks exec -t --exec-id t s sh -c 'tty; exit 4'",
        integration::bin_dir().join("ctr").display(),
        host.address().display(),
        host.namespace()
    );
    let out = Program::new("script")
        .args(["-qec", &line, "/dev/null"])
        .run();
    assert_eq!(out.code, 4, "{}", out.stdout);
    assert!(out.stdout.contains("/dev/pts/"), "{:?}", out.stdout);
    host.remove("s");
    host.finish();
}
