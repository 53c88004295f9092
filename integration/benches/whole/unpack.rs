//! One layer onto a file system on tmpfs, by each daemon: gzip, zstd and plain.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use protos::MessageField;
use protos::services::{diff, snapshots};
use tonic::transport::Channel;

use crate::bars::Table;
use crate::peer::Peer;
use crate::{Bench, calls, content, median};

const NAMESPACE: &str = "ctd-bench-unpack";
/// Applies of each daemon.
const ROUNDS: usize = 5;
/// Media type, who makes it of the plain archive, and the bar.
const KINDS: [(&str, &str, &[&str], f64); 3] = [
    ("gzip", "tar+gzip", &["gzip", "-6", "-c"], 2.5),
    ("zstd", "tar+zstd", &["zstd", "-3", "-q", "-c"], 2.0),
    ("plain", "tar", &["cat"], 2.0),
];

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let plain = bench.dir.join("layer.tar");
    decompress(&integration::layers().join("gzip"), &plain);
    let size = fs::metadata(&plain).expect("the layer").len();
    for (name, kind, encoder, bar) in KINDS {
        let file = bench.dir.join("layer.encoded");
        run(encoder, &plain, &file);
        let data = fs::read(&file).expect("read the layer");
        let media_type = format!("application/vnd.oci.image.layer.v1.{kind}");
        let peers = [&bench.ours, &bench.debian];
        let layers = peers.map(|peer| stored(bench, peer, &media_type, &data));
        drop(data);
        let (mut rates, mut used): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
        for round in 0..ROUNDS {
            for step in 0..2 {
                let which = (round + step) % 2;
                let (rate, cpu) = applied(bench, peers[which], &layers[which], size);
                rates[which].push(rate);
                used[which].push(cpu);
            }
        }
        for (peer, layer) in peers.iter().zip(&layers) {
            bench.runtime.block_on(content::delete_in(
                NAMESPACE,
                &peer.calls.channel,
                &layer.digest,
            ));
        }
        let [ours, debian] = rates.map(median);
        let line = table.add(format!("unpack {name}, tmpfs, MB per s"), ours);
        line.debian(debian).of_debian_at_least(bar);
        let [ours, debian] = used.map(median);
        table
            .add(format!("unpack {name}, CPU ms"), ours)
            .debian(debian);
    }
}

/// The largest layer of the image, uncompressed.
fn decompress(layout: &Path, to: &Path) {
    let blobs = fs::read_dir(layout.join("blobs/sha256")).expect("blobs");
    let blobs = blobs.map(|entry| entry.expect("an entry").path());
    let largest = blobs.max_by_key(|path| fs::metadata(path).map_or(0, |facts| facts.len()));
    run(&["gzip", "-dc"], &largest.expect("a blob"), to);
}

fn run(command: &[&str], from: &Path, to: &Path) {
    let status = Command::new(integration::need(command[0]))
        .args(&command[1..])
        .stdin(fs::File::open(from).expect("open"))
        .stdout(fs::File::create(to).expect("create"))
        .stderr(Stdio::inherit())
        .status();
    assert!(status.expect("run").success(), "{command:?}");
}

fn stored(bench: &Bench, peer: &Peer, media_type: &str, data: &[u8]) -> protos::types::Descriptor {
    let written = content::write_in(NAMESPACE, &peer.calls.channel, data);
    protos::types::Descriptor {
        media_type: media_type.into(),
        digest: bench.runtime.block_on(written),
        size: data.len().try_into().expect("small"),
        ..Default::default()
    }
}

/// MB per s of the uncompressed stream, and CPU ms of the daemon.
fn applied(bench: &Bench, peer: &Peer, layer: &protos::types::Descriptor, size: u64) -> (f64, f64) {
    let channel = &peer.calls.channel;
    bench.runtime.block_on(async {
        let mut all = grpc::snapshots::SnapshotsClient::new(channel.clone());
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: "unpack".into(),
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into(),
            ..Default::default()
        };
        let prepared = all.prepare(calls::within(NAMESPACE, prepare)).await;
        let mounts = prepared.expect("prepare").into_inner().mounts;
        let request = diff::ApplyRequest {
            diff: MessageField::some(layer.clone()),
            mounts,
            ..Default::default()
        };
        let before = peer.group.cpu_ms();
        let begin = Instant::now();
        let made = apply(channel, request).await;
        let took = begin.elapsed().as_secs_f64();
        let used = peer.group.cpu_ms() - before;
        assert_eq!(made, size, "length of the stream");
        let remove = snapshots::RemoveSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: "unpack".into(),
            ..Default::default()
        };
        let removed = all.remove(calls::within(NAMESPACE, remove)).await;
        removed.expect("remove");
        (size as f64 / 1e6 / took, used)
    })
}

/// Length of the uncompressed stream.
async fn apply(channel: &Channel, request: diff::ApplyRequest) -> u64 {
    let mut differ = grpc::diff::DiffClient::new(channel.clone());
    let answer = differ.apply(calls::within(NAMESPACE, request)).await;
    let applied = answer.expect("apply").into_inner().applied;
    let size = applied.into_option().expect("a descriptor").size;
    size.try_into().expect("a length")
}
