//! Events on the wire: encoding of the daemon's own, and a look into anybody's for filters.

use ::types::{Any, Event, Labels, Result};
use protobuf::descriptor::field_descriptor_proto::Type;
use protobuf::reflect::{ReflectFieldRef, ReflectValueRef};
use protobuf::{MessageDyn, MessageField};

use crate::any::pack;
use crate::events as wire;
use crate::network_events as network;
use crate::services::images as image;
use crate::wire::Wire;

/// One message of the wire, packed.
macro_rules! packed {
    ($module:ident::$kind:ident { $($field:ident $(: $value:expr)?),* $(,)? }) => {
        pack(&$module::$kind { $($field $(: $value)?,)* ..Default::default() })
    };
}

/// The payload of an event; its topic is [`Event::topic`].
///
/// # Errors
/// `Internal` when it cannot be encoded.
#[expect(
    clippy::too_many_lines,
    reason = "one exhaustive match, one short arm per event"
)]
pub fn encode(event: &Event) -> Result<Any> {
    use wire::container_create::Runtime;

    let labels = |labels: &Labels| labels.to_wire();
    match event.clone() {
        Event::ContainerCreate { id, image, runtime } => {
            let runtime = MessageField::some(Runtime {
                name: runtime.name,
                options: runtime.options.to_wire(),
                ..Default::default()
            });
            packed!(wire::ContainerCreate { id, image, runtime })
        }
        Event::ContainerUpdate {
            id,
            image,
            labels: l,
            snapshot_key,
        } => {
            packed!(wire::ContainerUpdate {
                id,
                image,
                labels: labels(&l),
                snapshot_key
            })
        }
        Event::ContainerDelete { id } => packed!(wire::ContainerDelete { id }),
        Event::ContentCreate { digest, size } => packed!(wire::ContentCreate {
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
        }),
        Event::ContentDelete { digest } => {
            packed!(wire::ContentDelete {
                digest: digest.to_string()
            })
        }
        Event::ImageCreate { name, labels: l } => {
            packed!(image::ImageCreate {
                name,
                labels: labels(&l)
            })
        }
        Event::ImageUpdate { name, labels: l } => {
            packed!(image::ImageUpdate {
                name,
                labels: labels(&l)
            })
        }
        Event::ImageDelete { name } => packed!(image::ImageDelete { name }),
        Event::NamespaceCreate { name, labels: l } => {
            packed!(wire::NamespaceCreate {
                name,
                labels: labels(&l)
            })
        }
        Event::NamespaceUpdate { name, labels: l } => {
            packed!(wire::NamespaceUpdate {
                name,
                labels: labels(&l)
            })
        }
        Event::NamespaceDelete { name } => packed!(wire::NamespaceDelete { name }),
        Event::NetworkNamespaceCreate {
            name,
            path,
            labels: l,
        } => {
            packed!(network::NetworkNamespaceCreate {
                name,
                path,
                labels: labels(&l)
            })
        }
        Event::NetworkNamespaceUpdate { name, labels: l } => {
            packed!(network::NetworkNamespaceUpdate {
                name,
                labels: labels(&l)
            })
        }
        Event::NetworkNamespaceDelete { name } => {
            packed!(network::NetworkNamespaceDelete { name })
        }
        Event::NetworkLinkCreate {
            name,
            network_namespace,
            kind,
        } => packed!(network::NetworkLinkCreate {
            name,
            network_namespace,
            kind
        }),
        Event::NetworkLinkUpdate {
            name,
            network_namespace,
            kind,
        } => packed!(network::NetworkLinkUpdate {
            name,
            network_namespace,
            kind
        }),
        Event::NetworkLinkDelete {
            name,
            network_namespace,
            kind,
        } => packed!(network::NetworkLinkDelete {
            name,
            network_namespace,
            kind
        }),
        Event::SnapshotPrepare {
            key,
            parent,
            snapshotter,
        } => {
            packed!(wire::SnapshotPrepare {
                key,
                parent,
                snapshotter
            })
        }
        Event::SnapshotCommit {
            key,
            name,
            snapshotter,
        } => {
            packed!(wire::SnapshotCommit {
                key,
                name,
                snapshotter
            })
        }
        Event::SnapshotRemove { key, snapshotter } => {
            packed!(wire::SnapshotRemove { key, snapshotter })
        }
        Event::TaskCreate {
            container,
            bundle,
            pid,
        } => {
            packed!(wire::TaskCreate {
                container_id: container.to_string(),
                bundle,
                pid
            })
        }
        Event::TaskStart { container, pid } => {
            packed!(wire::TaskStart {
                container_id: container.to_string(),
                pid
            })
        }
        Event::TaskOom { container } => {
            packed!(wire::TaskOOM {
                container_id: container.to_string()
            })
        }
        Event::TaskExit {
            container,
            id,
            pid,
            status,
            exited_at,
        } => packed!(wire::TaskExit {
            container_id: container.to_string(),
            id,
            pid,
            exit_status: status,
            exited_at: MessageField::some(exited_at.to_wire()),
        }),
        Event::TaskDelete { container, exit } => packed!(wire::TaskDelete {
            container_id: container.to_string(),
            id: container.to_string(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.to_wire()),
        }),
    }
}

/// The event's message, when it is of containerd's own types and whole.
#[must_use]
pub fn decode(any: &Any) -> Option<Box<dyn MessageDyn>> {
    let name = any.type_name();
    let file = match name.rsplit_once('.')?.0 {
        "containerd.events" => wire::file_descriptor(),
        "containerd.events.network.v1" => network::file_descriptor(),
        "containerd.services.images.v1" => image::file_descriptor(),
        _ => return None,
    };
    file.message_by_full_name(&format!(".{name}"))?
        .parse_from_bytes(&any.value)
        .ok()
}

/// What finds the value at a path in an event, for filters on `event.<path>`; `None` where [`decode`] gives
/// none.
///
/// As in Go, a text is present when it is not empty, a boolean always, a map's key is the rest of
/// the path joined with dots; numbers, times and lists have no path.
#[must_use]
pub fn fields(any: &Any) -> Option<Fields> {
    let message = decode(any)?;
    Some(Box::new(move |path| walk(&*message, path)))
}

/// The value at a path.
pub type Fields = Box<dyn Fn(&[&str]) -> Option<String>>;

fn walk(message: &dyn MessageDyn, path: &[&str]) -> Option<String> {
    let (name, rest) = path.split_first()?;
    let field = message.descriptor_dyn().field_by_name(name)?;
    match field.get_reflect(message) {
        ReflectFieldRef::Map(map) => {
            let key = rest.join(".");
            let value = map.get(ReflectValueRef::String(&key))?;
            value.to_str().map(str::to_owned)
        }
        ReflectFieldRef::Repeated(_) => None,
        ReflectFieldRef::Optional(value) => match value.value() {
            Some(ReflectValueRef::Message(inner)) => walk(&*inner, rest),
            Some(ReflectValueRef::String(text)) => (!text.is_empty()).then(|| text.to_owned()),
            Some(ReflectValueRef::Bool(flag)) => Some(flag.to_string()),
            None if field.proto().type_() == Type::TYPE_BOOL => Some("false".to_owned()),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::types::Exit;
    use protobuf::Message;
    use std::time::{Duration, UNIX_EPOCH};

    fn field(any: &Any, path: &[&str]) -> Option<String> {
        fields(any)?(path)
    }

    fn at(seconds: u64) -> std::time::SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn fields_of_an_event_are_found_as_go_finds_them() {
        let create = Event::ContainerCreate {
            id: "c".into(),
            image: String::new(),
            runtime: ::types::Runtime {
                name: "io.containerd.runc.v2".into(),
                options: None,
            },
        };
        let update = Event::ImageUpdate {
            name: "busybox".into(),
            labels: Labels::new().with("a.b/c", "1"),
        };
        let exit = Event::TaskExit {
            container: "c".parse().unwrap(),
            id: "e".into(),
            pid: 7,
            status: 137,
            exited_at: at(1),
        };
        let made = Event::NetworkNamespaceCreate {
            name: "n".into(),
            path: "/n".into(),
            labels: Labels::new().with("a.b", "1"),
        };
        for (event, path, want) in [
            (&made, &["name"][..], Some("n")),
            (&made, &["labels", "a", "b"], Some("1")),
            (&create, &["id"][..], Some("c")),
            (&create, &["image"], None),
            (&create, &["runtime", "name"], Some("io.containerd.runc.v2")),
            (&create, &["runtime"], None),
            (&create, &["nothing"], None),
            (&create, &[], None),
            (&update, &["labels", "a", "b/c"], Some("1")),
            (&update, &["labels", "x"], None),
            (&exit, &["container_id"], Some("c")),
            (&exit, &["id"], Some("e")),
            (&exit, &["pid"], None),
            (&exit, &["exited_at"], None),
        ] {
            let any = encode(event).unwrap();
            assert_eq!(field(&any, path).as_deref(), want, "{event:?} {path:?}");
        }
    }

    #[test]
    fn a_boolean_is_always_there_and_foreign_events_have_no_fields() {
        let io = MessageField::some(wire::TaskIO::default());
        let any = pack(&wire::TaskCreate {
            io,
            ..Default::default()
        })
        .unwrap();
        assert_eq!(field(&any, &["io", "terminal"]).as_deref(), Some("false"));
        for type_url in ["", "x", "containerd.events.Nothing", "other.TaskCreate"] {
            let any = Any {
                type_url: type_url.into(),
                ..any.clone()
            };
            assert_eq!(field(&any, &["io", "terminal"]), None, "{type_url}");
        }
        let damaged = Any {
            value: vec![0xff],
            ..any
        };
        assert_eq!(field(&damaged, &["io", "terminal"]), None);
    }

    /// Bytes as Go writes them: field numbers and types are the contract.
    #[test]
    fn a_task_exit_has_these_bytes() {
        let event = Event::TaskDelete {
            container: "ab".parse().unwrap(),
            exit: Exit {
                pid: 300,
                status: 137,
                at: at(5),
            },
        };
        let any = encode(&event).unwrap();
        assert_eq!(any.type_url, "containerd.events.TaskDelete");
        let made = wire::TaskDelete::parse_from_bytes(&any.value).unwrap();
        assert_eq!(
            (made.pid, made.exit_status, made.exited_at.seconds),
            (300, 137, 5)
        );
        let exit = Event::TaskExit {
            container: "ab".parse().unwrap(),
            id: "e".into(),
            pid: 300,
            status: 137,
            exited_at: at(5),
        };
        let golden = [
            0x0a, 2, b'a', b'b', // container_id = 1
            0x12, 1, b'e', // id = 2
            0x18, 0xac, 0x02, // pid = 3
            0x20, 0x89, 0x01, // exit_status = 4
            0x2a, 2, 0x08, 5, // exited_at = 5
        ];
        assert_eq!(encode(&exit).unwrap().value, golden);
    }
}
