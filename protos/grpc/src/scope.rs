//! Scope of a call: namespace and lease travel as metadata.

use tonic::Request;
use tonic::metadata::{MetadataMap, MetadataValue};
use types::{Error, LeaseId, Namespace, Result, Scope};

/// Metadata key of the namespace.
pub const NAMESPACE: &str = "containerd-namespace";
/// Metadata key of the lease.
pub const LEASE: &str = "containerd-lease";

/// On whose behalf a call is made, as far as a service asks. One service can so be served with
/// namespaces and without.
pub trait Tenant: Clone + Send + Sync + 'static {
    /// Reads it from a call's metadata.
    ///
    /// # Errors
    /// Those of [`scope`] where a namespace is needed.
    fn of(metadata: &MetadataMap) -> Result<Self>;

    /// The namespace, for the log.
    fn namespace(&self) -> Option<&Namespace>;
}

impl Tenant for Scope {
    fn of(metadata: &MetadataMap) -> Result<Self> {
        scope(metadata)
    }

    fn namespace(&self) -> Option<&Namespace> {
        Some(&self.namespace)
    }
}

/// Nobody is asked for: namespaces are the affair of whoever calls.
#[derive(Clone, Copy, Debug)]
pub struct Anybody;

impl Tenant for Anybody {
    fn of(_metadata: &MetadataMap) -> Result<Self> {
        Ok(Self)
    }

    fn namespace(&self) -> Option<&Namespace> {
        None
    }
}

/// Reads the scope of a call; of several values the first counts.
///
/// # Errors
/// `FailedPrecondition` without a namespace, `InvalidArgument` when it is no identifier or a value
/// is no text.
pub fn scope(metadata: &MetadataMap) -> Result<Scope> {
    let Some(namespace) = text(metadata, NAMESPACE)?.filter(|n| !n.is_empty()) else {
        return Err(Error::failed_precondition("namespace is required"));
    };
    let namespace: Namespace = namespace
        .parse()
        .map_err(|e: Error| e.ctx("namespace validation"))?;
    let lease = match text(metadata, LEASE)?.filter(|l| !l.is_empty()) {
        Some(lease) => Some(lease.parse::<LeaseId>()?),
        None => None,
    };
    Ok(Scope { namespace, lease })
}

/// A request of `message` under `scope`, for clients.
///
/// # Errors
/// `InvalidArgument` when the lease id cannot travel as metadata.
pub fn request<T>(scope: &Scope, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let mut put = |key: &'static str, value: &str| -> Result<()> {
        let value = MetadataValue::try_from(value)
            .map_err(|e| Error::invalid_argument(format_args!("{key} {value:?}")).with_source(e))?;
        request.metadata_mut().insert(key, value);
        Ok(())
    };
    put(NAMESPACE, scope.namespace.as_str())?;
    if let Some(lease) = &scope.lease {
        put(LEASE, lease.as_str())?;
    }
    Ok(request)
}

/// A request of `message` without a scope, for services that know no namespaces.
pub fn unscoped<T>(message: T) -> Request<T> {
    Request::new(message)
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Result<Option<&'a str>> {
    let Some(value) = metadata.get(key) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Error::invalid_argument(format_args!(
            "metadata {key} is no text"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    fn metadata(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut made = MetadataMap::new();
        for (key, value) in pairs {
            made.append(*key, value.parse().unwrap());
        }
        made
    }

    #[test]
    fn the_first_namespace_counts_and_the_lease_is_optional() {
        let made = scope(&metadata(&[(NAMESPACE, "a"), (NAMESPACE, "b")])).unwrap();
        assert_eq!(made, Scope::new("a".parse().unwrap()));
        let made = scope(&metadata(&[(NAMESPACE, "a"), (LEASE, "free string/x")])).unwrap();
        assert_eq!(made.lease.unwrap().as_str(), "free string/x");
        let made = scope(&metadata(&[(NAMESPACE, "a"), (LEASE, "")])).unwrap();
        assert_eq!(made.lease, None);
    }

    #[test]
    fn a_missing_or_bad_namespace_is_refused_in_its_class() {
        for (pairs, code, text) in [
            (
                &[][..],
                Code::FailedPrecondition,
                "namespace is required: failed precondition",
            ),
            (
                &[(NAMESPACE, ""), (NAMESPACE, "b")],
                Code::FailedPrecondition,
                "namespace is required: failed precondition",
            ),
            (
                &[(NAMESPACE, "../x")],
                Code::InvalidArgument,
                "namespace validation: ",
            ),
        ] {
            let error = scope(&metadata(pairs)).unwrap_err();
            assert_eq!(error.code(), code, "{pairs:?}");
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }

    #[test]
    fn what_a_client_sends_is_what_the_server_reads() {
        let sent = Scope {
            namespace: "default".parse().unwrap(),
            lease: Some("l 1".parse().unwrap()),
        };
        let request = request(&sent, ()).unwrap();
        assert_eq!(scope(request.metadata()).unwrap(), sent);
    }
}
