//! Snapshots on disk, at several depths of their chains: prepare, commit, remove.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use grpc::snapshots::SnapshotsClient;
use protos::services::snapshots;
use tonic::transport::Channel;

use crate::bars::Table;
use crate::calls::within;
use crate::peer::{Kind, Peer};
use crate::records::alternate;
use crate::{Bench, median};

/// Namespace of the chains: what the other parts make is not in it.
const NAMESPACE: &str = "ctd-bench-snapshots";
const SNAPSHOTTER: &str = "overlayfs";
const DEPTHS: [usize; 3] = [1, 10, 50];
/// Snapshots of one pass.
const EACH: usize = 20;

/// The calls, and what part of Debian's time each may take.
const STEPS: [(&str, f64); 3] = [("Prepare", 0.4), ("Commit", 0.5), ("Remove", 0.6)];

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let disk = tempfile::Builder::new().prefix("ctd-bench-").tempdir();
    let disk = disk.expect("a directory on disk");
    let start = |kind, name: &str| Peer::start_bare(&bench.runtime, kind, &disk.path().join(name));
    let (ours, debian) = (start(Kind::Ours, "ours"), start(Kind::Debian, "debian"));
    let deepest = DEPTHS[DEPTHS.len() - 1];
    for peer in [&ours, &debian] {
        bench.runtime.block_on(chain(&peer.calls.channel, deepest));
    }
    for depth in DEPTHS {
        for (step, (name, limit)) in STEPS.into_iter().enumerate() {
            let pass = |bench: &Bench, peer: &Peer| {
                let laps = laps(&peer.calls.channel, depth);
                bench.runtime.block_on(laps)[step]
            };
            let [a, b] = alternate(bench, [&ours, &debian], &pass);
            let line = table.add(format!("{name} at depth {depth} on disk, ms"), a);
            line.debian(b).of_debian_at_most(limit);
        }
    }
    ours.stop();
    debian.stop();
}

/// The committed layer of that depth, which begins with 1.
fn layer(depth: usize) -> String {
    format!("layer-{depth}")
}

/// Makes the layers, one on the other; nothing collects them.
async fn chain(channel: &Channel, depth: usize) {
    let mut stub = SnapshotsClient::new(channel.clone());
    for n in 1..=depth {
        let below = if n > 1 { layer(n - 1) } else { String::new() };
        prepare(&mut stub, "building", below).await;
        commit(&mut stub, &layer(n), "building").await;
    }
}

/// Medians of the steps on the layer of that depth, in ms.
async fn laps(channel: &Channel, depth: usize) -> [f64; 3] {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut stub = SnapshotsClient::new(channel.clone());
    let mut all: [Vec<f64>; 3] = Default::default();
    for _ in 0..EACH {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let (active, name) = (format!("active-{n}"), format!("top-{n}"));
        let begin = Instant::now();
        prepare(&mut stub, &active, layer(depth)).await;
        let prepared = begin.elapsed();
        commit(&mut stub, &name, &active).await;
        let committed = begin.elapsed();
        remove(&mut stub, &name).await;
        let removed = begin.elapsed();
        let steps = [prepared, committed - prepared, removed - committed];
        for (all, step) in all.iter_mut().zip(steps) {
            all.push(step.as_secs_f64() * 1e3);
        }
    }
    all.map(median)
}

fn root() -> std::collections::HashMap<String, String> {
    [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into()
}

async fn prepare(stub: &mut SnapshotsClient<Channel>, key: &str, parent: String) {
    let message = snapshots::PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.to_owned(),
        parent,
        labels: root(),
        ..Default::default()
    };
    let done = stub.prepare(within(NAMESPACE, message)).await;
    done.expect("prepare");
}

async fn commit(stub: &mut SnapshotsClient<Channel>, name: &str, key: &str) {
    let message = snapshots::CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        name: name.to_owned(),
        key: key.to_owned(),
        labels: root(),
        ..Default::default()
    };
    stub.commit(within(NAMESPACE, message))
        .await
        .expect("commit");
}

async fn remove(stub: &mut SnapshotsClient<Channel>, key: &str) {
    let message = snapshots::RemoveSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.to_owned(),
        ..Default::default()
    };
    stub.remove(within(NAMESPACE, message))
        .await
        .expect("remove");
}
