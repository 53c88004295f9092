//! Streams that nobody reads, and messages that never end: what they hold of the daemon's memory is
//! bounded, others go on meanwhile, and all of it comes back.

use std::convert::Infallible;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream;
use grpc::content::ContentClient;
use http_body_util::StreamBody;
use hyper::body::Frame;
use integration::{Host, figure, forget_peak, peak, resident, until};
use protos::services::content::{
    DeleteContentRequest, ListContentRequest, ListContentResponse, ReadContentRequest,
    ReadContentResponse, WriteAction, WriteContentRequest,
};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::body::Body;
use tonic::codegen::http;
use tower::ServiceExt as _;

use crate::many_streams::{Cost, SOON, STREAMS, connect, is_quick, run, scoped, settle};

/// Connections that the streams come by.
const CONNECTIONS: usize = 10;
/// What one of them may cost the daemon, in bytes, in a build without optimisation: a reader has one
/// small piece, a list its items and no page of them.
const READER: u64 = 56 << 10;
const LIST: u64 = 96 << 10;
/// The largest piece of a blob that is read, and more than all streams hold of one.
const MIB: usize = 1 << 20;
/// Items of the list.
const ITEMS: usize = 150;
/// Streams of lists.
const LISTS: usize = 2000;

/// Makes a blob, and tells its digest.
async fn blob(host: &Host, name: &str, size: usize) -> String {
    let mut client = ContentClient::new(connect(host).await);
    let text = name.bytes().cycle().take(MIB);
    let piece: Bytes = text.collect();
    let pieces = (0..size).step_by(MIB).map(|at| WriteContentRequest {
        action: WriteAction::WRITE.into(),
        ref_: name.into(),
        offset: at.try_into().expect("an offset"),
        data: piece.slice(..MIB.min(size - at)),
        // No collection takes it away.
        labels: [("containerd.io/gc.root".to_owned(), "story".to_owned())].into(),
        ..WriteContentRequest::default()
    });
    let mut messages: Vec<_> = pieces.collect();
    let last = messages.last_mut().expect("a message");
    last.action = WriteAction::COMMIT.into();
    let answers = client.write(scoped(host, stream::iter(messages))).await;
    let mut answers = answers.expect("write").into_inner();
    let mut digest = String::new();
    while let Some(answer) = answers.message().await.expect("written") {
        digest = answer.digest;
    }
    digest
}

async fn delete(host: &Host, digests: Vec<String>) {
    let mut client = ContentClient::new(connect(host).await);
    for digest in digests {
        let request = DeleteContentRequest {
            digest,
            ..DeleteContentRequest::default()
        };
        drop(client.delete(scoped(host, request)).await.expect("delete"));
    }
}

fn read(digest: &str) -> ReadContentRequest {
    ReadContentRequest {
        digest: digest.into(),
        ..ReadContentRequest::default()
    }
}

/// Reads all of a blob that others have open.
async fn reads(host: &Host, digest: &str, size: usize) {
    let mut client = ContentClient::new(connect(host).await);
    let answers = client.read(scoped(host, read(digest))).await;
    let mut answers = answers.expect("read").into_inner();
    let mut have = 0;
    while have < size {
        let next = timeout(SOON, answers.message()).await.expect("in time");
        have += next.expect("no failure").expect("no end").data.len();
    }
    assert_eq!(have, size);
}

async fn readers(host: &Host, cost: &Cost, digest: &str, size: usize) {
    forget_peak(host.daemon_pid());
    let mut open: Vec<Streaming<ReadContentResponse>> = Vec::with_capacity(STREAMS);
    for _ in 0..CONNECTIONS {
        let mut client = ContentClient::new(connect(host).await);
        for _ in 0..STREAMS / CONNECTIONS {
            let answer = client.read(scoped(host, read(digest))).await;
            open.push(answer.expect("read").into_inner());
        }
    }
    cost.is_within(host, STREAMS, READER);
    is_quick(host).await;
    reads(host, digest, size).await;
    cost.peak_is_within(host, STREAMS, READER);
    // Each of them was there all the time.
    for stream in open.iter_mut().step_by(STREAMS / CONNECTIONS) {
        let first = timeout(SOON, stream.message()).await.expect("in time");
        assert!(!first.expect("no failure").expect("no end").data.is_empty());
    }
}

#[test]
fn ten_thousand_readers_that_take_nothing_cost_a_bounded_amount() {
    let host = Host::new("unread-blobs");
    let size = 5 * MIB;
    let mut digest = String::new();
    run(async { digest = blob(&host, "large", size).await });
    let cost = Cost::new(&host);
    run(readers(&host, &cost, &digest, size));
    cost.is_over(&host);
    run(delete(&host, vec![digest]));
    host.finish();
}

async fn lists(host: &Host, cost: &Cost) {
    forget_peak(host.daemon_pid());
    let mut open: Vec<Streaming<ListContentResponse>> = Vec::with_capacity(LISTS);
    let mut client = ContentClient::new(connect(host).await);
    for _ in 0..LISTS {
        let answer = client.list(scoped(host, ListContentRequest::default()));
        open.push(answer.await.expect("list").into_inner());
    }
    cost.is_within(host, LISTS, LIST);
    is_quick(host).await;
    cost.peak_is_within(host, LISTS, LIST);
    let mut last = open.pop().expect("a list");
    drop(open);
    let mut items = 0;
    while let Some(page) = last.message().await.expect("a page") {
        items += page.info.len();
    }
    assert_eq!(items, ITEMS);
}

#[test]
fn lists_that_nobody_reads_cost_a_bounded_amount() {
    let host = Host::new("unread-lists");
    let mut digests = Vec::new();
    run(async {
        for n in 0..ITEMS {
            digests.push(blob(&host, &format!("item-{n:03}"), 100).await);
        }
    });
    let cost = Cost::new(&host);
    run(lists(&host, &cost));
    cost.is_over(&host);
    run(delete(&host, digests));
    host.finish();
}

/// Messages of which a part comes, and never the rest.
const HALVES: usize = 40;
/// What comes of each.
const PART: usize = 15 * MIB;
/// What the daemon may take for all of them, in KiB.
const HELD: u64 = (512 + 48) << 10;

/// A call whose message is never whole.
fn half(host: &Host) -> http::Request<Body> {
    let mut head = BytesMut::new();
    head.put_u8(0);
    head.put_u32(u32::try_from(grpc::MAX_MESSAGE).expect("a length"));
    let pieces = (0..PART / MIB).map(|_| Bytes::from(vec![0; MIB]));
    let sent = std::iter::once(head.freeze()).chain(pieces);
    let frames = stream::iter(sent).map(|data| Ok::<_, Infallible>(Frame::data(data)));
    let path = "/containerd.services.events.v1.Events/Publish";
    http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(grpc::NAMESPACE, host.namespace())
        .body(Body::new(StreamBody::new(frames.chain(stream::pending()))))
        .expect("a request")
}

async fn halves(host: &Host, before: u64) {
    let mut open = JoinSet::new();
    for _ in 0..HALVES {
        let (channel, request) = (connect(host).await, half(host));
        open.spawn(async move { channel.oneshot(request).await.expect("an answer") });
    }
    // What there is room for stays, and is waited for.
    let room = 512 * MIB / PART;
    for _ in room..HALVES {
        let answer = timeout(SOON, open.join_next()).await.expect("in time");
        let answer = answer.expect("a call").expect("no panic");
        assert_eq!(answer.headers()["grpc-status"], "8");
    }
    settle(host);
    let grown = peak(host.daemon_pid()).saturating_sub(before);
    figure(format_args!(
        "{grown} KiB for {HALVES} messages without an end"
    ));
    assert!(grown <= HELD, "{grown} KiB more, {HELD} may be");
    is_quick(host).await;
    assert!(
        open.try_join_next().is_none(),
        "one that had room has ended"
    );
}

#[test]
fn messages_that_never_end_take_a_bounded_amount() {
    let host = Host::new("half-messages");
    let pid = host.daemon_pid();
    settle(&host);
    let before = resident(pid);
    forget_peak(pid);
    run(halves(&host, before));
    until("what they took is given back", || {
        resident(pid) <= before + (48 << 10)
    });
    let mut digest = String::new();
    run(async { digest = blob(&host, "whole", 3 * MIB).await });
    run(delete(&host, vec![digest]));
    host.finish();
}
