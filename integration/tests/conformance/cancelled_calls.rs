//! Further calls whose client gives up: what they were about is as it was or as it was to be.
//!
//! A call that was given up may still be on its way when its client looks: names are used once, so that it
//! meets nothing but what it was about.

use grpc::containers::ContainersClient;
use grpc::content::ContentClient;
use grpc::images::ImagesClient;
use grpc::leases::LeasesClient;
use grpc::namespaces::NamespacesClient;
use grpc::snapshots::SnapshotsClient;
use protos::MessageField;
use protos::services::{containers, content, images, leases, namespaces, snapshots};
use protos::well_known::Empty;
use tonic::{Code, Response, Status};

use crate::cancelled::{STEPS, hasty, in_time};
use crate::containers::container;
use crate::images::{create_image, image};
use crate::peer::{Peer, all, labels, scoped};
use crate::stock::{
    SNAPSHOTTER, commit_snapshot, has_blob, has_snapshot, held, lease, prepare, put,
};

rules! {
    both {
        an_image_is_whole_or_not_there
        an_image_is_changed_as_a_whole
        an_image_is_deleted_or_whole
        a_container_is_changed_as_a_whole
        a_container_is_deleted_or_whole
        a_resource_is_in_its_lease_or_not
        a_lease_is_deleted_or_whole
        a_namespace_is_made_changed_and_deleted_as_a_whole
        a_view_is_whole_or_not_there
        a_commit_is_whole_or_has_not_begun
        a_snapshot_is_changed_as_a_whole
        a_snapshot_is_removed_or_whole
        a_blob_is_changed_as_a_whole
        a_blob_is_deleted_or_whole
        an_ingest_is_aborted_or_resumed
        lists_that_nobody_reads_leave_nothing
    }
    ours {}
}

/// Labels before a change, and after it.
const BEFORE: [(&str, &str); 2] = [("a", "1"), ("b", "1")];
const AFTER: [(&str, &str); 2] = [("a", "2"), ("b", "2")];

/// What was to be made is not made twice.
#[track_caller]
fn once<T: std::fmt::Debug>(told: bool, again: Result<T, Status>) {
    match again {
        Ok(made) => assert!(!told, "made twice: {made:?}"),
        Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
    }
}

/// All of the labels are old, or all are new; they are new when that was told.
#[track_caller]
fn whole(told: bool, mut found: std::collections::HashMap<String, String>) {
    // The store's own.
    found.retain(|key, _| BEFORE.iter().any(|(known, _)| key == known));
    let is_new = found == labels(&AFTER);
    assert!(is_new || (!told && found == labels(&BEFORE)), "{found:?}");
}

/// What was to be deleted is gone when that was told, and can be deleted when it is not.
#[track_caller]
fn gone<T>(told: bool, again: Result<Response<T>, Status>) {
    match again {
        Ok(_) => assert!(!told, "deleted twice"),
        Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
    }
}

async fn an_image_is_whole_or_not_there(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = ImagesClient::new(peer.channel());
    for step in STEPS {
        let mut made = image(&format!("i{step}"), '1');
        made.labels = labels(&BEFORE);
        let told = in_time(client.create(hasty(step, create_image(made.clone()))).await);
        let again = client.create(scoped(create_image(made.clone()))).await;
        once(told, again);
        let request = images::GetImageRequest {
            name: made.name.clone(),
            ..Default::default()
        };
        let found = client.get(scoped(request)).await.expect("get").into_inner();
        assert_eq!(
            (&found.image.target, &found.image.labels),
            (&made.target, &made.labels)
        );
    }
}

async fn an_image_is_changed_as_a_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = ImagesClient::new(peer.channel());
    for step in STEPS {
        let mut made = image(&format!("i{step}"), '1');
        made.labels = labels(&BEFORE);
        let created = client.create(scoped(create_image(made.clone()))).await;
        drop(created.expect("create"));
        made.labels = labels(&AFTER);
        let update = images::UpdateImageRequest {
            image: MessageField::some(made.clone()),
            ..Default::default()
        };
        let told = in_time(client.update(hasty(step, update)).await);
        let request = images::GetImageRequest {
            name: made.name,
            ..Default::default()
        };
        let found = client.get(scoped(request)).await.expect("get").into_inner();
        whole(told, found.image.unwrap_or_default().labels);
    }
}

async fn an_image_is_deleted_or_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = ImagesClient::new(peer.channel());
    for step in STEPS {
        let made = image(&format!("i{step}"), '1');
        let created = client.create(scoped(create_image(made.clone()))).await;
        drop(created.expect("create"));
        let delete = images::DeleteImageRequest {
            name: made.name,
            ..Default::default()
        };
        let told = in_time(client.delete(hasty(step, delete.clone())).await);
        gone(told, client.delete(scoped(delete)).await);
    }
}

async fn made(client: &mut ContainersClient<tonic::transport::Channel>, id: String) {
    let mut made = container(&id);
    made.labels = labels(&BEFORE);
    let request = containers::CreateContainerRequest {
        container: MessageField::some(made),
        ..Default::default()
    };
    drop(client.create(scoped(request)).await.expect("create"));
}

async fn a_container_is_changed_as_a_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = ContainersClient::new(peer.channel());
    for step in STEPS {
        let id = format!("c{step}");
        made(&mut client, id.clone()).await;
        let mut changed = container(&id);
        changed.labels = labels(&AFTER);
        let update = containers::UpdateContainerRequest {
            container: MessageField::some(changed),
            ..Default::default()
        };
        let told = in_time(client.update(hasty(step, update)).await);
        let request = containers::GetContainerRequest {
            id,
            ..Default::default()
        };
        let found = client.get(scoped(request)).await.expect("get").into_inner();
        whole(told, found.container.unwrap_or_default().labels);
    }
}

async fn a_container_is_deleted_or_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = ContainersClient::new(peer.channel());
    for step in STEPS {
        let id = format!("c{step}");
        made(&mut client, id.clone()).await;
        let delete = containers::DeleteContainerRequest {
            id,
            ..Default::default()
        };
        let told = in_time(client.delete(hasty(step, delete.clone())).await);
        gone(told, client.delete(scoped(delete)).await);
    }
}

async fn a_resource_is_in_its_lease_or_not(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = LeasesClient::new(peer.channel());
    for step in STEPS {
        let id = format!("r{step}");
        lease(peer, &id, &[]).await;
        let resource = || {
            MessageField::some(leases::Resource {
                id: "k".into(),
                type_: format!("snapshots/{SNAPSHOTTER}"),
                ..Default::default()
            })
        };
        let add = leases::AddResourceRequest {
            id: id.clone(),
            resource: resource(),
            ..Default::default()
        };
        let told = in_time(client.add_resource(hasty(step, add.clone())).await);
        assert!(!told || held(peer, &id).await.len() == 1);
        drop(client.add_resource(scoped(add)).await.expect("add"));
        assert_eq!(held(peer, &id).await.len(), 1);
        let delete = leases::DeleteResourceRequest {
            id: id.clone(),
            resource: resource(),
            ..Default::default()
        };
        let told = in_time(client.delete_resource(hasty(step, delete.clone())).await);
        assert!(!told || held(peer, &id).await.is_empty());
        let again = client.delete_resource(scoped(delete)).await;
        drop(again.expect("it need not be there"));
        assert!(held(peer, &id).await.is_empty());
    }
}

async fn a_lease_is_deleted_or_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = LeasesClient::new(peer.channel());
    for step in STEPS {
        let id = format!("r{step}");
        lease(peer, &id, &[]).await;
        let delete = leases::DeleteRequest {
            id,
            ..Default::default()
        };
        let told = in_time(client.delete(hasty(step, delete.clone())).await);
        gone(told, client.delete(scoped(delete)).await);
    }
}

async fn a_namespace_is_made_changed_and_deleted_as_a_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = NamespacesClient::new(peer.channel());
    for step in STEPS {
        let name = format!("n{step}");
        let with = |pairs: &[(&str, &str)]| {
            MessageField::some(namespaces::Namespace {
                name: name.clone(),
                labels: labels(pairs),
                ..Default::default()
            })
        };
        let create = namespaces::CreateNamespaceRequest {
            namespace: with(&BEFORE),
            ..Default::default()
        };
        let told = in_time(client.create(hasty(step, create.clone())).await);
        once(told, client.create(scoped(create)).await);
        let update = namespaces::UpdateNamespaceRequest {
            namespace: with(&AFTER),
            ..Default::default()
        };
        let told = in_time(client.update(hasty(step, update)).await);
        let get = namespaces::GetNamespaceRequest {
            name: name.clone(),
            ..Default::default()
        };
        let found = client.get(scoped(get)).await.expect("get").into_inner();
        whole(told, found.namespace.unwrap_or_default().labels);
    }
    for step in STEPS {
        let name = format!("m{step}");
        let create = namespaces::CreateNamespaceRequest {
            namespace: MessageField::some(namespaces::Namespace {
                name: name.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        drop(client.create(scoped(create)).await.expect("create"));
        let delete = namespaces::DeleteNamespaceRequest {
            name,
            ..Default::default()
        };
        let told = in_time(client.delete(hasty(step, delete.clone())).await);
        gone(told, client.delete(scoped(delete)).await);
    }
}

async fn removed(peer: &Peer, key: &str) -> Result<Response<Empty>, Status> {
    let request = snapshots::RemoveSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.into(),
        ..Default::default()
    };
    let mut client = SnapshotsClient::new(peer.channel());
    client.remove(scoped(request)).await
}

async fn a_view_is_whole_or_not_there(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = SnapshotsClient::new(peer.channel());
    for step in STEPS {
        let key = format!("v{step}");
        let view = snapshots::ViewSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.clone(),
            // A call that was cut off may have made it without its lease.
            labels: labels(&[(crate::stock::ROOT, "yes")]),
            ..Default::default()
        };
        let told = in_time(client.view(hasty(step, view.clone())).await);
        once(told, client.view(scoped(view)).await);
        let mounts = snapshots::MountsRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.clone(),
            ..Default::default()
        };
        let mounts = client.mounts(scoped(mounts)).await.expect("mounts");
        assert_eq!(mounts.into_inner().mounts.len(), 1);
        drop(removed(peer, &key).await.expect("remove"));
    }
}

async fn a_commit_is_whole_or_has_not_begun(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = SnapshotsClient::new(peer.channel());
    for step in STEPS {
        let (key, name) = (format!("k{step}"), format!("c{step}"));
        drop(prepare(peer, "l", (&key, ""), &[]).await.expect("prepare"));
        let commit = snapshots::CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            name: name.clone(),
            key: key.clone(),
            labels: labels(&[(crate::stock::ROOT, "yes")]),
            ..Default::default()
        };
        let told = in_time(client.commit(hasty(step, commit)).await);
        match commit_snapshot(peer, "l", (&key, &name)).await {
            Ok(_) => assert!(!told, "{name} was made twice"),
            Err(status) => {
                let late = [Code::AlreadyExists, Code::NotFound];
                assert!(late.contains(&status.code()), "{status}");
            }
        }
        assert!(has_snapshot(peer, &name).await);
        assert!(!has_snapshot(peer, &key).await, "it is both");
        drop(removed(peer, &name).await.expect("remove"));
    }
}

async fn a_snapshot_is_changed_as_a_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = SnapshotsClient::new(peer.channel());
    for step in STEPS {
        let key = format!("k{step}");
        let made = prepare(peer, "l", (&key, ""), &BEFORE).await;
        drop(made.expect("prepare"));
        let update = snapshots::UpdateSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            info: MessageField::some(snapshots::Info {
                name: key.clone(),
                labels: labels(&AFTER),
                ..Default::default()
            }),
            ..Default::default()
        };
        let told = in_time(client.update(hasty(step, update)).await);
        let stat = snapshots::StatSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.clone(),
            ..Default::default()
        };
        let found = client.stat(scoped(stat)).await.expect("stat").into_inner();
        whole(told, found.info.unwrap_or_default().labels);
        drop(removed(peer, &key).await.expect("remove"));
    }
}

async fn a_snapshot_is_removed_or_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = SnapshotsClient::new(peer.channel());
    for step in STEPS {
        let key = format!("k{step}");
        drop(prepare(peer, "l", (&key, ""), &[]).await.expect("prepare"));
        let remove = snapshots::RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.clone(),
            ..Default::default()
        };
        let told = in_time(client.remove(hasty(step, remove)).await);
        gone(told, removed(peer, &key).await);
        assert!(!has_snapshot(peer, &key).await);
    }
}

async fn a_blob_is_changed_as_a_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = ContentClient::new(peer.channel());
    for step in STEPS {
        let digest = put(peer, "l", &format!("blob {step}"), &BEFORE).await;
        let update = content::UpdateRequest {
            info: MessageField::some(content::Info {
                digest: digest.clone(),
                labels: labels(&AFTER),
                ..Default::default()
            }),
            ..Default::default()
        };
        let told = in_time(client.update(hasty(step, update)).await);
        let info = content::InfoRequest {
            digest,
            ..Default::default()
        };
        let found = client.info(scoped(info)).await.expect("info").into_inner();
        whole(told, found.info.unwrap_or_default().labels);
    }
}

async fn a_blob_is_deleted_or_whole(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = ContentClient::new(peer.channel());
    for step in STEPS {
        let digest = put(peer, "l", &format!("blob {step}"), &[]).await;
        let read = content::ReadContentRequest {
            digest: digest.clone(),
            ..Default::default()
        };
        // Who reads and goes away is in nobody's way.
        let reading = client.read(hasty(step, read)).await;
        in_time(reading);
        let delete = content::DeleteContentRequest {
            digest: digest.clone(),
            ..Default::default()
        };
        let told = in_time(client.delete(hasty(step, delete.clone())).await);
        gone(told, client.delete(scoped(delete)).await);
        assert!(!has_blob(peer, &digest).await);
    }
}

async fn an_ingest_is_aborted_or_resumed(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut client = ContentClient::new(peer.channel());
    for step in STEPS {
        let reference = format!("r{step}");
        let write = content::WriteContentRequest {
            action: content::WriteAction::WRITE.into(),
            ref_: reference.clone(),
            data: "data".into(),
            ..Default::default()
        };
        let written = crate::stock::write(peer, "l", vec![write]).await;
        drop(written.expect("write"));
        let abort = content::AbortRequest {
            ref_: reference.clone(),
            ..Default::default()
        };
        let told = in_time(client.abort(hasty(step, abort.clone())).await);
        let status = content::StatusRequest {
            ref_: reference,
            ..Default::default()
        };
        match client.status(scoped(status)).await {
            Ok(found) => {
                assert!(!told, "it is there still");
                assert_eq!(found.into_inner().status.offset, 4);
            }
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
        }
        gone(told, client.abort(scoped(abort)).await);
    }
}

async fn lists_that_nobody_reads_leave_nothing(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let blob = put(peer, "l", "blob", &[]).await;
    drop(prepare(peer, "l", ("k", ""), &[]).await.expect("prepare"));
    for step in STEPS {
        let mut client = ContentClient::new(peer.channel());
        let list = content::ListContentRequest::default();
        in_time(client.list(hasty(step, list)).await);
        let mut client = SnapshotsClient::new(peer.channel());
        let list = snapshots::ListSnapshotsRequest {
            snapshotter: SNAPSHOTTER.into(),
            ..Default::default()
        };
        in_time(client.list(hasty(step, list)).await);
        let mut client = ContainersClient::new(peer.channel());
        let list = containers::ListContainersRequest::default();
        in_time(client.list_stream(hasty(step, list)).await);
    }
    let mut client = ContentClient::new(peer.channel());
    let list = scoped(content::ListContentRequest::default());
    let found = all(client.list(list).await).await.expect("list");
    let found = found.iter().flat_map(|page| &page.info);
    assert!(found.map(|info| &info.digest).eq([&blob]));
}
