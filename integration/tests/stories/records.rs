//! Namespaces, leases, events, plugins and the daemon's own facts through our `ctr`.

use integration::{Host, Watch, bin_dir};

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
