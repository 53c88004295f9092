//! What a driver of networks is asked for, and what it answers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::{IpNet, LinkName, MacAddr, Route};
use crate::{ContainerId, Error, Namespace, Result};

/// Whose network it is: ids are their tenants' own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId {
    /// Tenant.
    pub namespace: Namespace,
    /// Container, or sandbox of containers.
    pub container: ContainerId,
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.container)
    }
}

/// A container's attachment to its networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetRequest {
    /// Whose.
    pub id: TenantId,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Name of the (first) interface inside.
    pub interface: LinkName,
    /// Networks by the driver's names for them; empty: its own choice.
    pub networks: Vec<String>,
    /// Addresses that the caller has chosen.
    pub addresses: Vec<IpNet>,
    /// Hardware address that the caller has chosen.
    pub mac: Option<MacAddr>,
    /// Largest packet; `None`: the driver's choice.
    pub mtu: Option<u32>,
    /// Routes in addition to those that the driver makes.
    pub routes: Vec<Route>,
    /// Ports of the host that lead into the container.
    pub ports: Vec<PortMapping>,
    /// Arguments that the driver passes on as they are.
    pub args: BTreeMap<String, String>,
    /// Values for what a driver can do besides, each as a JSON text, by capability.
    pub capabilities: BTreeMap<String, String>,
}

/// What a driver has made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetResult {
    /// Interfaces, inside and outside.
    pub interfaces: Vec<NetInterface>,
    /// Addresses of the container.
    pub addresses: Vec<NetAddress>,
    /// Routes of the container.
    pub routes: Vec<Route>,
    /// Name servers of the network.
    pub dns: Dns,
}

/// An interface that a driver has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetInterface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one.
    pub mac: Option<MacAddr>,
    /// Its largest packet, if that is known.
    pub mtu: Option<u32>,
    /// Its network namespace; `None`: the host's.
    pub netns: Option<PathBuf>,
}

/// An address that a driver has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetAddress {
    /// The address.
    pub address: IpNet,
    /// Who passes packets on for its network.
    pub gateway: Option<IpAddr>,
    /// Position of its interface in [`NetResult::interfaces`].
    pub interface: Option<usize>,
}

/// Whom to ask for names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Domain of the host.
    pub domain: String,
    /// Domains that short names are looked up in.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its name in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl std::str::FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(Error::invalid_argument(format_args!(
                "{text:?} is no protocol with ports: tcp, udp, sctp"
            ))),
        }
    }
}

/// A port of the host that leads to one of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortMapping {
    /// Protocol.
    pub protocol: Protocol,
    /// Address of the host; `None`: all of them.
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
}
