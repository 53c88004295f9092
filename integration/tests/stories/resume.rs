//! A pull that the daemon's death cuts off goes on where it was.

use std::path::PathBuf;
use std::time::Duration;

use integration::{Host, Proxy, Registry, figure, forget_peak, peak};

use crate::layout;

/// The only layer, in MiB, where `RESUME_MIB` says nothing: as large as may be without coming in pieces
/// side by side, which it would where the machine is slow enough.
const LAYER: usize = 60;
/// Largest piece, where it does.
const PIECE: u64 = 2 << 20;
/// What may still be in memory, whatever the size of the layer: the process that pulls hands on what it
/// has when that is 1 MiB, the store may hold as much, and heads of answers count as well.
pub(crate) const UNSENT: u64 = (2 << 20) + (512 << 10);
/// Most memory of the daemon, in KiB, whatever the size of the layer.
const MEMORY: u64 = 64 << 10;

fn layer() -> usize {
    let given = std::env::var("RESUME_MIB").ok();
    given.map_or(LAYER, |text| text.parse().expect("RESUME_MIB is a number")) << 20
}

/// What may be in memory of this layer: also the pieces that come before their turn.
fn unsent() -> u64 {
    let wide = registry::Limits::default().wide;
    match layer() as u64 >= wide.from {
        true => UNSENT + wide.lanes as u64 * PIECE,
        false => UNSENT,
    }
}

/// A debug build takes its time to unpack that.
fn limit() -> Duration {
    Duration::from_secs(240)
        * u32::try_from((layer() >> 20) / LAYER)
            .expect("a few")
            .max(1)
}

/// Kills the daemon when nine tenths have come, and pulls again.
fn resumes(name: &str, flags: &[&str]) {
    let mut host = Host::new(name);
    let layout = host.path("layout");
    let size = layout::make(&layout, &[&[("large", layout::noise(layer(), 1))]]);
    let registry = Registry::start();
    drop(registry.add(&format!("oci:{}:latest", layout.display()), "large"));
    std::fs::remove_dir_all(&layout).expect("remove the layout");
    let proxy = Proxy::to(registry.port());
    let reference = format!("127.0.0.1:{}/large:1", proxy.port());
    let pull = |host: &Host| {
        let ctr = host.ctr_program().args(["images", "pull", "--plain-http"]);
        ctr.args(flags).args([&reference]).limit(limit())
    };

    let cut = size / 10 * 9;
    proxy.stop_at(cut);
    forget_peak(host.daemon_pid());
    let client = pull(&host);
    let first = std::thread::spawn(move || client.run());
    proxy.stopped(limit());
    integration::until("what was sent is there", || arrived(&host) > cut - unsent());
    let before_death = peak(host.daemon_pid());
    host.kill();
    assert!(has_hash(&host), "what is there would be hashed again");
    let error = first.join().expect("the client's thread").err();
    assert!(!error.is_empty());
    host.start();
    forget_peak(host.daemon_pid());
    proxy.go_on();
    let before = proxy.passed();
    drop(pull(&host).run().ok());
    let again = (proxy.passed() - before).saturating_sub(size - cut);
    let after = peak(host.daemon_pid());
    figure(format_args!(
        "{name}: {size} bytes, {again} twice; memory {before_death} KiB, then {after} KiB"
    ));
    assert!(
        again < (size / 50).max(unsent()),
        "{again} bytes of {size} were fetched twice"
    );
    for memory in [before_death, after] {
        assert!(memory < MEMORY, "{memory} KiB, {MEMORY} may be");
    }
    let snapshots = host.ctr(["snapshots", "ls"]).ok();
    assert!(snapshots.contains("Committed"), "{snapshots}");
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    // The lease of the client that could not give it back expires after a day.
    for lease in host.ctr(["leases", "ls", "-q"]).ok().lines() {
        drop(host.ctr(["leases", "delete", lease]).ok());
    }
    host.finish();
}

#[test]
fn a_daemon_killed_at_ninety_percent_of_a_layer_fetches_the_rest_only() {
    resumes("resume", &[]);
}

#[test]
fn a_client_that_pulls_itself_fetches_the_rest_only() {
    resumes("resume-local", &["--local"]);
}

/// Bytes of the largest ingest.
fn arrived(host: &Host) -> u64 {
    let sizes = ingests(host).map(|ingest| {
        let data = std::fs::metadata(ingest.join("data"));
        data.map_or(0, |facts| facts.len())
    });
    sizes.max().unwrap_or(0)
}

/// Whether the hash of one is noted beside it.
fn has_hash(host: &Host) -> bool {
    ingests(host).any(|ingest| ingest.join("hash").exists())
}

fn ingests(host: &Host) -> impl Iterator<Item = PathBuf> {
    let ingests = host.root().join("io.containerd.content.v1.content/ingest");
    let entries = std::fs::read_dir(ingests).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}
