//! Snapshots on disk, at several depths of their chains: prepare, commit, remove; and the removal of a
//! large one.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use grpc::snapshots::SnapshotsClient;
use protos::services::snapshots;
use tonic::transport::Channel;

use crate::bars::Table;
use crate::calls::within;
use crate::peer::{Kind, Peer};
use crate::records::alternate;
use crate::{Bench, median, usage};

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
    large(bench, [&ours, &debian], table);
    ours.stop();
    debian.stop();
}

/// Files of a large snapshot; fewer to try this.
const FILES: usize = 200_000;
const FILES_VARIABLE: &str = "BENCH_FILES";
/// Files in each directory of it.
const IN_EACH: usize = 1000;
/// Calls that give a 99th percentile.
const CALLS: usize = 300;

/// The removal of a large snapshot, and what its background work costs others.
fn large(bench: &Bench, peers: [&Peer; 2], table: &mut Table) {
    let asked = std::env::var(FILES_VARIABLE).ok();
    let files = asked.map_or(FILES, |text| text.parse().expect("a number of files"));
    let figures = peers.map(|peer| bench.runtime.block_on(removal(peer, files)));
    let [ours, debian] = figures;
    let line = table.add(format!("Remove of {files} files answers, ms"), ours.answer);
    line.debian(debian.answer).at_most(AT_ONCE);
    let line = table.add("Prepare, p99, ms", ours.idle);
    line.debian(debian.idle);
    let line = table.add("Prepare beside that removal, p99, ms", ours.beside);
    line.debian(debian.beside);
    let line = table.add("the same, of an idle one's", ours.beside / ours.idle);
    line.debian(debian.beside / debian.idle).at_most(2.0);
    let [ours, debian] = peers.map(|peer| usage::peak(peer.pid()) as f64 / 1024.0);
    let line = table.add("daemon's memory at its peak, MiB", ours);
    line.debian(debian).at_most(32.0);
}

/// What "at once" is, in ms: no longer than a flush of a busy disk.
const AT_ONCE: f64 = 50.0;

/// One peer's figures, in ms.
#[derive(Clone, Copy)]
struct Removal {
    idle: f64,
    answer: f64,
    beside: f64,
}

async fn removal(peer: &Peer, files: usize) -> Removal {
    let mut stub = SnapshotsClient::new(peer.calls.channel.clone());
    let directory = prepare(&mut stub, "large", String::new()).await;
    for n in 0..files {
        let inner = directory.join((n / IN_EACH).to_string());
        if n % IN_EACH == 0 {
            fs::create_dir(&inner).expect("make a directory");
        }
        fs::write(inner.join(n.to_string()), "x").expect("make a file");
    }
    commit(&mut stub, "many-files", "large").await;
    let flushed = integration::Program::new("sync").run();
    assert_eq!(flushed.code, 0, "sync");
    let idle = late(&mut stub, || false).await;
    let begin = Instant::now();
    remove(&mut stub, "many-files").await;
    let answer = begin.elapsed().as_secs_f64() * 1e3;
    // As long as it goes on.
    let beside = late(&mut stub, || directory.exists()).await;
    Removal {
        idle,
        answer,
        beside,
    }
}

/// The 99th percentile of `Prepare`, in ms: of so many calls, and of more as long as `goes_on` says so.
async fn late(stub: &mut SnapshotsClient<Channel>, goes_on: impl Fn() -> bool) -> f64 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut all = Vec::new();
    while all.len() < CALLS || goes_on() {
        let key = format!("late-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let begin = Instant::now();
        drop(prepare(stub, &key, layer(1)).await);
        all.push(begin.elapsed().as_secs_f64() * 1e3);
        remove(stub, &key).await;
    }
    all.sort_by(f64::total_cmp);
    all[all.len() * 99 / 100]
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
        drop(prepare(&mut stub, "building", below).await);
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
        drop(prepare(&mut stub, &active, layer(depth)).await);
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

/// Makes an active snapshot; the source of its mount, which is a directory where there is no parent.
async fn prepare(stub: &mut SnapshotsClient<Channel>, key: &str, parent: String) -> PathBuf {
    let message = snapshots::PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.to_owned(),
        parent,
        labels: root(),
        ..Default::default()
    };
    let done = stub.prepare(within(NAMESPACE, message)).await;
    let mounts = done.expect("prepare").into_inner().mounts;
    PathBuf::from(&mounts[0].source)
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
