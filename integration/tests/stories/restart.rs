//! The daemon dies and comes back; containers do not notice, and no exit is lost.

use integration::{Host, Oci, parent, until};

fn twenty(mut host: Host) {
    host.image();
    let ids: Vec<String> = (0..18).map(|n| format!("live{n}")).collect();
    for id in &ids {
        host.sleeper(id);
    }
    // These two end while the daemon is down: they wait for a file that the test makes.
    let gate = host.path("gate");
    std::fs::create_dir(&gate).expect("make the gate");
    let mount = format!(
        "type=bind,src={},dst=/gate,options=rbind:rw",
        gate.display()
    );
    for (id, code) in [("ends3", "3"), ("ends42", "42")] {
        let script = format!(
            "until test -e /gate/open; do usleep 5000; done; echo > /gate/{id}; exit {code}"
        );
        drop(
            host.run(
                &["-d", "--null-io", "--mount", &mount],
                id,
                &["sh", "-c", &script],
            )
            .ok(),
        );
    }
    let before: Vec<_> = ids
        .iter()
        .map(|id| host.task(id, "RUNNING").expect("running"))
        .collect();
    let ends: Vec<_> = ["ends3", "ends42"]
        .map(|id| host.task(id, "RUNNING").expect("running"))
        .into();
    host.kill();
    std::fs::write(gate.join("open"), "").expect("open the gate");
    until("both processes are gone", || {
        ends.iter()
            .all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
    host.start();
    for (id, pid) in ids.iter().zip(&before) {
        until("recovered", || host.task(id, "RUNNING") == Some(*pid));
    }
    for (id, code) in [("ends3", 3), ("ends42", 42)] {
        until("known as stopped", || host.task(id, "STOPPED").is_some());
        let told = host.ctr(["tasks", "rm", id]);
        let want = format!("exit with non-zero exit code {code}");
        let right = told.code == 0 && told.stderr.trim_end().ends_with(&want);
        assert!(right, "{id}: {}", told.stderr);
        drop(host.ctr(["containers", "rm", id]).ok());
    }
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "after",
        "live0",
        "echo",
        "still here",
    ];
    assert_eq!(host.ctr(exec).ok(), "still here\n");
    for id in &ids {
        host.remove(id);
    }
    host.finish();
}

#[test]
fn containers_survive_a_killed_daemon_with_runc() {
    twenty(Host::new("restart-runc"));
}

#[test]
fn a_container_survives_a_killed_daemon_with_crun() {
    let mut host = Host::with("restart-crun", Oci::Crun);
    host.image();
    host.sleeper("s");
    let pid = host.task("s", "RUNNING").expect("running");
    host.kill();
    // crun's daemon has a mount namespace of its own: the shim keeps the old one alive.
    host.start();
    until("recovered", || host.task("s", "RUNNING") == Some(pid));
    host.remove("s");
    host.finish();
}

#[test]
fn a_killed_shim_is_noticed_and_cleaned_up() {
    let host = Host::new("restart-shim");
    host.image();
    host.sleeper("s");
    let pid = host.task("s", "RUNNING").expect("running");
    let shim = parent(pid);
    kill(shim);
    until("the process is gone", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    forget(host);
}

#[test]
fn shim_and_daemon_killed_together_leave_nothing() {
    let mut host = Host::new("restart-both");
    host.image();
    host.sleeper("s");
    let pid = host.task("s", "RUNNING").expect("running");
    let shim = parent(pid);
    host.kill();
    kill(shim);
    host.start();
    until("the process is gone", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    forget(host);
}

/// Removes a container whose shim is gone, once that is known.
fn forget(host: Host) {
    until("the task is stopped or gone", || {
        host.task("s", "STOPPED").is_some()
            || host.ctr(["tasks", "ls", "-q"]).ok().trim().is_empty()
    });
    drop(host.ctr(["tasks", "rm", "s"]));
    drop(host.ctr(["containers", "rm", "s"]).ok());
    host.finish();
}

fn kill(pid: u32) {
    drop(
        integration::Program::new("kill")
            .args(["-KILL", &pid.to_string()])
            .run()
            .ok(),
    );
}
