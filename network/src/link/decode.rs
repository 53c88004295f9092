//! What the kernel tells of interfaces, addresses, routes and neighbours. Pure; what is cut short or not
//! understood is passed over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sys::netlink::{attributes, text_of, u16_of, u32_of};
use types::network::{
    IpNet, IpvlanMode, LinkKind, LinkName, MacAddr, MacvlanMode, Neighbour, Route, TunMode, Vxlan,
};

#[allow(
    clippy::wildcard_imports,
    reason = "the kernel's numbers, as with a header"
)]
use super::abi::*;

/// An interface as one message tells of it: others by their numbers.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) index: u32,
    pub(super) name: LinkName,
    pub(super) kind: LinkKind,
    pub(super) mac: Option<MacAddr>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) running: bool,
    pub(super) group: u32,
    pub(super) master: Option<u32>,
    pub(super) hairpin: bool,
    pub(super) isolated: bool,
    /// The other end or the parent, when it is in this network namespace.
    pub(super) other: Option<u32>,
}

/// An address with the number of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawAddress {
    pub(super) index: u32,
    pub(super) address: IpNet,
    /// Nobody gave it: the kernel did.
    pub(super) is_own: bool,
}

/// Reads one interface; `None` for a name that cannot be asked for.
pub(super) fn link(entry: &[u8]) -> Option<Raw> {
    let index = u32_of(entry.get(4..)?)?;
    let flags = u32_of(entry.get(8..)?)?;
    let mut raw = Raw {
        index,
        name: "none".parse().ok()?,
        kind: LinkKind::Foreign(String::new()),
        mac: None,
        mtu: 0,
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
        group: 0,
        master: None,
        hairpin: false,
        isolated: false,
        other: None,
    };
    let (mut named, mut elsewhere) = (false, false);
    for (kind, value) in attributes(entry.get(16..)?) {
        match kind {
            IFLA_IFNAME => {
                raw.name = text_of(value).parse().ok()?;
                named = true;
            }
            IFLA_ADDRESS => raw.mac = mac(value),
            IFLA_MTU => raw.mtu = u32_of(value)?,
            IFLA_GROUP => raw.group = u32_of(value)?,
            IFLA_MASTER => raw.master = u32_of(value),
            IFLA_LINK => raw.other = u32_of(value).filter(|other| *other != 0 && *other != index),
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_LINKINFO => info(&mut raw, value),
            _ => {}
        }
    }
    if elsewhere {
        raw.other = None;
    }
    named.then_some(raw)
}

fn info(raw: &mut Raw, value: &[u8]) {
    let (mut kind, mut data) = (String::new(), &[][..]);
    for (what, value) in attributes(value) {
        match what {
            IFLA_INFO_KIND => kind = text_of(value),
            IFLA_INFO_DATA => data = value,
            IFLA_INFO_SLAVE_DATA => {
                for (what, value) in attributes(value) {
                    let on = value.first().is_some_and(|byte| *byte != 0);
                    match what {
                        IFLA_BRPORT_MODE => raw.hairpin = on,
                        IFLA_BRPORT_ISOLATED => raw.isolated = on,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let number = |wanted: u16| {
        attributes(data)
            .find(|(what, _)| *what == wanted)
            .map(|(_, v)| v)
    };
    raw.kind = match kind.as_str() {
        "veth" => LinkKind::Veth(None),
        "bridge" => LinkKind::Bridge,
        "dummy" => LinkKind::Dummy,
        "macvlan" => {
            let mode = number(IFLA_MACVLAN_MODE).and_then(u32_of);
            LinkKind::Macvlan(None, mode.map(macvlan).unwrap_or_default())
        }
        "ipvlan" => {
            let mode = number(IFLA_IPVLAN_MODE).and_then(u16_of);
            LinkKind::Ipvlan(None, mode.map(ipvlan).unwrap_or_default())
        }
        "vlan" => {
            let id = number(IFLA_VLAN_ID).and_then(u16_of);
            LinkKind::Vlan(None, id.unwrap_or_default())
        }
        "vxlan" => LinkKind::Vxlan(vxlan(raw, data)),
        "tun" => LinkKind::Tun(match number(IFLA_TUN_TYPE) {
            Some([TUN_TYPE_TAP, ..]) => TunMode::Tap,
            _ => TunMode::Tun,
        }),
        _ => LinkKind::Foreign(kind),
    };
}

const fn macvlan(mode: u32) -> MacvlanMode {
    match mode {
        MACVLAN_PRIVATE => MacvlanMode::Private,
        MACVLAN_VEPA => MacvlanMode::Vepa,
        MACVLAN_PASSTHRU => MacvlanMode::Passthru,
        _ => MacvlanMode::Bridge,
    }
}

const fn ipvlan(mode: u16) -> IpvlanMode {
    match mode {
        IPVLAN_L3 => IpvlanMode::L3,
        IPVLAN_L3S => IpvlanMode::L3s,
        _ => IpvlanMode::L2,
    }
}

fn vxlan(raw: &mut Raw, data: &[u8]) -> Vxlan {
    let mut made = Vxlan::default();
    for (what, value) in attributes(data) {
        match what {
            IFLA_VXLAN_ID => made.vni = u32_of(value).unwrap_or_default(),
            IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => made.remote = ip(value),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => made.local = ip(value),
            IFLA_VXLAN_LINK => raw.other = u32_of(value).filter(|other| *other != 0),
            IFLA_VXLAN_PORT => made.port = u16_of(value).map(u16::from_be),
            IFLA_VXLAN_LEARNING => made.no_learning = value.first() == Some(&0),
            _ => {}
        }
    }
    made
}

fn mac(value: &[u8]) -> Option<MacAddr> {
    MacAddr::new(value.try_into().ok()?).ok()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into())
}

/// Reads one address.
pub(super) fn address(entry: &[u8]) -> Option<RawAddress> {
    let (prefix, index) = (*entry.get(1)?, u32_of(entry.get(4..)?)?);
    let (mut local, mut address, mut is_own) = (None, None, false);
    for (kind, value) in attributes(entry.get(8..)?) {
        match kind {
            // With another end the address is the local one, without only IPv4 has it.
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => address = ip(value),
            IFA_PROTO => is_own = matches!(value.first(), Some(1..=3)),
            _ => {}
        }
    }
    let found = local.or(address)?;
    // Older kernels do not say of them that they are theirs.
    if matches!(found, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        is_own = true;
    }
    Some(RawAddress {
        index,
        address: IpNet::new(found, prefix).ok()?,
        is_own,
    })
}

/// Reads one route that somebody wrote, with the number of its interface.
pub(super) fn route(entry: &[u8]) -> Option<(u32, Route)> {
    let &[family, prefix, _, _, table, protocol, _, kind] = entry.first_chunk::<8>()?;
    let flags = u32_of(entry.get(8..)?)?;
    if kind != RTN_UNICAST
        || flags & RTM_F_CLONED != 0
        || !matches!(protocol, RTPROT_BOOT | RTPROT_STATIC)
    {
        return None;
    }
    let everything = match family {
        AF_INET => IpNet::DEFAULT_V4,
        AF_INET6 => IpNet::DEFAULT_V6,
        _ => return None,
    };
    let mut made = Route::new(everything, None);
    let (mut through, mut table) = (None, u32::from(table));
    for (what, value) in attributes(entry.get(12..)?) {
        match what {
            RTA_DST => made.destination = IpNet::new(ip(value)?, prefix).ok()?,
            RTA_OIF => through = u32_of(value),
            RTA_GATEWAY => made.gateway = ip(value),
            RTA_PREFSRC => made.source = ip(value),
            RTA_PRIORITY => made.metric = u32_of(value),
            RTA_TABLE => table = u32_of(value)?,
            RTA_METRICS => {
                let mtu = attributes(value).find(|(what, _)| *what == RTAX_MTU);
                made.mtu = mtu
                    .and_then(|(_, value)| u32_of(value))
                    .filter(|mtu| *mtu != 0);
            }
            _ => {}
        }
    }
    if table == RT_TABLE_LOCAL {
        return None;
    }
    made.table = Some(table);
    made.on_link = flags & RTNH_F_ONLINK != 0;
    Some((through?, usual(made)))
}

/// The route without what it would have anyhow, so that equal ones compare equal.
pub(super) fn usual(mut route: Route) -> Route {
    route.destination = route.destination.network();
    route.table = route.table.filter(|table| *table != RT_TABLE_MAIN);
    let own = if route.destination.address().is_ipv6() {
        METRIC_V6
    } else {
        0
    };
    route.metric = route.metric.filter(|metric| *metric != own);
    route
}

/// Reads one neighbour that somebody wrote, with the number of its interface.
pub(super) fn neighbour(entry: &[u8]) -> Option<(u32, Neighbour)> {
    let (index, state) = (u32_of(entry.get(4..)?)?, u16_of(entry.get(8..)?)?);
    if state & NUD_PERMANENT == 0 {
        return None;
    }
    let (mut address, mut hardware) = (None, None);
    for (kind, value) in attributes(entry.get(12..)?) {
        match kind {
            NDA_DST => address = ip(value),
            NDA_LLADDR => hardware = mac(value),
            _ => {}
        }
    }
    let made = Neighbour {
        address: address?,
        mac: hardware?,
    };
    Some((index, made))
}
