//! Messages with parts missing, to tasks and what is beside them: every unary method answers, and the
//! daemon lives. Of Debian's, which dies of some of them, only what it survives is asked.

use protos::MessageField;
use protos::services::{mounts, namespaces, tasks, transfer};
use protos::types::{Descriptor, Mount};
use protos::well_known::Empty;
use tonic::Code;

use crate::bad_input::{Whole, send_all, send_within, whole};
use crate::containers::any;
use crate::peer::{Peer, labels, mask, refused, scoped, texts};
use crate::running::{Running, spec};
use crate::tasks::{RESOURCES, sleeper};
use crate::transport::call;

rules! {
    both {
        a_version_needs_nothing
        what_is_not_served_is_unimplemented
    }
    ours {
        tasks_take_what_is_missing
        a_creation_takes_what_is_missing
        namespaces_take_what_is_missing
        a_transfer_takes_what_is_missing
        mounts_take_what_is_missing
    }
}

/// All methods that need a task; those that end it come last.
fn for_tasks(id: &str) -> Vec<Whole> {
    let (id, e) = (|| id.to_owned(), || "e".to_owned());
    let method = |name: &str| format!("tasks.v1.Tasks/{name}");
    let exec = tasks::ExecProcessRequest {
        container_id: id(),
        exec_id: e(),
        spec: MessageField::some(sleeper()),
        stdout: "/none".into(),
        ..Default::default()
    };
    let start = tasks::StartRequest {
        container_id: id(),
        exec_id: e(),
        ..Default::default()
    };
    let kill = tasks::KillRequest {
        container_id: id(),
        exec_id: e(),
        // That of a continued process, which ends none.
        signal: 18,
        all: true,
        ..Default::default()
    };
    let resize = tasks::ResizePtyRequest {
        container_id: id(),
        exec_id: e(),
        width: 80,
        height: 25,
        ..Default::default()
    };
    let close = tasks::CloseIORequest {
        container_id: id(),
        exec_id: e(),
        stdin: true,
        ..Default::default()
    };
    let update = tasks::UpdateTaskRequest {
        container_id: id(),
        resources: MessageField::some(any(RESOURCES, r#"{"pids":{"limit":77}}"#)),
        annotations: labels(&[("a", "1")]),
        ..Default::default()
    };
    let metrics = tasks::MetricsRequest {
        filters: texts(&["id==x", ""]),
        ..Default::default()
    };
    let list = tasks::ListTasksRequest {
        filter: "id==x".into(),
        ..Default::default()
    };
    // Of all these, the fields are the same: a container, and maybe one of its processes.
    let plain = [
        "Get",
        "ListPids",
        "Pause",
        "Resume",
        "DeleteProcess",
        "Delete",
    ];
    let mut all = vec![
        whole(&method("Exec"), &exec),
        whole(&method("Start"), &start),
        whole(&method("Kill"), &kill),
        whole(&method("ResizePty"), &resize),
        whole(&method("CloseIO"), &close),
        whole(&method("Update"), &update),
        whole(&method("Metrics"), &metrics),
        whole(&method("List"), &list),
    ];
    all.extend(plain.map(|name| whole(&method(name), &start)));
    all
}

async fn tasks_take_what_is_missing(peer: &Peer) {
    let task = Running::new(peer).await;
    send_within(peer, task.namespace(), for_tasks(task.id())).await;
    let found = task.state(peer, "").await.expect("it is still there");
    assert!(found.pid > 0);
    let exit = task.kill(peer).await;
    assert_eq!(exit.exit_status, 128 + 9, "none of them ended it");
    // One that runs answers this when it ends.
    let wait = tasks::WaitRequest {
        container_id: task.id().into(),
        exec_id: "e".into(),
        ..Default::default()
    };
    let none = tasks::CheckpointTaskRequest {
        container_id: task.id().into(),
        parent_checkpoint: "p".into(),
        options: MessageField::some(any("t", "v")),
        ..Default::default()
    };
    let ended = vec![
        whole("tasks.v1.Tasks/Wait", &wait),
        whole("tasks.v1.Tasks/Checkpoint", &none),
    ];
    send_within(peer, task.namespace(), ended).await;
    task.end(peer).await;
}

async fn a_creation_takes_what_is_missing(peer: &Peer) {
    // Made by no runtime, so that each of them is tried.
    let broken = |name: &str| {
        let mut broken = spec(name);
        broken.value = (*b"{}").into();
        broken
    };
    let task = Running::record(peer, "io.containerd.runc.v2", broken).await;
    let create = tasks::CreateTaskRequest {
        rootfs: vec![Mount {
            type_: "bind".into(),
            source: "/".into(),
            target: "/".into(),
            options: texts(&["ro"]),
            ..Default::default()
        }],
        stdin: "/none".into(),
        stdout: "/none".into(),
        stderr: "/none".into(),
        terminal: true,
        checkpoint: MessageField::some(Descriptor {
            media_type: "m".into(),
            digest: "sha256:0".into(),
            size: 1,
            ..Default::default()
        }),
        options: MessageField::some(any("containerd.runc.v1.Options", "")),
        runtime_path: "/none".into(),
        task_api_address: "unix:///none".into(),
        task_api_version: 3,
        ..task.request("")
    };
    let without = tasks::CreateTaskRequest {
        checkpoint: MessageField::none(),
        runtime_path: String::new(),
        task_api_address: String::new(),
        ..create.clone()
    };
    let both = vec![
        whole("tasks.v1.Tasks/Create", &create),
        whole("tasks.v1.Tasks/Create", &without),
    ];
    send_within(peer, task.namespace(), both).await;
    refused(Code::NotFound, task.state(peer, "").await);
    task.end(peer).await;
}

async fn namespaces_take_what_is_missing(peer: &Peer) {
    let namespace = || {
        MessageField::some(namespaces::Namespace {
            name: "n".into(),
            labels: labels(&[("a", "1")]),
            ..Default::default()
        })
    };
    let create = namespaces::CreateNamespaceRequest {
        namespace: namespace(),
        ..Default::default()
    };
    let update = namespaces::UpdateNamespaceRequest {
        namespace: namespace(),
        update_mask: mask(&["labels.a"]),
        ..Default::default()
    };
    let get = namespaces::GetNamespaceRequest {
        name: "n".into(),
        ..Default::default()
    };
    let list = namespaces::ListNamespacesRequest {
        filter: "n".into(),
        ..Default::default()
    };
    let method = "namespaces.v1.Namespaces";
    let all = vec![
        whole(&format!("{method}/Create"), &create),
        whole(&format!("{method}/Update"), &update),
        whole(&format!("{method}/Get"), &get),
        whole(&format!("{method}/List"), &list),
        whole(&format!("{method}/Delete"), &get),
    ];
    with_class(send_all(peer, all).await);
}

/// Every refusal says of what kind it is.
fn with_class(refusals: Vec<(Code, String)>) {
    for (code, text) in refusals {
        assert!(![Code::Unknown, Code::Internal].contains(&code), "{text}");
    }
}

async fn a_transfer_takes_what_is_missing(peer: &Peer) {
    let types = [
        "OCIRegistry",
        "ImageStore",
        "ImageImportStream",
        "ImageExportStream",
        "None",
    ];
    let mut all = Vec::new();
    for source in types {
        for destination in types {
            let end = |name: &str| {
                let kind = format!("containerd.types.transfer.{name}");
                // Its first field is a text: a reference, a name or a stream.
                MessageField::some(any(&kind, "\x0a\x01x"))
            };
            let request = transfer::TransferRequest {
                source: end(source),
                destination: end(destination),
                options: MessageField::some(transfer::TransferOptions {
                    progress_stream: "p".into(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            all.push(whole("transfer.v1.Transfer/Transfer", &request));
        }
    }
    with_class(send_all(peer, all).await);
}

async fn mounts_take_what_is_missing(peer: &Peer) {
    let mount = Mount {
        // Nothing can mount it.
        type_: "format/none".into(),
        source: "{{".into(),
        target: "/t".into(),
        options: texts(&["X-containerd.mkdir.path=none"]),
        ..Default::default()
    };
    let activate = mounts::ActivateRequest {
        name: "m".into(),
        mounts: vec![mount],
        labels: labels(&[("a", "1")]),
        temporary: true,
        ..Default::default()
    };
    let info = mounts::InfoRequest {
        name: "m".into(),
        ..Default::default()
    };
    let update = mounts::UpdateRequest {
        update_mask: mask(&["labels.a"]),
        ..Default::default()
    };
    let method = "mounts.v1.Mounts";
    let all = vec![
        whole(&format!("{method}/Activate"), &activate),
        whole(&format!("{method}/Info"), &info),
        whole(&format!("{method}/Update"), &update),
        whole(&format!("{method}/Deactivate"), &info),
    ];
    send_all(peer, all).await;
}

async fn a_version_needs_nothing(peer: &Peer) {
    for bytes in ["", "\x0a\x01x"] {
        let request = protos::Message::parse_from_bytes(bytes.as_bytes());
        let request: Empty = request.expect("a message");
        let path = "/containerd.services.version.v1.Version/Version";
        call(peer, path, scoped(request)).await.expect("a version");
    }
}

/// Clients of later generations go on without it.
async fn what_is_not_served_is_unimplemented(peer: &Peer) {
    let methods = [
        "Create", "Start", "Platform", "Stop", "Wait", "Status", "Shutdown",
    ];
    for method in methods {
        let path = format!("/containerd.services.sandbox.v1.Controller/{method}");
        let text = refused(
            Code::Unimplemented,
            call(peer, &path, scoped(Empty::new())).await,
        );
        assert!(
            text.contains("containerd.services.sandbox.v1.Controller"),
            "{text}"
        );
    }
    for method in ["Create", "Update", "Delete", "List", "Get"] {
        let path = format!("/containerd.services.sandbox.v1.Store/{method}");
        refused(
            Code::Unimplemented,
            call(peer, &path, scoped(Empty::new())).await,
        );
    }
    peer.lives().await;
}
