//! Something takes long: `ctr why` and `ctr inflight` name what is waited for, and say afterwards what
//! took the time.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use integration::{Host, IMAGE, Whose, bin_dir, need, script, until};
use registry::testsuite::{Reply, Server};
use rustix::process::{Pid, Signal, kill_process};

const SIGHUP: i32 = 1;

/// A `ctr` that is not waited for.
fn background(host: &Host, args: &[&str]) -> Child {
    Command::new(bin_dir().join("ctr"))
        .arg("--address")
        .arg(host.address())
        .args(["-n", host.namespace()])
        .args(args)
        .env("DOCKER_CONFIG", host.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start ctr")
}

/// A runtime that stops in each `create` until the file `go` is there.
fn waiting_runtime(host: &Host) -> String {
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *' create '*) until test -e {}; do sleep 0.02; done ;; esac\n\
         exec {} \"$@\"\n",
        host.path("go").display(),
        need("runc").display()
    );
    script(&host.path("waiting-runtime"), &text)
}

#[test]
fn a_runtime_that_hangs_in_a_create_is_named() {
    let host = Host::new("why-runtime");
    host.image();
    let runtime = waiting_runtime(&host);
    let flags = ["run", "-d", "--null-io", "--runc-binary", &runtime];
    let mut run = background(
        &host,
        &[&flags[..], &[IMAGE, "c", "sleep", "1000"]].concat(),
    );
    let mut told = String::new();
    until("the runtime is named", || {
        told = host.ctr(["why", "c"]).stdout;
        told.contains(&runtime)
    });
    let lines: Vec<_> = told.lines().collect();
    assert!(lines[0].contains("Tasks.Create in flight for "), "{told}");
    let waits = lines.iter().position(|l| l.contains("WAITS, for"));
    let waits = waits.expect("something that is waited for");
    assert!(lines[waits].contains("Create: pid "), "{told}");
    assert!(
        lines[waits + 1].contains("containerd-shim-runc-v2"),
        "{told}"
    );
    for done in ["bundle", "start of shim"] {
        assert!(told.contains(done), "{done}: {told}");
    }
    let all = host.ctr(["inflight"]).ok();
    let line = all.lines().find(|line| line.contains("Tasks.Create"));
    let line = line.expect("the call is in flight");
    for word in [host.namespace(), " c ", "Create: pid "] {
        assert!(line.contains(word), "{all}");
    }
    std::fs::write(host.path("go"), "").expect("let it go");
    assert!(run.wait().expect("wait").success());
    let told = host.ctr(["why", "c"]).ok();
    assert!(!told.contains("in flight"), "{told}");
    for part in ["Tasks.Create took ", "Tasks.Start took ", "Create: pid "] {
        assert!(told.contains(part), "{part}: {told}");
    }
    host.remove("c");
    let told = host.ctr(["why", "c"]).ok();
    assert!(told.contains("Tasks.Delete took "), "{told}");
    assert_eq!(host.ctr(["why", "nobody"]).code, 1);
    host.finish();
}

#[test]
fn a_shim_that_is_stopped_is_named() {
    let host = Host::new("why-shim");
    host.image();
    host.sleeper("c");
    let init = host.task("c", "RUNNING").expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).expect("read /proc");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let shim: u32 = parent.expect("a parent").trim().parse().expect("a pid");
    let signal = |signal| {
        let pid = i32::try_from(shim).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a pid"), signal).expect("signal");
    };
    signal(Signal::STOP);
    let mut kill = background(&host, &["tasks", "kill", "-s", "KILL", "c"]);
    let mut told = String::new();
    until("the shim is named as stopped", || {
        told = host.ctr(["why", "c"]).stdout;
        told.contains(&format!("(pid {shim}) is stopped"))
    });
    assert!(told.contains("Tasks.Kill in flight for "), "{told}");
    signal(Signal::CONT);
    assert!(kill.wait().expect("wait").success());
    host.remove("c");
    host.finish();
}

#[test]
fn a_registry_that_does_not_answer_is_named() {
    let host = Host::new("why-registry");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let server = runtime.block_on(Server::start(|_| Reply::status(0)));
    let reference = format!("{}/r:latest", server.host());
    let pull = ["images", "pull", "--plain-http", &reference];
    let mut pull = background(&host, &pull);
    let mut told = String::new();
    until("the registry is named", || {
        told = host.ctr(["inflight"]).ok();
        told.contains("answer of registry: ")
    });
    let line = told.lines().find(|line| line.contains("Transfer.Transfer"));
    let line = line.expect("the pull is in flight");
    let waits = format!("http://{}/v2/", server.host());
    for word in [host.namespace(), &reference, &waits] {
        assert!(line.contains(word), "{word}: {told}");
    }
    pull.kill().expect("kill");
    pull.wait().expect("wait");
    until("the pull ends with its client", || {
        !host.ctr(["inflight"]).ok().contains(&reference)
    });
    let told = host.ctr(["why", &reference]).ok();
    assert!(told.contains("Transfer.Transfer failed after "), "{told}");
    // A client that is killed leaves its lease, to end by itself.
    for lease in host.ctr(["leases", "ls", "-q"]).ok().lines() {
        drop(host.ctr(["leases", "rm", lease]).ok());
    }
    host.finish();
}

/// What the debug socket counts.
fn metrics(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        .expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn shim_of(host: &Host, id: &str) -> Pid {
    let init = host.task(id, "RUNNING").expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).expect("read /proc");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let shim = parent.expect("a parent").trim().parse().expect("a pid");
    Pid::from_raw(shim).expect("a pid")
}

#[test]
fn a_silent_shim_is_named_and_counted_until_it_answers() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("debug.sock");
    let section = format!("[debug]\naddress = \"{}\"\n", socket.display());
    let mut host = Host::configured("why-silent", Whose::Ours, &section);
    host.image();
    host.sleeper("mute");
    host.sleeper("other");
    let shim = shim_of(&host, "mute");
    let signal = |signal| kill_process(shim, signal).expect("signal");
    let named = format!(
        "containerd_task_silent{{namespace=\"{}\",container=\"mute\"}} 1\n",
        host.namespace()
    );
    let silent = |host: &Host, want: usize| {
        let counted = metrics(&socket);
        let all = host.ctr(["inflight"]).ok();
        let mut lines = all.lines().filter(|line| line.contains("silent shim"));
        let is_told = lines.all(|line| line.contains(" mute "))
            && (all.contains("silent shim") == (want > 0));
        is_told
            && counted.contains(&format!("\ncontainerd_tasks_silent {want}\n"))
            && counted.contains(&named) == (want > 0)
            && !counted.contains("container=\"other\"")
    };
    assert!(silent(&host, 0));
    // The kernel hangs up on a stopped process whose parent ends, and continues it: it goes on all the same.
    let init = host.task("mute", "RUNNING");
    signal(Signal::STOP);
    host.kill();
    host.start();
    until("it is adopted", || {
        let is_asked = host.ctr(["tasks", "ps", "mute"]).code == 0;
        is_asked && host.task("mute", "RUNNING") == init
    });
    // Over a restart: it has yet to answer the new daemon.
    signal(Signal::STOP);
    host.kill();
    host.start();
    until("it is named and counted", || silent(&host, 1));
    let told = host.ctr(["why", "mute"]).ok();
    assert!(told.contains("silent shim in flight for "), "{told}");
    assert!(
        told.contains("answer of shim: ") && told.contains("WAITS, for"),
        "{told}"
    );
    assert!(!host.ctr(["why", "other"]).stdout.contains("silent shim"));
    signal(Signal::CONT);
    until("it is so no more", || silent(&host, 0));
    assert!(host.ctr(["why", "mute"]).ok().contains("silent shim took "));
    // In the middle of its life, as soon as it does not answer somebody.
    signal(Signal::STOP);
    drop(host.ctr(["tasks", "metrics", "mute"]).err());
    until("it is named again", || silent(&host, 1));
    let stopped = format!("(pid {}) is stopped", shim.as_raw_nonzero());
    assert!(host.ctr(["why", "mute"]).ok().contains(&stopped));
    signal(Signal::CONT);
    until("it answers", || silent(&host, 0));
    for id in ["mute", "other"] {
        host.remove(id);
    }
    host.finish();
}

#[test]
fn who_waits_for_a_turn_is_told_so() {
    let section = |most: usize| {
        format!("[plugins.\"io.containerd.runtime.v2.task\"]\nmax_concurrent_starts = {most}\n")
    };
    let host = Host::configured("why-turns", Whose::Ours, &section(1));
    host.image();
    host.sleeper("there");
    let runtime = waiting_runtime(&host);
    let flags = ["run", "-d", "--null-io", "--runc-binary", &runtime];
    let run = |id| background(&host, &[&flags[..], &[IMAGE, id, "sleep", "1000"]].concat());
    let mut first = run("first");
    until("the first has its turn", || {
        host.ctr(["why", "first"]).stdout.contains("Create: pid ")
    });
    let mut second = run("second");
    let exec = ["tasks", "exec", "--exec-id", "e", "there", "true"];
    let mut third = background(&host, &exec);
    let turns = "turn among creates and starts of execs: 1 are at work";
    // Each for itself: who hangs does not keep its turn for long.
    for (id, what) in [(" second ", "Tasks.Create"), (" there ", "Tasks.Start")] {
        until("the others wait", || {
            let all = host.ctr(["inflight"]).ok();
            let mut lines = all.lines();
            lines.any(|line| line.contains(id) && line.contains(what) && line.contains(turns))
        });
    }
    // More of them: without a restart.
    let config = format!("version = 2\n{}", section(3));
    std::fs::write(host.path("config.toml"), config).expect("write");
    host.signal(SIGHUP);
    let is_told = || host.log().contains("max_concurrent_starts");
    until("the new bound is told", is_told);
    assert!(third.wait().expect("wait").success());
    until("the second has a turn", || {
        host.ctr(["why", "second"]).stdout.contains("Create: pid ")
    });
    std::fs::write(host.path("go"), "").expect("let them go");
    for run in [&mut first, &mut second] {
        assert!(run.wait().expect("wait").success());
    }
    for id in ["first", "second", "there"] {
        host.remove(id);
    }
    host.finish();
}
