//! Whose an interface of the host is: written into its alias, which `ip link` shows.
//!
//! Invariant: an interface of the driver has its mark from the moment it exists, and its tag from the
//! moment it is whole: one with the mark alone is left of an attempt that was cut off.

use sys::netlink::{Family, Message, Socket, attributes, text_of, u32_of};
use types::network::{LinkName, NetRequest, TenantId};
use types::{Context as _, Result};

/// `RTM_GETLINK` and `RTM_SETLINK`.
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
/// `struct ifinfomsg`.
const BODY: usize = 16;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const INFO_KIND: u16 = 1;
/// First word of a tag.
const WORD: &str = "containerd";

#[cfg(test)]
thread_local! {
    /// How often this thread has looked at all interfaces.
    pub(super) static LISTED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Whose an interface is, and for what request it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) id: TenantId,
    /// Name inside.
    pub(super) interface: LinkName,
    /// Of everything in the request.
    pub(super) hash: u64,
}

/// An interface of the host, as far as the driver looks at it.
#[derive(Clone, Debug)]
pub(super) struct Marked {
    pub(super) name: LinkName,
    pub(super) index: u32,
    pub(super) group: u32,
    pub(super) master: Option<u32>,
    /// Network namespace of the other end, by what this one calls it; `None` for its own.
    pub(super) other: Option<u32>,
    /// The other end's number there.
    pub(super) peer: Option<u32>,
    pub(super) is_bridge: bool,
    pub(super) is_up: bool,
    pub(super) tag: Option<Tag>,
}

impl Tag {
    pub(super) fn of(request: &NetRequest) -> Self {
        Self {
            id: request.id.clone(),
            interface: request.interface.clone(),
            hash: hash(text_of_request(request).as_bytes()),
        }
    }

    /// Name of the interface outside.
    pub(super) fn outer(&self) -> Result<LinkName> {
        outer_of(&self.owner())
    }

    /// What packet filters know it by.
    pub(super) fn owner(&self) -> String {
        format!("{} {}", self.id, self.interface)
    }

    fn text(&self) -> String {
        format!("{WORD} {} {:016x}", self.owner(), self.hash)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(WORD) {
            return None;
        }
        let (id, interface) = owner(words.next()?, words.next()?)?;
        let hash = u64::from_str_radix(words.next()?, 16).ok()?;
        Some(Self {
            id,
            interface,
            hash,
        })
    }
}

/// Everything that a request asks for, in words that a later version of this program has, too.
fn text_of_request(request: &NetRequest) -> String {
    let mut text = format!(
        "{} {} {:?} {:?}",
        request.netns.display(),
        request.networks.join(","),
        request.mac.map(|mac| mac.to_string()),
        request.mtu
    );
    for address in &request.addresses {
        text.push_str(&format!(" {address}"));
    }
    for route in &request.routes {
        text.push_str(&format!(
            " {} {:?} {:?} {:?} {:?} {:?} {}",
            route.destination,
            route.gateway,
            route.source,
            route.metric,
            route.table,
            route.mtu,
            route.on_link
        ));
    }
    for port in &request.ports {
        text.push_str(&format!(
            " {} {:?} {} {}",
            port.protocol.as_str(),
            port.host_ip,
            port.host_port,
            port.container_port
        ));
    }
    text
}

/// Name of the interface outside of what packet filters know by [`Tag::owner`].
pub(super) fn outer_of(owner: &str) -> Result<LinkName> {
    let bits = hash(owner.as_bytes()) & 0xffff_ffff_ffff;
    format!("ctd{bits:012x}").parse()
}

fn owner(id: &str, interface: &str) -> Option<(TenantId, LinkName)> {
    let (namespace, container) = id.split_once('/')?;
    let id = TenantId {
        namespace: namespace.parse().ok()?,
        container: container.parse().ok()?,
    };
    Some((id, interface.parse().ok()?))
}

/// Says whose an interface is.
///
/// # Errors
/// The errno.
pub(super) fn write(socket: &mut Socket, index: u32, tag: &Tag) -> Result<()> {
    let mut body = [0; BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new("write alias of interface", SET_LINK, 0, &body);
    message.bytes(IFLA_IFALIAS, tag.text().as_bytes());
    socket.change(message)
}

/// All interfaces of this thread's network namespace.
///
/// # Errors
/// The errno.
pub(super) fn list() -> Result<Vec<Marked>> {
    #[cfg(test)]
    LISTED.set(LISTED.get() + 1);
    let mut message = Message::new("list interfaces", GET_LINK, 0, &[0; BODY]);
    message.u32(IFLA_EXT_MASK, crate::link::SKIP_STATS);
    let mut socket = Socket::open(Family::Route)?;
    let all = socket.list(&message, |entry| Ok(read(entry)));
    all.ctx("whose interfaces are")
}

/// The interface of this name in this thread's network namespace.
///
/// # Errors
/// The errno.
pub(super) fn find(socket: &mut Socket, name: &LinkName) -> Result<Option<Marked>> {
    let mut message = Message::new("find interface", GET_LINK, 0, &[0; BODY]);
    message.text(IFLA_IFNAME, name.as_str());
    one(socket, message)
}

/// The interface with this number, likewise.
///
/// # Errors
/// The errno.
pub(super) fn get(socket: &mut Socket, index: u32) -> Result<Option<Marked>> {
    let mut body = [0; BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    one(socket, Message::new("find interface", GET_LINK, 0, &body))
}

fn one(socket: &mut Socket, mut message: Message) -> Result<Option<Marked>> {
    message.u32(IFLA_EXT_MASK, crate::link::SKIP_STATS);
    let told = socket.ask(message).map_err(crate::link::classed);
    Ok(told.absent_ok()?.as_deref().and_then(read))
}

fn read(entry: &[u8]) -> Option<Marked> {
    let mut name = None;
    let mut made = (0, None, false, None);
    let (mut other, mut peer) = (None, None);
    for (kind, value) in attributes(entry.get(BODY..)?) {
        match kind {
            IFLA_IFNAME => name = text_of(value).parse().ok(),
            IFLA_GROUP => made.0 = u32_of(value).unwrap_or_default(),
            IFLA_LINK => peer = u32_of(value),
            IFLA_MASTER => made.1 = u32_of(value),
            IFLA_LINK_NETNSID => other = u32_of(value),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == INFO_KIND);
                made.2 = kind.is_some_and(|(_, value)| text_of(value) == "bridge");
            }
            IFLA_IFALIAS => made.3 = Tag::parse(&text_of(value)),
            _ => {}
        }
    }
    let (group, master, is_bridge, tag) = made;
    Some(Marked {
        name: name?,
        index: u32_of(entry.get(4..)?)?,
        group,
        master,
        other,
        peer,
        is_bridge,
        is_up: u32_of(entry.get(8..)?)? & IFF_UP != 0,
        tag,
    })
}

/// FNV-1a: the same in every version of this program, which names of interfaces must be.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}
