//! Snapshots: by snapshotter, with Go's refusals.

use grpc::snapshots::SnapshotsClient;
use protos::MessageField;
use protos::services::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
    UsageRequest, ViewSnapshotRequest,
};
use protos::well_known::FieldMask;
use tonic::Code;
use tonic::transport::Channel;

use super::{Daemon, refused, scoped};

const NATIVE: &str = "native";

fn prepare(key: &str, parent: &str) -> PrepareSnapshotRequest {
    PrepareSnapshotRequest {
        snapshotter: NATIVE.into(),
        key: key.into(),
        parent: parent.into(),
        ..Default::default()
    }
}

fn commit(name: &str, key: &str) -> CommitSnapshotRequest {
    CommitSnapshotRequest {
        snapshotter: NATIVE.into(),
        name: name.into(),
        key: key.into(),
        ..Default::default()
    }
}

fn remove(key: &str) -> RemoveSnapshotRequest {
    RemoveSnapshotRequest {
        snapshotter: NATIVE.into(),
        key: key.into(),
        ..Default::default()
    }
}

async fn kind_of(client: &mut SnapshotsClient<Channel>, key: &str) -> Kind {
    let asked = StatSnapshotRequest {
        snapshotter: NATIVE.into(),
        key: key.into(),
        ..Default::default()
    };
    let info = client
        .stat(scoped(asked))
        .await
        .unwrap()
        .into_inner()
        .info
        .unwrap();
    info.kind.unwrap()
}

#[tokio::test]
async fn a_snapshot_goes_from_active_to_committed_to_parent() {
    let daemon = Daemon::start().await;
    let mut client = SnapshotsClient::new(daemon.channel());
    let mounts = client
        .prepare(scoped(prepare("a 1/x", "")))
        .await
        .unwrap()
        .into_inner()
        .mounts;
    assert_eq!((mounts.len(), mounts[0].type_.as_str()), (1, "bind"));
    assert_eq!(kind_of(&mut client, "a 1/x").await, Kind::ACTIVE);
    client
        .commit(scoped(commit("base", "a 1/x")))
        .await
        .unwrap();
    assert_eq!(kind_of(&mut client, "base").await, Kind::COMMITTED);

    let view = ViewSnapshotRequest {
        snapshotter: NATIVE.into(),
        key: "v".into(),
        parent: "base".into(),
        ..Default::default()
    };
    client.view(scoped(view)).await.unwrap();
    client
        .prepare(scoped(prepare("child", "base")))
        .await
        .unwrap();

    // As `ctr snapshots label` does: no kind.
    let update = UpdateSnapshotRequest {
        snapshotter: NATIVE.into(),
        info: MessageField::some(Info {
            name: "child".into(),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            ..Default::default()
        }),
        update_mask: MessageField::some(FieldMask {
            paths: vec!["labels.k".into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let updated = client
        .update(scoped(update))
        .await
        .unwrap()
        .into_inner()
        .info
        .unwrap();
    assert_eq!(
        (updated.labels["k"].as_str(), updated.parent.as_str()),
        ("v", "base")
    );
    assert_eq!(updated.kind, Kind::ACTIVE.into());

    let usage = UsageRequest {
        snapshotter: NATIVE.into(),
        key: "base".into(),
        ..Default::default()
    };
    assert!(
        client
            .usage(scoped(usage))
            .await
            .unwrap()
            .into_inner()
            .inodes
            > 0
    );
    let filters = vec!["kind==active".to_owned()];
    let list = ListSnapshotsRequest {
        snapshotter: NATIVE.into(),
        filters,
        ..Default::default()
    };
    let mut stream = client.list(scoped(list)).await.unwrap().into_inner();
    let page = stream.message().await.unwrap().unwrap();
    assert_eq!((page.info.len(), page.info[0].name.as_str()), (1, "child"));

    let (code, _) = refused(client.remove(scoped(remove("base"))).await);
    assert_eq!(code, Code::FailedPrecondition);
    for key in ["v", "child", "base"] {
        client.remove(scoped(remove(key))).await.unwrap();
    }
}

#[tokio::test]
async fn refusals_have_their_class() {
    let daemon = Daemon::start().await;
    let mut client = SnapshotsClient::new(daemon.channel());
    client.prepare(scoped(prepare("k", ""))).await.unwrap();
    for (request, code, part) in [
        (prepare("k", ""), Code::AlreadyExists, "already exists"),
        (
            prepare("", ""),
            Code::InvalidArgument,
            "snapshot key must not be empty",
        ),
        (prepare("n", "none"), Code::NotFound, "not found"),
        (prepare("n", "k"), Code::InvalidArgument, "invalid argument"),
        (
            PrepareSnapshotRequest {
                snapshotter: String::new(),
                ..prepare("n", "")
            },
            Code::InvalidArgument,
            "snapshotter argument missing: invalid argument",
        ),
        (
            PrepareSnapshotRequest {
                snapshotter: "zfs".into(),
                ..prepare("n", "")
            },
            Code::InvalidArgument,
            "snapshotter not loaded: zfs: invalid argument",
        ),
    ] {
        let (found, text) = refused(client.prepare(scoped(request)).await);
        assert_eq!(found, code, "{text}");
        assert!(text.contains(part), "{text}");
    }
    client.commit(scoped(commit("c", "k"))).await.unwrap();
    assert_eq!(
        refused(client.commit(scoped(commit("d", "k"))).await).0,
        Code::NotFound
    );
    let rebase = CommitSnapshotRequest {
        parent: "c".into(),
        ..commit("d", "k")
    };
    assert_eq!(
        refused(client.commit(scoped(rebase)).await).0,
        Code::Unimplemented
    );
    let mounts = MountsRequest {
        snapshotter: NATIVE.into(),
        key: "c".into(),
        ..Default::default()
    };
    assert_eq!(
        refused(client.mounts(scoped(mounts)).await).0,
        Code::FailedPrecondition
    );
    let cleanup = CleanupRequest {
        snapshotter: NATIVE.into(),
        ..Default::default()
    };
    client.cleanup(scoped(cleanup)).await.unwrap();
}
