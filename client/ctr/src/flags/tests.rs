//! Command lines and the specs that they make.

use super::*;
use clap::Parser;
use serde_json::json;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    flags: ContainerFlags,
}

fn parse(line: &str) -> std::result::Result<ContainerFlags, clap::Error> {
    let words = std::iter::once("ctr").chain(line.split_whitespace());
    Line::try_parse_from(words).map(|line| line.flags)
}

fn spec(line: &str) -> Spec {
    let flags = parse(line).unwrap();
    let mut spec = Spec::linux(&"ns".parse().unwrap(), &"id".parse().unwrap());
    flags.environment(&mut spec).unwrap();
    flags.apply(&mut spec, &[]).unwrap();
    flags.annotate_labels(&mut spec);
    spec
}

fn at(line: &str, pointer: &str) -> Value {
    spec(line)
        .value()
        .pointer(pointer)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn flags_of_process_and_limits_land_where_the_runtime_looks() {
    for (line, pointer, want) in [
        ("", "/linux/resources/cpu", json!({"shares": 1024})),
        ("--cpu-shares 5", "/linux/resources/cpu/shares", json!(5)),
        ("--cpus 0.5", "/linux/resources/cpu/quota", json!(50_000)),
        ("--cpus 1.5", "/linux/resources/cpu/period", json!(100_000)),
        (
            "--cpu-quota -1 --cpu-period 9",
            "/linux/resources/cpu/period",
            json!(9),
        ),
        (
            "--cpuset-cpus 0-1",
            "/linux/resources/cpu/cpus",
            json!("0-1"),
        ),
        (
            "--memory-limit 4096",
            "/linux/resources/memory/limit",
            json!(4096),
        ),
        ("--cwd /w", "/process/cwd", json!("/w")),
        (
            "--env A=1 --env B=2,3",
            "/process/env",
            json!(["A=1", "B=2,3"]),
        ),
        ("-t", "/process/terminal", json!(true)),
        ("-t", "/process/env", json!(["TERM=xterm"])),
    ] {
        assert_eq!(at(line, pointer), want, "{line}");
    }
}

#[test]
fn flags_of_isolation_land_where_the_runtime_looks() {
    for (line, pointer, want) in [
        ("--read-only", "/root/readonly", json!(true)),
        ("--hostname h", "/hostname", json!("h")),
        ("--cgroup /a/b", "/linux/cgroupsPath", json!("/a/b")),
        (
            "--allow-new-privs",
            "/process/noNewPrivileges",
            json!(false),
        ),
        (
            "--apparmor-profile p",
            "/process/apparmorProfile",
            json!("p"),
        ),
        (
            "--rootfs-propagation rslave",
            "/linux/rootfsPropagation",
            json!("rslave"),
        ),
        ("--rdt-class c", "/linux/intelRdt/closID", json!("c")),
        ("--annotation a=b", "/annotations", json!({"a": "b"})),
        (
            "--label a=b --label c",
            "/annotations",
            json!({"a": "b", "c": "true"}),
        ),
        (
            "--with-ns pid:/p",
            "/linux/namespaces/4",
            json!({"type": "pid", "path": "/p"}),
        ),
        ("--rlimit-nofile 5:9", "/process/rlimits/0/hard", json!(9)),
        ("--rlimit-nofile 5", "/process/rlimits/0/soft", json!(5)),
        (
            "--uidmap 0:1000:10 --gidmap 0:1000:10 --remap-labels",
            "/linux/uidMappings/0",
            json!({"containerID": 0, "hostID": 1000, "size": 10}),
        ),
        (
            "--device /dev/null",
            "/linux/devices/0/path",
            json!("/dev/null"),
        ),
        (
            "--privileged-without-host-devices --privileged",
            "/linux/maskedPaths",
            json!([]),
        ),
        (
            "--mount type=bind,src=/a,dst=/b,options=rbind:ro",
            "/mounts/7",
            json!({"destination": "/b", "type": "bind", "source": "/a", "options": ["rbind", "ro"]}),
        ),
    ] {
        assert_eq!(at(line, pointer), want, "{line}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for line in [
        "--cpus 1 --cpu-quota 5",
        "--privileged-without-host-devices",
        "--uidmap 0:1:2",
        "--uidmap 0:1 --gidmap 0:1:2",
        "--gidmap 0:1:2",
        "--remap-labels",
        "--mount nonsense",
        "--user a:b:c",
        "--user 2147483648",
        "--rlimit-nofile 9:5",
        "--runc-systemd-cgroup",
        "--seccomp",
        "--platform a/b/c/d",
        "--gpus 0",
        "--config f --env A=1",
        "--config f --cpu-shares 5",
        "--config f --rootfs",
        "--rootfs --platform linux/arm64",
        "--rootfs --snapshotter-label a=b",
        // It belongs to the task: `run` and `tasks start` have it.
        "--no-pivot",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn what_only_the_spec_can_tell_is_refused_there() {
    let apply = |line: &str| {
        let mut spec = Spec::linux(&"ns".parse().unwrap(), &"id".parse().unwrap());
        parse(line).unwrap().apply(&mut spec, &[])
    };
    for line in [
        "--cap-add SYS_ADMIN",
        "--with-ns net",
        "--with-ns net:/x",
        "--annotation novalue",
        "--cpus=-1",
        "--cpus=nan",
        "--device /nowhere",
    ] {
        apply(line).expect_err(line);
    }
}

#[test]
fn runtime_options_belong_to_runc() {
    let any = parse("--runc-binary crun --runc-root /r")
        .unwrap()
        .runtime_options(RUNTIME)
        .unwrap();
    let options = RuncOptions::from_any(any.as_ref()).unwrap();
    assert_eq!(
        (options.binary.as_str(), options.root.as_str()),
        ("crun", "/r")
    );
    parse("--config f --label a=b --runc-binary crun").unwrap();
    parse("--runtime-config-path /c")
        .unwrap()
        .runtime_options(RUNTIME)
        .unwrap_err();
    parse("--runc-binary crun")
        .unwrap()
        .runtime_options("io.x.v1")
        .unwrap_err();
    assert_eq!(parse("").unwrap().runtime_options("io.x.v1").unwrap(), None);
    let other = parse("--runtime-config-path /c").unwrap();
    assert_eq!(
        other.runtime_options("io.x.v1").unwrap().unwrap().type_url,
        "runtimeoptions.v1.Options"
    );
}
