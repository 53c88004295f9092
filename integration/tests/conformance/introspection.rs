//! Introspection: the plugins, and who the server is.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use grpc::introspection::IntrospectionClient;
use protos::any::{pack, unpack};
use protos::services::introspection::{
    Plugin, PluginInfoRequest, PluginInfoResponse, PluginsRequest, ServerResponse,
};
use protos::types::{RuntimeInfo, RuntimeRequest};
use protos::well_known::{Any, Empty};
use protos::wire::Wire as _;
use tonic::{Code, Request, Response, Status};

use crate::peer::{Peer, refused, scoped, texts};

rules! {
    both {
        it_needs_no_namespace
        the_plugins_that_clients_look_for_are_listed
        a_row_that_works_has_no_error
        snapshotters_tell_their_platforms
        overlayfs_tells_its_root
        the_runtime_tells_its_platforms
        plugins_are_filtered_by_type_and_id
        a_filter_of_bad_syntax_is_refused
        the_server_is_the_one_whose_uuid_is_stored
    }
    ours {
        native_tells_its_root
        what_moves_images_is_listed
        the_server_tells_its_pid_and_pid_namespace
        a_plugin_is_asked_for_by_type_and_id
        a_plugin_without_more_to_tell_is_not_implemented
        the_runtime_tells_of_a_shim
        the_runtime_understands_both_forms_of_a_type
    }
}

pub(crate) const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
const GRPC: &str = "io.containerd.grpc.v1";
const RUNTIME: &str = "io.containerd.runtime.v2";

async fn list(peer: &Peer, filters: &[&str]) -> Result<Response<Vec<Plugin>>, Status> {
    let request = PluginsRequest {
        filters: texts(filters),
        ..PluginsRequest::default()
    };
    let mut client = IntrospectionClient::new(peer.channel());
    let answer = client.plugins(request).await?;
    Ok(answer.map(|list| list.plugins))
}

pub(crate) async fn plugins(peer: &Peer, filters: &[&str]) -> Vec<Plugin> {
    list(peer, filters).await.expect("list").into_inner()
}

pub(crate) async fn server(peer: &Peer) -> ServerResponse {
    let mut client = IntrospectionClient::new(peer.channel());
    let answer = client.server(Empty::new()).await;
    answer.expect("server").into_inner()
}

pub(crate) async fn info(
    peer: &Peer,
    (kind, id): (&str, &str),
    options: Option<Any>,
) -> Result<Response<PluginInfoResponse>, Status> {
    let request = PluginInfoRequest {
        type_: kind.into(),
        id: id.into(),
        options: options.into(),
        ..PluginInfoRequest::default()
    };
    let mut client = IntrospectionClient::new(peer.channel());
    client.plugin_info(request).await
}

async fn it_needs_no_namespace(peer: &Peer) {
    let mut client = IntrospectionClient::new(peer.channel());
    let request = Request::new(PluginsRequest::default());
    let without = client.plugins(request).await.expect("list").into_inner();
    let request = scoped(PluginsRequest::default());
    let with = client.plugins(request).await.expect("list").into_inner();
    assert_eq!(without.plugins.len(), with.plugins.len());
    let request = scoped(Empty::new());
    let with = client.server(request).await.expect("server").into_inner();
    assert_eq!(server(peer).await, with);
}

async fn the_plugins_that_clients_look_for_are_listed(peer: &Peer) {
    let all = plugins(peer, &[]).await;
    for (kind, ids) in [
        ("io.containerd.content.v1", &["content"][..]),
        ("io.containerd.metadata.v1", &["bolt"]),
        ("io.containerd.gc.v1", &["scheduler"]),
        (SNAPSHOTTER, &["native", "overlayfs"]),
        ("io.containerd.differ.v1", &["walking"]),
        (RUNTIME, &["task"]),
        (
            GRPC,
            &[
                "containers",
                "content",
                "diff",
                "events",
                "healthcheck",
                "images",
                "introspection",
                "leases",
                "namespaces",
                "snapshots",
                "tasks",
                "version",
            ],
        ),
    ] {
        for id in ids {
            let is = |row: &&Plugin| row.type_ == kind && row.id == *id;
            assert_eq!(all.iter().filter(is).count(), 1, "{kind}.{id}");
        }
    }
}

async fn a_row_that_works_has_no_error(peer: &Peer) {
    for row in plugins(peer, &[]).await {
        assert!(!row.type_.is_empty() && !row.id.is_empty(), "{row:?}");
        let needed = [GRPC, RUNTIME, "io.containerd.content.v1"];
        if needed.contains(&row.type_.as_str()) {
            assert!(row.init_err.is_none(), "{row:?}");
        }
        // Whatever does not work says why.
        if let Some(failure) = row.init_err.as_ref() {
            assert!(failure.code != 0 && !failure.message.is_empty(), "{row:?}");
        }
    }
}

async fn snapshotters_tell_their_platforms(peer: &Peer) {
    let filter = format!("type=={SNAPSHOTTER},id==overlayfs");
    let rows = plugins(peer, &[&filter, &filter.replace("overlayfs", "native")]).await;
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row.platforms.len(), 1, "{row:?}");
        assert_eq!(row.platforms[0].os, "linux");
        assert!(!row.platforms[0].architecture.is_empty(), "{row:?}");
    }
}

async fn tells_its_root(peer: &Peer, id: &str) {
    let rows = plugins(peer, &[&format!("type=={SNAPSHOTTER},id=={id}")]).await;
    let root = peer.host.root().join(format!("{SNAPSHOTTER}.{id}"));
    assert_eq!(rows[0].exports["root"], root.display().to_string());
}

async fn overlayfs_tells_its_root(peer: &Peer) {
    tells_its_root(peer, "overlayfs").await;
}

async fn native_tells_its_root(peer: &Peer) {
    tells_its_root(peer, "native").await;
}

async fn the_runtime_tells_its_platforms(peer: &Peer) {
    let rows = plugins(peer, &[&format!("type=={RUNTIME}")]).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].platforms[0].os, "linux");
    assert!(!rows[0].platforms[0].architecture.is_empty());
}

type Wanted = fn(&Plugin) -> bool;

async fn plugins_are_filtered_by_type_and_id(peer: &Peer) {
    let all = plugins(peer, &[]).await;
    let kind = format!("type=={GRPC}");
    let both = format!("{kind},id==images");
    let cases: [(&[&str], Wanted); 6] = [
        (&[&kind], |row| row.type_ == GRPC),
        (&["id==content"], |row| row.id == "content"),
        (&[&both], |row| row.type_ == GRPC && row.id == "images"),
        (&[&both, "id==task"], |row| {
            row.type_ == GRPC && row.id == "images" || row.id == "task"
        }),
        (&["type~=^io\\.containerd\\.snapshotter"], |row| {
            row.type_.starts_with("io.containerd.snapshotter")
        }),
        (&["id==nothing"], |_| false),
    ];
    for (filters, wanted) in cases {
        let uri = |row: &Plugin| (row.type_.clone(), row.id.clone());
        let found = plugins(peer, filters).await;
        let found: Vec<_> = found.iter().map(uri).collect();
        let want: Vec<_> = all.iter().filter(|row| wanted(row)).map(uri).collect();
        assert_eq!(found, want, "{filters:?}");
        assert_eq!(want.is_empty(), filters == ["id==nothing"], "{filters:?}");
    }
}

async fn a_filter_of_bad_syntax_is_refused(peer: &Peer) {
    let text = refused(Code::InvalidArgument, list(peer, &["type=="]).await);
    assert!(text.contains("type=="), "{text}");
}

async fn the_server_is_the_one_whose_uuid_is_stored(peer: &Peer) {
    let first = server(peer).await;
    assert_eq!(first.uuid.len(), 36, "{first:?}");
    assert_eq!(server(peer).await.uuid, first.uuid);
    let file = peer.host.root().join(format!("{GRPC}.introspection/uuid"));
    let stored = fs::read_to_string(file).expect("read");
    assert_eq!(stored.trim(), first.uuid);
}

async fn the_server_tells_its_pid_and_pid_namespace(peer: &Peer) {
    let told = server(peer).await;
    let pid = peer.host.daemon_pid();
    assert_eq!(told.pid, u64::from(pid));
    let namespace = fs::metadata(format!("/proc/{pid}/ns/pid")).expect("stat");
    assert_eq!(told.pidns, namespace.ino());
}

async fn a_plugin_is_asked_for_by_type_and_id(peer: &Peer) {
    let told = info(peer, (SNAPSHOTTER, "native"), None).await;
    let told = told.expect("told").into_inner();
    let filter = format!("type=={SNAPSHOTTER},id==native");
    assert_eq!(
        plugins(peer, &[&filter]).await,
        [told.plugin.unwrap_or_default()]
    );
    assert!(told.extra.is_none());
    for (kind, id) in [(SNAPSHOTTER, "none"), ("none", "native"), ("", "")] {
        refused(Code::NotFound, info(peer, (kind, id), None).await);
    }
}

async fn a_plugin_without_more_to_tell_is_not_implemented(peer: &Peer) {
    let options = Some(Any::new());
    let answer = info(peer, (SNAPSHOTTER, "native"), options).await;
    refused(Code::Unimplemented, answer);
}

/// A question for the runtime plugin.
fn about(path: &str) -> Any {
    let request = RuntimeRequest {
        runtime_path: path.into(),
        ..RuntimeRequest::default()
    };
    pack(&request).expect("pack").to_wire()
}

async fn ask(peer: &Peer, question: Any) -> RuntimeInfo {
    let told = info(peer, (RUNTIME, "task"), Some(question)).await;
    let extra = told.expect("told").into_inner().extra;
    let extra = types::Any::from_wire(extra.unwrap_or_default()).expect("a value");
    assert_eq!(extra.type_url, "containerd.types.RuntimeInfo");
    unpack(&extra).expect("what it tells")
}

async fn the_runtime_tells_of_a_shim(peer: &Peer) {
    let told = ask(peer, about("io.containerd.runc.v2")).await;
    assert_eq!(told.name, "io.containerd.runc.v2");
    assert!(!told.version.version.is_empty(), "{told:?}");
    let answer = info(
        peer,
        (RUNTIME, "task"),
        Some(about("io.containerd.none.v1")),
    )
    .await;
    refused(Code::NotFound, answer);
    let answer = info(peer, (RUNTIME, "task"), Some(Any::new())).await;
    refused(Code::InvalidArgument, answer);
}

async fn the_runtime_understands_both_forms_of_a_type(peer: &Peer) {
    let mut question = about("io.containerd.runc.v2");
    let plain = ask(peer, question.clone()).await;
    question.type_url.insert_str(0, "type.googleapis.com/");
    assert_eq!(ask(peer, question).await, plain);
}

async fn what_moves_images_is_listed(peer: &Peer) {
    let all = plugins(peer, &[]).await;
    for (kind, id) in [
        ("io.containerd.transfer.v1", "local"),
        ("io.containerd.streaming.v1", "manager"),
        ("io.containerd.image-verifier.v1", "bindir"),
        (GRPC, "streaming"),
        (GRPC, "transfer"),
    ] {
        let row = all.iter().find(|row| row.type_ == kind && row.id == id);
        let row = row.unwrap_or_else(|| panic!("no row {kind}.{id}"));
        assert!(row.init_err.is_none(), "{row:?}");
    }
}
