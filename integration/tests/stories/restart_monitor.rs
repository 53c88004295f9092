//! Containers with restart labels: what ends is started again as its policy says, once, also by a daemon
//! that was restarted meanwhile.

use std::collections::BTreeMap;

use integration::{Host, Whose, bin_dir, copy, until};

/// Looks once a second.
const SECTION: &str =
    "[plugins.\"io.containerd.monitor.container.v1.restart\"]\ninterval = \"1s\"\n";

fn host(name: &str) -> Host {
    let host = Host::configured(name, Whose::Ours, SECTION);
    host.image();
    host
}

/// Runs a container with these `containerd.io/restart.*` labels.
fn run(host: &Host, labels: &[&str], id: &str, script: &str) {
    let labels = labels.iter();
    let labels: Vec<_> = labels
        .map(|l| format!("containerd.io/restart.{l}"))
        .collect();
    let mut flags = vec!["-d", "--null-io"];
    flags.extend(labels.iter().flat_map(|label| ["--label", label]));
    drop(host.run(&flags, id, &["sh", "-c", script]).ok());
}

fn labels(host: &Host, id: &str) -> BTreeMap<String, String> {
    let info = host.ctr(["containers", "info", id]).ok();
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let labels = info["Labels"].as_object().cloned().unwrap_or_default();
    let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let labels = labels.into_iter().map(|(key, value)| (key, text(value)));
    labels.collect()
}

/// How often a container was started again.
fn count(host: &Host, id: &str) -> u32 {
    let labels = labels(host, id);
    let count = labels.get("containerd.io/restart.count");
    count.map_or(0, |count| count.parse().expect("a number"))
}

fn label(host: &Host, id: &str, label: &str) {
    drop(
        host.ctr([
            "containers",
            "label",
            id,
            &format!("containerd.io/restart.{label}"),
        ])
        .ok(),
    );
}

/// Ends it for good.
fn end(host: &Host, id: &str) {
    label(host, id, "status=stopped");
    // A start that was under way comes about all the same, and is ended after it.
    until("the monitor has removed the task for good", || {
        let all = host.ctr(["tasks", "ls", "-q"]).ok();
        let is_there = all.lines().any(|line| line == id);
        !is_there && host.ctr(["containers", "rm", id]).code == 0
    });
}

#[test]
fn what_is_killed_is_started_again_and_what_is_stopped_stays() {
    let host = host("restart-always");
    run(&host, &["status=running"], "c", "exec sleep 1000");
    run(
        &host,
        &["status=running", "policy=unless-stopped"],
        "u",
        "exec sleep 1000",
    );
    let first = host.task("c", "RUNNING").expect("it runs");
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "c"]).ok());
    let mut second = None;
    until("it runs again", || {
        second = host.task("c", "RUNNING");
        second.is_some_and(|pid| pid != first)
    });
    assert_eq!(count(&host, "c"), 1);
    label(&host, "u", "explicitly-stopped=true");
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "u"]).ok());
    until("it has stopped", || host.task("u", "STOPPED").is_some());
    // Twice more: the monitor has seen the other one meanwhile.
    for times in [2, 3] {
        drop(host.ctr(["tasks", "kill", "-s", "KILL", "c"]).ok());
        until("it runs again", || {
            count(&host, "c") == times && host.task("c", "RUNNING").is_some()
        });
    }
    assert!(host.task("u", "STOPPED").is_some() && count(&host, "u") == 0);
    let told = host.ctr(["why", "c"]).ok();
    assert!(told.contains(" restart took "), "{told}");
    end(&host, "c");
    drop(host.ctr(["tasks", "rm", "u"]));
    drop(host.ctr(["containers", "rm", "u"]).ok());
    host.finish();
}

#[test]
fn a_failure_is_tried_again_as_often_as_the_policy_says() {
    let host = host("restart-failure");
    let log = host.path("log");
    let uri = format!("loguri=file://{}", log.display());
    run(
        &host,
        &["status=running", "policy=on-failure:2", &uri],
        "f",
        "echo here; exit 7",
    );
    run(
        &host,
        &["status=running", "policy=on-failure"],
        "ok",
        "exit 0",
    );
    until("it was started twice more and has ended", || {
        count(&host, "f") == 2 && host.task("f", "STOPPED").is_some()
    });
    // The first went nowhere, as its client had it; the others where the label says.
    until("both have written", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text == "here\nhere\n"
    });
    // A third one would have been a pass ago: another container shows that there was one.
    run(&host, &["status=running"], "c", "exec sleep 1000");
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "c"]).ok());
    until("the monitor has looked", || count(&host, "c") == 1);
    assert_eq!((count(&host, "f"), count(&host, "ok")), (2, 0));
    end(&host, "c");
    for id in ["f", "ok"] {
        drop(host.ctr(["tasks", "rm", id]));
        drop(host.ctr(["containers", "rm", id]).ok());
    }
    host.finish();
}

#[test]
fn what_ends_while_the_daemon_is_down_is_started_once_by_the_next() {
    let mut host = host("restart-down");
    let starts = host.path("starts");
    std::fs::create_dir(&starts).expect("mkdir");
    let mount = format!(
        "type=bind,src={},dst=/starts,options=rbind:rw",
        starts.display()
    );
    let script = "echo $$ >> /starts/log; exec sleep 1000";
    let flags = ["-d", "--null-io", "--mount", &mount];
    let flags = [
        &flags[..],
        &["--label", "containerd.io/restart.status=running"],
    ]
    .concat();
    for n in 0..4 {
        drop(
            host.run(&flags, &format!("c{n}"), &["sh", "-c", script])
                .ok(),
        );
    }
    let pids: Vec<_> = (0..4)
        .map(|n| host.task(&format!("c{n}"), "RUNNING").expect("it runs"))
        .collect();
    host.kill();
    for pid in &pids[..2] {
        let pid = i32::try_from(*pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::KILL)
            .expect("kill");
    }
    host.start();
    for (n, old) in pids.iter().enumerate() {
        let now = || host.task(&format!("c{n}"), "RUNNING");
        if n < 2 {
            until("it runs again", || now().is_some_and(|pid| pid != *old));
        } else {
            assert_eq!(now(), Some(*old));
        }
    }
    let log = || std::fs::read_to_string(starts.join("log")).expect("read the log");
    until("all have written", || log().lines().count() == 6);
    for n in 0..4 {
        let times = count(&host, &format!("c{n}"));
        assert_eq!(times, u32::from(n < 2), "c{n}");
        end(&host, &format!("c{n}"));
    }
    assert_eq!(
        log().lines().count(),
        6,
        "each was started once more at most"
    );
    host.finish();
}

#[test]
fn a_failure_whose_restart_was_cut_off_is_tried_again() {
    let mut host = host("restart-cut-off");
    // A runtime that can be taken away: what is begun without it comes to nothing.
    let runtime = host.path("containerd-shim-runc-v2");
    copy(&bin_dir().join("containerd-shim-runc-v2"), &runtime);
    let gate = host.path("gate");
    std::fs::create_dir(&gate).expect("mkdir");
    let mount = format!(
        "type=bind,src={},dst=/gate,options=rbind:rw",
        gate.display()
    );
    let flags = ["-d", "--null-io", "--mount", &mount, "--runtime"];
    let flags = [&flags[..], &[runtime.to_str().expect("a path")]].concat();
    let wanted = ["status=running", "policy=on-failure:1"];
    let wanted = wanted.map(|label| format!("containerd.io/restart.{label}"));
    let wanted = wanted.iter().flat_map(|label| ["--label", label]);
    let flags: Vec<_> = flags.into_iter().chain(wanted).collect();
    let script = "until test -e /gate/open; do usleep 5000; done; rm /gate/open; exit 7";
    drop(host.run(&flags, "c", &["sh", "-c", script]).ok());
    let first = host.task("c", "RUNNING").expect("it runs");
    let aside = host.path("aside");
    std::fs::rename(&runtime, &aside).expect("rename");
    std::fs::write(gate.join("open"), "").expect("open the gate");
    until("its task is gone", || {
        host.ctr(["tasks", "ls", "-q"]).ok().is_empty()
    });
    until("an attempt has failed", || {
        host.log().contains("msg=\"restart monitor\"")
    });
    assert_eq!(count(&host, "c"), 0, "what did not begin is not counted");
    // What is to be done is known by the next daemon, too.
    host.kill();
    std::fs::rename(&aside, &runtime).expect("rename");
    host.start();
    until("it runs again", || {
        host.task("c", "RUNNING").is_some_and(|pid| pid != first)
    });
    let is_pending = || labels(&host, "c").contains_key("containerd.io/restart.pending");
    until("nothing is pending", || !is_pending());
    assert_eq!(count(&host, "c"), 1);
    label(&host, "c", "status=stopped");
    let is_gone = || host.ctr(["tasks", "ls", "-q"]).ok().is_empty();
    until("the monitor removes the task", is_gone);
    // A daemon that died when it had started the task leaves this; the owner deletes what has ended.
    let texts = ["status=running", "policy=on-failure:9", "pending=7 made"];
    let texts = texts.map(|text| format!("containerd.io/restart.{text}"));
    let told = [
        &["containers", "label", "c"][..],
        &texts.each_ref().map(String::as_str),
    ]
    .concat();
    drop(host.ctr(told).ok());
    until("nothing is pending", || !is_pending());
    assert!(is_gone(), "it was not started");
    assert_eq!(count(&host, "c"), 1);
    end(&host, "c");
    host.finish();
}
