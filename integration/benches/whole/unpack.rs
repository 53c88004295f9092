//! One layer onto a file system on tmpfs, by each daemon: gzip, zstd and plain; the plain one beside `tar`;
//! and the memory that our daemon has while it unpacks many files and a large one.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use protos::MessageField;
use protos::services::{diff, snapshots};
use tonic::transport::Channel;

use crate::bars::Table;
use crate::peer::{Kind, Peer};
use crate::{Bench, calls, content, median, usage};

const NAMESPACE: &str = "ctd-bench-unpack";
/// Applies of each daemon.
const ROUNDS: usize = 5;
/// Media type, who makes it of the plain archive, and the bar.
const KINDS: [(&str, &str, &[&str], f64); 3] = [
    ("gzip", "tar+gzip", &["gzip", "-6", "-c"], 2.5),
    ("zstd", "tar+zstd", &["zstd", "-3", "-q", "-c"], 2.0),
    ("plain", "tar", &["cat"], 2.0),
];

/// Of what our daemon takes, times what `tar` does.
const OF_TAR: f64 = 1.1;
/// Files of the layer that memory is measured with, and the length of its large one.
const MANY: usize = 200_000;
const LARGE: usize = 256 << 20;
/// MiB that such a layer may take.
const MEMORY: f64 = 32.0;

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let plain = bench.dir.join("layer.tar");
    decompress(&integration::layers().join("gzip"), &plain);
    beside_debian(bench, &plain, table);
    beside_tar(bench, &plain, table);
    peak(bench, table);
}

fn beside_debian(bench: &Bench, plain: &Path, table: &mut Table) {
    let size = fs::metadata(plain).expect("the layer").len();
    for (name, kind, encoder, bar) in KINDS {
        let file = bench.dir.join("layer.encoded");
        run(encoder, plain, &file);
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
            delete(bench, peer, layer);
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

/// The plain archive through our daemon, which hashes it as well, beside GNU tar.
fn beside_tar(bench: &Bench, plain: &Path, table: &mut Table) {
    let data = fs::read(plain).expect("read the layer");
    let ours = &bench.ours;
    let layer = stored(bench, ours, "application/vnd.oci.image.layer.v1.tar", &data);
    let to = bench.dir.join("untar");
    let mut took: [Vec<f64>; 2] = Default::default();
    for round in 0..ROUNDS {
        for step in 0..2 {
            let which = (round + step) % 2;
            took[which].push(if which == 0 {
                let (rate, _) = applied(bench, ours, &layer, data.len() as u64);
                data.len() as f64 / 1e3 / rate
            } else {
                fs::create_dir(&to).expect("make a directory");
                let begin = Instant::now();
                run(
                    &["tar", "-xf", "-", "-C", path(&to)],
                    plain,
                    Path::new("/dev/null"),
                );
                let took = begin.elapsed().as_secs_f64() * 1e3;
                fs::remove_dir_all(&to).expect("remove it");
                took
            });
        }
    }
    delete(bench, ours, &layer);
    let [ours, tar] = took.map(median);
    let line = table.add("unpack plain, tmpfs, against tar xf, ms", ours);
    line.floor(tar).of_floor_at_most(OF_TAR);
}

/// A daemon of its own: what another has had of its memory is not given back.
fn peak(bench: &Bench, table: &mut Table) {
    let peer = Peer::start_bare(&bench.runtime, Kind::Ours, &bench.dir.join("peak"));
    let data = many();
    let size = data.len() as u64;
    let layer = stored(
        bench,
        &peer,
        "application/vnd.oci.image.layer.v1.tar",
        &data,
    );
    drop(data);
    let idle = usage::memory(peer.pid()).rss as f64 / 1024.0;
    usage::forget_peak(peer.pid());
    applied(bench, &peer, &layer, size);
    let peak = usage::peak(peer.pid()) as f64 / 1024.0;
    delete(bench, &peer, &layer);
    peer.stop();
    let what = format!("memory while unpacking {MANY} files and a large one, MiB");
    table
        .add(what, peak)
        .floor(idle)
        .above_floor_at_most(MEMORY);
}

/// A layer of many small files and one that is large.
fn many() -> Vec<u8> {
    let mut all = Vec::new();
    let small = [b'x'; 100];
    for number in 0..MANY {
        let name = format!("directory-{}/file-{number}", number / 500);
        add(&mut all, &name, small.iter().copied());
    }
    // No zeroes: they would not be stored.
    let byte = |at: usize| u8::try_from(at % 255).unwrap_or(0) + 1;
    add(&mut all, "large", (0..LARGE).map(byte));
    all.resize(all.len() + 1024, 0);
    all
}

/// Adds a file to an archive.
fn add(archive: &mut Vec<u8>, name: &str, data: impl ExactSizeIterator<Item = u8>) {
    let mut header = [0; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", data.len()));
    put(136, "14000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend_from_slice(&header);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn delete(bench: &Bench, peer: &Peer, layer: &protos::types::Descriptor) {
    let channel = &peer.calls.channel;
    let deleted = content::delete_in(NAMESPACE, channel, &layer.digest);
    bench.runtime.block_on(deleted);
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of our own")
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
