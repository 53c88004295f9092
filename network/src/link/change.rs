//! Making an interface what it is asked to be.
//!
//! Invariant: what is to be done follows from what is there and what is wanted, and from nothing else. So
//! the same function also takes back what failed half-way: what was there before is wanted then.

use std::collections::{BTreeMap, BTreeSet};

use sys::netlink::Message;
use types::network::{Attachment, IpNet, LinkKind, LinkName, LinkSpec, Route, family};
use types::{Error, Result};

use super::abi::RT_TABLE_LOCAL;
use super::{Inside, Seen, classed, decode, encode, sysctl};

/// The kernel drops some things with others: addresses with those that they belong to, routes with
/// addresses. What is missing after the changes is made again, this often.
const ROUNDS: usize = 3;
/// Largest packet that the kernel lets a route have; of more it makes this.
const MOST_MTU: u32 = 65_535 - 15;

/// Checks what can be checked without looking.
///
/// # Errors
/// `InvalidArgument` with the name of what does not fit.
pub(super) fn validate(name: &LinkName, spec: &LinkSpec) -> Result<()> {
    validate_routes(name, spec.routes.as_deref().unwrap_or_default())?;
    for net in spec.addresses.iter().flatten() {
        let ip = net.address();
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(Error::invalid_argument(format_args!(
                "interface {name}: {net} is not the address of one host"
            )));
        }
    }
    let mut seen = BTreeSet::new();
    for neighbour in spec.neighbours.iter().flatten() {
        let ip = neighbour.address;
        if !seen.insert(ip) {
            return Err(Error::invalid_argument(format_args!(
                "interface {name}: neighbour {ip} is there twice"
            )));
        }
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(Error::invalid_argument(format_args!(
                "interface {name}: neighbour {ip} ({}) is not one host",
                family(&ip)
            )));
        }
    }
    if let Some(Some(attachment)) = &spec.attachment
        && attachment.bridge == *name
    {
        return Err(Error::invalid_argument(format_args!(
            "interface {name} cannot be attached to itself"
        )));
    }
    for (key, value) in &spec.sysctls {
        sysctl::check(name, key, value)?;
    }
    Ok(())
}

/// Refuses routes of which the kernel would make others than those that are asked for.
fn validate_routes(name: &LinkName, routes: &[Route]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for route in routes {
        route
            .validate()
            .map_err(|e| e.ctx(format!("interface {name}")))?;
        let refuse = |why: String| {
            Err(Error::invalid_argument(format_args!(
                "interface {name}: route to {} {why}",
                route.destination
            )))
        };
        if route.on_link && route.gateway.is_none() {
            return refuse("is on the link without a gateway".into());
        }
        match (route.table, route.mtu) {
            (Some(table @ (0 | RT_TABLE_LOCAL)), _) => {
                return refuse(format!("cannot be in table {table}"));
            }
            (_, Some(mtu)) if mtu > MOST_MTU => {
                return refuse(format!("has MTU {mtu}, which is more than {MOST_MTU}"));
            }
            _ => {}
        }
        let usual = decode::usual(route.clone());
        if !seen.insert((usual.destination, usual.metric, usual.table)) {
            return refuse("is there twice with the same metric and table".into());
        }
    }
    Ok(())
}

/// What is to be done to `seen`; `bridge` is the number of the bridge that is wanted.
pub(super) fn plan(seen: &Seen, spec: &LinkSpec, bridge: u32) -> Vec<Message> {
    let (link, name) = (&seen.link, seen.link.name.as_str());
    let index = link.index;
    let mut steps = Vec::new();
    let goes_down = spec.up == Some(false) && link.up;
    if goes_down {
        steps.push(encode::set_up(index, name, false));
    }
    if let Some(mtu) = spec.mtu.filter(|mtu| *mtu != link.mtu) {
        steps.push(encode::set_mtu(index, name, mtu));
    }
    if let Some(mac) = spec.mac.filter(|mac| Some(*mac) != link.mac) {
        steps.push(encode::set_mac(index, name, mac));
    }
    if let Some(wanted) = &spec.attachment {
        attach(&mut steps, seen, wanted.as_ref(), bridge);
    }
    if spec.up == Some(true) && !link.up {
        steps.push(encode::set_up(index, name, true));
    }
    // What hangs on addresses goes before them and comes after them.
    let routes = spec.routes.as_ref().map(|routes| {
        let usual = routes.iter().cloned().map(decode::usual);
        usual.collect::<Vec<_>>()
    });
    let neighbours = spec.neighbours.as_ref();
    for route in gone(&link.routes, routes.as_ref()) {
        steps.push(encode::route(index, name, route, false));
    }
    for neighbour in gone(&link.neighbours, neighbours) {
        steps.push(encode::neighbour(index, name, neighbour, false));
    }
    // With the last address of IPv4 the kernel takes all its routes and neighbours: new ones come first.
    for net in come(&link.addresses, spec.addresses.as_ref()) {
        if !seen.own.contains(net) {
            steps.push(encode::address(index, name, net, true));
        }
    }
    for net in gone(&link.addresses, spec.addresses.as_ref()) {
        if !seen.own.contains(net) {
            steps.push(encode::address(index, name, net, false));
        }
    }
    for neighbour in come(&link.neighbours, neighbours) {
        steps.push(encode::neighbour(index, name, neighbour, true));
    }
    for route in come(&link.routes, routes.as_ref()) {
        steps.push(encode::route(index, name, route, true));
    }
    steps
}

fn attach(steps: &mut Vec<Message>, seen: &Seen, wanted: Option<&Attachment>, bridge: u32) {
    let (link, name) = (&seen.link, seen.link.name.as_str());
    let now = link.attachment.as_ref();
    if now.map(|now| &now.bridge) != wanted.map(|wanted| &wanted.bridge) {
        let to = wanted.map_or("", |wanted| wanted.bridge.as_str());
        steps.push(encode::attach(link.index, name, to, bridge));
    }
    let Some(wanted) = wanted else { return };
    let flags = |at: &Attachment| (at.hairpin, at.isolated);
    let is_new = now.is_none_or(|now| now.bridge != wanted.bridge);
    let had = if is_new {
        (false, false)
    } else {
        now.map(flags).unwrap_or_default()
    };
    if had != flags(wanted) {
        steps.push(encode::set_port(
            link.index,
            name,
            wanted.hairpin,
            wanted.isolated,
        ));
    }
}

/// What is there and not wanted.
fn gone<'a, T: PartialEq>(
    there: &'a [T],
    wanted: Option<&'a Vec<T>>,
) -> impl Iterator<Item = &'a T> {
    let gone = move |one: &&T| wanted.is_some_and(|wanted| !wanted.contains(one));
    there.iter().filter(gone)
}

/// What is wanted and not there.
fn come<'a, T: PartialEq>(
    there: &'a [T],
    wanted: Option<&'a Vec<T>>,
) -> impl Iterator<Item = &'a T> {
    let wanted = wanted.map(Vec::as_slice).unwrap_or_default();
    wanted.iter().filter(move |one| !there.contains(one))
}

/// What an interface is asked to be so that it is as it was.
fn as_it_was(seen: &Seen, sysctls: BTreeMap<String, String>) -> LinkSpec {
    let link = &seen.link;
    LinkSpec {
        mac: link.mac,
        mtu: Some(link.mtu),
        up: Some(link.up),
        attachment: Some(link.attachment.clone()),
        addresses: Some(link.addresses.clone()),
        routes: Some(link.routes.clone()),
        neighbours: Some(link.neighbours.clone()),
        sysctls,
    }
}

impl Inside {
    /// Makes the interface `name` what `spec` asks for, or leaves it as it was.
    ///
    /// # Errors
    /// `NotFound` for the interface and its bridge, `FailedPrecondition` for a bridge that is none,
    /// `InvalidArgument`, those of the kernel.
    pub(crate) fn change(&mut self, name: &LinkName, spec: &LinkSpec) -> Result<Seen> {
        validate(name, spec)?;
        let before = self.get(name)?;
        let mut sysctls = BTreeMap::new();
        if !spec.sysctls.is_empty() {
            let read = || {
                spec.sysctls
                    .keys()
                    .map(|key| Ok((key.clone(), sysctl::read(name, key)?)))
                    .collect()
            };
            sysctls = self.within(read)?;
        }
        match self.converge(name, spec) {
            Ok(seen) => Ok(seen),
            Err(error) => {
                if let Err(left) = self.converge(name, &as_it_was(&before, sysctls)) {
                    tracing::warn!(%name, error = %left, "interface is not what it was before a change that failed");
                }
                Err(error)
            }
        }
    }

    /// Brings an interface that was `seen` one step nearer to `spec`; `None` when it is that.
    pub(super) fn nearer(
        &mut self,
        seen: &Seen,
        spec: &LinkSpec,
        bridge: u32,
    ) -> Result<Option<Seen>> {
        let steps = plan(seen, spec, bridge);
        if steps.is_empty() {
            return Ok(None);
        }
        self.socket.change_all(steps).map_err(classed)?;
        self.get(&seen.link.name).map(Some)
    }

    /// Brings the interface nearer to `spec` until it is that. On failure it may be anything between.
    pub(super) fn converge(&mut self, name: &LinkName, spec: &LinkSpec) -> Result<Seen> {
        // Some of them, as whether there is IPv6, decide about the rest.
        if !spec.sysctls.is_empty() {
            self.within(|| sysctl::write_all(name, &spec.sysctls))?;
        }
        let bridge = self.bridge(name, spec)?;
        let mut seen = self.get(name)?;
        let before = seen.clone();
        for _ in 0..ROUNDS {
            seen = match self.nearer(&seen, spec, bridge)? {
                Some(nearer) => nearer,
                None => return self.put_back(&before, seen, spec),
            };
        }
        Err(Error::failed_precondition(format_args!(
            "interface {name} does not become what it is asked to be: somebody else changes it"
        )))
    }

    /// Brings back the routes and neighbours that nobody asked to go, and that went with something else. What
    /// needed an address that is gone goes with it.
    fn put_back(&mut self, before: &Seen, seen: Seen, spec: &LinkSpec) -> Result<Seen> {
        let (link, name) = (&before.link, before.link.name.as_str());
        let mut steps = Vec::new();
        if spec.neighbours.is_none() {
            let lost = come(&seen.link.neighbours, Some(&link.neighbours));
            steps.extend(lost.map(|one| encode::neighbour(link.index, name, one, true)));
        }
        if spec.routes.is_none() {
            let lost = come(&seen.link.routes, Some(&link.routes));
            steps.extend(lost.map(|one| encode::route(link.index, name, one, true)));
        }
        if steps.is_empty() || !seen.link.up {
            return Ok(seen);
        }
        if let Err(error) = self.socket.change_all(steps) {
            tracing::debug!(name, %error, "what hung on an address goes with it");
        }
        self.get(&link.name)
    }

    /// The number of the bridge that is wanted, 0 for none.
    fn bridge(&mut self, name: &LinkName, spec: &LinkSpec) -> Result<u32> {
        let Some(Some(Attachment { bridge, .. })) = &spec.attachment else {
            return Ok(0);
        };
        let raw = self
            .raw(bridge)
            .map_err(|e| e.ctx(format!("bridge of interface {name}")))?;
        if raw.kind != LinkKind::Bridge {
            return Err(Error::failed_precondition(format_args!(
                "interface {bridge}, to which {name} is to be attached, is no bridge but {}",
                match raw.kind.as_str() {
                    "" => "a device",
                    kind => kind,
                }
            )));
        }
        Ok(raw.index)
    }
}

/// The addresses of `spec` as it should be asked again for after a move, which drops them.
pub(super) fn after_a_move(seen: &Seen) -> LinkSpec {
    let own: Vec<IpNet> = seen.own.clone();
    let mut wanted = as_it_was(seen, BTreeMap::new());
    if let Some(addresses) = &mut wanted.addresses {
        addresses.retain(|net| !own.contains(net));
    }
    wanted
}
