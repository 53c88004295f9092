//! Scope of a ttrpc call: the namespace travels under a key of its own, unlike with gRPC.

use std::collections::HashMap;

use ::types::{Error, Namespace, Result};
use ttrpc::proto::KeyValue;

/// Metadata key of the namespace on ttrpc.
pub const NAMESPACE: &str = "containerd-namespace-ttrpc";

/// The namespace of a call; of several values the first counts.
///
/// # Errors
/// `FailedPrecondition` when there is none, `InvalidArgument` when it is no identifier.
pub fn namespace(metadata: &HashMap<String, Vec<String>>) -> Result<Namespace> {
    match metadata.get(NAMESPACE).and_then(|values| values.first()) {
        Some(text) if !text.is_empty() => text.parse(),
        _ => Err(Error::failed_precondition("namespace is required")),
    }
}

/// Metadata of a call in `namespace`.
#[must_use]
pub fn metadata(namespace: &Namespace) -> Vec<KeyValue> {
    vec![KeyValue {
        key: NAMESPACE.to_owned(),
        value: namespace.to_string(),
        ..KeyValue::default()
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_carries_its_namespace() {
        let sent = metadata(&"k8s.io".parse().unwrap());
        let sent = ttrpc::context::from_pb(&sent);
        assert_eq!(namespace(&sent).unwrap().as_str(), "k8s.io");
        let error = namespace(&HashMap::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "namespace is required: failed precondition"
        );
    }
}
