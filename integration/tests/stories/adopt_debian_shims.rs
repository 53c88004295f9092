//! Debian's daemon goes and ours comes: its shims, and the containers that they keep, are taken over.
//!
//! The records of Debian's daemon are not read: over its root nothing starts. Its state directory, which says
//! what runs, is.

use std::fs;
use std::path::Path;

use integration::{
    Host, IMAGE, Oci, Program, Watch, Whose, bin_dir, is_there, need, parent, until,
};

const TASKS: &str = "io.containerd.runtime.v2.task";

/// Ends with this code when the file is there.
fn waits(host: &Host, id: &str, file: &Path, code: i32) -> u32 {
    let dir = file.parent().expect("a directory").display();
    let mount = format!("type=bind,src={dir},dst=/gate,options=rbind:rw");
    let name = file.file_name().expect("a name").to_string_lossy();
    let script = format!("until test -e /gate/{name}; do usleep 5000; done; exit {code}");
    let flags = ["-d", "--null-io", "--mount", &mount];
    drop(host.run(&flags, id, &["sh", "-c", &script]).ok());
    host.task(id, "RUNNING").expect("running")
}

/// The task is known as stopped with this code, and goes.
fn ended_with(host: &Host, id: &str, code: i32) {
    until("it is known as stopped", || {
        host.task(id, "STOPPED").is_some()
    });
    let told = host.ctr(["tasks", "rm", id]);
    let text = format!("exit with non-zero exit code {code}");
    assert!(told.stderr.contains(&text), "{id}: {told:?}");
}

/// Our daemon over the root of Debian's: it says so, and touches nothing.
fn is_refused_over_their_root(host: &Host) {
    let daemon = Program::new(bin_dir().join("containerd"));
    let told = host.over(daemon, "config.toml").run().err();
    assert!(told.contains("belongs to another containerd"), "{told}");
    assert!(!host.address().exists(), "nobody serves");
}

#[test]
fn containers_of_debians_daemon_go_on_under_ours() {
    let mut host = Host::mixed("adopt", Oci::Runc, Whose::Debian, Whose::Debian);
    host.image();
    let gate = host.path("gate");
    fs::create_dir(&gate).expect("make the gate");
    host.sleeper("live");
    let live = host.task("live", "RUNNING").expect("running");
    let during = waits(&host, "during", &gate.join("during"), 42);
    let after = waits(&host, "after", &gate.join("after"), 7);
    // Stopped by its user, who may have a daemon that shows it so.
    drop(host.ctr(["tasks", "pause", "live"]).ok());
    drop(host.ctr(["tasks", "resume", "live"]).ok());
    let shims = [live, during, after].map(parent);
    let theirs = host.root();
    host.stop();
    is_refused_over_their_root(&host);
    for pid in [live, during, after].iter().chain(&shims) {
        assert!(is_there(*pid), "{pid} is alive");
    }
    fs::write(gate.join("during"), "").expect("open the gate");
    until("it ends with nobody there", || !is_there(during));

    host.replace(Whose::Ours);
    for (id, pid) in [("live", live), ("after", after)] {
        until("it is adopted", || host.task(id, "RUNNING") == Some(pid));
    }
    assert_eq!([live, after].map(parent), [shims[0], shims[2]]);
    ended_with(&host, "during", 42);
    // What a live one can be asked, by the shim that is not ours.
    let processes = host.ctr(["tasks", "ps", "live"]).ok();
    assert!(processes.contains(&live.to_string()), "{processes}");
    let exec = |script: &str| {
        let exec = [
            "tasks",
            "exec",
            "--exec-id",
            "e",
            "live",
            "sh",
            "-c",
            script,
        ];
        host.ctr(exec)
    };
    let told = exec("echo in; exit 5");
    assert_eq!((told.code, &*told.stdout), (5, "in\n"), "{}", told.stderr);
    drop(host.ctr(["tasks", "pause", "live"]).ok());
    assert_eq!(host.task("live", "PAUSED"), Some(live));
    drop(host.ctr(["tasks", "resume", "live"]).ok());
    // Its events come to the daemon that is there.
    let mut watch = Watch::start(&host, &need("ctr"));
    fs::write(gate.join("after"), "").expect("open the gate");
    let topics = watch.topics_until("/tasks/exit");
    assert!(!topics.is_empty());
    drop(watch);
    ended_with(&host, "after", 7);
    // A daemon of ours that dies finds them again.
    host.kill();
    host.start();
    until("it is found again", || {
        host.task("live", "RUNNING") == Some(live)
    });
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "live"]).ok());
    ended_with(&host, "live", 137);
    for id in ["live", "during", "after"] {
        drop(host.ctr(["containers", "rm", id]).ok());
    }
    for pid in [live, during, after].into_iter().chain(shims) {
        until("nothing of it is left", || !is_there(pid));
    }
    // Nor in the root that is not ours.
    let work = theirs.join(TASKS).join(host.namespace());
    let left = fs::read_dir(&work).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{}", work.display());
    // What was found is held until somebody has looked at it.
    for lease in host.ctr(["leases", "ls", "-q"]).ok().lines() {
        assert!(lease.starts_with("recovered-"), "{lease}");
        drop(host.ctr(["leases", "rm", lease]).ok());
    }
    // And what is ours works beside it.
    host.image();
    assert_eq!(host.run(&["--rm"], "new", &["true"]).code, 0, "{IMAGE}");
    host.finish();
}
