//! A start that is refused leaves every container as it is, whatever the reason; a good one finds them.

use std::fs;
use std::path::Path;

use integration::{Host, Output, Program, bin_dir, is_there, parent, until};

/// Exit codes, as `containerd --help` tells them.
const CANNOT_CREATE: i32 = 73;
const CONFIG: i32 = 78;

/// The daemon over the host's files with this configuration, after `prepare` in a mount namespace of its own.
fn daemon(host: &Host, config: &str, prepare: &str) -> Output {
    fs::write(host.path("other.toml"), config).expect("write");
    let daemon = Program::new("unshare")
        .args(["-m", "sh", "-c"])
        .args([format!("{prepare}; exec \"$0\" \"$@\"")])
        .args([bin_dir().join("containerd")])
        .args(["-l", "error"]);
    host.over(daemon, "other.toml").run()
}

/// Makes the directory read-only, for the daemon that is about to start.
fn read_only(directory: &Path) -> String {
    let at = directory.display();
    format!("set -e; mount --bind {at} {at}; mount -o remount,bind,ro {at}")
}

#[test]
fn a_refused_start_touches_no_container_and_a_good_one_adopts_them() {
    let mut host = Host::new("config-refused");
    host.image();
    host.sleeper("c");
    let pid = host.task("c", "RUNNING").expect("running");
    let shim = parent(pid);
    host.stop();
    let long = "x".repeat(120);
    let task = "[plugins.'io.containerd.runtime.v2.task']\n";
    let (root, state) = (read_only(&host.root()), read_only(&host.state()));
    for (config, prepare, code, part) in [
        (
            "version = 3\nroot = '/x\n".to_owned(),
            ":",
            CONFIG,
            "other.toml: line 2: ",
        ),
        (
            "version = 3\noom_score = 'x'\n".to_owned(),
            ":",
            CONFIG,
            "line 2: oom_score: ",
        ),
        (
            "version = 9\n".to_owned(),
            ":",
            CONFIG,
            "line 1: unsupported config version 9",
        ),
        (
            format!("version = 3\n[debug]\naddress = '/{long}'\n"),
            ":",
            CONFIG,
            "line 3: debug address",
        ),
        (
            format!("version = 3\n{task}platforms = ['a/b/c/d/e']\n"),
            ":",
            CONFIG,
            "line 3: plugin \"io.containerd.runtime.v2.task\": platforms",
        ),
        (
            "version = 3\nrequired_plugins = ['io.containerd.grpc.v1.cri']\n".to_owned(),
            ":",
            1,
            "required plugin",
        ),
        (
            "version = 3\n".to_owned(),
            &root,
            CANNOT_CREATE,
            "read-only file system",
        ),
        (
            "version = 3\n".to_owned(),
            &state,
            CANNOT_CREATE,
            "read-only file system",
        ),
    ] {
        let refused = daemon(&host, &config, prepare);
        let told = &refused.stderr;
        assert_eq!(refused.code, code, "{config}: {told}");
        assert!(told.contains(part), "{part}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(!host.address().exists(), "nobody serves");
        assert!(is_there(pid) && is_there(shim), "{config}");
        assert_eq!(parent(pid), shim);
    }
    host.start();
    until("it is adopted", || host.task("c", "RUNNING") == Some(pid));
    let exec = ["tasks", "exec", "--exec-id", "e", "c", "echo", "here"];
    assert_eq!(host.ctr(exec).ok(), "here\n");
    host.remove("c");
    host.finish();
}
