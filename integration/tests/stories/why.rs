//! Something takes long: `ctr why` and `ctr inflight` name what is waited for, and say afterwards what
//! took the time.

use std::process::{Child, Command, Stdio};

use integration::{Host, IMAGE, bin_dir, need, script, until};
use registry::testsuite::{Reply, Server};

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
        let pid = i32::try_from(shim)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a pid"), signal).expect("signal");
    };
    signal(rustix::process::Signal::STOP);
    let mut kill = background(&host, &["tasks", "kill", "-s", "KILL", "c"]);
    let mut told = String::new();
    until("the shim is named as stopped", || {
        told = host.ctr(["why", "c"]).stdout;
        told.contains(&format!("(pid {shim}) is stopped"))
    });
    assert!(told.contains("Tasks.Kill in flight for "), "{told}");
    signal(rustix::process::Signal::CONT);
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
