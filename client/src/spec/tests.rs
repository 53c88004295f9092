//! The spec as a table of what each change does to the document.

use super::*;
use images::ProcessDefaults;
use serde_json::json;

fn spec() -> Spec {
    Spec(default::linux("/ns/id", 1024))
}

fn at<'a>(spec: &'a Spec, pointer: &str) -> &'a Value {
    spec.value().pointer(pointer).unwrap_or(&Value::Null)
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&t| t.to_owned()).collect()
}

#[test]
fn the_default_is_that_of_containerd() {
    let spec = spec();
    assert_eq!(at(&spec, "/ociVersion"), "1.0.2");
    assert_eq!(at(&spec, "/linux/cgroupsPath"), "/ns/id");
    assert_eq!(at(&spec, "/process/noNewPrivileges"), true);
    assert_eq!(at(&spec, "/process/rlimits/0/hard"), 1024);
    for set in ["bounding", "effective", "permitted"] {
        let list = at(&spec, &format!("/process/capabilities/{set}"))
            .as_array()
            .unwrap();
        assert_eq!(list.len(), 14, "{set}");
    }
    for set in ["inheritable", "ambient"] {
        assert!(
            at(&spec, &format!("/process/capabilities/{set}")).is_null(),
            "{set}"
        );
    }
    let kinds: Vec<_> = at(&spec, "/linux/namespaces")
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "network"]);
    let masked = at(&spec, "/linux/maskedPaths").as_array().unwrap();
    for path in [
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
        "/proc/kcore",
    ] {
        assert!(masked.iter().any(|m| m == path), "{path}");
    }
    assert_eq!(at(&spec, "/linux/resources/devices/0/allow"), false);
    assert_eq!(
        at(&spec, "/linux/resources/devices")
            .as_array()
            .unwrap()
            .len(),
        10
    );
    assert_eq!(at(&spec, "/mounts").as_array().unwrap().len(), 7);
}

#[test]
fn the_image_gives_what_the_caller_did_not() {
    let image = ProcessDefaults {
        env: strings(&["PATH=/bin", "A=1", "BARE"]),
        entrypoint: strings(&["/init"]),
        cmd: strings(&["run"]),
        working_dir: "/srv".into(),
        ..ProcessDefaults::default()
    };
    let mut spec = spec();
    spec.env(&strings(&["A=2", "B=3"]));
    spec.apply_image(&image);
    assert_eq!(
        at(&spec, "/process/env"),
        &json!(["PATH=/bin", "A=2", "B=3"])
    );
    assert_eq!(at(&spec, "/process/args"), &json!(["/init", "run"]));
    assert_eq!(at(&spec, "/process/cwd"), "/srv");

    let mut bare = self::spec();
    bare.apply_image(&ProcessDefaults::default());
    assert_eq!(at(&bare, "/process/cwd"), "/");
    assert!(
        at(&bare, "/process/env/0")
            .as_str()
            .unwrap()
            .starts_with("PATH=")
    );
    assert!(!bare.has_args());
}

#[test]
fn environment_is_set_replaced_and_removed() {
    let mut spec = spec();
    spec.env(&strings(&["A=1", "B=2", "C="]));
    spec.env(&strings(&["A=3", "B", "D", "E=x=y"]));
    assert_eq!(at(&spec, "/process/env"), &json!(["A=3", "C=", "E=x=y"]));
}

#[test]
fn mount_flags_parse_and_take_the_place_of_defaults() {
    let mount: SpecMount = "type=bind,src=/a,dst=/run,options=rbind:ro"
        .parse()
        .unwrap();
    assert_eq!(mount.options, ["rbind", "ro"]);
    let mut spec = spec();
    spec.mounts(&[mount]);
    let mounts = at(&spec, "/mounts").as_array().unwrap();
    assert_eq!(mounts.len(), 7);
    assert_eq!(mounts.last().unwrap()["source"], "/a");
    for bad in [
        "",
        "bind",
        "type=bind,where=/x,dst=/y",
        "type=bind,src=/a",
        "dst=relative",
    ] {
        let error = bad.parse::<SpecMount>().unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{bad}");
    }
}

#[test]
fn namespaces_are_joined_left_and_refused() {
    let mut spec = spec();
    spec.join_namespace("network", "/var/run/netns/a").unwrap();
    spec.join_namespace("cgroup", "").unwrap();
    spec.leave_namespace("pid");
    let all = at(&spec, "/linux/namespaces");
    assert!(all.as_array().unwrap().iter().all(|n| n["type"] != "pid"));
    assert!(
        all.as_array()
            .unwrap()
            .contains(&json!({"type":"network","path":"/var/run/netns/a"}))
    );
    assert!(all.as_array().unwrap().contains(&json!({"type":"cgroup"})));
    spec.join_namespace("net", "/x").unwrap_err();
}

#[test]
fn host_network_brings_the_hosts_names() {
    let mut spec = spec();
    spec.host_network("box");
    assert_eq!(at(&spec, "/process/env"), &json!(["HOSTNAME=box"]));
    let places: Vec<_> = at(&spec, "/mounts")
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["destination"].clone())
        .collect();
    assert!(places.contains(&json!("/etc/resolv.conf")));
    assert_eq!(at(&spec, "/linux/namespaces").as_array().unwrap().len(), 4);
}

#[test]
fn capabilities_are_added_and_dropped_by_full_name() {
    let mut spec = spec();
    spec.capabilities(
        &strings(&["CAP_SYS_ADMIN", "CAP_KILL"]),
        &strings(&["CAP_CHOWN"]),
    )
    .unwrap();
    for set in ["bounding", "effective", "permitted"] {
        let list = at(&spec, &format!("/process/capabilities/{set}"))
            .as_array()
            .unwrap();
        assert_eq!(list.len(), 14, "{set}");
        assert!(list.contains(&json!("CAP_SYS_ADMIN")) && !list.contains(&json!("CAP_CHOWN")));
    }
    spec.capabilities(&strings(&["SYS_ADMIN"]), &[])
        .unwrap_err();
}

#[test]
fn privileged_lifts_every_restriction() {
    let mut spec = spec();
    let device = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 2});
    spec.privileged(&strings(&["CAP_BPF"]), std::slice::from_ref(&device));
    assert_eq!(at(&spec, "/linux/maskedPaths"), &json!([]));
    assert_eq!(at(&spec, "/linux/devices/0"), &device);
    assert_eq!(
        at(&spec, "/linux/resources/devices"),
        &json!([{"allow": true, "access": "rwm"}])
    );
    assert_eq!(
        at(&spec, "/process/capabilities/bounding"),
        &json!(["CAP_BPF"])
    );
    let sysfs = at(&spec, "/mounts")
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["type"] == "sysfs");
    assert!(
        sysfs.unwrap()["options"]
            .as_array()
            .unwrap()
            .contains(&json!("rw"))
    );
}

#[test]
fn limits_are_written_only_when_given() {
    let mut spec = spec();
    spec.limits(&Limits {
        memory: Some(1 << 20),
        cpu_quota: Some(50_000),
        ..Limits::default()
    });
    assert_eq!(
        at(&spec, "/linux/resources/memory"),
        &json!({"limit": 1_048_576})
    );
    assert_eq!(at(&spec, "/linux/resources/cpu"), &json!({"quota": 50_000}));
    spec.open_files(10, 20);
    assert_eq!(
        at(&spec, "/process/rlimits"),
        &json!([{"type": "RLIMIT_NOFILE", "hard": 20, "soft": 10}])
    );
}

#[test]
fn a_root_directory_is_absolute() {
    let mut spec = spec();
    assert_eq!(spec.root_dir(), None);
    spec.root_path(Path::new("/r"));
    assert_eq!(spec.root_dir(), Some(Path::new("/r")));
}

#[test]
fn mappings_name_the_hosts_root() {
    let mut spec = spec();
    assert_eq!(spec.root_owner(), (None, None));
    let map = IdMapping {
        container: 0,
        host: 1000,
        size: 10,
    };
    spec.user_namespace(&[map], &[IdMapping { host: 2000, ..map }]);
    assert_eq!(spec.root_owner(), (Some(1000), Some(2000)));
}

#[test]
fn a_given_spec_keeps_what_is_not_known_here() {
    let text = br#"{"ociVersion":"1.2.0","process":{"args":["a"],"future":1},"windows":{}}"#;
    let mut spec = Spec::parse(text).unwrap();
    spec.set_terminal(true);
    assert!(spec.terminal());
    spec.set_terminal(false);
    let any = spec.to_any().unwrap();
    assert_eq!(any.type_url, SPEC_URL);
    assert_eq!(any.value, text);
    assert_eq!(Spec::from_any(Some(&any)).unwrap(), spec);
    let process = spec.process_to_any().unwrap();
    assert_eq!(process.value, br#"{"args":["a"],"future":1}"#);
    for bad in [&b"[]"[..], b"", b"{", b"null"] {
        assert!(
            Spec::parse(bad)
                .unwrap_err()
                .is(types::Code::InvalidArgument)
        );
    }
    Spec::from_any(None).unwrap_err();
}

#[test]
fn a_default_cgroup_follows_the_container() {
    let (namespace, id) = ("ns".parse().unwrap(), "new".parse().unwrap());
    for (path, moved) in [
        ("/ns/old", "/ns/new"),
        ("/other/old", "/other/old"),
        ("/ns/a/b", "/ns/a/b"),
        ("system.slice:runc:old", "system.slice:runc:old"),
        ("", ""),
    ] {
        let mut spec = Spec::parse(b"{}").unwrap();
        spec.cgroup(path);
        spec.move_cgroup(&namespace, &id);
        assert_eq!(at(&spec, "/linux/cgroupsPath"), moved);
    }
    let mut spec = Spec::parse(b"{}").unwrap();
    spec.move_cgroup(&namespace, &id);
    assert_eq!(spec.value(), &json!({}));
}

#[test]
fn a_list_of_another_type_becomes_a_list() {
    let mut spec = Spec::parse(br#"{"process": 1, "mounts": {"a": 1}, "linux": null}"#).unwrap();
    spec.env(&["A=1".to_owned()]);
    spec.mounts(&[]);
    spec.join_namespace("pid", "").unwrap();
    assert_eq!(
        spec.value(),
        &json!({
            "process": {"env": ["A=1"]},
            "mounts": [],
            "linux": {"namespaces": [{"type": "pid"}]},
        })
    );
}
