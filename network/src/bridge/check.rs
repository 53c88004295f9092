//! Whether what was made is still there, whole.
//!
//! Invariant: nothing is changed; what is missing is named.

use std::collections::BTreeMap;
use std::path::Path;

use sys::netlink::{Family, Socket};
use types::network::{IpNet, Link, LinkName};
use types::{Code, Context as _, Error, Result};

use super::Core;
use super::plan::Plan;
use super::tag::{self, Marked};
use crate::link::{Inside, Seen};
use crate::nft::{Filters, as_mapped};

/// The host as it is, looked at once for any number of attachments.
#[derive(Debug)]
pub(super) struct Outside {
    all: Vec<Marked>,
    filters: Filters,
    /// Those that were looked for.
    bridges: BTreeMap<LinkName, Option<Seen>>,
}

impl Core {
    /// # Errors
    /// `NotFound`, `FailedPrecondition` with what has become other, else the errno.
    pub(super) fn check(&self, plan: &Plan, netns: &Path) -> Result<()> {
        self.check_at(&mut self.outside_of(plan)?, plan, netns)
    }

    /// As [`Core::check`], of a host that was looked at.
    pub(super) fn check_at(&self, outside: &mut Outside, plan: &Plan, netns: &Path) -> Result<()> {
        let other = |what: String| {
            Error::failed_precondition(format_args!("network of {}: {what}", plan.tag.id))
        };
        match outside.wire(self, plan).map(|found| &found.tag) {
            Some(Some(tag)) if *tag == plan.tag => {}
            Some(Some(_)) => return Err(other("it was made for another request".to_owned())),
            _ if self.records.find(&plan.outer)?.is_some() => {
                return Err(other(format!(
                    "interface {} of the host is gone",
                    plan.outer
                )));
            }
            _ => {
                return Err(Error::not_found(format_args!(
                    "network of {} at interface {}",
                    plan.tag.id, plan.interface
                )));
            }
        }
        let inner = Inside::open(netns)?.get(&plan.interface);
        let inner = inner.map_err(|e| e.reclass(Code::FailedPrecondition))?;
        if let Some(what) = differs(&inner.link, plan) {
            return Err(other(format!("interface {}: {what}", plan.interface)));
        }
        match outside.missing(self, plan)? {
            Some(what) => Err(other(what)),
            None => Ok(()),
        }
    }

    /// Looks at what of the host an attachment has to do with.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn outside_of(&self, plan: &Plan) -> Result<Outside> {
        let mut socket = Socket::open(Family::Route)?;
        let mut all = Vec::new();
        for name in [&plan.outer, &plan.bridge] {
            all.extend(tag::find(&mut socket, name)?);
        }
        let filters = self.nat.look_for(&plan.tag.owner(), &plan.bridge);
        Ok(Outside {
            all,
            filters: filters.ctx("packet filters")?,
            bridges: BTreeMap::new(),
        })
    }

    /// Looks at the host.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn outside(&self) -> Result<Outside> {
        Ok(Outside {
            all: tag::list()?,
            filters: self.nat.look().ctx("packet filters")?,
            bridges: BTreeMap::new(),
        })
    }
}

impl Outside {
    /// The end of an attachment's wire.
    pub(super) fn wire(&self, core: &Core, plan: &Plan) -> Option<&Marked> {
        let mut all = self.all.iter();
        all.find(|one| one.name == plan.outer && one.group == core.group)
    }

    /// What is not there, or not as it was made, outside of the container.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn missing(&mut self, core: &Core, plan: &Plan) -> Result<Option<String>> {
        let bridge = self.all.iter().find(|one| one.name == plan.bridge);
        let index = bridge.map(|bridge| bridge.index);
        let wire = self.wire(core, plan);
        if !wire.is_some_and(|wire| wire.is_up && wire.master.is_some() && wire.master == index) {
            return Ok(Some(format!(
                "interface {} is not attached to {}, or down",
                plan.outer, plan.bridge
            )));
        }
        if bridge.is_some_and(|bridge| bridge.group == core.group)
            && let Some(address) = self.missing_address(plan)?
        {
            let bridge = &plan.bridge;
            return Ok(Some(format!(
                "address {address} of bridge {bridge} is missing"
            )));
        }
        Ok(self.missing_filters(plan))
    }

    fn missing_address(&mut self, plan: &Plan) -> Result<Option<IpNet>> {
        if !self.bridges.contains_key(&plan.bridge) {
            let found = Inside::host()?.find(&plan.bridge)?;
            self.bridges.insert(plan.bridge.clone(), found);
        }
        let bridge = self.bridges.get(&plan.bridge).and_then(Option::as_ref);
        let has = |one: &IpNet| bridge.is_some_and(|at| at.link.addresses.contains(one));
        let mut gone = plan.gateways.iter().filter(|one| !has(one));
        Ok(gone.next().copied())
    }

    /// What is missing in the packet filters.
    pub(super) fn missing_filters(&self, plan: &Plan) -> Option<String> {
        let (filters, bridge) = (&self.filters, plan.bridge.as_str());
        if !filters.is_whole {
            return Some("rules of the packet filters are missing".to_owned());
        }
        let is_known = filters.bridges.iter().any(|name| name == bridge);
        let mut own = filters.subnets.iter().filter(|(of, _)| of == bridge);
        let known: Vec<_> = own.by_ref().map(|(_, net)| *net).collect();
        let is_served = |net: &&IpNet| known.iter().any(|one| one.contains(&net.address()));
        let unserved = plan.gateways.iter().find(|net| !is_served(net));
        if !is_known || unserved.is_some() {
            let what = unserved.filter(|_| is_known);
            let what = what.map(|net| format!(" for {}", net.network()));
            let what = what.unwrap_or_default();
            return Some(format!("bridge {bridge} is not masqueraded{what}"));
        }
        let owner = plan.tag.owner();
        let taken = &filters.addresses;
        let is_taken = |ip| taken.iter().any(|(one, of)| *one == ip && *of == owner);
        if let Some(ip) = plan.ips().into_iter().find(|ip| !is_taken(*ip)) {
            return Some(format!("address {ip} is not kept for it"));
        }
        // Without an address of the host a port leads to one of each family.
        let ips = plan.ips();
        for port in &plan.ports {
            let wanted = as_mapped(port);
            for is_v4 in [true, false] {
                let fits = port.host_ip.is_none_or(|ip| ip.is_ipv4() == is_v4)
                    && ips.iter().any(|ip| ip.is_ipv4() == is_v4);
                let mut mapped = filters.ports.iter();
                let is_mapped = mapped
                    .any(|one| one.tag == owner && one.port == wanted && one.to.is_ipv4() == is_v4);
                if fits && !is_mapped {
                    return Some(format!("port {} is not mapped", port.host_port));
                }
            }
        }
        None
    }
}

/// What of an interface is not as planned.
fn differs(link: &Link, plan: &Plan) -> Option<String> {
    if !link.up {
        return Some("it is down".to_owned());
    }
    let missing = plan
        .addresses
        .iter()
        .find(|one| !link.addresses.contains(one));
    if let Some(address) = missing {
        return Some(format!("address {address} is missing"));
    }
    let wanted = plan.inner.routes.iter().flatten();
    let same = |a: &types::network::Route, b: &types::network::Route| {
        (a.destination, a.gateway) == (b.destination, b.gateway)
    };
    let mut missing = wanted.filter(|one| !link.routes.iter().any(|other| same(one, other)));
    if let Some(route) = missing.next() {
        return Some(format!("route to {} is missing", route.destination));
    }
    let is_other = plan.inner.mtu.is_some_and(|mtu| mtu != link.mtu)
        || plan.inner.mac.is_some_and(|mac| link.mac != Some(mac));
    is_other.then(|| "its MTU or hardware address is another".to_owned())
}
