//! Messages as JSON for people, in the form that Go's `encoding/json` gives them: names as in the
//! `.proto`, nothing that is empty, times as RFC 3339.

use protobuf::MessageDyn;
use protobuf::reflect::{ReflectFieldRef, ReflectValueRef};
use protos::well_known::Timestamp;
use protos::wire::Wire as _;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The message as a JSON object; times as text.
pub(crate) fn message(message: &dyn MessageDyn) -> Value {
    if let Some(time) = message.downcast_ref::<Timestamp>() {
        return timestamp(time.clone());
    }
    let descriptor = message.descriptor_dyn();
    let mut made = Map::new();
    for field in descriptor.fields() {
        let value = match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => value.value().map(|v| scalar(&v)),
            ReflectFieldRef::Repeated(list) if list.is_empty() => None,
            ReflectFieldRef::Repeated(list) => {
                Some(Value::Array(list.into_iter().map(|v| scalar(&v)).collect()))
            }
            ReflectFieldRef::Map(map) if map.is_empty() => None,
            ReflectFieldRef::Map(map) => {
                let mut pairs: Vec<_> = map
                    .into_iter()
                    .map(|(k, v)| (k.to_string(), scalar(&v)))
                    .collect();
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
                Some(Value::Object(pairs.into_iter().collect()))
            }
        };
        if let Some(value) = value {
            made.insert(field.name().to_owned(), value);
        }
    }
    Value::Object(made)
}

fn scalar(value: &ReflectValueRef<'_>) -> Value {
    match value {
        ReflectValueRef::U32(n) => Value::from(*n),
        ReflectValueRef::U64(n) => Value::from(*n),
        ReflectValueRef::I32(n) => Value::from(*n),
        ReflectValueRef::I64(n) => Value::from(*n),
        ReflectValueRef::F32(n) => Value::from(*n),
        ReflectValueRef::F64(n) => Value::from(*n),
        ReflectValueRef::Bool(flag) => Value::from(*flag),
        ReflectValueRef::String(text) => Value::from(*text),
        ReflectValueRef::Bytes(bytes) => Value::from(base64(bytes)),
        ReflectValueRef::Enum(_, number) => Value::from(*number),
        ReflectValueRef::Message(inner) => message(&**inner),
    }
}

fn timestamp(proto: Timestamp) -> Value {
    let time = std::time::SystemTime::from_wire(proto).ok();
    let text = time.and_then(|t| OffsetDateTime::from(t).format(&Rfc3339).ok());
    text.map_or(Value::Null, Value::String)
}

/// A typed value as Go's JSON has it: `null` when there is none, bytes as base64.
#[must_use]
pub fn any_json(any: Option<&types::Any>) -> Value {
    let Some(any) = any else {
        return Value::Null;
    };
    let mut made = Map::new();
    made.insert("type_url".to_owned(), Value::from(any.type_url.as_str()));
    if !any.value.is_empty() {
        made.insert("value".to_owned(), Value::from(base64(&any.value)));
    }
    Value::Object(made)
}

/// Standard base64 with padding, as Go's JSON has bytes.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for at in 0..4 {
            if at <= group.len() {
                let six = (word >> (18 - 6 * at)) & 0x3f;
                text.push(char::from(LETTERS[six as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Any, Event};

    #[test]
    fn bytes_become_standard_base64() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
            (&[0xff, 0xfe], "//4="),
        ] {
            assert_eq!(base64(bytes), text);
        }
    }

    fn text(any: &Any) -> String {
        message(&*protos::event::decode(any).unwrap()).to_string()
    }

    #[test]
    fn events_read_as_go_prints_them() {
        let exit = Event::TaskExit {
            container: "c".parse().unwrap(),
            id: "e".into(),
            pid: 7,
            status: 0,
            exited_at: std::time::UNIX_EPOCH + std::time::Duration::new(1, 500_000_000),
        };
        assert_eq!(
            text(&protos::event::encode(&exit).unwrap()),
            r#"{"container_id":"c","id":"e","pid":7,"exited_at":"1970-01-01T00:00:01.5Z"}"#
        );
        let create = Event::ContainerUpdate {
            id: "c".into(),
            image: String::new(),
            labels: types::Labels::new().with("b", "2").with("a", "1"),
            snapshot_key: "k".into(),
        };
        assert_eq!(
            text(&protos::event::encode(&create).unwrap()),
            r#"{"id":"c","labels":{"a":"1","b":"2"},"snapshot_key":"k"}"#
        );
    }
}
