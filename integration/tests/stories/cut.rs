//! A pull that the daemon's death cuts off at nine tenths of a layer, and what the next one fetches again.
//! A story, and of a layer of a GiB a part of the bench.

use std::path::PathBuf;
use std::time::Duration;

use integration::{Host, Proxy, Registry, forget_peak, peak};

use crate::layout;

/// Largest piece, where they come side by side.
const PIECE: u64 = 2 << 20;
/// What may still be in memory, whatever the size of the layer: the process that pulls hands on what it
/// has when that is 1 MiB, the store may hold as much, and heads of answers count as well.
pub(crate) const UNSENT: u64 = (2 << 20) + (512 << 10);
/// A debug build takes its time to unpack so many MiB.
const SLICE: (usize, Duration) = (60, Duration::from_secs(240));

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resumed {
    /// Bytes of the image.
    pub(crate) size: u64,
    /// Of them fetched twice.
    pub(crate) again: u64,
    /// The daemon's peak before its death and after it, in KiB.
    pub(crate) memory: [u64; 2],
}

/// What may be in memory of a layer of so many MiB: also the pieces that come before their turn.
pub(crate) fn unsent(mib: usize) -> u64 {
    let wide = registry::Limits::default().wide;
    match (mib as u64) << 20 >= wide.from {
        true => UNSENT + wide.lanes as u64 * PIECE,
        false => UNSENT,
    }
}

fn limit(mib: usize) -> Duration {
    let (slice, limit) = SLICE;
    limit * u32::try_from(mib / slice).expect("a few").max(1)
}

/// Kills the daemon when nine tenths of a layer of so many MiB have come, and pulls again.
pub(crate) fn resumed(name: &str, flags: &[&str], mib: usize) -> Resumed {
    let mut host = Host::new(name);
    let layout = host.path("layout");
    let size = layout::make(&layout, &[&[("large", layout::noise(mib << 20, 1))]]);
    let registry = Registry::start();
    drop(registry.add(&format!("oci:{}:latest", layout.display()), "large"));
    std::fs::remove_dir_all(&layout).expect("remove the layout");
    let proxy = Proxy::to(registry.port());
    let reference = format!("127.0.0.1:{}/large:1", proxy.port());
    let pull = |host: &Host| {
        let ctr = host.ctr_program().args(["images", "pull", "--plain-http"]);
        ctr.args(flags).args([&reference]).limit(limit(mib))
    };

    let cut = size / 10 * 9;
    proxy.stop_at(cut);
    forget_peak(host.daemon_pid());
    let client = pull(&host);
    let first = std::thread::spawn(move || client.run());
    proxy.stopped(limit(mib));
    integration::until("what was sent is there", || {
        arrived(&host) > cut - unsent(mib)
    });
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
    let snapshots = host.ctr(["snapshots", "ls"]).ok();
    assert!(snapshots.contains("Committed"), "{snapshots}");
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    // The lease of the client that could not give it back expires after a day.
    for lease in host.ctr(["leases", "ls", "-q"]).ok().lines() {
        drop(host.ctr(["leases", "delete", lease]).ok());
    }
    host.finish();
    Resumed {
        size,
        again,
        memory: [before_death, after],
    }
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
