//! Clients that are gone in the middle of a call, connection and all, for every method that there is: the
//! daemon lives, nothing half made stays, and no stream, no lock and no descriptor does.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use grpc::containers::ContainersClient;
use grpc::content::ContentClient;
use grpc::images::ImagesClient;
use grpc::leases::LeasesClient;
use grpc::namespaces::NamespacesClient;
use grpc::snapshots::SnapshotsClient;
use protos::services::{containers, content, images, leases, namespaces, snapshots};
use protos::wire::Wire as _;
use protos::wire::transfer::stream_init_to_any;
use protos::{Message as _, MessageField};
use tonic::{Code, Response, Status};

use crate::bad_input::{Whole, for_containers, for_images, for_introspection, for_leases, whole};
use crate::peer::{NAMESPACE, Peer, SOON, all, scoped};
use crate::stock::SNAPSHOTTER;

rules! {
    both {
        who_is_gone_before_his_message_is_whole_leaves_nothing
        who_is_gone_before_the_answer_leaves_something_whole_or_nothing
    }
    ours {
        the_name_of_a_stream_is_free_when_its_client_is_gone_at_any_point
    }
}

/// The name of all that is made here.
const NAME: &str = "gone";

/// Kinds of HTTP/2 frames, and what is said of them.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How far a client comes.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The call has begun.
    Head,
    /// Half of the message has come.
    HalfMessage,
    /// The same within a frame of the connection, which is never read to its end.
    HalfFrame,
    /// The message is whole, and more could follow.
    Open,
    /// Nothing more will follow.
    Closed,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// Headers as they are, without any table.
fn headers(path: &str) -> Vec<u8> {
    let all = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("containerd-namespace", NAMESPACE),
    ];
    let mut block = Vec::new();
    for (name, value) in all {
        block.push(0);
        for text in [name, value] {
            block.push(
                u8::try_from(text.len())
                    .ok()
                    .filter(|l| *l < 127)
                    .expect("short"),
            );
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Calls a method, and comes as far as told; then the connection has a ping to answer.
fn begin(peer: &Peer, path: &str, message: &[u8], cut: Cut) -> UnixStream {
    let mut socket = UnixStream::connect(peer.host.address()).expect("connect");
    socket.set_read_timeout(Some(SOON)).expect("a limit");
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    let body = [&[0], &length[..], message].concat();
    let half = 5 + message.len() / 2;
    let data = match cut {
        Cut::Head => Vec::new(),
        Cut::HalfMessage => frame(DATA, 0, 1, &body[..half]),
        Cut::HalfFrame => {
            let whole = frame(DATA, END_STREAM, 1, &body);
            whole[..whole.len() - (body.len() - half)].to_vec()
        }
        Cut::Open => frame(DATA, 0, 1, &body),
        Cut::Closed => frame(DATA, END_STREAM, 1, &body),
    };
    let ping = frame(PING, 0, 0, &[7; 8]);
    // Half a frame cannot be followed by another: it is behind the answer to what came before.
    let (before, behind) = match cut {
        Cut::HalfFrame => (Vec::new(), data),
        _ => (data, Vec::new()),
    };
    let sent = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &[]),
        &frame(HEADERS, END_HEADERS, 1, &headers(path)),
        &before,
        &ping,
        &behind,
    ];
    socket.write_all(&sent.concat()).expect("send");
    socket
}

/// Calls a method, comes as far as told, sees that all of it has been read, and is gone.
fn vanish(peer: &Peer, path: &str, message: &[u8], cut: Cut) {
    let mut socket = begin(peer, path, message, cut);
    until_told(&mut socket, path, |kind, flags| {
        (kind, flags) == (PING, ACK)
    });
}

/// Calls a method and stays until the answer has come to its end.
fn stay(peer: &Peer, path: &str, message: &[u8]) {
    let mut socket = begin(peer, path, message, Cut::Closed);
    until_told(&mut socket, path, |kind, flags| {
        kind == HEADERS && flags & END_STREAM != 0
    });
}

/// Reads up to a frame of this kind.
fn until_told(socket: &mut UnixStream, path: &str, is_it: impl Fn(u8, u8) -> bool) {
    loop {
        let mut head = [0; 9];
        socket
            .read_exact(&mut head)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let [l0, l1, l2, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let mut payload = vec![0; usize::try_from(length).expect("short")];
        socket.read_exact(&mut payload).expect("a frame");
        if is_it(kind, flags) {
            return;
        }
    }
}

/// What is sent to methods that make something, and to some others; the rest gets a name.
fn messages() -> HashMap<String, Vec<u8>> {
    let snapshot = |key: &str| snapshots::PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.into(),
        ..Default::default()
    };
    let view = snapshots::ViewSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: format!("{NAME}-view"),
        ..Default::default()
    };
    let write = content::WriteContentRequest {
        action: content::WriteAction::WRITE.into(),
        ref_: NAME.into(),
        data: vec![7; 3000].into(),
        ..Default::default()
    };
    let namespace = namespaces::CreateNamespaceRequest {
        namespace: MessageField::some(namespaces::Namespace {
            name: NAME.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let stream = stream_init_to_any(NAME).expect("a frame").to_wire();
    let mut all = vec![
        whole("snapshots.v1.Snapshots/Prepare", &snapshot(NAME)),
        whole("snapshots.v1.Snapshots/View", &view),
        whole("content.v1.Content/Write", &write),
        whole("namespaces.v1.Namespaces/Create", &namespace),
        whole("streaming.v1.Streaming/Stream", &stream),
    ];
    for more in [
        for_containers(),
        for_images(),
        for_leases(),
        for_introspection(),
    ] {
        all.extend(more);
    }
    all.into_iter()
        .map(|Whole { path, message }| (path, message))
        .collect()
}

/// The name as the first field, which is what most messages begin with.
fn named() -> Vec<u8> {
    let request = leases::DeleteRequest {
        id: NAME.into(),
        ..Default::default()
    };
    request.write_to_bytes().expect("a message")
}

/// Every method is called by somebody who comes as far as each of these.
async fn vanish_from_all(peer: &Peer, cuts: &[Cut]) {
    let (messages, named) = (messages(), named());
    let methods = grpc::meter::all();
    assert!(
        methods.len() > 60
            && messages
                .keys()
                .all(|path| methods.iter().any(|m| m.path == path))
    );
    for method in methods {
        let message = messages.get(method.path).unwrap_or(&named);
        for cut in cuts {
            vanish(peer, method.path, message, *cut);
        }
    }
    peer.lives().await;
}

/// The names of all that there is, by what it is.
async fn found(peer: &Peer) -> Vec<String> {
    let mut names = Vec::new();
    let mut note = |what: &str, all: Vec<String>| {
        names.extend(all.into_iter().map(|name| format!("{what} {name}")));
    };
    let mut client = ContainersClient::new(peer.channel());
    let list = client
        .list(scoped(containers::ListContainersRequest::default()))
        .await;
    let list = list.expect("list").into_inner().containers;
    note("container", list.into_iter().map(|c| c.id).collect());
    let mut client = ImagesClient::new(peer.channel());
    let list = client
        .list(scoped(images::ListImagesRequest::default()))
        .await;
    let list = list.expect("list").into_inner().images;
    note("image", list.into_iter().map(|i| i.name).collect());
    let mut client = LeasesClient::new(peer.channel());
    let list = client.list(scoped(leases::ListRequest::default())).await;
    let list = list.expect("list").into_inner().leases;
    note("lease", list.into_iter().map(|l| l.id).collect());
    let mut client = NamespacesClient::new(peer.channel());
    let list = client
        .list(scoped(namespaces::ListNamespacesRequest::default()))
        .await;
    let list = list.expect("list").into_inner().namespaces;
    let list = list
        .into_iter()
        .map(|n| n.name)
        .filter(|name| name != NAMESPACE);
    note("namespace", list.collect());
    let mut client = ContentClient::new(peer.channel());
    let list = client
        .list_statuses(scoped(content::ListStatusesRequest::default()))
        .await;
    let list = list.expect("list").into_inner().statuses;
    note("ingest", list.into_iter().map(|s| s.ref_).collect());
    let list = all(client
        .list(scoped(content::ListContentRequest::default()))
        .await)
    .await;
    let list = list.expect("list").into_iter().flat_map(|page| page.info);
    note("blob", list.map(|info| info.digest).collect());
    let mut client = SnapshotsClient::new(peer.channel());
    let request = snapshots::ListSnapshotsRequest {
        snapshotter: SNAPSHOTTER.into(),
        ..Default::default()
    };
    let list = all(client.list(scoped(request)).await).await;
    let list = list.expect("list").into_iter().flat_map(|page| page.info);
    note("snapshot", list.map(|info| info.name).collect());
    names
}

async fn who_is_gone_before_his_message_is_whole_leaves_nothing(peer: &Peer) {
    let cuts = [Cut::Head, Cut::HalfMessage, Cut::HalfFrame];
    vanish_from_all(peer, &cuts).await;
    let found = found(peer).await;
    assert!(found.is_empty(), "{found:?}");
}

/// Gone, or never there.
#[track_caller]
fn taken<T>(answer: Result<Response<T>, Status>) {
    if let Err(status) = answer {
        assert_eq!(status.code(), Code::NotFound, "{status}");
    }
}

/// Takes away what may have been made. The one who has the ingest open may be about to learn that its client
/// is gone.
async fn take_all(peer: &Peer) {
    macro_rules! take {
        ($client:ident, $method:ident, $request:expr) => {
            taken($client::new(peer.channel()).$method(scoped($request)).await)
        };
    }
    let id = || "c".to_owned();
    take!(
        ContainersClient,
        delete,
        containers::DeleteContainerRequest {
            id: id(),
            ..Default::default()
        }
    );
    let name = || "i".to_owned();
    take!(
        ImagesClient,
        delete,
        images::DeleteImageRequest {
            name: name(),
            ..Default::default()
        }
    );
    let id = || "l".to_owned();
    take!(
        LeasesClient,
        delete,
        leases::DeleteRequest {
            id: id(),
            ..Default::default()
        }
    );
    let name = || NAME.to_owned();
    take!(
        NamespacesClient,
        delete,
        namespaces::DeleteNamespaceRequest {
            name: name(),
            ..Default::default()
        }
    );
    for key in [NAME.to_owned(), format!("{NAME}-view")] {
        let request = snapshots::RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key,
            ..Default::default()
        };
        take!(SnapshotsClient, remove, request);
    }
    let request = content::AbortRequest {
        ref_: NAME.into(),
        ..Default::default()
    };
    let aborted = ContentClient::new(peer.channel())
        .abort(scoped(request))
        .await;
    if !matches!(&aborted, Err(status) if status.code() == Code::Unavailable) {
        taken(aborted);
    }
}

/// What was asked for may be done a moment later.
async fn who_is_gone_before_the_answer_leaves_something_whole_or_nothing(peer: &Peer) {
    // Who stays gets what he asks for: it is not for the way of asking that nothing is made.
    let messages = messages();
    let makers = [
        "namespaces.v1.Namespaces",
        "containers.v1.Containers",
        "images.v1.Images",
        "leases.v1.Leases",
    ]
    .map(|service| format!("/containerd.services.{service}/Create"));
    for path in &makers {
        stay(peer, path, &messages[path]);
    }
    let made = found(peer).await;
    assert_eq!(
        made,
        ["container c", "image i", "lease l", "namespace gone"]
    );
    take_all(peer).await;
    vanish_from_all(peer, &[Cut::Open, Cut::Closed]).await;
    let settled = async {
        let mut quiet = 0;
        while quiet < 2 {
            take_all(peer).await;
            quiet = if found(peer).await.is_empty() {
                quiet + 1
            } else {
                0
            };
        }
    };
    let settled = tokio::time::timeout(SOON, settled).await;
    if settled.is_err() {
        panic!("left: {:?}", found(peer).await);
    }
}

async fn the_name_of_a_stream_is_free_when_its_client_is_gone_at_any_point(peer: &Peer) {
    let path = "/containerd.services.streaming.v1.Streaming/Stream";
    let message = &messages()[path];
    for cut in [
        Cut::Head,
        Cut::HalfMessage,
        Cut::HalfFrame,
        Cut::Open,
        Cut::Closed,
    ] {
        vanish(peer, path, message, cut);
        let free = async {
            while let Err(status) = crate::streaming::open(peer, NAME).await {
                assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            }
        };
        tokio::time::timeout(SOON, free)
            .await
            .expect("free in time");
    }
}
