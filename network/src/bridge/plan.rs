//! What a request means for interfaces, addresses and routes.
//!
//! Invariant: what the driver has no use for is refused, it would be forgotten otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::network::{IpNet, LinkName, LinkSpec, MacAddr, NetRequest, PortMapping, Route, family};
use types::{Error, Result};

use super::host::deaf_to_routers;
use super::tag::{Tag, hash};

/// The bridge of those who name none.
const DEFAULT: &str = "containerd0";
/// Networks need room for a gateway and a container.
const MOST_V4: u8 = 30;
const MOST_V6: u8 = 126;

/// What is to be there.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) tag: Tag,
    pub(super) bridge: LinkName,
    /// End of the wire on the host.
    pub(super) outer: LinkName,
    /// End of the wire inside.
    pub(super) interface: LinkName,
    /// What the end inside is to be.
    pub(super) inner: LinkSpec,
    /// Addresses of the bridge, in the order of the container's.
    pub(super) gateways: Vec<IpNet>,
    pub(super) addresses: Vec<IpNet>,
    pub(super) ports: Vec<PortMapping>,
}

impl Plan {
    /// # Errors
    /// `InvalidArgument` with what does not fit.
    pub(super) fn of(request: &NetRequest) -> Result<Self> {
        refuse_unknown(request)?;
        let bridge = match &request.networks[..] {
            [] => DEFAULT.parse()?,
            [one] => one.parse()?,
            more => {
                return Err(Error::invalid_argument(format_args!(
                    "{} networks: the bridge driver joins one at a time",
                    more.len()
                )));
            }
        };
        let tag = Tag::of(request);
        let mut routes = request.routes.clone();
        let mut gateways: Vec<IpNet> = Vec::new();
        for address in &request.addresses {
            let gateway = gateway(address, &request.routes)?;
            let default = default_of(address);
            if !routes.iter().any(|route| route.destination == default) {
                routes.push(Route::new(default, Some(gateway.address())));
            }
            if !gateways.contains(&gateway) {
                gateways.push(gateway);
            }
        }
        Ok(Self {
            outer: tag.outer()?,
            tag,
            bridge,
            interface: request.interface.clone(),
            inner: LinkSpec {
                mac: request.mac,
                mtu: request.mtu,
                up: Some(true),
                addresses: Some(request.addresses.clone()),
                routes: Some(routes),
                // Its routes are those of the request, not those of a neighbour.
                sysctls: deaf_to_routers().into_iter().collect(),
                ..LinkSpec::default()
            },
            gateways,
            addresses: request.addresses.clone(),
            ports: request.ports.clone(),
        })
    }

    /// Addresses without their networks.
    pub(super) fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(IpNet::address).collect()
    }

    /// The gateway of an address.
    pub(super) fn gateway(&self, address: &IpNet) -> Option<IpAddr> {
        let mut all = self.gateways.iter().map(IpNet::address);
        all.find(|one| address.contains(one))
    }
}

fn refuse_unknown(request: &NetRequest) -> Result<()> {
    for (what, name) in [
        ("argument", request.args.keys().next()),
        ("capability", request.capabilities.keys().next()),
    ] {
        if let Some(name) = name {
            return Err(Error::invalid_argument(format_args!(
                "{what} {name:?}: the bridge driver knows none"
            )));
        }
    }
    if request.addresses.is_empty() {
        return Err(Error::invalid_argument(
            "the bridge driver gives no addresses: the request must have one at least",
        ));
    }
    let loopback = IpAddr::from(Ipv6Addr::LOCALHOST);
    if let Some(port) = request
        .ports
        .iter()
        .find(|one| one.host_ip == Some(loopback))
    {
        return Err(Error::invalid_argument(format_args!(
            "port [::1]:{}: the kernel lets nothing from there out of the host",
            port.host_port
        )));
    }
    for (at, address) in request.addresses.iter().enumerate() {
        let most = if address.address().is_ipv4() {
            MOST_V4
        } else {
            MOST_V6
        };
        let earlier = &request.addresses[..at];
        let what = if address.prefix() > most || address.is_default() {
            format!("its network must have a prefix of 1 to {most} bits")
        } else if address.address() == address.network().address() {
            "it is that of a network".to_owned()
        } else if is_broadcast(address) {
            "it is that of everybody in its network".to_owned()
        } else if earlier.iter().any(|one| one.address() == address.address()) {
            "it is there twice".to_owned()
        } else {
            continue;
        };
        return Err(Error::invalid_argument(format_args!(
            "address {address}: {what}"
        )));
    }
    Ok(())
}

/// Who passes packets on: whom the request's default route names, else the first address of the network.
fn gateway(address: &IpNet, routes: &[Route]) -> Result<IpNet> {
    let default = default_of(address);
    let mut named = routes
        .iter()
        .filter(|route| route.destination == default)
        .filter_map(|route| route.gateway);
    let found = named.find(|gateway| address.contains(gateway));
    let gateway = found.unwrap_or_else(|| first(address));
    if gateway == address.address() {
        return Err(Error::invalid_argument(format_args!(
            "address {address} is that of its {} gateway",
            family(&gateway)
        )));
    }
    IpNet::new(gateway, address.prefix())
}

fn default_of(address: &IpNet) -> IpNet {
    if address.address().is_ipv4() {
        IpNet::DEFAULT_V4
    } else {
        IpNet::DEFAULT_V6
    }
}

fn first(address: &IpNet) -> IpAddr {
    match address.network().address() {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() | 1).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() | 1).into(),
    }
}

fn is_broadcast(address: &IpNet) -> bool {
    match (address.address(), address.prefix()) {
        (IpAddr::V4(v4), prefix @ 1..) => {
            v4.to_bits() | (u32::MAX << (32 - u32::from(prefix))) == u32::MAX
        }
        _ => false,
    }
}

/// A bridge without one of its own takes the lowest of those attached to it, and so changes it: others
/// would lose sight of it each time.
pub(super) fn bridge_mac(bridge: &LinkName, group: u32) -> Result<MacAddr> {
    let bits = hash(format!("{bridge} {group}").as_bytes()).to_be_bytes();
    MacAddr::new([2, bits[1], bits[2], bits[3], bits[4], bits[5]])
}
