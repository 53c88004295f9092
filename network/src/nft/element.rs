//! Elements of the sets: bridges, subnets, mapped ports; written, read and found by whose they are.
//!
//! Invariant: an element says in its comment whose it is, so that it can be listed and taken away by
//! that and by nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sys::netlink::{Message, Socket, attributes};
use types::Result;
use types::network::{IpNet, PortMapping, Protocol};

use super::message::{
    CREATE, DEL_ELEMENT, GET_ELEMENT, NEW_ELEMENT, about, comment, comment_of, number, value,
};
use super::ruleset::{
    HOSTS4, HOSTS6, NAME, PORTS4, PORTS6, SETS, SUBNETS4, SUBNETS6, TAKEN4, TAKEN6,
};

/// The end of what began with the element before it.
const END: u32 = 1;
/// Elements of one message: their length is told in sixteen bits.
const TOGETHER: usize = 200;
/// No such table.
const ENOENT: i32 = 2;

/// An element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    /// Position of its set.
    pub(super) set: usize,
    pub(super) key: Vec<u8>,
    /// Of a map.
    pub(super) value: Vec<u8>,
    pub(super) is_end: bool,
    /// Whose it is.
    pub(super) tag: String,
}

impl Element {
    fn new(set: usize, key: Vec<u8>, value: Vec<u8>, tag: &str) -> Self {
        Self {
            set,
            key,
            value,
            is_end: false,
            tag: tag.to_owned(),
        }
    }

    pub(super) fn bridge(name: &str) -> Self {
        let mut key = name.as_bytes().to_vec();
        key.resize(NAME, 0);
        Self::new(super::ruleset::BRIDGES, key, Vec::new(), name)
    }

    /// A subnet: where it begins and, if anything is behind it, where it ends.
    pub(super) fn subnet(bridge: &str, subnet: &IpNet) -> Vec<Self> {
        let subnet = subnet.network();
        let tag = format!("{bridge} {subnet}");
        let set = if subnet.address().is_ipv4() {
            SUBNETS4
        } else {
            SUBNETS6
        };
        let begin = Self::new(set, octets(subnet.address()), Vec::new(), &tag);
        let mut all = vec![begin];
        if let Some(end) = behind(&subnet) {
            let mut end = Self::new(set, octets(end), Vec::new(), &tag);
            end.is_end = true;
            all.push(end);
        }
        all
    }

    /// A mapped port.
    pub(super) fn port(tag: &str, port: &PortMapping, to: IpAddr) -> Self {
        let mut key = port.host_ip.map(octets).unwrap_or_default();
        key.extend([number_of(port.protocol), 0, 0, 0]);
        key.extend(port.host_port.to_be_bytes());
        key.extend([0; 2]);
        let mut value = octets(to);
        value.extend(port.container_port.to_be_bytes());
        value.extend([0; 2]);
        let set = match (to.is_ipv4(), port.host_ip.is_some()) {
            (true, true) => HOSTS4,
            (true, false) => PORTS4,
            (false, true) => HOSTS6,
            (false, false) => PORTS6,
        };
        Self::new(set, key, value, tag)
    }

    /// An address that a container has.
    pub(super) fn taken(tag: &str, address: IpAddr) -> Self {
        let set = if address.is_ipv4() { TAKEN4 } else { TAKEN6 };
        Self::new(set, octets(address), Vec::new(), tag)
    }

    /// The address that it says is taken.
    pub(super) fn address(&self) -> Option<IpAddr> {
        let is_one = matches!(self.set, TAKEN4 | TAKEN6);
        is_one.then(|| address(&self.key))?
    }

    /// The mapped port that it is, and to where.
    pub(super) fn mapped(&self) -> Option<(PortMapping, IpAddr)> {
        if !(HOSTS4..=PORTS6).contains(&self.set) {
            return None;
        }
        let (host, rest) = self.key.split_at_checked(self.key.len().checked_sub(8)?)?;
        let (to, port) = self
            .value
            .split_at_checked(self.value.len().checked_sub(4)?)?;
        let mapping = PortMapping {
            protocol: protocol(*rest.first()?)?,
            host_ip: address(host),
            host_port: two(rest.get(4..)?)?,
            container_port: two(port)?,
        };
        Some((mapping, address(to)?))
    }

    /// True for what is a container's: its ports and addresses.
    pub(super) fn is_of_container(&self, tag: &str) -> bool {
        self.set >= HOSTS4 && self.tag == tag
    }

    /// True for what is a bridge's: itself and its subnets.
    pub(super) fn is_of_bridge(&self, bridge: &str) -> bool {
        self.set < HOSTS4 && self.tag.split(' ').next() == Some(bridge)
    }

    fn write(&self, list: &mut Message) {
        list.marked(1, |element| {
            value(element, 1, &self.key);
            if !self.value.is_empty() {
                value(element, 2, &self.value);
            }
            // The kernel takes no comment on the end of something.
            if self.is_end {
                number(element, 3, END);
            } else {
                comment(element, 6, &self.tag);
            }
        });
    }

    fn read(set: usize, bytes: &[u8]) -> Self {
        let mut made = Self::new(set, Vec::new(), Vec::new(), "");
        let inner = |bytes| {
            let found = attributes(bytes).find(|(kind, _)| *kind == 1);
            found.map(|(_, value)| value.to_vec()).unwrap_or_default()
        };
        for (kind, bytes) in attributes(bytes) {
            match kind {
                1 => made.key = inner(bytes),
                2 => made.value = inner(bytes),
                3 => made.is_end = bytes.last().is_some_and(|flags| flags & 1 == 1),
                6 => made.tag = comment_of(bytes).unwrap_or_default(),
                _ => {}
            }
        }
        made
    }
}

/// Messages that add elements, or take them away.
pub(super) fn messages(table: &str, elements: &[Element], is_adding: bool) -> Vec<Message> {
    let (kind, flags, verb) = if is_adding {
        (NEW_ELEMENT, CREATE, "add")
    } else {
        (DEL_ELEMENT, 0, "remove")
    };
    let mut all = Vec::new();
    for (set, shape) in SETS.iter().enumerate() {
        let wanted: Vec<_> = elements.iter().filter(|e| e.set == set).collect();
        for some in wanted.chunks(TOGETHER) {
            let what = format!("{verb} elements of set {}", shape.name);
            let mut message = about(what, kind, flags, table);
            message.text(2, shape.name);
            message.marked(3, |list| {
                some.iter().for_each(|element| element.write(list));
            });
            all.push(message);
        }
    }
    all
}

/// All elements of the table. None without the table.
///
/// # Errors
/// The errno.
pub(super) fn list(socket: &mut Socket, table: &str) -> Result<Vec<Element>> {
    let mut all = Vec::new();
    for (set, shape) in SETS.iter().enumerate() {
        let what = format!("list elements of set {}", shape.name);
        let mut message = about(what, GET_ELEMENT, 0, table);
        message.text(2, shape.name);
        let read = |entry: &[u8]| {
            let list = attributes(entry.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == 3);
            Ok(list.map(|(_, list)| {
                let elements = attributes(list).map(|(_, bytes)| Element::read(set, bytes));
                elements.collect::<Vec<_>>()
            }))
        };
        match socket.list(&message, read) {
            Ok(found) => all.extend(found.into_iter().flatten()),
            Err(e) if e.errno() == Some(ENOENT) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

fn two(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

/// The first address behind a subnet; nothing is behind the last one.
fn behind(subnet: &IpNet) -> Option<IpAddr> {
    let prefix = u32::from(subnet.prefix());
    match subnet.address() {
        IpAddr::V4(v4) => {
            let size = 1_u32.checked_shl(32 - prefix)?;
            Some(Ipv4Addr::from_bits(v4.to_bits().checked_add(size)?).into())
        }
        IpAddr::V6(v6) => {
            let size = 1_u128.checked_shl(128 - prefix)?;
            Some(Ipv6Addr::from_bits(v6.to_bits().checked_add(size)?).into())
        }
    }
}

/// `IPPROTO_*`.
const fn number_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

const fn protocol(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        132 => Some(Protocol::Sctp),
        _ => None,
    }
}
