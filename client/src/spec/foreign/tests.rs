//! Documents that are like the default one but for one thing.

use serde_json::json;

use super::*;
use crate::spec::{IdMapping, SpecMount};

fn spec() -> Spec {
    Spec::linux(&"ns".parse().unwrap(), &"id".parse().unwrap())
}

fn found(spec: &Spec) -> Vec<String> {
    spec.beyond_default(&"ns".parse().unwrap(), &"id".parse().unwrap())
}

fn with(pointer: &[&str], value: Value) -> Vec<String> {
    let mut spec = spec();
    spec.set(pointer, value);
    found(&spec)
}

#[test]
fn what_everybody_has_is_nothing_to_tell() {
    assert_eq!(found(&spec()), [""; 0]);
    let mut spec = spec();
    spec.env(&["A=b".into()]);
    spec.args(vec!["sh".into()]);
    spec.cwd("/tmp");
    spec.set_terminal(true);
    spec.hostname("h");
    spec.read_only();
    spec.annotations([("example.test/a".to_owned(), "b".to_owned())]);
    spec.limits(&super::super::Limits {
        memory: Some(1 << 20),
        ..super::super::Limits::default()
    });
    let map = IdMapping {
        container: 0,
        host: 100_000,
        size: 65_536,
    };
    spec.user_namespace(&[map], &[map]);
    spec.set(&["process", "capabilities", "ambient"], json!(["CAP_KILL"]));
    spec.set(&["process", "oomScoreAdj"], json!(100));
    spec.set(
        &["linux", "resources", "memory", "disableOOMKiller"],
        json!(false),
    );
    spec.set(&["hooks"], json!({}));
    spec.set(&["linux", "devices"], json!([]));
    spec.set(&["linux", "intelRdt"], Value::Null);
    spec.edit_list(&["mounts"], |all| {
        all.push(
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                        "options": ["ro", "nosuid", "noexec", "nodev", "relatime", "rprivate"]}),
        );
    });
    spec.edit_list(&["linux", "resources", "devices"], |all| {
        all.push(json!({"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"}));
    });
    // As older clients write it.
    spec.edit_list(&["linux", "maskedPaths"], |all| {
        all.retain(|path| path != "/sys/devices/virtual/powercap");
    });
    assert_eq!(found(&spec), [""; 0]);
}

/// Where in the document, what stands there, and what is told of it.
const ODD: [(&str, &str, &str); 36] = [
    (
        "hooks/createRuntime",
        r#"[{"path": "/x"}]"#,
        "hook \"createRuntime\"",
    ),
    ("hooks", "[7]", "hook \"?\""),
    // As Go reads it.
    ("Hooks", r#"{"prestart": [7]}"#, "field \"Hooks\""),
    (
        "hook\u{17f}",
        r#"{"prestart": [7]}"#,
        "field \"hook\u{17f}\"",
    ),
    ("root/path", r#""/""#, "root file system at \"/\""),
    (
        "root/path",
        r#""rootfs/..""#,
        "root file system at \"rootfs/..\"",
    ),
    ("root", r#""rootfs""#, "no object as \"root\""),
    (
        "annotations/org.criu.config",
        r#""/x""#,
        "annotation \"org.criu.config\"",
    ),
    (
        "annotations/io.containerd.runc.v2.group",
        r#""other""#,
        "annotation \"io.containerd.runc.v2.group\"",
    ),
    (
        "annotations/io.kubernetes.cri.sandbox-id",
        r#""other""#,
        "annotation \"io.kubernetes.cri.sandbox-id\"",
    ),
    (
        "linux/intelRdt",
        r#"{"closID": "x"}"#,
        "field \"linux.intelRdt\"",
    ),
    ("linux/Devices", "[1]", "field \"linux.Devices\""),
    (
        "linux/devices",
        r#"[{"path": "/dev/sda"}]"#,
        "device \"/dev/sda\"",
    ),
    (
        "linux/seccomp/listenerPath",
        r#""/s""#,
        "field \"linux.seccomp.listenerPath\"",
    ),
    (
        "linux/cgroupsPath",
        r#""/ns/other""#,
        "cgroup \"/ns/other\"",
    ),
    ("linux/cgroupsPath", r#""/""#, "cgroup \"/\""),
    (
        "linux/rootfsPropagation",
        r#""rshared""#,
        "propagation \"rshared\"",
    ),
    ("linux/maskedPaths", "[]", "access to \"/proc/kcore\""),
    ("linux/readonlyPaths", "[]", "access to \"/proc/sys\""),
    ("linux/readonlyPaths", "{}", "no list as \"readonlyPaths\""),
    ("linux", "null", "field \"linux: absent\""),
    (
        "process/capabilities/inheritable",
        r#"["CAP_BPF"]"#,
        "capability \"CAP_BPF\"",
    ),
    (
        "process/capabilities",
        r#"["x"]"#,
        "no object as \"capabilities\"",
    ),
    ("process", "null", "field \"process: absent\""),
    (
        "process/noNewPrivileges",
        "false",
        "field \"process.noNewPrivileges: not true\"",
    ),
    (
        "process/noNewPrivileges",
        "null",
        "field \"process.noNewPrivileges: not true\"",
    ),
    (
        "process/oomScoreAdj",
        "-1",
        "field \"process.oomScoreAdj: -1\"",
    ),
    (
        "process/oomScoreAdj",
        "-1e3",
        "field \"process.oomScoreAdj: -1000.0\"",
    ),
    (
        "process/scheduler",
        r#"{"policy": "x"}"#,
        "field \"process.scheduler\"",
    ),
    (
        "linux/resources/unified",
        r#"{"a": "1"}"#,
        "field \"linux.resources.unified\"",
    ),
    (
        "linux/resources/memory",
        r#"{"disableOOMKiller": true}"#,
        "field \"linux.resources.memory.disableOOMKiller\"",
    ),
    // As Go reads it.
    (
        "linux/resources/memory",
        r#"{"disableoomkiller": true}"#,
        "field \"linux.resources.memory.disableoomkiller\"",
    ),
    ("linux/resources", "null", UNDENIED),
    ("linux/resources", "{}", UNDENIED),
    ("linux/resources/devices", "null", UNDENIED),
    ("linux/resources/devices", "[]", UNDENIED),
];
const UNDENIED: &str = "right to devices \"that the first rule does not deny\"";

#[test]
fn what_reaches_the_host_is_told() {
    for (pointer, value, want) in ODD {
        let pointer: Vec<_> = pointer.split('/').collect();
        let told = with(&pointer, serde_json::from_str(value).unwrap());
        let is_told = told.iter().any(|text| text.starts_with(want));
        assert!(is_told, "{pointer:?}: {want} in {told:?}");
    }
}

#[test]
fn devices_are_denied_before_some_are_allowed() {
    let all = json!({"allow": false, "access": "rwm"});
    let null = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
    let rules = |rules: &[&Value]| with(&["linux", "resources", "devices"], json!(rules));
    assert_eq!(rules(&[&all]), [""; 0]);
    assert_eq!(rules(&[&all, &null]), [""; 0]);
    let named = json!({"allow": false, "type": "a", "access": "rwm"});
    assert_eq!(rules(&[&named, &null]), [""; 0]);
    for odd in [
        json!({"allow": true}),
        json!({"allow": true, "type": "b", "major": 1, "minor": 3, "access": "r"}),
        json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}),
        json!(7),
    ] {
        let told = rules(&[&all, &odd]);
        let want = format!("right to devices {:?}", odd.to_string());
        assert_eq!(told, [want], "{odd}");
    }
    for first in [
        null.clone(),
        json!({"allow": true, "access": "rwm"}),
        json!({"access": "rwm"}),
        json!({"allow": false}),
        json!({"allow": false, "access": "rw"}),
        json!({"allow": false, "type": "c", "access": "rwm"}),
        json!({"allow": false, "major": 8, "access": "rwm"}),
        json!({"allow": false, "minor": 0, "access": "rwm"}),
    ] {
        let told = rules(&[&first, &all, &null]);
        assert_eq!(told.first().map(String::as_str), Some(UNDENIED), "{first}");
    }
}

#[test]
fn mounts_of_the_host_and_of_the_kernel_elsewhere_are_told() {
    for (kind, source, destination, options, want) in [
        ("bind", "/", "/host", &["rbind"][..], "bind mount of \"/\""),
        (
            "none",
            "/etc",
            "/etc",
            &["bind", "ro"],
            "bind mount of \"/etc\"",
        ),
        ("tmpfs", "/x", "/x", &["rbind"], "bind mount of \"/x\""),
        ("ext4", "/dev/sda1", "/x", &[], "mount of \"ext4 at /x\""),
        (
            "overlay",
            "o",
            "/x",
            &["lowerdir=/:/x"],
            "mount of \"overlay at /x\"",
        ),
        ("proc", "proc", "/x", &[], "mount of \"proc at /x\""),
        ("sysfs", "sysfs", "/sys", &[], "mount of \"sysfs at /sys\""),
        (
            "sysfs",
            "sysfs",
            "/sys",
            &["ro", "rw"],
            "mount of \"sysfs at /sys\"",
        ),
        (
            "sysfs",
            "sysfs",
            "/sys",
            &["ro", "rrw"],
            "mount of \"sysfs at /sys\"",
        ),
        (
            "proc",
            "proc",
            "/proc",
            &["suid"],
            "mount of \"proc at /proc\"",
        ),
        (
            "cgroup",
            "cgroup",
            "/sys/fs/cgroup",
            &["ro", "rrw"],
            "mount of \"cgroup at",
        ),
        (
            "cgroup",
            "cgroup",
            "/sys/fs/cgroup",
            &["rw"],
            "mount of \"cgroup at",
        ),
        (
            "tmpfs",
            "x",
            "/sys",
            &["remount", "rw"],
            "mount of \"tmpfs at /sys\"",
        ),
        ("", "", "/x", &[], "mount of \" at /x\""),
    ] {
        let mut spec = spec();
        spec.mounts(&[SpecMount {
            kind: kind.into(),
            source: source.into(),
            destination: destination.into(),
            options: options.iter().map(|&option| option.into()).collect(),
        }]);
        let told = found(&spec);
        assert!(
            told.iter().any(|text| text.starts_with(want)),
            "{want}: {told:?}"
        );
    }
    let odd = json!([7, {"destination": "/x", "type": "tmpfs", "uidMappings": [1]}]);
    let told = with(&["mounts"], odd);
    assert_eq!(told, ["mount \"7\"", "field \"mounts.uidMappings\""]);
}

#[test]
fn the_host_s_namespaces_are_told() {
    let mut joined = spec();
    joined.join_namespace("network", "/proc/1/ns/net").unwrap();
    assert_eq!(found(&joined), ["namespace at \"/proc/1/ns/net\""]);
    let mut left = spec();
    left.leave_namespace("pid");
    assert_eq!(found(&left), ["the host's namespace \"pid\""]);
    let mut host = spec();
    host.host_network("h");
    let told = found(&host).join(", ");
    assert!(told.contains("the host's namespace \"network\""), "{told}");
    let mut all = spec();
    all.privileged(&["CAP_SYS_ADMIN".into()], &[json!({"path": "/dev/x"})]);
    let told = found(&all).join(", ");
    for want in [
        "CAP_SYS_ADMIN",
        "/dev/x",
        "/proc/kcore",
        "sysfs",
        "right to devices",
    ] {
        assert!(told.contains(want), "{want}: {told}");
    }
}
