//! What keeps an object, over the wire: JSON in the opaque parts of `PluginInfo`, as of a check, and asked of the
//! same plugin.

use serde_json::{Value, json};
use types::{Any, Holders, Namespace, Resource, Result};

use crate::opaque::{any, malformed, value};

/// Type of the question, by which it is told from a check.
pub const QUESTION_URL: &str = "containerd.fsck.v1.Held";
const ANSWER_URL: &str = "containerd.fsck.v1.Holders";

/// The question as it travels.
#[must_use]
pub fn question_to_any(namespace: &Namespace, of: &Resource) -> Any {
    let value = json!({ "namespace": namespace.as_str(), "kind": of.kind(), "id": of.id() });
    any(QUESTION_URL, &value)
}

/// The question as it came.
///
/// # Errors
/// `InvalidArgument` for something else, `NotImplemented` for an object of an unknown kind.
pub fn question_from_any(any: &Any) -> Result<(Namespace, Resource)> {
    let value = value(any, QUESTION_URL)?;
    let text = |name: &str| value[name].as_str().ok_or_else(malformed);
    let of = Resource::parse(text("kind")?, text("id")?)?;
    Ok((text("namespace")?.parse()?, of))
}

/// The answer as it travels.
#[must_use]
pub fn holders_to_any(holders: &Holders) -> Any {
    let value = json!({
        "size": holders.size,
        "elsewhere": holders.elsewhere,
        "chains": holders.chains,
        "more": holders.more,
    });
    any(ANSWER_URL, &value)
}

/// The answer as it came.
///
/// # Errors
/// `InvalidArgument` for something else.
pub fn holders_from_any(any: &Any) -> Result<Holders> {
    let value = value(any, ANSWER_URL)?;
    let count = |name: &str| value[name].as_u64().ok_or_else(malformed);
    let chains = value["chains"].as_array().ok_or_else(malformed)?;
    let size = match value["size"] {
        Value::Null => None,
        _ => Some(count("size")?),
    };
    Ok(Holders {
        size,
        elsewhere: texts(&value["elsewhere"])?,
        chains: chains.iter().map(texts).collect::<Result<_>>()?,
        more: count("more")?,
    })
}

fn texts(value: &Value) -> Result<Vec<String>> {
    let all = value.as_array().ok_or_else(malformed)?.iter();
    all.map(|text| text.as_str().map(ToOwned::to_owned).ok_or_else(malformed))
        .collect()
}

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;

    #[test]
    fn what_travels_comes_as_it_was() {
        let of = Resource::parse("snapshots/overlayfs", "a/b c").unwrap();
        let namespace: Namespace = "n".parse().unwrap();
        let back = question_from_any(&question_to_any(&namespace, &of)).unwrap();
        assert_eq!(back, (namespace, of));
        let mut holders = Holders {
            size: Some(u64::MAX),
            elsewhere: vec!["b".into()],
            chains: vec![vec!["image \"i\"".into(), "content x".into()]],
            more: 3,
        };
        for size in [holders.size, None] {
            holders.size = size;
            let back = holders_from_any(&holders_to_any(&holders)).unwrap();
            assert_eq!(back, holders);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for value in [
            "",
            "[]",
            "{}",
            r#"{"namespace":"","kind":"content","id":"sha256:0"}"#,
            r#"{"namespace":"n","kind":"content","id":"x"}"#,
            r#"{"namespace":"a/b","kind":"images","id":"x"}"#,
        ] {
            let any = Any {
                type_url: QUESTION_URL.into(),
                value: value.into(),
            };
            let error = question_from_any(&any).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{value}: {error}");
            holders_from_any(&any).unwrap_err();
        }
    }
}
