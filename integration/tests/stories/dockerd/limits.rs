//! Limits and mounts: memory, file systems that are read-only or in memory, volumes, figures.

use std::fs;

use integration::{Docker, Host};

use super::{prints, runs, story};

#[test]
fn limits_hold_and_volumes_stay() {
    story("docker-limits", |docker, host| {
        memory(docker);
        update(docker, host);
        mounts(docker);
        volumes(docker);
    });
}

fn memory(docker: &Docker) {
    let flags = ["--memory", "24m", "--memory-swap", "24m"];
    let mut args = vec!["run", "--name", "greedy"];
    args.extend(flags);
    args.extend(["busybox", "tail", "/dev/zero"]);
    prints(docker, &args, "", 137);
    let template = "{{.State.OOMKilled}} {{.State.ExitCode}} {{.State.Status}}";
    assert_eq!(docker.inspect("greedy", template), "true 137 exited");
    prints(docker, &["rm", "greedy"], "greedy\n", 0);
}

fn update(docker: &Docker, host: &Host) {
    docker.script(
        "--memory 96m --memory-swap 96m",
        "limited",
        "exec sleep 1000",
    );
    let limit = || {
        let group = format!(
            "{}/{}",
            host.namespace(),
            docker.inspect("limited", "{{.Id}}")
        );
        let (old, new) = ("memory/{}/memory.limit_in_bytes", "{}/memory.max");
        let file = [old, new].map(|form| format!("/sys/fs/cgroup/{}", form.replace("{}", &group)));
        let text = file.iter().find_map(|file| fs::read_to_string(file).ok());
        text.expect("a limit")
            .trim()
            .parse::<u64>()
            .expect("a number")
    };
    assert_eq!(limit(), 96 << 20);
    let told = docker.ok("update --memory 64m --memory-swap 64m limited");
    assert_eq!((&*told, limit()), ("limited\n", 64 << 20));
    let format = "{{.Name}} {{.PIDs}} {{.MemUsage}}";
    let stats = docker
        .run(["stats", "--no-stream", "--format", format, "limited"])
        .ok();
    assert!(stats.starts_with("limited 1 "), "{stats}");
    assert!(stats.trim_end().ends_with(" / 64MiB"), "{stats}");
    prints(docker, &["rm", "-f", "limited"], "limited\n", 0);
    let pids = docker.run([
        "run",
        "--rm",
        "--pids-limit",
        "7",
        "busybox",
        "sh",
        "-c",
        PIDS,
    ]);
    assert_eq!(pids.stdout, "7\n", "{pids:?}");
}

const PIDS: &str = "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max";

fn mounts(docker: &Docker) {
    let refused = docker.run(["run", "--rm", "--read-only", "busybox", "touch", "/f"]);
    assert!(refused.err().contains("Read-only file system"));
    let script = "echo x >/t/f && cat /t/f; grep -c '^tmpfs /t .*size=1024k' /proc/mounts";
    runs(
        docker,
        "--read-only --tmpfs /t:size=1m",
        script,
        "x\n1\n",
        0,
    );
}

fn volumes(docker: &Docker) {
    prints(docker, &["volume", "create", "kept"], "kept\n", 0);
    runs(docker, "-v kept:/v", "echo stays >/v/f", "", 0);
    let script = "cat /v/f; echo more >>/v/f";
    runs(docker, "-v kept:/v:ro", script, "stays\n", 1);
    runs(docker, "-v kept:/v", "cat /v/f", "stays\n", 0);
    let dir = docker.home().join("bound");
    fs::create_dir(&dir).expect("make a directory");
    runs(
        docker,
        &format!("-v {}:/b", dir.display()),
        "echo out >/b/f",
        "",
        0,
    );
    assert_eq!(fs::read_to_string(dir.join("f")).expect("read"), "out\n");
    prints(docker, &["volume", "rm", "kept"], "kept\n", 0);
}
