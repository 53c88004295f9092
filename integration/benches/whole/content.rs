//! Bytes into the content store and out of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use protos::services::content as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::bars::Table;
use crate::lean::Lean;
use crate::peer::{Kind, Peer};
use crate::records::alternate;
use crate::{Bench, calls};

const NAMESPACE: &str = "ctd-bench-content";
const MIB: usize = 1 << 20;
const LARGE: usize = MIB;
const SMALL: usize = 32 << 10;

/// Every blob is another one.
static NEXT: AtomicU64 = AtomicU64::new(0);

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let peers = [&bench.ours, &bench.debian];
    let large = |bench: &Bench, peer: &Peer| written(bench, peer, LARGE, 128 * MIB);
    let [ours, debian] = alternate(bench, peers, &large);
    let line = table.add("Content.Write, 1 MiB messages, MB per s", ours);
    line.debian(debian).of_debian_at_least(2.0);
    let small = |bench: &Bench, peer: &Peer| written(bench, peer, SMALL, 32 * MIB);
    let [ours, debian] = alternate(bench, peers, &small);
    let line = table.add("Content.Write, 32 KiB messages, MB per s", ours);
    line.debian(debian).of_debian_at_least(2.0);
    let [ours, debian] = alternate(bench, peers, &read);
    let line = table.add("Content.Read, MB per s", ours);
    line.debian(debian).of_debian_at_least(1.5);
    let disk = tempfile::Builder::new().prefix("ctd-bench-").tempdir();
    let disk = disk.expect("a directory on disk");
    let start = |kind, name: &str| Peer::start_bare(&bench.runtime, kind, &disk.path().join(name));
    let (ours, debian) = (start(Kind::Ours, "ours"), start(Kind::Debian, "debian"));
    let [a, b] = alternate(bench, [&ours, &debian], &read);
    let line = table.add("Content.Read from disk, in memory, MB per s", a);
    line.debian(b).of_debian_at_least(1.5);
    ours.stop();
    debian.stop();
}

/// One write with each message answered before the next one, as clients do it; deleted afterwards.
fn written(bench: &Bench, peer: &Peer, message: usize, total: usize) -> f64 {
    bench.runtime.block_on(async {
        let begin = Instant::now();
        let digest = write(&peer.calls.channel, message, total).await;
        let took = begin.elapsed().as_secs_f64();
        delete(&peer.calls.channel, &digest).await;
        total as f64 / 1e6 / took
    })
}

fn read(bench: &Bench, peer: &Peer) -> f64 {
    const TOTAL: usize = 256 * MIB;
    bench.runtime.block_on(async {
        let channel = &peer.calls.channel;
        let digest = write(channel, LARGE, TOTAL).await;
        let method = "containerd.services.content.v1.Content/Read";
        let request = wire::ReadContentRequest {
            digest: digest.clone(),
            ..Default::default()
        };
        let mut client = Lean::connect(&peer.socket()).await;
        let begin = Instant::now();
        assert!(client.call(method, NAMESPACE, &request).await >= TOTAL);
        let took = begin.elapsed().as_secs_f64();
        delete(channel, &digest).await;
        TOTAL as f64 / 1e6 / took
    })
}

fn stub(channel: &Channel) -> grpc::content::ContentClient<Channel> {
    grpc::content::ContentClient::new(channel.clone()).max_decoding_message_size(32 * MIB)
}

/// Writes a blob of `total` bytes and returns its digest.
pub(crate) async fn write(channel: &Channel, message: usize, total: usize) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut data = vec![0x5a; message];
    data[..8].copy_from_slice(&number.to_le_bytes());
    let data = Bytes::from(data);
    let pieces = (0..total).step_by(message).map(|_| data.clone());
    send(NAMESPACE, channel, number, total, pieces).await
}

/// Writes `data` as a blob of `namespace` and returns its digest.
pub(crate) async fn write_in(namespace: &str, channel: &Channel, data: &[u8]) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let pieces = data.chunks(LARGE).map(Bytes::copy_from_slice);
    send(namespace, channel, number, data.len(), pieces).await
}

/// Each message is answered before the next one.
async fn send(
    namespace: &str,
    channel: &Channel,
    number: u64,
    total: usize,
    pieces: impl Iterator<Item = Bytes>,
) -> String {
    let request = |action: wire::WriteAction, offset: usize, data: Bytes| {
        wire::WriteContentRequest {
            action: action.into(),
            ref_: format!("bench-{number}"),
            total: total.try_into().expect("small"),
            offset: offset.try_into().expect("small"),
            data,
            // As long as nothing names it, a collection would take it.
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into(),
            ..Default::default()
        }
    };
    let (requests, queue) = mpsc::channel(1);
    let stat = request(wire::WriteAction::STAT, 0, Bytes::new());
    requests.send(stat).await.expect("queue");
    let call = calls::within(namespace, ReceiverStream::new(queue));
    let mut answers = stub(channel).write(call).await.expect("write").into_inner();
    answers.message().await.expect("stat").expect("an answer");
    let mut offset = 0;
    for data in pieces {
        let len = data.len();
        let piece = request(wire::WriteAction::WRITE, offset, data);
        requests.send(piece).await.expect("queue");
        answers.message().await.expect("write").expect("an answer");
        offset += len;
    }
    let commit = request(wire::WriteAction::COMMIT, total, Bytes::new());
    requests.send(commit).await.expect("queue");
    let done = answers.message().await.expect("commit").expect("an answer");
    done.digest
}

/// Reads a blob and returns its length.
pub(crate) async fn drain(channel: &Channel, digest: &str) -> usize {
    let request = wire::ReadContentRequest {
        digest: digest.to_owned(),
        ..Default::default()
    };
    let answer = stub(channel).read(calls::within(NAMESPACE, request)).await;
    let mut pieces = answer.expect("read").into_inner();
    let mut len = 0;
    while let Some(piece) = pieces.message().await.expect("read") {
        len += piece.data.len();
    }
    len
}

pub(crate) async fn delete(channel: &Channel, digest: &str) {
    delete_in(NAMESPACE, channel, digest).await;
}

pub(crate) async fn delete_in(namespace: &str, channel: &Channel, digest: &str) {
    let request = wire::DeleteContentRequest {
        digest: digest.to_owned(),
        ..Default::default()
    };
    let deleted = stub(channel)
        .delete(calls::within(namespace, request))
        .await;
    deleted.expect("delete");
}
