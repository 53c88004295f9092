//! Running containers with our `ctr`: output, exit codes, terminal, states, both OCI runtimes.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use integration::{Host, IMAGE, Oci, Program, until};

fn output_and_code(host: Host) {
    host.image();
    let out = host.run(
        &["--rm"],
        "hello",
        &["sh", "-c", "echo out; echo err >&2; exit 7"],
    );
    assert_eq!(
        (out.code, out.stdout.as_str()),
        (7, "out\n"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("err\n"), "{}", out.stderr);
    host.finish();
}

#[test]
fn output_and_exit_code_arrive_with_runc() {
    output_and_code(Host::new("run-runc"));
}

#[test]
fn output_and_exit_code_arrive_with_crun() {
    output_and_code(Host::with("run-crun", Oci::Crun));
}

#[test]
fn standard_input_reaches_the_process_and_ends() {
    let host = Host::new("run-stdin");
    host.image();
    let out = host
        .ctr_program()
        .args(["run", "--rm", IMAGE, "cat", "cat"])
        .input(b"from the client\n")
        .run();
    assert_eq!(
        (out.code, out.stdout.as_str()),
        (0, "from the client\n"),
        "{}",
        out.stderr
    );
    host.finish();
}

#[test]
fn large_output_arrives_whole() {
    let host = Host::new("run-large");
    host.image();
    let out = host.run(&["--rm"], "large", &["sh", "-c", "seq 1 200000; echo end"]);
    assert_eq!(out.code, 0);
    assert_eq!(out.stdout.lines().count(), 200_001);
    assert!(out.stdout.ends_with("200000\nend\n"));
    host.finish();
}

#[test]
fn a_terminal_has_a_size_and_one_stream() {
    let host = Host::new("run-tty");
    host.image();
    let ctr = integration::bin_dir().join("ctr");
    let line = format!(
        "stty rows 33 cols 77; exec {} --address {} -n {} run --rm -t {IMAGE} tty sh -c \
         'until test \"$(stty size)\" = \"33 77\"; do usleep 10000; done; tty; echo both >&2; exit 3'",
        ctr.display(),
        host.address().display(),
        host.namespace()
    );
    let out = Program::new("script")
        .args(["-qec", &line, "/dev/null"])
        .run();
    assert_eq!(out.code, 3, "{}{}", out.stdout, out.stderr);
    assert!(
        out.stdout.contains("/dev/pts/0\r\nboth\r\n"),
        "{:?}",
        out.stdout
    );
    host.finish();
}

#[test]
fn a_task_goes_through_its_states() {
    let host = Host::new("run-states");
    host.image();
    host.sleeper("s");
    let pid = host.task("s", "RUNNING").expect("running");
    drop(host.ctr(["tasks", "pause", "s"]).ok());
    assert_eq!(host.task("s", "PAUSED"), Some(pid));
    drop(host.ctr(["tasks", "resume", "s"]).ok());
    assert_eq!(host.task("s", "RUNNING"), Some(pid));
    let processes = host.ctr(["tasks", "ps", "s"]).ok();
    assert!(
        processes.lines().any(|l| l.starts_with(&pid.to_string())),
        "{processes}"
    );
    let metrics = host.ctr(["tasks", "metrics", "s"]).ok();
    // `memory.usage_in_bytes` where control groups have version 1.
    assert!(metrics.contains("memory.usage"), "{metrics}");
    let refused = host.ctr(["tasks", "rm", "s"]).err();
    assert!(
        refused.contains("cannot delete a running process"),
        "{refused}"
    );
    drop(host.ctr(["tasks", "kill", "-s", "TERM", "s"]).ok());
    // busybox's sleep is pid 1 and has no handler: TERM does nothing to it.
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "s"]).ok());
    until("it stops", || host.task("s", "STOPPED").is_some());
    let told = host.ctr(["tasks", "rm", "s"]);
    assert!(
        told.stderr.contains("exit with non-zero exit code 137"),
        "{}",
        told.stderr
    );
    drop(host.ctr(["containers", "rm", "s"]).ok());
    host.finish();
}

#[test]
fn a_vanished_reader_does_not_harm_the_process() {
    let host = Host::new("run-reader");
    host.image();
    // The client is killed while the container writes; the container goes on.
    let mut client = Command::new(integration::bin_dir().join("ctr"))
        .arg("--address")
        .arg(host.address())
        .args(["-n", host.namespace(), "run", "--fifo-dir"])
        .arg(host.path("fifo"))
        .args([IMAGE, "w", "sh", "-c"])
        .arg("while echo line; do :; done; exit 9")
        .stdout(Stdio::piped())
        .spawn()
        .expect("start ctr run");
    let mut line = String::new();
    let mut reader = BufReader::new(client.stdout.take().expect("piped"));
    reader.read_line(&mut line).expect("read");
    assert_eq!(line, "line\n");
    client.kill().expect("kill");
    client.wait().expect("wait");
    drop(reader);
    let pid = host.task("w", "RUNNING").expect("running");
    // Its pipe fills up and it blocks: alive, neither SIGPIPE nor an error.
    until("it waits for a reader", || {
        let stack = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        stack.contains("pipe")
    });
    assert_eq!(host.task("w", "RUNNING"), Some(pid));
    host.remove("w");
    host.finish();
}

#[test]
fn the_runtime_of_a_namespace_is_that_of_its_containers_unless_one_is_named() {
    let host = Host::new("run-runtime");
    host.image();
    let label = "containerd.io/defaults/runtime=io.containerd.none.v1";
    drop(
        host.ctr(["namespaces", "label", host.namespace(), label])
            .ok(),
    );
    let told = host.ctr(["run", "--rm", IMAGE, "one", "true"]);
    assert_ne!(told.code, 0);
    assert!(
        told.stderr.contains("io.containerd.none.v1"),
        "{}",
        told.stderr
    );
    drop(host.ctr(["containers", "rm", "one"]));
    let runtime = ["run", "--rm", "--runtime", "io.containerd.runc.v2"];
    let named = [&runtime[..], &[IMAGE, "two", "true"]].concat();
    drop(host.ctr(named).ok());
    host.finish();
}

#[test]
fn a_task_whose_container_has_no_record_any_more_can_be_killed_and_removed() {
    let host = Host::new("run-recordless");
    host.image();
    host.sleeper("c");
    let address = host.address().display().to_string();
    let namespace = host.namespace().parse().expect("a namespace");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    // What a client does whose call to create the task was lost.
    runtime.expect("a runtime").block_on(async {
        let client = client::Client::connect(&address, namespace, Duration::from_secs(20)).await;
        let containers = client.expect("connect").containers();
        let deleted = containers.delete(&"c".parse().expect("an id")).await;
        deleted.expect("delete the record");
    });
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "c"]).ok());
    until("the task stops", || host.task("c", "STOPPED").is_some());
    drop(host.ctr(["tasks", "rm", "c"]).ok());
    // Of what is not there at all, it is the container that is missed.
    for words in [["kill", "c"], ["rm", "c"]] {
        let told = host.ctr(["tasks"].into_iter().chain(words)).err();
        assert!(told.contains("container \"c\""), "{told}");
    }
    host.finish();
}
