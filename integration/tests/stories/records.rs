//! Namespaces, leases, events, plugins and the daemon's own facts through our `ctr`.

use integration::{Host, IMAGE, Watch, bin_dir};

#[test]
fn namespaces_are_made_labelled_and_refused_while_full() {
    let host = Host::new("records-ns");
    drop(host.ctr(["namespaces", "create", "other", "a=b"]).ok());
    let table = host.ctr(["namespaces", "ls"]).ok();
    assert!(
        table
            .lines()
            .any(|l| l.starts_with("other") && l.contains("a=b")),
        "{table}"
    );
    let again = host.ctr(["namespaces", "create", "other"]).err();
    assert!(again.contains("already exists"), "{again}");
    host.image();
    let full = host.ctr(["namespaces", "rm", host.namespace()]).err();
    assert!(
        full.contains("failed precondition") && full.contains("images"),
        "{full}"
    );
    drop(host.ctr(["namespaces", "rm", "other"]).ok());
    assert!(!host.ctr(["namespaces", "ls", "-q"]).ok().contains("other"));
    host.finish();
}

#[test]
fn leases_keep_content_alive() {
    let host = Host::new("records-lease");
    host.image();
    let lease = host.ctr(["leases", "create", "--id", "mine"]).ok();
    assert_eq!(lease.trim(), "mine");
    assert!(host.ctr(["leases", "ls", "-q"]).ok().contains("mine"));
    drop(host.ctr(["leases", "rm", "mine"]).ok());
    host.finish();
}

#[test]
fn events_tell_a_container_s_life_in_order() {
    let host = Host::new("records-events");
    host.image();
    let mut events = Watch::start(&host, &bin_dir().join("ctr"));
    assert_eq!(host.run(&["--rm"], "e", &["sh", "-c", "exit 6"]).code, 6);
    let mut topics = events.topics_until("/containers/delete");
    topics.retain(|topic| topic.starts_with("/tasks/"));
    let life = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(topics, life);
    drop(events);
    host.finish();
}

#[test]
fn plugins_and_version_are_told() {
    let host = Host::new("records-plugins");
    let table = host.ctr(["plugins", "ls"]).ok();
    for want in [
        "io.containerd.snapshotter.v1",
        "overlayfs",
        "io.containerd.runtime.v2",
        "walking",
    ] {
        assert!(table.contains(want), "{want} is missing in\n{table}");
    }
    let version = host.ctr(["version"]).ok();
    assert!(
        version.contains("Client:") && version.contains("Server:"),
        "{version}"
    );
    let fds = host.descriptors();
    for _ in 0..30 {
        drop(host.ctr(["version"]).ok());
    }
    integration::until("no descriptor stays open", || host.descriptors() <= fds);
    host.finish();
}

#[test]
fn what_keeps_a_layer_is_named() {
    let host = Host::new("records-why");
    host.image();
    let create = ["containers", "create", IMAGE, "c", "true"];
    drop(host.ctr(create).ok());
    let snapshots = host.ctr(["snapshots", "ls"]).ok();
    let layer = snapshots
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .find(|name| name.starts_with("sha256:"))
        .expect("a layer's snapshot");
    let told = host.ctr(["du", "--why", layer]).ok();
    let line = |start: String| {
        let end = format!(" -> snapshot overlayfs/{layer}");
        let fits = |line: &&str| line.starts_with(&start) && line.contains(&end);
        told.lines().find(fits).unwrap_or_else(|| panic!("{told}"))
    };
    assert!(line(format!("image {IMAGE} -> content sha256:")).contains(" -> content "));
    line("container c -> snapshot overlayfs/c".to_owned());
    assert!(told.contains("\nbytes: "), "{told}");
    let sums = host.ctr(["du", "-b"]).ok();
    for kind in ["content", "snapshots overlayfs"] {
        assert!(sums.lines().any(|line| line.starts_with(kind)), "{sums}");
    }
    let none = format!("sha256:{}", "0".repeat(64));
    let none = host.ctr(["du", "--why", &none]).err();
    assert!(none.contains("not found"), "{none}");
    drop(host.ctr(["containers", "rm", "c"]).ok());
    host.finish();
}
