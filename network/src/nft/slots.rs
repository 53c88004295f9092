//! Ports and addresses that several could want: who has them, and what a container's are to be.
//!
//! Invariant: of two elements that the same packet could take only one is ever made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use types::network::{PortMapping, Protocol, family};
use types::{Error, Result};

use super::as_mapped;
use super::element::Element;

/// Refuses what another container has.
pub(super) fn refuse_taken(
    tag: &str,
    wanted: &BTreeSet<Element>,
    others: &[&Element],
) -> Result<()> {
    let addresses: BTreeMap<_, _> = others
        .iter()
        .filter_map(|other| Some((other.address()?, &other.tag)))
        .collect();
    let ports = Slots::of(others.iter().copied());
    for one in wanted {
        if let Some(address) = one.address()
            && let Some(owner) = addresses.get(&address)
        {
            return Err(Error::already_exists(format_args!(
                "address {address} of {}",
                named(tag, owner)
            )));
        }
        if let Some(other) = ports.conflict(one) {
            let port = other.mapped().map(|(port, _)| shown(&port));
            return Err(Error::already_exists(format_args!(
                "{} of {}",
                port.unwrap_or_default(),
                named(tag, &other.tag)
            )));
        }
    }
    Ok(())
}

/// Whose something is, for somebody: what other tenants have is not told.
fn named<'a>(tag: &str, other: &'a str) -> &'a str {
    let tenant = |text: &'a str| text.split_once('/').map(|(tenant, _)| tenant);
    let own = tag.split_once('/').map(|(tenant, _)| tenant);
    if tenant(other) == own {
        other
    } else {
        "another namespace"
    }
}

/// The elements that lead `ports` to the first addresses of their families.
pub(super) fn wanted(tag: &str, ports: &[PortMapping], to: &[IpAddr]) -> Result<BTreeSet<Element>> {
    let fits = |port: &PortMapping, to: &IpAddr| {
        let host = port.host_ip.as_ref();
        host.is_none_or(|host| host.is_ipv4() == to.is_ipv4())
    };
    let first = |v4: bool| to.iter().find(move |one| one.is_ipv4() == v4);
    let to = [first(true), first(false)];
    let mut all = BTreeSet::new();
    for port in ports {
        let mut is_led = false;
        for to in to.into_iter().flatten().filter(|to| fits(port, to)) {
            all.insert(Element::port(tag, &as_mapped(port), *to));
            is_led = true;
        }
        if !is_led {
            let of = port.host_ip.as_ref().map_or("any", family);
            return Err(Error::invalid_argument(format_args!(
                "{} leads to no address of the container: it has none of {of} family",
                shown(port)
            )));
        }
    }
    let slots = Slots::of(all.iter());
    for one in &all {
        if slots.conflict(one).is_some() {
            let port = one.mapped().map(|(port, _)| shown(&port));
            return Err(Error::invalid_argument(format_args!(
                "{} is wanted twice",
                port.unwrap_or_default()
            )));
        }
    }
    Ok(all)
}

/// Ports of the host by what packets are told by, all addresses of the host together.
struct Slots<'a>(BTreeMap<(bool, Protocol, u16), Vec<&'a Element>>);

impl<'a> Slots<'a> {
    fn of(elements: impl Iterator<Item = &'a Element>) -> Self {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for element in elements {
            if let Some((port, to)) = element.mapped() {
                let slot = (to.is_ipv4(), port.protocol, port.host_port);
                all.entry(slot).or_default().push(element);
            }
        }
        Self(all)
    }

    /// Another one that the same packet could take: of the same address of the host, or of all of them.
    fn conflict(&self, one: &Element) -> Option<&'a Element> {
        let (port, to) = one.mapped()?;
        let slot = (to.is_ipv4(), port.protocol, port.host_port);
        let mut others = self.0.get(&slot)?.iter().filter(|other| **other != one);
        let is_both = |other: &&&Element| {
            let host = other.mapped().and_then(|(port, _)| port.host_ip);
            host.is_none() || port.host_ip.is_none() || host == port.host_ip
        };
        others.find(is_both).copied()
    }
}

fn shown(port: &PortMapping) -> String {
    let protocol = port.protocol.as_str();
    match port.host_ip {
        Some(ip @ IpAddr::V6(_)) => format!("port [{ip}]:{}/{protocol}", port.host_port),
        Some(ip) => format!("port {ip}:{}/{protocol}", port.host_port),
        None => format!("port {}/{protocol}", port.host_port),
    }
}
