//! A container's network by nothing but calls of the kernel: a namespace with its loopback up, kept by a
//! file, a wire to a bridge, an address, a default route; and away with it. The floor of what is measured.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use sys::netlink::{Family, Message, Socket, u32_of};
use sys::netns::{self, NetNs};
use types::Result;

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDR: u16 = 20;
const NEW_ROUTE: u16 = 24;
/// `NLM_F_CREATE` and `NLM_F_EXCL`.
const NEW: u16 = 0x600;
const UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const INET: u8 = 2;
const LOOPBACK: u32 = 1;

/// `struct ifinfomsg`.
fn link(what: &str, kind: u16, flags: u16, index: u32, up: bool) -> Message {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        body[8..12].copy_from_slice(&UP.to_ne_bytes());
        body[12..16].copy_from_slice(&UP.to_ne_bytes());
    }
    Message::new(what, kind, flags, &body)
}

fn set_up(index: u32) -> Message {
    link("set up", NEW_LINK, 0, index, true)
}

fn index(socket: &mut Socket, name: &str) -> Result<u32> {
    let mut message = link("look up", GET_LINK, 0, 0, false);
    message.text(IFLA_IFNAME, name);
    let told = socket.ask(message)?;
    Ok(told.get(4..8).and_then(u32_of).expect("a number"))
}

/// A wire whose other end is beside it, or in the namespace with this descriptor.
fn wire(name: &str, peer: &str, to: Option<i32>, bridge: Option<u32>) -> Message {
    let mut message = link("make a wire", NEW_LINK, NEW, 0, true);
    message.text(IFLA_IFNAME, name);
    if let Some(bridge) = bridge {
        message.u32(IFLA_MASTER, bridge);
    }
    message.nest(IFLA_LINKINFO, |info| {
        info.bytes(IFLA_INFO_KIND, b"veth");
        info.nest(IFLA_INFO_DATA, |data| {
            data.nest(VETH_INFO_PEER, |other| {
                other.raw(&[0; 16]);
                other.text(IFLA_IFNAME, peer);
                if let Some(to) = to {
                    other.bytes(IFLA_NET_NS_FD, &to.to_ne_bytes());
                }
            });
        });
    });
    message
}

fn address(index: u32, ip: Ipv4Addr) -> Message {
    let mut body = vec![INET, 24, 0, 0];
    body.extend(index.to_ne_bytes());
    let mut message = Message::new("give an address", NEW_ADDR, NEW, &body);
    message.bytes(IFA_LOCAL, &ip.octets());
    message.bytes(IFA_ADDRESS, &ip.octets());
    message
}

/// The main table's, written by somebody at boot, unicast.
fn default_route(index: u32, gateway: Ipv4Addr) -> Message {
    let body = [INET, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    let mut message = Message::new("give a default route", NEW_ROUTE, NEW, &body);
    message.bytes(RTA_GATEWAY, &gateway.octets());
    message.u32(RTA_OIF, index);
    message
}

/// The host's side, in the network namespace of the thread that made it.
#[derive(Debug)]
pub(crate) struct Floor {
    host: Socket,
    bridge: u32,
    dir: PathBuf,
}

impl Floor {
    /// Makes a bridge, up.
    pub(crate) fn new(dir: &Path) -> Self {
        let mut host = Socket::open(Family::Route).expect("netlink");
        let mut message = link("make a bridge", NEW_LINK, NEW, 0, true);
        message.text(IFLA_IFNAME, "floor0");
        message.nest(IFLA_LINKINFO, |info| {
            info.bytes(IFLA_INFO_KIND, b"bridge");
        });
        host.change(message).expect("a bridge");
        let bridge = index(&mut host, "floor0").expect("it is there");
        Self {
            host,
            bridge,
            dir: dir.to_owned(),
        }
    }

    /// One network, and away with it.
    pub(crate) fn life(&mut self) {
        let path = self.dir.join("floor");
        let made = netns::create(&path, || {
            Socket::open(Family::Route)?.change(set_up(LOOPBACK))
        });
        self.join(&made.expect("a namespace")).expect("a wire");
        let outer = index(&mut self.host, "floor1").expect("it is there");
        let gone = link("take away", DEL_LINK, 0, outer, false);
        self.host.change(gone).expect("away");
        netns::unpin(&path).expect("away");
    }

    fn join(&mut self, made: &NetNs) -> Result<()> {
        let to = made.as_fd().as_raw_fd();
        let bridge = Some(self.bridge);
        self.host.change(wire("floor1", "eth0", Some(to), bridge))?;
        let mut inside = made.within(|| Socket::open(Family::Route))?;
        let eth0 = index(&mut inside, "eth0")?;
        inside.change(set_up(eth0))?;
        inside.change(address(eth0, Ipv4Addr::new(10, 6, 0, 2)))?;
        inside.change(default_route(eth0, Ipv4Addr::new(10, 6, 0, 1)))
    }
}

/// Makes so many interfaces in the network namespace with this file: pairs, of which each has an address.
pub(crate) fn many(path: &Path, count: usize) {
    let inside = NetNs::open(path).expect("a namespace");
    let mut socket = inside
        .within(|| Socket::open(Family::Route))
        .expect("netlink");
    for n in 0..count / 2 {
        let (name, peer) = (format!("a{n}"), format!("b{n}"));
        let made = socket.change(wire(&name, &peer, None, None));
        made.expect("a pair");
        let index = index(&mut socket, &name).expect("it is there");
        let low = u16::try_from(n).expect("few").to_be_bytes();
        let given = socket.change(address(index, Ipv4Addr::new(10, 5, low[0], low[1])));
        given.expect("an address");
    }
}
