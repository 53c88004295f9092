//! Leases: what joins them, and what they keep from the collector.

use std::slice;
use std::time::Instant;

use grpc::content::ContentClient;
use grpc::leases::LeasesClient;
use grpc::snapshots::SnapshotsClient;
use integration::Program;
use protos::MessageField;
use protos::services::content::{
    AbortRequest, DeleteContentRequest, ListStatusesRequest, WriteAction, WriteContentRequest,
};
use protos::services::leases::{CreateRequest, DeleteResourceRequest, ListRequest, Resource};
use protos::services::snapshots::RemoveSnapshotRequest;
use tonic::Code;

use crate::peer::{Peer, SOON, leased, refused, scoped, within};
use crate::stock::{
    SNAPSHOTTER, add, collect, commit, commit_snapshot, end, has_blob, has_snapshot, held, lease,
    prepare, put, write,
};

rules! {
    both {
        what_is_made_under_it_joins_it
        what_is_removed_under_it_leaves_it
        a_lease_that_is_not_there_is_refused
        a_lease_of_another_namespace_is_not_there
        a_blob_that_is_there_joins_it
        what_it_lists_is_kept_with_all_that_this_names
        a_flat_one_keeps_what_it_lists_only
        a_flat_one_keeps_the_parents_of_a_snapshot
        its_synchronous_end_collects_before_the_answer
        one_that_expires_keeps_nothing_and_goes
        a_time_that_cannot_be_read_never_comes
        what_is_taken_out_is_not_kept
    }
    ours {
        a_remote_snapshot_that_is_there_joins_it
        a_committed_snapshot_that_is_there_joins_it
    }
}

const EXPIRE: &str = "containerd.io/gc.expire";
const FLAT: &str = "containerd.io/gc.flat";
const KEEPS: &str = "containerd.io/gc.ref.content.x";
const ON: &str = "snapshots/native";

fn pair(kind: &str, id: &str) -> (String, String) {
    (kind.to_owned(), id.to_owned())
}

/// A message that opens an ingest.
fn open(expected: &str) -> WriteContentRequest {
    WriteContentRequest {
        action: WriteAction::STAT.into(),
        ref_: "ingest".into(),
        expected: expected.into(),
        ..WriteContentRequest::default()
    }
}

async fn abort(peer: &Peer, lease: &str) {
    let request = AbortRequest {
        ref_: "ingest".into(),
        ..AbortRequest::default()
    };
    let mut client = ContentClient::new(peer.channel());
    drop(client.abort(leased(lease, request)).await.expect("abort"));
}

async fn ingests(peer: &Peer) -> usize {
    let mut client = ContentClient::new(peer.channel());
    let request = scoped(ListStatusesRequest::default());
    let answer = client.list_statuses(request).await.expect("list");
    answer.into_inner().statuses.len()
}

async fn what_is_made_under_it_joins_it(peer: &Peer) {
    lease(peer, "l", &[]).await;
    write(peer, "l", vec![open("")]).await.expect("open");
    assert_eq!(held(peer, "l").await, [pair("ingests", "ingest")]);
    let rest = WriteContentRequest {
        ref_: "ingest".into(),
        ..commit("data", &[])
    };
    write(peer, "l", vec![rest]).await.expect("commit");
    let blob = pair("content", &held(peer, "l").await[0].1);
    assert!(has_blob(peer, &blob.1).await);
    assert_eq!(held(peer, "l").await, slice::from_ref(&blob));
    prepare(peer, "l", ("a b/c", ""), &[])
        .await
        .expect("prepare");
    let want = [blob.clone(), pair(ON, "a b/c")];
    assert_eq!(held(peer, "l").await, want);
    commit_snapshot(peer, "l", ("a b/c", "name"))
        .await
        .expect("commit");
    assert_eq!(held(peer, "l").await, [blob, pair(ON, "name")]);
}

async fn what_is_removed_under_it_leaves_it(peer: &Peer) {
    lease(peer, "l", &[]).await;
    write(peer, "l", vec![open("")]).await.expect("open");
    let digest = put(peer, "l", "data", &[]).await;
    prepare(peer, "l", ("k", ""), &[]).await.expect("prepare");
    let want = [
        pair("content", &digest),
        pair("ingests", "ingest"),
        pair(ON, "k"),
    ];
    assert_eq!(held(peer, "l").await, want);
    abort(peer, "l").await;
    let request = DeleteContentRequest {
        digest,
        ..DeleteContentRequest::default()
    };
    let mut content = ContentClient::new(peer.channel());
    drop(content.delete(leased("l", request)).await.expect("delete"));
    let request = RemoveSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: "k".into(),
        ..RemoveSnapshotRequest::default()
    };
    let mut snapshots = SnapshotsClient::new(peer.channel());
    drop(
        snapshots
            .remove(leased("l", request))
            .await
            .expect("remove"),
    );
    assert!(held(peer, "l").await.is_empty());
}

async fn a_lease_that_is_not_there_is_refused(peer: &Peer) {
    lease(peer, "l", &[]).await;
    prepare(peer, "l", ("k", ""), &[]).await.expect("prepare");
    for text in [
        refused(Code::NotFound, write(peer, "none", vec![open("")]).await),
        refused(
            Code::NotFound,
            write(peer, "none", vec![commit("data", &[])]).await,
        ),
        refused(Code::NotFound, prepare(peer, "none", ("x", ""), &[]).await),
        refused(
            Code::NotFound,
            commit_snapshot(peer, "none", ("k", "n")).await,
        ),
    ] {
        assert!(text.ends_with("lease does not exist: not found"), "{text}");
    }
    assert_eq!(ingests(peer).await, 0);
    for key in ["x", "n"] {
        assert!(!has_snapshot(peer, key).await, "{key}");
    }
}

async fn a_lease_of_another_namespace_is_not_there(peer: &Peer) {
    let request = CreateRequest {
        id: "l".into(),
        ..CreateRequest::default()
    };
    let mut leases = LeasesClient::new(peer.channel());
    drop(
        leases
            .create(within("other", request))
            .await
            .expect("create"),
    );
    let text = refused(Code::NotFound, prepare(peer, "l", ("k", ""), &[]).await);
    assert!(text.ends_with("lease does not exist: not found"), "{text}");
}

async fn a_blob_that_is_there_joins_it(peer: &Peer) {
    for id in ["first", "open", "commit"] {
        lease(peer, id, &[]).await;
    }
    let digest = put(peer, "first", "data", &[]).await;
    let answer = write(peer, "open", vec![open(&digest)]).await;
    refused(Code::AlreadyExists, answer);
    let answer = write(peer, "commit", vec![commit("data", &[])]).await;
    refused(Code::AlreadyExists, answer);
    for id in ["open", "commit"] {
        assert_eq!(held(peer, id).await, [pair("content", &digest)], "{id}");
    }
    end(peer, "first").await;
    end(peer, "open").await;
    assert!(has_blob(peer, &digest).await);
    end(peer, "commit").await;
    assert!(!has_blob(peer, &digest).await);
    assert_eq!(ingests(peer).await, 0);
}

async fn a_remote_snapshot_that_is_there_joins_it(peer: &Peer) {
    for id in ["first", "second"] {
        lease(peer, id, &[]).await;
    }
    prepare(peer, "first", ("k", ""), &[])
        .await
        .expect("prepare");
    commit_snapshot(peer, "first", ("k", "layer"))
        .await
        .expect("commit");
    let target = [("containerd.io/snapshot.ref", "layer")];
    let answer = prepare(peer, "second", ("l", ""), &target).await;
    refused(Code::AlreadyExists, answer);
    assert_eq!(held(peer, "second").await, [pair(ON, "layer")]);
    end(peer, "first").await;
    assert!(has_snapshot(peer, "layer").await);
    end(peer, "second").await;
    assert!(!has_snapshot(peer, "layer").await);
}

async fn a_committed_snapshot_that_is_there_joins_it(peer: &Peer) {
    for id in ["first", "second"] {
        lease(peer, id, &[]).await;
    }
    for key in ["k", "l"] {
        prepare(peer, "first", (key, ""), &[])
            .await
            .expect("prepare");
    }
    commit_snapshot(peer, "first", ("k", "layer"))
        .await
        .expect("commit");
    let answer = commit_snapshot(peer, "second", ("l", "layer")).await;
    refused(Code::AlreadyExists, answer);
    end(peer, "first").await;
    assert!(has_snapshot(peer, "layer").await);
    end(peer, "second").await;
    assert!(!has_snapshot(peer, "layer").await);
}

async fn what_it_lists_is_kept_with_all_that_this_names(peer: &Peer) {
    lease(peer, "tmp", &[]).await;
    lease(peer, "l", &[]).await;
    let leaf = put(peer, "tmp", "leaf", &[]).await;
    let middle = put(peer, "tmp", "middle", &[(KEEPS, &leaf)]).await;
    prepare(peer, "tmp", ("k", ""), &[(KEEPS, &middle)])
        .await
        .expect("prepare");
    add(peer, "l", (ON, "k")).await;
    end(peer, "tmp").await;
    for digest in [&leaf, &middle] {
        assert!(has_blob(peer, digest).await);
    }
    assert!(has_snapshot(peer, "k").await);
    end(peer, "l").await;
    for digest in [&leaf, &middle] {
        assert!(!has_blob(peer, digest).await);
    }
    assert!(!has_snapshot(peer, "k").await);
}

async fn a_flat_one_keeps_what_it_lists_only(peer: &Peer) {
    lease(peer, "tmp", &[]).await;
    lease(peer, "flat", &[(FLAT, "any")]).await;
    let leaf = put(peer, "tmp", "leaf", &[]).await;
    let blob = put(peer, "tmp", "blob", &[(KEEPS, &leaf)]).await;
    let other = put(peer, "tmp", "other", &[]).await;
    prepare(peer, "tmp", ("k", ""), &[(KEEPS, &other)])
        .await
        .expect("prepare");
    add(peer, "flat", ("content", &blob)).await;
    add(peer, "flat", (ON, "k")).await;
    end(peer, "tmp").await;
    assert!(has_blob(peer, &blob).await);
    assert!(has_snapshot(peer, "k").await);
    assert!(!has_blob(peer, &leaf).await);
    assert!(!has_blob(peer, &other).await);
}

async fn a_flat_one_keeps_the_parents_of_a_snapshot(peer: &Peer) {
    lease(peer, "tmp", &[]).await;
    lease(peer, "flat", &[(FLAT, "any")]).await;
    for (key, parent, name) in [("k", "", "layer 1"), ("l", "layer 1", "layer 2")] {
        prepare(peer, "tmp", (key, parent), &[])
            .await
            .expect("prepare");
        commit_snapshot(peer, "tmp", (key, name))
            .await
            .expect("commit");
    }
    add(peer, "flat", (ON, "layer 2")).await;
    end(peer, "tmp").await;
    for name in ["layer 1", "layer 2"] {
        assert!(has_snapshot(peer, name).await, "{name}");
    }
    end(peer, "flat").await;
    for name in ["layer 1", "layer 2"] {
        assert!(!has_snapshot(peer, name).await, "{name}");
    }
}

async fn its_synchronous_end_collects_before_the_answer(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let digest = put(peer, "l", "data", &[]).await;
    prepare(peer, "l", ("k", ""), &[]).await.expect("prepare");
    collect(peer).await;
    assert!(has_blob(peer, &digest).await);
    assert!(has_snapshot(peer, "k").await);
    end(peer, "l").await;
    assert!(!has_blob(peer, &digest).await);
    assert!(!has_snapshot(peer, "k").await);
}

/// A time some seconds from now, long enough for a lease to be filled before.
fn soon() -> String {
    let date = Program::new("date").args(["-u", "-d", "+3 seconds", "+%FT%TZ"]);
    date.run().ok().trim().to_owned()
}

async fn leases(peer: &Peer) -> Vec<String> {
    let mut client = LeasesClient::new(peer.channel());
    let answer = client.list(scoped(ListRequest::default())).await;
    let leases = answer.expect("list").into_inner().leases;
    leases.into_iter().map(|lease| lease.id).collect()
}

async fn one_that_expires_keeps_nothing_and_goes(peer: &Peer) {
    lease(peer, "late", &[(EXPIRE, "2999-12-31T23:59:59Z")]).await;
    let kept = put(peer, "late", "kept", &[]).await;
    lease(peer, "soon", &[(EXPIRE, &soon())]).await;
    let digest = put(peer, "soon", "data", &[]).await;
    let until = Instant::now() + SOON;
    while has_blob(peer, &digest).await {
        assert!(Instant::now() < until, "it does not expire");
        collect(peer).await;
    }
    assert_eq!(leases(peer).await, ["late"]);
    assert!(has_blob(peer, &kept).await);
}

async fn a_time_that_cannot_be_read_never_comes(peer: &Peer) {
    let mut blobs = Vec::new();
    for text in ["yesterday", "1970-01-01", "0"] {
        lease(peer, text, &[(EXPIRE, text)]).await;
        blobs.push(put(peer, text, text, &[]).await);
    }
    collect(peer).await;
    for digest in blobs {
        assert!(has_blob(peer, &digest).await);
    }
    assert_eq!(leases(peer).await.len(), 3);
}

async fn what_is_taken_out_is_not_kept(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let digest = put(peer, "l", "data", &[]).await;
    let request = DeleteResourceRequest {
        id: "l".into(),
        resource: MessageField::some(Resource {
            id: digest.clone(),
            type_: "content".into(),
            ..Resource::default()
        }),
        ..DeleteResourceRequest::default()
    };
    let mut client = LeasesClient::new(peer.channel());
    let answer = client.delete_resource(scoped(request)).await;
    drop(answer.expect("take out"));
    collect(peer).await;
    assert!(!has_blob(peer, &digest).await);
}
