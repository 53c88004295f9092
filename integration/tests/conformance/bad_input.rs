//! Messages with parts missing: every unary method answers, and the daemon lives.

use protos::services::containers;
use protos::services::images;
use protos::services::introspection::{PluginInfoRequest, PluginsRequest};
use protos::services::leases;
use protos::well_known::{Empty, Timestamp};
use protos::{Message, MessageField};
use tonic::Code;

use crate::containers::{any, container};
use crate::images::image;
use crate::peer::{NAMESPACE, Peer, labels, mask, refused, scoped, texts, within};
use crate::transport::call;

rules! {
    both {
        containers_take_what_is_missing
        images_take_what_is_missing
        leases_take_what_is_missing
        introspection_takes_what_is_missing
        what_cannot_be_a_name_is_not_there
    }
    ours {
        a_refusal_has_a_class
    }
}

/// A method and a message with all fields.
pub(crate) struct Whole {
    pub(crate) path: String,
    pub(crate) message: Vec<u8>,
}

pub(crate) fn whole(method: &str, message: &impl Message) -> Whole {
    Whole {
        path: format!("/containerd.services.{method}"),
        message: message.write_to_bytes().expect("a message"),
    }
}

/// A field of a message on the wire.
struct Field<'a> {
    all: &'a [u8],
    /// What stands before the content, and the content, when it has a length.
    long: Option<(&'a [u8], &'a [u8])>,
}

/// A number in base 128, and how long it is.
fn varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let length = bytes.iter().position(|byte| *byte < 0x80)? + 1;
    let digits = bytes[..length].iter().rev();
    let number = digits.fold(0_usize, |sum, byte| (sum << 7) | usize::from(byte & 0x7f));
    (length <= 4).then_some((number, length))
}

/// The fields of a message; `None` for what is none.
fn fields(mut rest: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (key, head) = varint(rest)?;
        let (long, length) = match key & 7 {
            0 => (None, head + varint(&rest[head..])?.1),
            2 => {
                let (length, digits) = varint(&rest[head..])?;
                let start = head + digits;
                let content = rest.get(start..start + length)?;
                (Some((&rest[..head], content)), start + length)
            }
            _ => return None,
        };
        found.push(Field {
            all: rest.get(..length)?,
            long,
        });
        rest = &rest[length..];
    }
    Some(found)
}

/// The message without each of its fields in turn, at any depth.
fn without_each(message: &[u8]) -> Vec<Vec<u8>> {
    let mut made = Vec::new();
    let Some(fields) = fields(message) else {
        return made;
    };
    let mut before = Vec::new();
    let mut left = message;
    for field in &fields {
        left = &left[field.all.len()..];
        made.push([before.as_slice(), left].concat());
        if let Some((key, content)) = field.long {
            for less in without_each(content) {
                let length = u8::try_from(less.len()).ok().filter(|l| *l < 0x80);
                let length = [length.expect("a short message")];
                made.push([before.as_slice(), key, &length, &less, left].concat());
            }
        }
        before.extend_from_slice(field.all);
    }
    made
}

/// Sends the message, nothing, and the message without each of its parts. All codes of refusals.
async fn send(peer: &Peer, namespace: &str, whole: &Whole) -> Vec<(Code, String)> {
    let mut all = vec![whole.message.clone(), Vec::new()];
    all.extend(without_each(&whole.message));
    assert!(all.len() > 2 || whole.message.is_empty(), "{}", whole.path);
    let mut refusals = Vec::new();
    for bytes in all {
        // What is not known of a message travels with it.
        let request = Empty::parse_from_bytes(&bytes).expect("a message");
        if let Err(status) = call(peer, &whole.path, within(namespace, request)).await {
            let gone = [Code::Unavailable, Code::Cancelled];
            assert!(!gone.contains(&status.code()), "{}: {status}", whole.path);
            refusals.push((
                status.code(),
                format!("{}: {bytes:02x?}: {status}", whole.path),
            ));
        }
    }
    peer.lives().await;
    refusals
}

pub(crate) async fn send_all(peer: &Peer, methods: Vec<Whole>) -> Vec<(Code, String)> {
    send_within(peer, NAMESPACE, methods).await
}

/// The same in another namespace.
pub(crate) async fn send_within(
    peer: &Peer,
    namespace: &str,
    methods: Vec<Whole>,
) -> Vec<(Code, String)> {
    let mut refusals = Vec::new();
    for whole in &methods {
        refusals.extend(send(peer, namespace, whole).await);
    }
    // Of so much that is missing, something is needed.
    assert!(!refusals.is_empty());
    refusals
}

pub(crate) fn for_containers() -> Vec<Whole> {
    let full = || {
        MessageField::some(containers::Container {
            labels: labels(&[("a", "1")]),
            image: "i".into(),
            snapshotter: "native".into(),
            snapshot_key: "k".into(),
            extensions: [("x".to_owned(), any("t", "v"))].into(),
            created_at: MessageField::some(moment()),
            sandbox: "s".into(),
            ..container("c")
        })
    };
    let create = containers::CreateContainerRequest {
        container: full(),
        ..Default::default()
    };
    let update = containers::UpdateContainerRequest {
        container: full(),
        update_mask: mask(&["labels.a", "spec"]),
        ..Default::default()
    };
    let get = containers::GetContainerRequest {
        id: "c".into(),
        ..Default::default()
    };
    let list = containers::ListContainersRequest {
        filters: texts(&["id==c", ""]),
        ..Default::default()
    };
    let method = "containers.v1.Containers";
    vec![
        whole(&format!("{method}/Create"), &create),
        whole(&format!("{method}/Update"), &update),
        whole(&format!("{method}/Get"), &get),
        whole(&format!("{method}/List"), &list),
        whole(&format!("{method}/Delete"), &get),
    ]
}

fn moment() -> Timestamp {
    Timestamp {
        seconds: 1,
        nanos: 2,
        ..Timestamp::default()
    }
}

pub(crate) fn for_images() -> Vec<Whole> {
    let full = || {
        let mut made = images::Image {
            labels: labels(&[("a", "1")]),
            created_at: MessageField::some(moment()),
            ..image("i", '1')
        };
        let target = made.target.mut_or_insert_default();
        // Short, so that all messages are.
        target.media_type = "m".into();
        MessageField::some(made)
    };
    let create = images::CreateImageRequest {
        image: full(),
        source_date_epoch: MessageField::some(moment()),
        ..Default::default()
    };
    let update = images::UpdateImageRequest {
        image: full(),
        update_mask: mask(&["labels"]),
        ..Default::default()
    };
    let get = images::GetImageRequest {
        name: "i".into(),
        ..Default::default()
    };
    let list = images::ListImagesRequest {
        filters: texts(&["name==i", ""]),
        ..Default::default()
    };
    let delete = images::DeleteImageRequest {
        name: "i".into(),
        sync: true,
        target: image("i", '1').target,
        ..Default::default()
    };
    let method = "images.v1.Images";
    vec![
        whole(&format!("{method}/Create"), &create),
        whole(&format!("{method}/Update"), &update),
        whole(&format!("{method}/Get"), &get),
        whole(&format!("{method}/List"), &list),
        whole(&format!("{method}/Delete"), &delete),
    ]
}

pub(crate) fn for_leases() -> Vec<Whole> {
    let create = leases::CreateRequest {
        id: "l".into(),
        labels: labels(&[("a", "1")]),
        ..Default::default()
    };
    let resource = leases::AddResourceRequest {
        id: "l".into(),
        resource: MessageField::some(leases::Resource {
            id: "k".into(),
            type_: "snapshots/native".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let resources = leases::ListResourcesRequest {
        id: "l".into(),
        ..Default::default()
    };
    let list = leases::ListRequest {
        filters: texts(&["id==l", ""]),
        ..Default::default()
    };
    let delete = leases::DeleteRequest {
        id: "l".into(),
        sync: true,
        ..Default::default()
    };
    let method = "leases.v1.Leases";
    vec![
        whole(&format!("{method}/Create"), &create),
        whole(&format!("{method}/AddResource"), &resource),
        whole(&format!("{method}/ListResources"), &resources),
        whole(&format!("{method}/DeleteResource"), &resource),
        whole(&format!("{method}/List"), &list),
        whole(&format!("{method}/Delete"), &delete),
    ]
}

pub(crate) fn for_introspection() -> Vec<Whole> {
    let list = PluginsRequest {
        filters: texts(&["id==content", ""]),
        ..Default::default()
    };
    let info = PluginInfoRequest {
        type_: "io.containerd.runtime.v2".into(),
        id: "task".into(),
        options: MessageField::some(any("containerd.types.RuntimeRequest", "")),
        ..Default::default()
    };
    let method = "introspection.v1.Introspection";
    vec![
        whole(&format!("{method}/Plugins"), &list),
        whole(&format!("{method}/Server"), &Empty::new()),
        whole(&format!("{method}/PluginInfo"), &info),
    ]
}

async fn containers_take_what_is_missing(peer: &Peer) {
    send_all(peer, for_containers()).await;
}

async fn images_take_what_is_missing(peer: &Peer) {
    send_all(peer, for_images()).await;
}

async fn leases_take_what_is_missing(peer: &Peer) {
    send_all(peer, for_leases()).await;
}

async fn introspection_takes_what_is_missing(peer: &Peer) {
    send_all(peer, for_introspection()).await;
}

/// Only what makes something says what is wrong with its name.
async fn what_cannot_be_a_name_is_not_there(peer: &Peer) {
    for service in ["containers.v1.Containers", "images.v1.Images"] {
        for method in ["Get", "Delete"] {
            for name in ["", "../a", "a b", "-"] {
                // All of them have the name as their first field.
                let request = containers::GetContainerRequest {
                    id: name.into(),
                    ..Default::default()
                };
                let path = format!("/containerd.services.{service}/{method}");
                refused(Code::NotFound, call(peer, &path, scoped(request)).await);
            }
        }
    }
    for method in ["Delete", "AddResource", "DeleteResource", "ListResources"] {
        let mut request = leases::AddResourceRequest::default();
        if method != "Delete" {
            request.resource = MessageField::some(leases::Resource {
                id: "r".into(),
                type_: "ingests".into(),
                ..Default::default()
            });
        }
        let path = format!("/containerd.services.leases.v1.Leases/{method}");
        refused(Code::NotFound, call(peer, &path, scoped(request)).await);
    }
}

/// Go gives some of its own no class.
async fn a_refusal_has_a_class(peer: &Peer) {
    let mut all = for_containers();
    all.extend(for_images());
    all.extend(for_leases());
    all.extend(for_introspection());
    for (code, text) in send_all(peer, all).await {
        assert!(![Code::Unknown, Code::Internal].contains(&code), "{text}");
    }
}
