//! Interfaces, as the kernel has them in one network namespace.
//!
//! Invariant: nothing is remembered: every answer was read from the kernel after the last change. A
//! change that fails on its way is taken back before its error is told. All calls block.
//!
//! ```text
//! Inside --encode--> kernel --decode--> Seen --plan(Seen, LinkSpec)--> encode ..
//! ```

mod abi;
mod bury;
mod change;
mod class;
mod decode;
mod encode;
mod make;
mod sysctl;
mod wire;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use sys::netlink::{Family, Socket};
use sys::netns::NetNs;
use types::network::{
    Attachment, IpNet, Link, LinkKind, LinkName, MacAddr, Neighbour, Other, Place, Route,
};
use types::{Context as _, Labels, Result};

pub(crate) use abi::SKIP_STATS;
pub(crate) use bury::buried_name;
pub(crate) use class::classed;
use decode::{Raw, RawAddress};
pub(crate) use make::{New, is_on_its_way, validate as validate_kind};
pub(crate) use wire::{Outer, Wire};

/// An interface as it is, and what of it is for us alone.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) link: Link,
    /// Mark of interfaces that are ours.
    pub(crate) group: u32,
    /// Addresses that the kernel gave and that nobody takes away.
    own: Vec<IpNet>,
}

/// What of an interface tells whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) name: LinkName,
    pub(crate) index: u32,
    pub(crate) group: u32,
    /// Nothing of it is in another network namespace, nor is it in anybody's way there.
    pub(crate) is_within: bool,
}

impl Mark {
    fn of(raw: Raw) -> Self {
        let is_within = match raw.kind {
            LinkKind::Bridge | LinkKind::Dummy => true,
            LinkKind::Veth(_) => raw.other.is_some(),
            _ => false,
        };
        Self {
            name: raw.name,
            index: raw.index,
            group: raw.group,
            is_within,
        }
    }
}

/// One network namespace, from the inside.
#[derive(Debug)]
pub(crate) struct Inside {
    ns: NetNs,
    socket: Socket,
    is_host: bool,
}

impl Inside {
    /// The namespace of this process.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn host() -> Result<Self> {
        Ok(Self {
            ns: NetNs::own()?,
            socket: Socket::open(Family::Route)?,
            is_host: true,
        })
    }

    /// The one that the file at `path` stands for.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` when it stands for none, else the errno.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::of(NetNs::open(path)?)
    }

    /// `ns`, whichever it is.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn of(ns: NetNs) -> Result<Self> {
        let socket = ns.within(|| Socket::open(Family::Route))?;
        Ok(Self {
            ns,
            socket,
            is_host: false,
        })
    }

    /// The connection to the kernel, in this namespace.
    pub(crate) const fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// The namespace.
    pub(crate) const fn ns(&self) -> &NetNs {
        &self.ns
    }

    fn fd(&self) -> i32 {
        self.ns.as_fd().as_raw_fd()
    }

    /// Runs `work` on a thread in this namespace.
    fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.is_host {
            work()
        } else {
            self.ns.within(work)
        }
    }

    /// The interface of that name.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(&mut self, name: &LinkName) -> Result<Seen> {
        let raw = self.raw(name)?;
        self.complete(raw, Depth::All)
    }

    /// As [`Inside::find`], without routes and neighbours.
    pub(crate) fn find_addresses(&mut self, name: &LinkName) -> Result<Option<Seen>> {
        match self.raw(name).absent_ok()? {
            Some(raw) => self.complete(raw, Depth::Addresses).absent_ok(),
            None => Ok(None),
        }
    }

    /// The mark of the interface of that name, if there is one.
    pub(crate) fn find_mark(&mut self, name: &LinkName) -> Result<Option<Mark>> {
        Ok(self.raw(name).absent_ok()?.map(Mark::of))
    }

    /// The interface of that name, if there is one.
    pub(crate) fn find(&mut self, name: &LinkName) -> Result<Option<Seen>> {
        self.get(name).absent_ok()
    }

    fn raw(&mut self, name: &LinkName) -> Result<Raw> {
        let told = self.socket.ask(encode::find(name)).map_err(classed)?;
        decode::link(&told).ok_or_else(|| {
            types::Error::internal(format_args!("what the kernel tells of interface {name}"))
        })
    }

    /// All interfaces, by name.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn list(&mut self) -> Result<Vec<Seen>> {
        let raws = self.socket.list(&encode::list(), |entry| {
            Ok(decode::link(entry).filter(|raw| !bury::is_buried(raw)))
        })?;
        let names: HashMap<u32, LinkName> = raws
            .iter()
            .map(|raw| (raw.index, raw.name.clone()))
            .collect();
        let mut parts = self.parts(None, Depth::All)?;
        let mut all: Vec<Seen> = raws
            .into_iter()
            .map(|raw| seen(raw, &names, &mut parts))
            .collect();
        all.sort_by(|a, b| a.link.name.cmp(&b.link.name));
        Ok(all)
    }

    /// Numbers, names and marks of all interfaces.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn marks(&mut self) -> Result<Vec<Mark>> {
        let mark = |entry: &[u8]| Ok(decode::link(entry).map(Mark::of));
        self.socket.list(&encode::list(), mark)
    }

    /// Hardware address and largest packet of the interface of that name.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn brief(&mut self, name: &LinkName) -> Result<(Option<MacAddr>, u32)> {
        let raw = self.raw(name)?;
        Ok((raw.mac, raw.mtu))
    }

    /// Marks an interface as ours.
    ///
    /// # Errors
    /// `NotFound`, else the errno.
    pub(crate) fn mark(&mut self, index: u32, name: &LinkName, group: u32) -> Result<()> {
        let marked = self
            .socket
            .change(encode::mark(index, name.as_str(), group));
        marked.map_err(classed)
    }

    /// The rest of what is to be known of an interface.
    fn complete(&mut self, raw: Raw, depth: Depth) -> Result<Seen> {
        let mut names = HashMap::new();
        for index in [raw.master, raw.other].into_iter().flatten() {
            // Gone meanwhile, or in another namespace: it has no name here.
            let told = self
                .socket
                .ask(encode::get(index))
                .map_err(classed)
                .absent_ok()?;
            let other = told.as_deref().and_then(decode::link);
            names.extend(other.map(|other| (index, other.name)));
        }
        let parts = self.parts(Some(raw.index), depth);
        let mut parts = parts.ctx_with(|| format!("interface {}", raw.name))?;
        Ok(seen(raw, &names, &mut parts))
    }

    /// Addresses, routes and neighbours by the numbers of their interfaces, of one interface or of all.
    fn parts(&mut self, only: Option<u32>, depth: Depth) -> Result<Parts> {
        let wanted = |index: u32| only.is_none_or(|only| only == index);
        let mut parts = Parts::default();
        let read = |entry: &[u8]| Ok(decode::address(entry).filter(|one| wanted(one.index)));
        for address in self
            .socket
            .list(&encode::addresses(only), read)
            .map_err(classed)?
        {
            parts
                .addresses
                .entry(address.index)
                .or_default()
                .push(address);
        }
        if depth == Depth::Addresses {
            return Ok(parts);
        }
        let read = |entry: &[u8]| Ok(decode::route(entry).filter(|one| wanted(one.0)));
        for family in encode::FAMILIES {
            for (index, route) in self
                .socket
                .list(&encode::routes(family, only), read)
                .map_err(classed)?
            {
                let routes = parts.routes.entry(index).or_default();
                // Without the one family the kernel tells the other again.
                if !routes.contains(&route) {
                    routes.push(route);
                }
            }
        }
        if depth == Depth::Routes {
            return Ok(parts);
        }
        let read = |entry: &[u8]| Ok(decode::neighbour(entry).filter(|one| wanted(one.0)));
        for (index, neighbour) in self
            .socket
            .list(&encode::neighbours(only), read)
            .map_err(classed)?
        {
            parts.neighbours.entry(index).or_default().push(neighbour);
        }
        Ok(parts)
    }
}

/// Sets the loopback of a new network namespace up.
///
/// # Errors
/// Those of the kernel.
pub(crate) fn set_loopback_up(socket: &mut Socket) -> Result<()> {
    /// It is the first interface, always.
    const LOOPBACK: u32 = 1;
    socket
        .change(encode::set_up(LOOPBACK, "lo", true))
        .map_err(classed)
}

/// How much of an interface is looked at: each with what comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    Addresses,
    Routes,
    /// Neighbours, too.
    All,
}

#[derive(Default)]
struct Parts {
    addresses: HashMap<u32, Vec<RawAddress>>,
    routes: HashMap<u32, Vec<Route>>,
    neighbours: HashMap<u32, Vec<Neighbour>>,
}

fn seen(raw: Raw, names: &HashMap<u32, LinkName>, parts: &mut Parts) -> Seen {
    let other = raw
        .other
        .and_then(|index| names.get(&index))
        .cloned()
        .map(Other::beside);
    let mut kind = raw.kind;
    match &mut kind {
        LinkKind::Veth(to)
        | LinkKind::Macvlan(to, _)
        | LinkKind::Ipvlan(to, _)
        | LinkKind::Vlan(to, _) => {
            *to = other;
        }
        LinkKind::Vxlan(vxlan) => vxlan.parent = other,
        LinkKind::Bridge | LinkKind::Tun(_) | LinkKind::Dummy | LinkKind::Foreign(_) => {}
    }
    let bridge = raw.master.and_then(|index| names.get(&index)).cloned();
    let addresses = parts.addresses.remove(&raw.index).unwrap_or_default();
    let link_local = |net: &IpNet| matches!(net.address(), std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
    Seen {
        group: raw.group,
        own: addresses
            .iter()
            .filter(|one| one.is_own)
            .map(|one| one.address)
            .collect(),
        link: Link {
            place: Place::default(),
            name: raw.name,
            index: raw.index,
            kind,
            mac: raw.mac,
            mtu: raw.mtu,
            up: raw.up,
            running: raw.running,
            attachment: bridge.map(|bridge| Attachment {
                bridge,
                hairpin: raw.hairpin,
                isolated: raw.isolated,
            }),
            // Every interface has one of these, and nobody asked for it.
            addresses: addresses
                .iter()
                .map(|one| one.address)
                .filter(|net| !link_local(net))
                .collect(),
            routes: parts.routes.remove(&raw.index).unwrap_or_default(),
            neighbours: parts.neighbours.remove(&raw.index).unwrap_or_default(),
            labels: Labels::new(),
            created_at: None,
        },
    }
}

#[cfg(test)]
mod tests;
