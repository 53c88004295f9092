//! Requests to the kernel: interfaces, addresses, routes, neighbours as messages. Pure.

use std::net::IpAddr;

use sys::netlink::Message;
use types::network::{
    IpNet, IpvlanMode, LinkKind, LinkName, MacAddr, MacvlanMode, Neighbour, Route, Vxlan,
};

#[allow(
    clippy::wildcard_imports,
    reason = "the kernel's numbers, as with a header"
)]
use super::abi::*;

/// What of a new interface is not in its kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct New<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Mark of interfaces that are ours.
    pub(super) group: u32,
    /// Descriptor of the network namespace that it goes to, if that is not the socket's.
    pub(super) target: Option<i32>,
    /// Index of its parent.
    pub(super) parent: Option<u32>,
    /// The same descriptor for the other end.
    pub(super) peer_target: Option<i32>,
    /// Index of its bridge.
    pub(super) master: Option<u32>,
    /// Largest packet, also of the other end.
    pub(super) mtu: Option<u32>,
    /// Hardware address of the other end.
    pub(super) peer_mac: Option<MacAddr>,
    /// It is up from the beginning.
    pub(super) is_up: bool,
}

/// `struct ifinfomsg`.
fn body(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

/// Asks for all interfaces.
pub(super) fn list() -> Message {
    let mut made = Message::new("list interfaces", RTM_GETLINK, 0, &body(0, 0, 0));
    made.u32(IFLA_EXT_MASK, SKIP_STATS);
    made
}

/// Asks for one interface by name.
pub(super) fn find(name: &LinkName) -> Message {
    let what = format!("interface {name}");
    let mut made = Message::new(what, RTM_GETLINK, 0, &body(0, 0, 0));
    made.text(IFLA_IFNAME, name.as_str())
        .u32(IFLA_EXT_MASK, SKIP_STATS);
    made
}

/// Asks for one interface by its number.
pub(super) fn get(index: u32) -> Message {
    let what = format!("interface {index}");
    let mut made = Message::new(what, RTM_GETLINK, 0, &body(index, 0, 0));
    made.u32(IFLA_EXT_MASK, SKIP_STATS);
    made
}

/// Makes an interface. `None` for kinds that are not made by message.
pub(super) fn create(kind: &LinkKind, new: New<'_>) -> Option<Message> {
    let mtu = new.mtu.map(|mtu| format!(" with mtu {mtu}"));
    let mtu = mtu.unwrap_or_default();
    let what = format!("create {} {}{mtu}", kind.as_str(), new.name);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let up = if new.is_up { IFF_UP } else { 0 };
    let mut made = Message::new(what, RTM_NEWLINK, flags, &body(0, up, up));
    made.text(IFLA_IFNAME, new.name).u32(IFLA_GROUP, new.group);
    for (kind, value) in [(IFLA_MASTER, new.master), (IFLA_MTU, new.mtu)] {
        if let Some(value) = value {
            made.u32(kind, value);
        }
    }
    if let Some(fd) = new.target {
        made.bytes(IFLA_NET_NS_FD, &fd.to_ne_bytes());
    }
    // Of a vxlan it is said elsewhere.
    if let Some(parent) = new.parent
        && !matches!(kind, LinkKind::Vxlan(_))
    {
        made.u32(IFLA_LINK, parent);
    }
    let data: Box<dyn FnOnce(&mut Message) + '_> = match kind {
        LinkKind::Veth(peer) => {
            let peer = peer.as_ref()?;
            Box::new(move |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&body(0, 0, 0));
                    m.text(IFLA_IFNAME, peer.name.as_str());
                    m.u32(IFLA_GROUP, new.group);
                    if let Some(mtu) = new.mtu {
                        m.u32(IFLA_MTU, mtu);
                    }
                    if let Some(mac) = new.peer_mac {
                        m.bytes(IFLA_ADDRESS, &mac.bytes());
                    }
                    if let Some(fd) = new.peer_target {
                        m.bytes(IFLA_NET_NS_FD, &fd.to_ne_bytes());
                    }
                });
            })
        }
        LinkKind::Macvlan(_, mode) => Box::new(|m| {
            m.u32(IFLA_MACVLAN_MODE, macvlan(*mode));
        }),
        LinkKind::Ipvlan(_, mode) => Box::new(|m| {
            m.u16(IFLA_IPVLAN_MODE, ipvlan(*mode));
        }),
        LinkKind::Vlan(_, id) => Box::new(|m| {
            m.u16(IFLA_VLAN_ID, *id);
        }),
        LinkKind::Vxlan(vxlan) => Box::new(move |m| vxlan_data(m, vxlan, new.parent)),
        LinkKind::Bridge | LinkKind::Dummy => Box::new(|_| ()),
        LinkKind::Tun(_) | LinkKind::Foreign(_) => return None,
    };
    made.nest(IFLA_LINKINFO, |m| {
        m.bytes(IFLA_INFO_KIND, kind.as_str().as_bytes());
        m.nest(IFLA_INFO_DATA, data);
    });
    Some(made)
}

const fn macvlan(mode: MacvlanMode) -> u32 {
    match mode {
        MacvlanMode::Private => MACVLAN_PRIVATE,
        MacvlanMode::Vepa => MACVLAN_VEPA,
        MacvlanMode::Bridge => MACVLAN_BRIDGE,
        MacvlanMode::Passthru => MACVLAN_PASSTHRU,
    }
}

const fn ipvlan(mode: IpvlanMode) -> u16 {
    match mode {
        IpvlanMode::L2 => IPVLAN_L2,
        IpvlanMode::L3 => IPVLAN_L3,
        IpvlanMode::L3s => IPVLAN_L3S,
    }
}

/// UDP port of vxlan by its standard; the kernel's own choice without one is older than that.
pub(super) const VXLAN_PORT: u16 = 4789;

fn vxlan_data(m: &mut Message, vxlan: &Vxlan, parent: Option<u32>) {
    m.u32(IFLA_VXLAN_ID, vxlan.vni);
    if let Some(parent) = parent {
        m.u32(IFLA_VXLAN_LINK, parent);
    }
    let mut address = |v4, v6, address: Option<IpAddr>| match address {
        Some(IpAddr::V4(ip)) => drop(m.bytes(v4, &ip.octets())),
        Some(IpAddr::V6(ip)) => drop(m.bytes(v6, &ip.octets())),
        None => {}
    };
    address(IFLA_VXLAN_GROUP, IFLA_VXLAN_GROUP6, vxlan.remote);
    address(IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6, vxlan.local);
    let port = vxlan.port.unwrap_or(VXLAN_PORT);
    m.bytes(IFLA_VXLAN_PORT, &port.to_be_bytes());
    m.u8(IFLA_VXLAN_LEARNING, u8::from(!vxlan.no_learning));
}

/// Takes an interface away.
pub(super) fn delete(index: u32, name: &str) -> Message {
    Message::new(
        format!("delete interface {name}"),
        RTM_DELLINK,
        0,
        &body(index, 0, 0),
    )
}

/// Gives an interface another name.
pub(super) fn rename(index: u32, name: &str, to: &str) -> Message {
    let what = format!("rename interface {name} to {to}");
    let mut made = Message::new(what, RTM_SETLINK, 0, &body(index, 0, 0));
    made.text(IFLA_IFNAME, to);
    made
}

/// Moves an interface to the network namespace `target`, where it has the name `to`.
pub(super) fn transfer(index: u32, name: &str, target: i32, to: &str) -> Message {
    let what = format!("move interface {name}, as {to}");
    let mut made = Message::new(what, RTM_SETLINK, 0, &body(index, 0, 0));
    made.bytes(IFLA_NET_NS_FD, &target.to_ne_bytes())
        .text(IFLA_IFNAME, to);
    made
}

/// Marks an interface as ours.
pub(super) fn mark(index: u32, name: &str, group: u32) -> Message {
    let mut made = Message::new(
        format!("mark interface {name}"),
        RTM_SETLINK,
        0,
        &body(index, 0, 0),
    );
    made.u32(IFLA_GROUP, group);
    made
}

/// Gives an interface that is taken away another name and a mark, and takes its bridge and its alias.
pub(super) fn bury(index: u32, name: &str, to: &LinkName, mark: u32) -> Message {
    let what = format!("bury interface {name}");
    let mut made = Message::new(what, RTM_SETLINK, 0, &body(index, 0, 0));
    made.text(IFLA_IFNAME, to.as_str())
        .u32(IFLA_GROUP, mark)
        .bytes(IFLA_IFALIAS, &[])
        .u32(IFLA_MASTER, 0);
    made
}

/// Gives an interface that is taken away a mark, takes its alias, and sets it down.
pub(super) fn retire(index: u32, name: &str, mark: u32) -> Message {
    let what = format!("retire interface {name}");
    let mut made = Message::new(what, RTM_SETLINK, 0, &body(index, 0, IFF_UP));
    made.u32(IFLA_GROUP, mark).bytes(IFLA_IFALIAS, &[]);
    made
}

/// Takes away all interfaces with a mark.
pub(super) fn delete_group(mark: u32) -> Message {
    let what = format!("delete interfaces of group {mark}");
    let mut made = Message::new(what, RTM_DELLINK, 0, &body(0, 0, 0));
    made.u32(IFLA_GROUP, mark);
    made
}

/// Sets an interface up or down.
pub(super) fn set_up(index: u32, name: &str, up: bool) -> Message {
    let way = if up { "up" } else { "down" };
    let flags = if up { IFF_UP } else { 0 };
    let what = format!("set interface {name} {way}");
    Message::new(what, RTM_SETLINK, 0, &body(index, flags, IFF_UP))
}

/// Sets the largest packet.
pub(super) fn set_mtu(index: u32, name: &str, mtu: u32) -> Message {
    let what = format!("set MTU of interface {name} to {mtu}");
    let mut made = Message::new(what, RTM_SETLINK, 0, &body(index, 0, 0));
    made.u32(IFLA_MTU, mtu);
    made
}

/// Sets the hardware address.
pub(super) fn set_mac(index: u32, name: &str, mac: MacAddr) -> Message {
    let what = format!("set hardware address of interface {name} to {mac}");
    let mut made = Message::new(what, RTM_SETLINK, 0, &body(index, 0, 0));
    made.bytes(IFLA_ADDRESS, &mac.bytes());
    made
}

/// Attaches an interface to a bridge, or detaches it: the number of none is 0.
pub(super) fn attach(index: u32, name: &str, bridge: &str, bridge_index: u32) -> Message {
    let what = if bridge_index == 0 {
        format!("detach interface {name} from its bridge")
    } else {
        format!("attach interface {name} to bridge {bridge}")
    };
    let mut made = Message::new(what, RTM_SETLINK, 0, &body(index, 0, 0));
    made.u32(IFLA_MASTER, bridge_index);
    made
}

/// Sets how an interface behaves at its bridge.
pub(super) fn set_port(index: u32, name: &str, hairpin: bool, isolated: bool) -> Message {
    let what = format!("set hairpin and isolation of interface {name}");
    let mut made = Message::new(what, RTM_NEWLINK, 0, &body(index, 0, 0));
    made.nest(IFLA_LINKINFO, |m| {
        m.bytes(IFLA_INFO_SLAVE_KIND, b"bridge");
        m.nest(IFLA_INFO_SLAVE_DATA, |m| {
            m.u8(IFLA_BRPORT_MODE, u8::from(hairpin));
            m.u8(IFLA_BRPORT_ISOLATED, u8::from(isolated));
        });
    });
    made
}

/// Families of routes.
pub(super) const FAMILIES: [u8; 2] = [AF_INET, AF_INET6];

fn family(ip: &IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

fn add_ip(message: &mut Message, kind: u16, ip: &IpAddr) {
    match ip {
        IpAddr::V4(ip) => message.bytes(kind, &ip.octets()),
        IpAddr::V6(ip) => message.bytes(kind, &ip.octets()),
    };
}

/// Asks for all addresses, or those of one interface. Old kernels tell all anyhow.
pub(super) fn addresses(only: Option<u32>) -> Message {
    let mut body = [0; 8];
    body[4..8].copy_from_slice(&only.unwrap_or(0).to_ne_bytes());
    Message::new("list addresses", RTM_GETADDR, 0, &body)
}

/// Adds an address to an interface or takes it away.
pub(super) fn address(index: u32, name: &str, net: &IpNet, add: bool) -> Message {
    let ip = net.address();
    let (what, kind, flags) = if add {
        (
            format!("add address {net} to interface {name}"),
            RTM_NEWADDR,
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    } else {
        (
            format!("remove address {net} from interface {name}"),
            RTM_DELADDR,
            0,
        )
    };
    let mut body = [family(&ip), net.prefix(), 0, 0, 0, 0, 0, 0];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut made = Message::new(what, kind, flags, &body);
    add_ip(&mut made, IFA_LOCAL, &ip);
    add_ip(&mut made, IFA_ADDRESS, &ip);
    if let (IpAddr::V4(ip), true, 0..=30) = (ip, add, net.prefix()) {
        let host = u32::MAX.checked_shr(u32::from(net.prefix())).unwrap_or(0);
        let all = std::net::Ipv4Addr::from_bits(ip.to_bits() | host);
        made.bytes(IFA_BROADCAST, &all.octets());
    }
    if add && ip.is_ipv6() {
        // Who gave the address knows that it is free; to ask the wire would take seconds.
        made.u32(IFA_FLAGS, IFA_F_NODAD);
    }
    made
}

/// Asks for all routes of a family, or those through one interface: not for what the kernel keeps of its own
/// addresses, three for each. Old kernels tell those, too.
pub(super) fn routes(family: u8, only: Option<u32>) -> Message {
    let mut body = [0; 12];
    (body[0], body[7]) = (family, RTN_UNICAST);
    let mut made = Message::new("list routes", RTM_GETROUTE, 0, &body);
    if let Some(index) = only {
        made.u32(RTA_OIF, index);
    }
    made
}

/// Adds a route through an interface or takes it away.
pub(super) fn route(index: u32, name: &str, route: &Route, add: bool) -> Message {
    let to = route.destination.network();
    let (word, kind, flags) = if add {
        // To replace would take the same way from another interface: the kernel looks at where it leads only.
        ("add", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)
    } else {
        ("remove", RTM_DELROUTE, 0)
    };
    let via = route
        .gateway
        .map(|via| format!(" via {via}"))
        .unwrap_or_default();
    let what = format!("{word} route to {to}{via} through interface {name}");
    let scope = match (add, route.gateway, to.address()) {
        // Whoever wrote it, and however.
        (false, _, IpAddr::V4(_)) => RT_SCOPE_NOWHERE,
        (true, None, IpAddr::V4(_)) => RT_SCOPE_LINK,
        _ => RT_SCOPE_UNIVERSE,
    };
    let protocol = if add { RTPROT_STATIC } else { RTPROT_UNSPEC };
    let flag = if route.on_link { RTNH_F_ONLINK } else { 0 };
    // The table is in an attribute: it has more than a byte.
    let mut body = [
        family(&to.address()),
        to.prefix(),
        0,
        0,
        0,
        protocol,
        scope,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    body[8..12].copy_from_slice(&flag.to_ne_bytes());
    let mut made = Message::new(what, kind, flags, &body);
    if !to.is_default() {
        add_ip(&mut made, RTA_DST, &to.address());
    }
    made.u32(RTA_OIF, index)
        .u32(RTA_TABLE, route.table.unwrap_or(RT_TABLE_MAIN));
    if let Some(via) = &route.gateway {
        add_ip(&mut made, RTA_GATEWAY, via);
    }
    if let Some(source) = &route.source {
        add_ip(&mut made, RTA_PREFSRC, source);
    }
    // Without one any fits: the kernel's own route to the same network as well.
    let usual = (!add && to.address().is_ipv6()).then_some(METRIC_V6);
    if let Some(metric) = route.metric.or(usual) {
        made.u32(RTA_PRIORITY, metric);
    }
    if let (Some(mtu), true) = (route.mtu, add) {
        made.nest(RTA_METRICS, |m| {
            m.u32(RTAX_MTU, mtu);
        });
    }
    made
}

/// Asks for all neighbours, or those of one interface.
pub(super) fn neighbours(only: Option<u32>) -> Message {
    let mut made = Message::new("list neighbours", RTM_GETNEIGH, 0, &[0; 12]);
    if let Some(index) = only {
        made.u32(NDA_IFINDEX, index);
    }
    made
}

/// Writes a neighbour down or takes it away.
pub(super) fn neighbour(index: u32, name: &str, neighbour: &Neighbour, add: bool) -> Message {
    let ip = &neighbour.address;
    let (word, kind, flags) = if add {
        ("add", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
    } else {
        ("remove", RTM_DELNEIGH, 0)
    };
    let what = format!("{word} neighbour {ip} of interface {name}");
    let mut body = [0; 12];
    body[0] = family(ip);
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    let mut made = Message::new(what, kind, flags, &body);
    add_ip(&mut made, NDA_DST, ip);
    if add {
        made.bytes(NDA_LLADDR, &neighbour.mac.bytes());
    }
    made
}
