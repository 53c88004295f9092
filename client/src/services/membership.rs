//! What a container's record keeps of its network.
//!
//! Invariant: what was asked of a driver is read as it was written, so that the same can be asked for, or taken
//! away, by whoever has the record.

use std::path::PathBuf;

use protos::services::network as wire;
use protos::wire::network::request_from_wire;
use types::network::NetRequest;
use types::{Any, Container, Error, Namespace, Result};

use super::network::Joining;

/// A container's part of a network, as its record keeps it: whoever removes the container knows what goes
/// along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Name of the driver.
    pub driver: String,
    /// Name of the container's network namespace.
    pub namespace: String,
    /// What the driver was asked for. Whose it is the call says.
    pub request: NetRequest,
}

impl Membership {
    /// Name of the container's extension that has it.
    pub const EXTENSION: &str = "io.containerd.network.v1.joining";

    /// What to ask the driver for.
    #[must_use]
    pub fn joining(&self) -> Joining<'_> {
        Joining {
            driver: &self.driver,
            namespace: Some(&self.namespace),
            request: &self.request,
        }
    }

    /// The value of the extension.
    ///
    /// # Errors
    /// `Internal` when it cannot be encoded.
    pub fn to_any(&self) -> Result<Any> {
        protos::any::pack(&self.joining().to_wire())
    }

    /// What a container has; `None` for one that no driver was asked for.
    ///
    /// # Errors
    /// `InvalidArgument` for a value that is none.
    pub fn of(tenant: &Namespace, record: &Container) -> Result<Option<Self>> {
        let Some(any) = record.extensions.get(Self::EXTENSION) else {
            return Ok(None);
        };
        let joining: wire::Joining = protos::any::unpack(any)?;
        let (driver, namespace) = (joining.driver.clone(), joining.network_namespace.clone());
        if namespace.is_empty() {
            return Err(Error::invalid_argument(
                "a container's part of a network has no network namespace",
            ));
        }
        let request = request_from_wire(tenant, PathBuf::new(), joining)?;
        Ok(Some(Self {
            driver,
            namespace,
            request,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Labels;
    use types::network::{IpNet, PortMapping, Protocol, Route, TenantId};

    fn joined(tenant: &Namespace) -> Membership {
        Membership {
            driver: "bridge".into(),
            namespace: "web".into(),
            request: NetRequest {
                id: TenantId {
                    namespace: tenant.clone(),
                    container: "web".parse().unwrap(),
                },
                netns: PathBuf::new(),
                interface: "eth0".parse().unwrap(),
                networks: vec!["br0".into()],
                addresses: vec![
                    "10.7.0.2/24".parse().unwrap(),
                    "fd07::2/64".parse().unwrap(),
                ],
                mac: None,
                mtu: None,
                routes: vec![Route::new(
                    IpNet::DEFAULT_V4,
                    Some("10.7.0.9".parse().unwrap()),
                )],
                ports: vec![PortMapping {
                    protocol: Protocol::Udp,
                    host_ip: Some("::2".parse().unwrap()),
                    host_port: 8053,
                    container_port: 53,
                }],
                args: [].into(),
                capabilities: [].into(),
            },
        }
    }

    #[test]
    fn what_a_record_keeps_of_a_network_is_read_as_it_was_written() {
        let tenant: Namespace = "default".parse().unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH;
        let mut record = Container {
            id: "web".parse().unwrap(),
            labels: Labels::new(),
            image: String::new(),
            runtime: types::Runtime {
                name: types::DEFAULT_RUNTIME.into(),
                options: None,
            },
            spec: None,
            snapshotter: String::new(),
            snapshot_key: String::new(),
            extensions: Default::default(),
            sandbox: String::new(),
            created_at: now,
            updated_at: now,
        };
        assert_eq!(Membership::of(&tenant, &record).unwrap(), None);
        let wanted = joined(&tenant);
        let name = Membership::EXTENSION.to_owned();
        record
            .extensions
            .insert(name.clone(), wanted.to_any().unwrap());
        assert_eq!(Membership::of(&tenant, &record).unwrap(), Some(wanted));
        let other = protos::any::pack(&wire::Dns::default()).unwrap();
        record.extensions.insert(name, other);
        let error = Membership::of(&tenant, &record).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{error}");
    }
}
