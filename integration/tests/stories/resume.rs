//! A pull that the daemon's death cuts off goes on where it was.

use std::time::Duration;

use integration::{Host, Proxy, Registry};

use crate::layout;

/// The only layer.
const LAYER: usize = 96 << 20;
/// What a client may still hold: it writes when it has 1 MiB; heads of answers count as well.
const UNSENT: u64 = (1 << 20) + (256 << 10);
/// A debug build takes its time to unpack that.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn a_daemon_killed_at_ninety_percent_of_a_layer_fetches_the_rest_only() {
    let mut host = Host::new("resume");
    let layout = host.path("layout");
    let file = [("large", layout::noise(LAYER, 1))];
    let size = layout::make(&layout, &[&file]);
    let registry = Registry::start();
    drop(registry.add(&format!("oci:{}:latest", layout.display()), "large"));
    std::fs::remove_dir_all(&layout).expect("remove the layout");
    let proxy = Proxy::to(registry.port());
    let reference = format!("127.0.0.1:{}/large:1", proxy.port());
    let pull = ["images", "pull", "--local", "--plain-http", &reference];

    let cut = size / 10 * 9;
    proxy.stop_at(cut);
    let client = host.ctr_program().args(pull).limit(LIMIT);
    let first = std::thread::spawn(move || client.run());
    proxy.stopped();
    integration::until("the daemon has what was sent", || {
        arrived(&host) > cut - UNSENT
    });
    host.kill();
    let error = first.join().expect("the client's thread").err();
    assert!(!error.is_empty());
    host.start();
    proxy.go_on();
    let before = proxy.passed();
    drop(host.ctr_program().args(pull).limit(LIMIT).run().ok());
    let again = (proxy.passed() - before).saturating_sub(size - cut);
    assert!(
        again < size / 50,
        "{again} bytes of {size} were fetched twice"
    );
    let snapshots = host.ctr(["snapshots", "ls"]).ok();
    assert!(snapshots.contains("Committed"), "{snapshots}");
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    // The lease of the client that could not give it back expires after a day.
    for lease in host.ctr(["leases", "ls", "-q"]).ok().lines() {
        drop(host.ctr(["leases", "delete", lease]).ok());
    }
    host.finish();
}

/// Bytes of the largest ingest.
fn arrived(host: &Host) -> u64 {
    let ingests = host.root().join("io.containerd.content.v1.content/ingest");
    let entries = std::fs::read_dir(ingests).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| {
        let data = std::fs::metadata(entry.path().join("data"));
        data.map_or(0, |facts| facts.len())
    });
    sizes.max().unwrap_or(0)
}
