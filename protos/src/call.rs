//! Scope of a ttrpc call: the namespace travels under a key of its own, unlike with gRPC.

use std::collections::HashMap;
use std::time::Duration;

use ::types::{Error, Namespace, Result};
use ttrpc::context::Context;

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

/// Context of a call in `namespace`. Without a timeout the call waits for ever.
#[must_use]
pub fn context(namespace: &Namespace, timeout: Option<Duration>) -> Context {
    let mut made = Context::default();
    made.metadata
        .insert(NAMESPACE.to_owned(), vec![namespace.to_string()]);
    if let Some(timeout) = timeout {
        made.timeout_nano = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_carries_its_namespace() {
        let sent = context(&"k8s.io".parse().unwrap(), Some(Duration::from_secs(2)));
        assert_eq!(sent.timeout_nano, 2_000_000_000);
        assert_eq!(namespace(&sent.metadata).unwrap().as_str(), "k8s.io");
        let error = namespace(&HashMap::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "namespace is required: failed precondition"
        );
    }
}
