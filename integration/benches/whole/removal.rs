//! Starts beside the removal of a large image: what the collector costs those who wait for a container.

use std::fs;
use std::path::{Path, PathBuf};

use protos::MessageField;
use protos::services::{images, snapshots};
use protos::types::Descriptor;

use crate::Bench;
use crate::bars::Table;
use crate::calls::{NAMESPACE, within};
use crate::peer::Peer;

/// Directories of the image, and files in each.
const DIRECTORIES: usize = 100;
const FILES: usize = 1000;
/// Starts after each removal, which takes a part of them; and how often.
const STARTS: usize = 40;
const ROUNDS: usize = 3;

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let binary = integration::need("crun");
    let mut idle: [Vec<f64>; 2] = Default::default();
    let mut beside: [Vec<f64>; 2] = Default::default();
    for round in 0..ROUNDS {
        for (which, peer) in [&bench.ours, &bench.debian].into_iter().enumerate() {
            idle[which].extend(starts(bench, peer, &binary, &format!("idle-{round}")));
            let name = format!("large-{round}");
            bench.runtime.block_on(make(peer, &name));
            bench.runtime.block_on(remove(peer, &name));
            beside[which].extend(starts(bench, peer, &binary, &format!("beside-{round}")));
        }
    }
    let [idle, beside] = [idle, beside].map(|both| both.map(late));
    let line = table.add("start, p99, ms", idle[0]);
    line.debian(idle[1]);
    let line = table.add(
        "start beside a removal of 100,000 files, p99, ms",
        beside[0],
    );
    line.debian(beside[1]);
    let line = table.add("the same, of an idle one's", beside[0] / idle[0]);
    line.debian(beside[1] / idle[1]).at_most(2.0);
}

/// The 99th percentile.
fn late(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() * 99 / 100]
}

/// Times from prepare to running, in ms.
fn starts(bench: &Bench, peer: &Peer, binary: &Path, prefix: &str) -> Vec<f64> {
    let one = |n| {
        let id = format!("{prefix}-{n}");
        let life = bench.runtime.block_on(peer.calls.life(binary, &id));
        life.running.as_secs_f64() * 1e3
    };
    (0..STARTS).map(one).collect()
}

/// An image that keeps a snapshot of many files.
async fn make(peer: &Peer, name: &str) {
    let mut stub = grpc::snapshots::SnapshotsClient::new(peer.calls.channel.clone());
    let key = format!("{name}-active");
    let root = [("containerd.io/gc.root".to_owned(), "bench".to_owned())];
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: "overlayfs".into(),
        key: key.clone(),
        labels: root.clone().into(),
        ..Default::default()
    };
    let prepared = stub.prepare(within(NAMESPACE, prepare)).await;
    let mounts = prepared.expect("prepare").into_inner().mounts;
    // Without a parent it is a directory.
    fill(&PathBuf::from(&mounts[0].source));
    let commit = snapshots::CommitSnapshotRequest {
        snapshotter: "overlayfs".into(),
        name: name.to_owned(),
        key,
        labels: root.into(),
        ..Default::default()
    };
    stub.commit(within(NAMESPACE, commit))
        .await
        .expect("commit");
    let label = "containerd.io/gc.ref.snapshot.overlayfs".to_owned();
    let image = images::CreateImageRequest {
        image: MessageField::some(images::Image {
            name: name.to_owned(),
            labels: [(label, name.to_owned())].into(),
            target: MessageField::some(Descriptor {
                media_type: "application/vnd.oci.image.index.v1+json".into(),
                digest: format!("sha256:{:064x}", 1),
                size: 1,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut images = grpc::images::ImagesClient::new(peer.calls.channel.clone());
    images
        .create(within(NAMESPACE, image))
        .await
        .expect("create image");
    // From here on the image alone keeps it.
    let update = snapshots::UpdateSnapshotRequest {
        snapshotter: "overlayfs".into(),
        info: MessageField::some(snapshots::Info {
            name: name.to_owned(),
            ..Default::default()
        }),
        update_mask: MessageField::some(protos::well_known::FieldMask {
            paths: vec!["labels".into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    stub.update(within(NAMESPACE, update))
        .await
        .expect("update");
}

fn fill(directory: &Path) {
    for d in 0..DIRECTORIES {
        let directory = directory.join(format!("d{d}"));
        fs::create_dir(&directory).expect("make a directory");
        for f in 0..FILES {
            fs::write(directory.join(format!("f{f}")), "x").expect("make a file");
        }
    }
}

/// Answered at once; the collector does the rest beside the starts.
async fn remove(peer: &Peer, name: &str) {
    let mut stub = grpc::images::ImagesClient::new(peer.calls.channel.clone());
    let delete = images::DeleteImageRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    stub.delete(within(NAMESPACE, delete))
        .await
        .expect("delete image");
}
