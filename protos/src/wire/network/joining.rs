//! What a driver is asked for and answers, as messages.

use std::path::PathBuf;

use ::types::network::{
    Dns, Joined, NetAddress, NetInterface, NetRequest, NetResult, PortMapping, Protocol, TenantId,
};
use ::types::{Error, Namespace, Result};
use protobuf::MessageField;

use super::super::Wire;
use super::{address, text};
use crate::services::network as proto;

/// Interface of those who name none.
const INTERFACE: &str = "eth0";

/// A tenant's request; where the network namespace is is for the caller to say.
///
/// # Errors
/// `InvalidArgument` with what does not fit.
pub fn request_from_wire(
    tenant: &Namespace,
    netns: PathBuf,
    proto: proto::Joining,
) -> Result<NetRequest> {
    let named = Some(proto.interface).filter(|name| !name.is_empty());
    let addresses = proto.addresses.iter();
    Ok(NetRequest {
        id: TenantId {
            namespace: tenant.clone(),
            container: proto.container_id.try_into()?,
        },
        netns,
        interface: named.unwrap_or_else(|| INTERFACE.to_owned()).try_into()?,
        networks: proto.networks,
        addresses: addresses.map(|one| one.parse()).collect::<Result<_>>()?,
        mac: Some(proto.mac)
            .filter(|mac| !mac.is_empty())
            .map(|mac| mac.parse())
            .transpose()?,
        mtu: Some(proto.mtu).filter(|mtu| *mtu != 0),
        routes: Vec::from_wire(proto.routes)?,
        ports: Vec::from_wire(proto.ports)?,
        args: proto.args.into_iter().collect(),
        capabilities: proto.capabilities.into_iter().collect(),
    })
}

/// The message about an attachment, to its tenant.
#[must_use]
pub fn joined_to_wire(joined: &Joined) -> proto::JoinedContainer {
    proto::JoinedContainer {
        driver: joined.driver.clone(),
        container_id: joined.id.container.to_string(),
        interface: joined.interface.clone(),
        network: joined.network.clone(),
        path: joined.netns.display().to_string(),
        addresses: joined.addresses.iter().map(ToString::to_string).collect(),
        ports: joined.ports.to_wire(),
        state: joined.state.as_str().to_owned(),
        fault: joined.fault.clone(),
        ..Default::default()
    }
}

/// An attachment of a tenant.
///
/// # Errors
/// `InvalidArgument` with what does not fit.
pub fn joined_from_wire(tenant: &Namespace, proto: proto::JoinedContainer) -> Result<Joined> {
    let addresses = proto.addresses.iter();
    Ok(Joined {
        driver: proto.driver,
        id: TenantId {
            namespace: tenant.clone(),
            container: proto.container_id.try_into()?,
        },
        interface: proto.interface,
        network: proto.network,
        netns: proto.path.into(),
        addresses: addresses.map(|one| one.parse()).collect::<Result<_>>()?,
        ports: Vec::from_wire(proto.ports)?,
        state: proto.state.parse()?,
        fault: proto.fault,
    })
}

/// The message for a request of `driver`. Its network namespace is told by path.
#[must_use]
pub fn request_to_wire(driver: &str, request: &NetRequest) -> proto::Joining {
    proto::Joining {
        driver: driver.to_owned(),
        container_id: request.id.container.to_string(),
        path: request.netns.display().to_string(),
        interface: request.interface.to_string(),
        networks: request.networks.clone(),
        addresses: request.addresses.iter().map(ToString::to_string).collect(),
        mac: text(request.mac),
        mtu: request.mtu.unwrap_or_default(),
        routes: request.routes.to_wire(),
        ports: request.ports.to_wire(),
        args: request.args.clone().into_iter().collect(),
        capabilities: request.capabilities.clone().into_iter().collect(),
        ..Default::default()
    }
}

impl Wire for PortMapping {
    type Proto = proto::PortMapping;

    fn to_wire(&self) -> proto::PortMapping {
        proto::PortMapping {
            protocol: self.protocol.as_str().to_owned(),
            host_ip: text(self.host_ip),
            host_port: self.host_port.into(),
            container_port: self.container_port.into(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::PortMapping) -> Result<Self> {
        let port = |number: u32| {
            let fits = u16::try_from(number).ok().filter(|port| *port != 0);
            fits.ok_or_else(|| Error::invalid_argument(format_args!("{number} is no port")))
        };
        Ok(Self {
            protocol: match proto.protocol.as_str() {
                "" => Protocol::Tcp,
                named => named.parse()?,
            },
            host_ip: address(&proto.host_ip, "address of a port")?,
            host_port: port(proto.host_port)?,
            container_port: port(proto.container_port)?,
        })
    }
}

impl Wire for NetResult {
    type Proto = proto::SetupResponse;

    fn to_wire(&self) -> proto::SetupResponse {
        proto::SetupResponse {
            interfaces: self.interfaces.to_wire(),
            addresses: self.addresses.to_wire(),
            routes: self.routes.to_wire(),
            dns: MessageField::some(self.dns.to_wire()),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::SetupResponse) -> Result<Self> {
        Ok(Self {
            interfaces: Vec::from_wire(proto.interfaces)?,
            addresses: Vec::from_wire(proto.addresses)?,
            routes: Vec::from_wire(proto.routes)?,
            dns: Dns::from_wire(proto.dns.unwrap_or_default())?,
        })
    }
}

impl Wire for NetInterface {
    type Proto = proto::JoinedInterface;

    fn to_wire(&self) -> proto::JoinedInterface {
        let path = self.netns.as_ref().map(|path| path.display());
        proto::JoinedInterface {
            name: self.name.clone(),
            mac: text(self.mac),
            mtu: self.mtu.unwrap_or_default(),
            path: text(path),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::JoinedInterface) -> Result<Self> {
        let mac = Some(proto.mac).filter(|mac| !mac.is_empty());
        let path = Some(proto.path).filter(|path| !path.is_empty());
        Ok(Self {
            name: proto.name,
            mac: mac.map(|mac| mac.parse()).transpose()?,
            mtu: Some(proto.mtu).filter(|mtu| *mtu != 0),
            netns: path.map(PathBuf::from),
        })
    }
}

impl Wire for NetAddress {
    type Proto = proto::JoinedAddress;

    fn to_wire(&self) -> proto::JoinedAddress {
        proto::JoinedAddress {
            address: self.address.to_string(),
            gateway: text(self.gateway),
            interface: self.interface.and_then(|at| u32::try_from(at).ok()),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::JoinedAddress) -> Result<Self> {
        Ok(Self {
            address: proto.address.parse()?,
            gateway: address(&proto.gateway, "gateway")?,
            interface: proto.interface.and_then(|at| usize::try_from(at).ok()),
        })
    }
}

impl Wire for Dns {
    type Proto = proto::Dns;

    fn to_wire(&self) -> proto::Dns {
        proto::Dns {
            servers: self.servers.clone(),
            domain: self.domain.clone(),
            search: self.search.clone(),
            options: self.options.clone(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::Dns) -> Result<Self> {
        Ok(Self {
            servers: proto.servers,
            domain: proto.domain,
            search: proto.search,
            options: proto.options,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_its_answer_are_the_same_on_the_other_side() {
        let request = NetRequest {
            id: TenantId {
                namespace: "n".parse().unwrap(),
                container: "c".parse().unwrap(),
            },
            netns: "/run/n".into(),
            interface: "net1".parse().unwrap(),
            networks: vec!["a".into()],
            addresses: vec![
                "10.0.0.2/24".parse().unwrap(),
                "fd00::2/64".parse().unwrap(),
            ],
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: Some(1400),
            routes: Vec::new(),
            ports: vec![PortMapping {
                protocol: Protocol::Udp,
                host_ip: Some("127.0.0.1".parse().unwrap()),
                host_port: 53,
                container_port: 5353,
            }],
            args: [("A".to_owned(), "1".to_owned())].into(),
            capabilities: [("mac".to_owned(), "\"x\"".to_owned())].into(),
        };
        let wire = request_to_wire("cni", &request);
        assert_eq!(wire.driver, "cni");
        let tenant = &request.id.namespace;
        let back = request_from_wire(tenant, wire.path.clone().into(), wire).unwrap();
        assert_eq!(back, request);
        let result = NetResult {
            interfaces: vec![NetInterface {
                name: "net1".into(),
                mac: request.mac,
                mtu: Some(1400),
                netns: Some("/run/n".into()),
            }],
            addresses: vec![NetAddress {
                address: request.addresses[0],
                gateway: Some("10.0.0.1".parse().unwrap()),
                interface: Some(0),
            }],
            dns: Dns {
                servers: vec!["10.0.0.1".into()],
                ..Dns::default()
            },
            ..NetResult::default()
        };
        assert_eq!(NetResult::from_wire(result.to_wire()).unwrap(), result);
    }

    #[test]
    fn an_attachment_is_the_same_on_the_other_side() {
        for state in ::types::network::JoinState::ALL {
            let joined = Joined {
                driver: "cni".into(),
                id: TenantId {
                    namespace: "n".parse().unwrap(),
                    container: "c".parse().unwrap(),
                },
                interface: "eth0".into(),
                network: "net".into(),
                netns: "/run/n".into(),
                addresses: vec!["fd00::2/64".parse().unwrap()],
                ports: vec![PortMapping {
                    protocol: Protocol::Sctp,
                    host_ip: None,
                    host_port: 1,
                    container_port: 2,
                }],
                state,
                fault: "it is down".into(),
            };
            let wire = joined_to_wire(&joined);
            let back = joined_from_wire(&joined.id.namespace, wire).unwrap();
            assert_eq!(back, joined);
        }
    }

    #[test]
    fn a_port_is_a_number_that_is_one() {
        for (host, container) in [(0, 80), (80, 0), (65536, 80)] {
            let proto = proto::PortMapping {
                host_port: host,
                container_port: container,
                ..Default::default()
            };
            let error = PortMapping::from_wire(proto).unwrap_err();
            assert!(error.is(::types::Code::InvalidArgument), "{error}");
        }
    }
}
