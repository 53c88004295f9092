//! Blobs that another namespace brought.

use protos::services::content::{WriteAction, WriteContentRequest};

use super::{Content, digest, message, stat};
use crate::peer::{Peer, labels};
use crate::stock;

rules! {
    both {
        a_known_digest_is_enough
        another_length_is_not
        it_can_be_written_anew
        labels_stay_with_their_namespace
        the_owners_deletion_takes_nothing_away
    }
    ours {}
}

/// Opens an ingest of a blob that is known by its digest.
fn known(blob: &str) -> WriteContentRequest {
    WriteContentRequest {
        expected: blob.into(),
        ..stat("r")
    }
}

/// The commit of an ingest at this offset.
fn commit(blob: &str, offset: i64, data: &[u8]) -> WriteContentRequest {
    WriteContentRequest {
        expected: blob.into(),
        labels: labels(&[(stock::ROOT, "other")]),
        ..message(WriteAction::COMMIT, "r", offset, data)
    }
}

async fn a_known_digest_is_enough(peer: &Peer) {
    let blob = Content::of(peer).put(b"hello").await;
    let mut other = Content::within(peer, "other");
    let (mut writing, answer) = other.open(known(&blob)).await.expect("open");
    assert_eq!((answer.offset, answer.digest.as_str()), (5, blob.as_str()));
    // It is not there before the commit.
    assert!(!other.has(&blob).await);
    let answer = writing.ask(commit(&blob, 5, b"")).await.expect("commit");
    assert_eq!(answer.digest, blob);
    assert_eq!(other.read(&blob, 0, 0).await.expect("read"), b"hello");
}

async fn another_length_is_not(peer: &Peer) {
    let blob = Content::of(peer).put(b"hello").await;
    let mut other = Content::within(peer, "other");
    let first = WriteContentRequest {
        total: 6,
        ..known(&blob)
    };
    let (writing, answer) = other.open(first).await.expect("open");
    assert_eq!(answer.offset, 0);
    writing.close().await.expect("close");
    other.abort("r").await.expect("abort");
}

async fn it_can_be_written_anew(peer: &Peer) {
    let blob = Content::of(peer).put(b"hello").await;
    let mut other = Content::within(peer, "other");
    let (mut writing, _) = other.open(known(&blob)).await.expect("open");
    let piece = message(WriteAction::WRITE, "r", 0, b"hel");
    assert_eq!(writing.ask(piece).await.expect("write").offset, 3);
    let answer = writing.ask(commit(&blob, 3, b"lo")).await.expect("commit");
    assert_eq!((answer.offset, answer.digest.as_str()), (5, blob.as_str()));
    assert_eq!(other.read(&blob, 0, 0).await.expect("read"), b"hello");
}

async fn labels_stay_with_their_namespace(peer: &Peer) {
    let mut one = Content::of(peer);
    let blob = one.put(b"hello").await;
    let mut other = Content::within(peer, "other");
    let messages = vec![known(&blob), commit(&blob, 5, b"")];
    other.write(messages).await.expect("link");
    let info = other.info(&blob).await.expect("info");
    assert_eq!(
        (info.size, info.labels),
        (5, labels(&[(stock::ROOT, "other")]))
    );
    let labels_here = one.info(&blob).await.expect("info").labels;
    assert_eq!(labels_here, labels(&[(stock::ROOT, "yes")]));
}

async fn the_owners_deletion_takes_nothing_away(peer: &Peer) {
    let mut one = Content::of(peer);
    let blob = one.put(b"hello").await;
    let mut other = Content::within(peer, "other");
    let (mut writing, _) = other.open(known(&blob)).await.expect("open");
    one.delete(&blob).await.expect("delete");
    stock::collect(peer).await;
    // The ingest keeps what it is going to link.
    writing.ask(commit(&blob, 5, b"")).await.expect("commit");
    stock::collect(peer).await;
    assert_eq!(other.read(&blob, 0, 0).await.expect("read"), b"hello");
    assert_eq!(digest(b"hello"), blob);
}

/// Where the bytes must be shown.
mod isolated {
    use grpc::namespaces::NamespacesClient;
    use protos::MessageField;
    use protos::services::namespaces::{CreateNamespaceRequest, Namespace};

    use super::{Content, commit, known, labels, stock};
    use crate::peer::{Peer, scoped};

    rules! {
        configured
        "[plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n"
        both {
            a_known_digest_is_not_enough
        }
        ours {
            a_namespace_may_offer_what_it_has
        }
    }

    async fn a_known_digest_is_not_enough(peer: &Peer) {
        let blob = Content::of(peer).put(b"hello").await;
        let mut other = Content::within(peer, "other");
        let (mut writing, answer) = other.open(known(&blob)).await.expect("open");
        assert_eq!(answer.offset, 0);
        let answer = writing.ask(commit(&blob, 0, b"hello")).await;
        assert_eq!(answer.expect("commit").digest, blob);
        assert_eq!(other.read(&blob, 0, 0).await.expect("read"), b"hello");
    }

    /// Go knows the label since 1.7.
    async fn a_namespace_may_offer_what_it_has(peer: &Peer) {
        let mut namespaces = NamespacesClient::new(peer.channel());
        let offered = CreateNamespaceRequest {
            namespace: MessageField::some(Namespace {
                name: "shop".into(),
                labels: labels(&[("containerd.io/namespace.shareable", "true")]),
                ..Namespace::default()
            }),
            ..CreateNamespaceRequest::default()
        };
        namespaces.create(scoped(offered)).await.expect("create");
        let blob = Content::within(peer, "shop").put(b"hello").await;
        let mut other = Content::within(peer, "other");
        let (mut writing, answer) = other.open(known(&blob)).await.expect("open");
        assert_eq!((answer.offset, answer.digest.as_str()), (5, blob.as_str()));
        let answer = writing.ask(commit(&blob, 5, b"")).await.expect("commit");
        assert_eq!(answer.digest, blob);
        assert!(other.has(&blob).await);
        stock::collect(peer).await;
        assert!(other.has(&blob).await);
    }
}
