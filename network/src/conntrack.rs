//! Connections that the kernel remembers: forgotten when the port that they came by leads elsewhere.
//!
//! Invariant: only connections of a mapped port are forgotten, each by all that tells it from others.
//! Datagrams have no end: as long as they come, the kernel sends them where the first of them went, also when
//! nobody is there any more, or when the port has come to lead to somebody only since.
//!
//! Called by the bridge driver, after a change of its ports, with the socket that it keeps. A kernel that remembers none, or cannot be asked,
//! has none to forget.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sys::netlink::{Message, Socket, attributes};
use types::network::{PortMapping, Protocol};
use types::{Error, Result};

/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`, of the subsystem of connections.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;
/// `struct nfgenmsg`.
const BODY: usize = 4;

/// `CTA_*`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// `CTA_TUPLE_*`, `CTA_IP_*`, `CTA_PROTO_*`, `CTA_FILTER_ORIG_FLAGS`.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM` and `CTA_FILTER_F_CTA_PROTO_DST_PORT`: what of a tuple counts.
const BY_PROTOCOL: u32 = 1 << 3;
const BY_PORT: u32 = 1 << 5;

/// What a kernel answers that has no such subsystem, or no such filter.
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const ENOENT: i32 = 2;

/// A port, and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Led {
    pub(crate) port: PortMapping,
    pub(crate) to: IpAddr,
}

/// One end's view of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

/// A connection that is remembered.
#[derive(Clone, Debug)]
struct Connection {
    orig: Tuple,
    reply: Tuple,
    /// What tells it from others, as the kernel has it.
    key: Vec<(u16, Vec<u8>)>,
}

/// Forgets the connections that came by ports that lead there no more.
///
/// # Errors
/// The errno.
pub(crate) fn forget_led(socket: &mut Socket, ports: &[Led]) -> Result<()> {
    forget(socket, ports, |led, one| {
        one.reply.from == (led.to, led.port.container_port)
    })
}

/// Forgets the connections that came by ports before these led anywhere: `is_local` tells which addresses
/// are this host's.
///
/// # Errors
/// The errno.
pub(crate) fn forget_strays(
    socket: &mut Socket,
    ports: &[Led],
    is_local: impl Fn(IpAddr) -> bool,
) -> Result<()> {
    forget(socket, ports, |led, one| {
        let is_stray = one.reply.from != (led.to, led.port.container_port);
        is_stray && is_local(one.orig.to.0)
    })
}

/// Each family is asked once, for all ports: the kernel looks at every connection each time.
fn forget(
    socket: &mut Socket,
    ports: &[Led],
    is_meant: impl Fn(&Led, &Connection) -> bool,
) -> Result<()> {
    for family in [IPV4, IPV6] {
        let mut led: BTreeMap<u16, Vec<&Led>> = BTreeMap::new();
        let udp = ports
            .iter()
            .filter(|led| led.port.protocol == Protocol::Udp);
        for one in udp.filter(|led| family_of(led) == family) {
            led.entry(one.port.host_port).or_default().push(one);
        }
        let only = match (led.len(), led.keys().next()) {
            (_, None) => continue,
            (1, only) => only.copied(),
            _ => None,
        };
        for one in list(socket, family, only)? {
            let (address, port) = one.orig.to;
            let mut by_port = led.get(&port).into_iter().flatten();
            let is_by = |led: &Led| led.port.host_ip.is_none_or(|host| host == address);
            if by_port.any(|led| is_by(led) && is_meant(led, &one)) {
                remove(socket, family, &one)?;
            }
        }
    }
    Ok(())
}

/// The connections of a family, by a port if one is given; perhaps others, too.
fn list(socket: &mut Socket, family: u8, port: Option<u16>) -> Result<Vec<Connection>> {
    let read = |entry: &[u8]| Ok(read(entry));
    let found = socket.list(&filtered(family, port), read);
    let found = match found {
        // Older kernels tell all.
        Err(error) if is_unknown(&error) => socket.list(&asked(family), read),
        found => found,
    };
    match found {
        Err(error) if is_unknown(&error) => {
            tracing::debug!(%error, "no connections to forget");
            Ok(Vec::new())
        }
        found => found,
    }
}

fn is_unknown(error: &Error) -> bool {
    matches!(error.errno(), Some(EINVAL | EOPNOTSUPP))
}

const fn family_of(led: &Led) -> u8 {
    if led.to.is_ipv4() { IPV4 } else { IPV6 }
}

fn asked(family: u8) -> Message {
    Message::new("list connections", GET, 0, &[family, 0, 0, 0])
}

fn filtered(family: u8, port: Option<u16>) -> Message {
    let mut message = asked(family);
    message.marked(TUPLE_ORIG, |tuple| {
        tuple.marked(TUPLE_PROTO, |proto| {
            proto.u8(PROTO_NUM, UDP);
            if let Some(port) = port {
                proto.bytes(PROTO_DST_PORT, &port.to_be_bytes());
            }
        });
    });
    message.marked(FILTER, |filter| {
        filter.u32(
            ORIG_FLAGS,
            port.map_or(BY_PROTOCOL, |_| BY_PROTOCOL | BY_PORT),
        );
    });
    message
}

fn remove(socket: &mut Socket, family: u8, one: &Connection) -> Result<()> {
    let what = format!("forget a connection by port {}/udp", one.orig.to.1);
    let mut message = Message::new(what, DELETE, 0, &[family, 0, 0, 0]);
    for (kind, value) in &one.key {
        match *kind {
            TUPLE_ORIG => message.marked(TUPLE_ORIG, |tuple| {
                tuple.raw(value);
            }),
            kind => message.bytes(kind, value),
        };
    }
    match socket.change(message) {
        // Gone by itself.
        Err(error) if error.errno() == Some(ENOENT) => Ok(()),
        done => done,
    }
}

/// A connection of UDP in an answer.
fn read(entry: &[u8]) -> Option<Connection> {
    let (mut orig, mut reply, mut key) = (None, None, Vec::new());
    for (kind, value) in attributes(entry.get(BODY..)?) {
        match kind {
            TUPLE_ORIG => orig = tuple(value),
            TUPLE_REPLY => reply = tuple(value),
            _ => {}
        }
        if matches!(kind, TUPLE_ORIG | ID | ZONE) {
            key.push((kind, value.to_vec()));
        }
    }
    let (orig, reply) = (orig?, reply?);
    Some(Connection { orig, reply, key })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut from, mut to, mut ports) = (None, None, (None, None));
    for (kind, value) in attributes(bytes) {
        match kind {
            TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        V4_SRC | V6_SRC => from = address(value),
                        V4_DST | V6_DST => to = address(value),
                        _ => {}
                    }
                }
            }
            TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        PROTO_NUM if value != [UDP] => return None,
                        PROTO_SRC_PORT => ports.0 = port(value),
                        PROTO_DST_PORT => ports.1 = port(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tuple {
        from: (from?, ports.0?),
        to: (to?, ports.1?),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use sys::netlink::Family;

    use super::*;
    use crate::testing::Net;

    fn led(host_port: u16, to: &str, container_port: u16) -> Led {
        Led {
            port: PortMapping {
                protocol: Protocol::Udp,
                host_ip: None,
                host_port,
                container_port,
            },
            to: to.parse().unwrap(),
        }
    }

    /// What is remembered of connections to a port.
    fn remembered(port: u16) -> usize {
        let mut socket = Socket::open(Family::Netfilter).unwrap();
        let found = list(&mut socket, IPV4, Some(port)).unwrap();
        found.iter().filter(|one| one.orig.to.1 == port).count()
    }

    #[test]
    fn only_what_came_by_a_port_and_went_there_is_forgotten() {
        let net = Net::new();
        // Something has to want to know of connections before any is remembered.
        net.run(
            "nft 'table ip t { chain c { type nat hook output priority -100; \
             ip daddr 127.0.0.1 udp dport 53 dnat to 127.0.0.1:5353; }; }'",
        );
        net.within(|| {
            let mut asking = Socket::open(Family::Netfilter).unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let servers = ["127.0.0.1:5353", "127.0.0.1:54"].map(|at| UdpSocket::bind(at).unwrap());
            for port in [53, 54] {
                socket.send_to(b"?", ("127.0.0.1", port)).unwrap();
            }
            let mut said = [0];
            for server in &servers {
                server.recv(&mut said).unwrap();
            }
            assert_eq!((remembered(53), remembered(54)), (1, 1));
            // Other ports, other ends, other protocols.
            let tcp = |mut led: Led| {
                led.port.protocol = Protocol::Tcp;
                led
            };
            forget_led(
                &mut asking,
                &[
                    led(53, "127.0.0.2", 5353),
                    led(53, "127.0.0.1", 53),
                    led(54, "127.0.0.1", 5353),
                    led(55, "127.0.0.1", 5353),
                    tcp(led(53, "127.0.0.1", 5353)),
                ],
            )
            .unwrap();
            forget_strays(&mut asking, &[led(53, "127.0.0.1", 5353)], |_| true).unwrap();
            forget_strays(&mut asking, &[led(54, "127.0.0.1", 5454)], |_| false).unwrap();
            assert_eq!((remembered(53), remembered(54)), (1, 1));
            forget_led(&mut asking, &[led(53, "127.0.0.1", 5353)]).unwrap();
            assert_eq!((remembered(53), remembered(54)), (0, 1));
            // One that was there before its port led anywhere.
            forget_strays(&mut asking, &[led(54, "127.0.0.1", 5454)], |_| true).unwrap();
            assert_eq!(remembered(54), 0);
            // Many at once, among others.
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for port in 60..70 {
                socket.send_to(b"?", ("127.0.0.1", port)).unwrap();
            }
            let all: Vec<_> = (61..70).map(|port| led(port, "127.0.0.1", port)).collect();
            forget_led(&mut asking, &all).unwrap();
            let left: usize = (60..70).map(remembered).sum();
            assert_eq!((remembered(60), left), (1, 1));
        });
    }
}
