//! Debian's containerd 1.6.20 and its client, with our shim: everything that users do, and the death
//! of that daemon in the middle. The list serves its counterpart too.

use std::fs;
use std::path::{Path, PathBuf};

use integration::{Host, IMAGE, Oci, Watch, Whose, bin_dir, need, parent, until};

#[test]
fn the_whole_list_with_runc() {
    let host = Host::mixed("our-shim", Oci::Runc, Whose::Debian, Whose::Ours);
    whole_list(host, Whose::Ours);
}

#[test]
fn the_whole_list_with_crun() {
    let host = Host::mixed("our-shim-crun", Oci::Crun, Whose::Debian, Whose::Ours);
    whole_list(host, Whose::Ours);
}

/// Runs everything on `host`, whose shims are to be of this origin.
pub(crate) fn whole_list(mut host: Host, shim: Whose) {
    host.image();
    output_and_codes(&host);
    terminals(&host);
    let sockets = live_containers(&host, shim);
    states(&host);
    events(&host);
    restart(&mut host);
    events(&host);
    for id in ["live", "tty"] {
        host.remove(id);
    }
    for socket in sockets {
        until("the shim's socket is gone", || !socket.exists());
    }
    host.finish();
}

fn output_and_codes(host: &Host) {
    let script = "echo out; echo err >&2; exit 7";
    let out = host.run(&["--rm"], "rm", &["sh", "-c", script]);
    assert_eq!((out.code, &*out.stdout), (7, "out\n"), "{}", out.stderr);
    assert!(out.stderr.contains("err"), "{}", out.stderr);
    // Debian's client tells the end of its input only when that comes late (also with Debian's own
    // shim): one line, then.
    let input = host
        .ctr_program()
        .args(["run"])
        .args(host.runtime_flags())
        .args(["--rm", IMAGE, "in", "head", "-n", "1"])
        .input(b"from the client\n")
        .run();
    assert_eq!((input.code, &*input.stdout), (0, "from the client\n"));
    let large = host.run(&["--rm"], "large", &["seq", "1", "100000"]);
    assert_eq!((large.code, large.stdout.lines().count()), (0, 100_000));
    let failed = host.run(&["--rm"], "none", &["/no/such/command"]);
    assert!(failed.err().contains("/no/such/command"));
}

fn terminals(host: &Host) {
    let flags = host.runtime_flags().join(" ");
    let script = "until test \"$(stty size)\" = \"33 77\"; do usleep 10000; done; tty; exit 3";
    let args = format!("run {flags} --rm -t {IMAGE} t sh -c '{script}'");
    let out = host.ctr_in_terminal("stty rows 33 cols 77;", &args);
    assert_eq!(out.code, 3, "{}{}", out.stdout, out.stderr);
    assert!(out.stdout.contains("/dev/pts/0\r"), "{:?}", out.stdout);
}

/// Two containers that stay, one of them with a terminal; the sockets of their shims.
fn live_containers(host: &Host, shim: Whose) -> Vec<PathBuf> {
    host.sleeper("live");
    let args = format!(
        "run {} -d -t {IMAGE} tty sleep 1000",
        host.runtime_flags().join(" ")
    );
    let out = host.ctr_in_terminal("", &args);
    assert_eq!(out.code, 0, "{}", out.stdout);
    let pid = host.task("live", "RUNNING").expect("running");
    let binary = fs::read_link(format!("/proc/{}/exe", parent(pid))).expect("the shim");
    let want = match shim {
        Whose::Ours => bin_dir().join("containerd-shim-runc-v2"),
        Whose::Debian => need("containerd-shim-runc-v2"),
    };
    assert_eq!(binary, want);
    ["live", "tty"].map(|id| shim_socket(host, id)).into()
}

fn shim_socket(host: &Host, id: &str) -> PathBuf {
    let tasks = host.state().join("io.containerd.runtime.v2.task");
    let file = tasks.join(host.namespace()).join(id).join("address");
    let address = fs::read_to_string(file).expect("an address");
    let path = PathBuf::from(address.trim_start_matches("unix://"));
    assert!(path.exists(), "{}", path.display());
    path
}

fn exec(host: &Host, id: &str, script: &str) -> integration::Output {
    let exec = ["tasks", "exec", "--exec-id", "e", id, "sh", "-c", script];
    host.ctr(exec)
}

fn states(host: &Host) {
    let pid = host.task("live", "RUNNING").expect("running");
    for code in [5, 0] {
        let out = exec(host, "live", &format!("echo in; exit {code}"));
        assert_eq!((out.code, &*out.stdout), (code, "in\n"), "{}", out.stderr);
    }
    let args = "tasks exec -t --exec-id t live sh -c 'tty; exit 4'";
    let out = host.ctr_in_terminal("", args);
    assert_eq!(out.code, 4, "{}", out.stdout);
    assert!(out.stdout.contains("/dev/pts/"), "{:?}", out.stdout);
    drop(host.ctr(["tasks", "pause", "live"]).ok());
    assert_eq!(host.task("live", "PAUSED"), Some(pid));
    drop(host.ctr(["tasks", "resume", "live"]).ok());
    assert_eq!(host.task("live", "RUNNING"), Some(pid));
    let processes = host.ctr(["tasks", "ps", "live"]).ok();
    let listed = processes.lines().any(|l| l.starts_with(&pid.to_string()));
    assert!(listed, "{processes}");
    let metrics = host.ctr(["tasks", "metrics", "live"]).ok();
    // `memory.usage_in_bytes` where control groups have version 1.
    assert!(metrics.contains("memory.usage"), "{metrics}");
    // A handler of its own, then the signal that nothing handles.
    let script = "trap 'exit 9' TERM; while :; do usleep 10000; done";
    let flags = ["-d", "--null-io"];
    drop(host.run(&flags, "term", &["sh", "-c", script]).ok());
    let pid = host.task("term", "RUNNING").expect("running");
    until("it handles the signal", || handles_term(pid));
    drop(host.ctr(["tasks", "kill", "-s", "TERM", "term"]).ok());
    ended_with(host, "term", 9);
}

/// True when the process has a handler for SIGTERM, the 15th bit.
fn handles_term(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    let mask = u64::from_str_radix(caught.expect("a mask").trim(), 16).expect("hexadecimal");
    mask & (1 << 14) != 0
}

/// The task is known as stopped with this code; task and container are removed.
fn ended_with(host: &Host, id: &str, code: i32) {
    until("it is known as stopped", || {
        host.task(id, "STOPPED").is_some()
    });
    let told = host.ctr(["tasks", "rm", id]);
    let text = format!("exit with non-zero exit code {code}");
    assert!(told.stderr.contains(&text), "{id}: {told:?}");
    drop(host.ctr(["containers", "rm", id]).ok());
}

fn events(host: &Host) {
    let mut watch = Watch::start(host, &need("ctr"));
    drop(host.run(&["--rm"], "ev", &["true"]).ok());
    let topics = watch.topics_until("/containers/delete");
    let tasks: Vec<_> = topics
        .iter()
        .filter_map(|t| t.strip_prefix("/tasks/"))
        .collect();
    assert_eq!(tasks, ["create", "start", "exit", "delete"]);
}

/// The daemon is killed with live containers, and with one that ends meanwhile.
fn restart(host: &mut Host) {
    let gate = host.path("gate");
    fs::create_dir(&gate).expect("make the gate");
    let mount = format!(
        "type=bind,src={},dst=/gate,options=rbind:rw",
        gate.display()
    );
    let script = "until test -e /gate/open; do usleep 5000; done; exit 42";
    let flags = ["-d", "--null-io", "--mount", &mount];
    drop(host.run(&flags, "ends", &["sh", "-c", script]).ok());
    let live = ["live", "tty"].map(|id| host.task(id, "RUNNING").expect("running"));
    let ends = host.task("ends", "RUNNING").expect("running");
    host.kill();
    fs::write(gate.join("open"), "").expect("open the gate");
    let process = format!("/proc/{ends}");
    until("it ends", || !Path::new(&process).exists());
    host.start();
    for (id, pid) in ["live", "tty"].iter().zip(live) {
        until("it is known again", || {
            host.task(id, "RUNNING") == Some(pid)
        });
    }
    ended_with(host, "ends", 42);
    let out = exec(host, "live", "echo still here; exit 6");
    assert_eq!(
        (out.code, &*out.stdout),
        (6, "still here\n"),
        "{}",
        out.stderr
    );
    let tty = host.ctr_in_terminal("", "tasks exec -t --exec-id t tty sh -c 'tty; exit 8'");
    assert_eq!(tty.code, 8, "{}", tty.stdout);
}
