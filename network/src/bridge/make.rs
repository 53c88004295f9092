//! Joining a container: everything that is made for it, or nothing.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::path::Path;
use std::sync::PoisonError;
use std::time::SystemTime;

use sys::netlink::Socket;
use types::network::{
    Attachment, IpNet, Link, LinkKind, LinkName, LinkSpec, MacAddr, NetAddress, NetInterface,
    NetRequest, NetResult,
};
use types::{Error, Result};

use super::plan::{Plan, bridge_mac};
use super::record::{Phase, Record};
use super::{Core, host, tag};
use crate::Undo;
use crate::conntrack::{self, Led};
use crate::link::{Inside, New, Outer, Seen, Wire};
use crate::netns::Identity;
use crate::nft::{as_mapped, dropping};

/// What a bridge was before something was attached to it.
pub(super) struct Before {
    /// Its subnets.
    known: Vec<IpNet>,
    /// The bridge itself, if it was given something.
    link: Option<Link>,
}

impl Core {
    /// # Errors
    /// `Aborted`, with nothing left, when packet filters are of another `era` than the one they were compared in.
    pub(super) fn setup(&self, plan: &Plan, request: &NetRequest, era: u64) -> Result<NetResult> {
        let netns = &request.netns;
        let mut inside = Inside::open(netns)?;
        let mut host = Inside::host()?;
        if inside.ns().inode() == host.ns().inode() {
            return Err(Error::invalid_argument(format_args!(
                "{} is the network namespace of the host",
                netns.display()
            )));
        }
        let mut record = Record {
            request: request.clone(),
            phase: Phase::Coming,
            place: Identity::of(inside.ns())?,
            made_at: SystemTime::now(),
        };
        if let Some(found) = self.find_or_free(&mut host, &plan.outer)? {
            match found.tag {
                Some(tag) if tag != plan.tag => {
                    return Err(Error::already_exists(format_args!(
                        "another attachment of {} as {}",
                        tag.id, tag.interface
                    )));
                }
                Some(_) if self.is_kept(plan, netns) => {
                    self.settle(plan, &mut record)?;
                    let inner = inside.get(&plan.interface)?;
                    let outer = host.brief(&plan.outer)?;
                    return result(plan, netns, &mut host, (inner.link, outer));
                }
                // Half of it, or something that somebody has taken parts from.
                _ => host.delete(&plan.outer)?,
            }
        }
        let attaching = self.bridges.read();
        let made = self.make(plan, &mut record, (&mut host, &mut inside), era);
        drop(attaching);
        let swept = |error: Error| {
            // Of several leftovers the caller hears of the failure alone.
            for error in self.sweep_for(&plan.bridge) {
                tracing::warn!(%error, "left of a failed set-up");
            }
            error
        };
        let (inner, outer) = made.map_err(swept)?;
        self.tell_obstacles(plan);
        let outer = (outer.mac, outer.mtu);
        result(plan, netns, &mut host, (inner.link, outer))
    }

    /// True for what is there as it was made, if need be after what somebody has taken from it outside of
    /// the container was made again.
    fn is_kept(&self, plan: &Plan, netns: &Path) -> bool {
        let is_whole = || self.check(plan, netns).is_ok();
        is_whole() || (self.mend(plan).is_ok() && is_whole())
    }

    /// Writes down that an attachment is there, if nothing says so.
    fn settle(&self, plan: &Plan, record: &mut Record) -> Result<()> {
        if let Ok(Some(found)) = self.records.find(&plan.outer)
            && found.phase == Phase::Active
        {
            return Ok(());
        }
        record.phase = Phase::Active;
        self.records.write(&plan.outer, record)
    }

    fn make(
        &self,
        plan: &Plan,
        record: &mut Record,
        (host, inside): (&mut Inside, &mut Inside),
        era: u64,
    ) -> Result<(Seen, Outer)> {
        if inside.find_mark(&plan.interface)?.is_some() {
            return Err(Error::already_exists(format_args!(
                "interface {} in the network namespace",
                plan.interface
            )));
        }
        let owner = plan.tag.owner();
        self.refuse_gateways(plan)?;
        self.refuse_foreign(plan)?;
        let mut undo = Undo::default();
        self.records.write(&plan.outer, record)?;
        undo.after("record", || self.records.remove(&plan.outer));
        self.nat
            .attach_in(Some(era), &owner, &plan.ips(), &plan.ports)?;
        undo.after("addresses and ports", || self.nat.detach(&owner).map(drop));
        let (before, bridge) = self.serve(plan, host)?;
        undo.after("bridge", move || self.unserve(plan, &before));
        let wire = Wire {
            outer: &plan.outer,
            inner: &plan.interface,
            bridge,
            mtu: plan.inner.mtu,
            mac: plan.inner.mac,
            group: self.group,
        };
        let outer = host.wire(&wire, inside)?;
        undo.after("interface", || Inside::host()?.delete(&plan.outer));
        let inner = inside.furnish(&plan.interface, &plan.inner)?;
        // Of the host itself nothing is changed before all else has worked.
        self.finish(plan, (host, outer.index), record)?;
        undo.keep();
        self.redirect(plan);
        Ok((inner, outer))
    }

    /// Has packets of an attachment passed on, and says that it is whole. Who fails here takes settings of the host
    /// back that others may need: nobody comes to do so meanwhile.
    pub(super) fn finish(
        &self,
        plan: &Plan,
        (host, wire): (&mut Inside, u32),
        record: &mut Record,
    ) -> Result<()> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        // After the lock: it is taken back under it.
        let mut undo = Undo::default();
        let all = OnceCell::new();
        let is_outside = |name: &str| {
            let all = all.get_or_init(|| tag::list().unwrap_or_default());
            let mut found = all.iter().filter(|one| one.name.as_str() == name);
            found.any(|one| !one.is_bridge && one.master.is_none() && one.group != self.group)
        };
        let changed = host::forward(&plan.addresses, &is_outside)?;
        undo.after("settings of the host", || changed.take_back());
        tag::write(host.socket(), wire, &plan.tag)?;
        record.phase = Phase::Active;
        self.records.write(&plan.outer, record)?;
        undo.keep();
        Ok(())
    }

    /// Has a bridge that is as the plan needs it, masqueraded; what it was before, and its number.
    pub(super) fn serve(&self, plan: &Plan, host: &mut Inside) -> Result<(Before, u32)> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        // Again: only from here on nobody comes to have such an address who does not see that it is a gateway's.
        self.refuse_gateways(plan)?;
        let known = self.nat.subnets(&plan.bridge)?;
        let (bridge, link) = self.bridge(plan, host)?;
        let before = Before { known, link };
        let mut undo = Undo::default();
        undo.after("bridge", || self.take_from_bridge(plan, &before));
        let of_bridge = bridge.link.addresses.iter().map(IpNet::address);
        if let Some(address) = { of_bridge }.find(|one| plan.ips().contains(one)) {
            return Err(Error::already_exists(format_args!(
                "address {address} of bridge {}",
                plan.bridge
            )));
        }
        self.nat
            .serve(&plan.bridge, &subnets(plan, &bridge, &before.known))?;
        undo.keep();
        Ok((before, bridge.link.index))
    }

    /// Takes from a bridge what [`Core::serve`] gave it, but for what somebody has come to need meanwhile.
    fn unserve(&self, plan: &Plan, before: &Before) -> Result<()> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.gateways_of_others(plan)?;
        let is_needed = |net: &IpNet| others.iter().any(|one| one.network() == *net);
        let now = self.nat.subnets(&plan.bridge)?;
        let is_kept = |net: &IpNet| before.known.contains(net) || is_needed(net);
        let kept: Vec<IpNet> = now.iter().copied().filter(is_kept).collect();
        // Without any it is forgotten with the bridge.
        if !kept.is_empty() && kept.len() < now.len() {
            self.nat.serve(&plan.bridge, &kept)?;
        }
        self.take_from_bridge(plan, before)
    }

    /// Gives a bridge its addresses back, likewise.
    fn take_from_bridge(&self, plan: &Plan, before: &Before) -> Result<()> {
        let Some(before) = &before.link else {
            return Ok(());
        };
        let others = self.gateways_of_others(plan)?;
        let mut host = Inside::host()?;
        let mut addresses = host.get(&before.name)?.link.addresses;
        addresses.retain(|one| before.addresses.contains(one) || others.contains(one));
        let spec = LinkSpec {
            addresses: Some(addresses),
            ..LinkSpec::default()
        };
        host.change(&before.name, &spec).map(drop)
    }

    /// Gateways that the other attachments of a plan's bridge have, or are about to.
    fn gateways_of_others(&self, plan: &Plan) -> Result<Vec<IpNet>> {
        let all = self.records.list()?.into_iter();
        let others = all.filter(|(outer, _)| *outer != plan.outer);
        let others = others.filter_map(|(_, record)| Plan::of(&record.ok()?.request).ok());
        let others = others.filter(|other| other.bridge == plan.bridge);
        Ok(others.flat_map(|other| other.gateways).collect())
    }

    /// Datagrams that came before their port led anywhere are not sent past the container for ever.
    fn redirect(&self, plan: &Plan) {
        let ips = plan.ips();
        let mut led = Vec::new();
        for port in &plan.ports {
            let fits = |to: &IpAddr| port.host_ip.is_none_or(|ip| ip.is_ipv4() == to.is_ipv4());
            for is_v4 in [true, false] {
                let to = ips.iter().find(|to| to.is_ipv4() == is_v4 && fits(to));
                let port = as_mapped(port);
                led.extend(to.map(|to| Led { port, to: *to }));
            }
        }
        let is_local = |address| host::is_local(address).unwrap_or_default();
        let forget = |socket: &mut Socket| conntrack::forget_strays(socket, &led, is_local);
        if let Err(error) = self.nat.ask(forget) {
            tracing::warn!(id = %plan.tag.id, %error, "datagrams may go where they went before");
        }
    }

    /// Makes again what somebody else has taken from an attachment outside of the container: packet filters,
    /// the bridge's addresses, the wire's place at it.
    pub(super) fn mend(&self, plan: &Plan) -> Result<()> {
        let _attaching = self.bridges.read();
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        self.nat.mend()?;
        let mut host = Inside::host()?;
        self.nat
            .attach(&plan.tag.owner(), &plan.ips(), &plan.ports)?;
        let (bridge, _) = self.bridge(plan, &mut host)?;
        let known = self.nat.subnets(&plan.bridge)?;
        self.nat
            .serve(&plan.bridge, &subnets(plan, &bridge, &known))?;
        let spec = LinkSpec {
            up: Some(true),
            attachment: Some(Some(attachment(plan))),
            ..LinkSpec::default()
        };
        host.change(&plan.outer, &spec).map(drop)
    }

    /// What may keep packets of these addresses from where they should go, and is not ours to change.
    pub(super) fn obstacles(&self, addresses: &[IpAddr]) -> Result<Vec<String>> {
        let dropping = self.nat.ask(dropping)?.into_iter();
        let mut all: Vec<_> = dropping
            .map(|chain| {
                format!(
                    "chain {chain} drops packets that are passed on, unless a rule there lets those \
                     of containers pass"
                )
            })
            .collect();
        all.extend(host::not_forwarding(addresses));
        Ok(all)
    }

    /// Says once what is in the way.
    fn tell_obstacles(&self, plan: &Plan) {
        let found = match self.obstacles(&plan.ips()) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "packet filters of others cannot be looked at");
                return;
            }
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for obstacle in found.iter().filter(|one| !told.contains(one)) {
            tracing::warn!("networks of containers: {obstacle}");
        }
        *told = found;
    }

    /// Refuses gateways at addresses that containers have.
    fn refuse_gateways(&self, plan: &Plan) -> Result<()> {
        let owner = plan.tag.owner();
        let taken = self.nat.addresses()?;
        for gateway in plan.gateways.iter().map(IpNet::address) {
            if taken
                .iter()
                .any(|(address, tag)| *address == gateway && *tag != owner)
            {
                return Err(Error::already_exists(format_args!(
                    "gateway {gateway}: a container has that address"
                )));
            }
        }
        Ok(())
    }

    /// Refuses ports at addresses that are not this host's.
    fn refuse_foreign(&self, plan: &Plan) -> Result<()> {
        let of_gateways: Vec<_> = plan.gateways.iter().map(IpNet::address).collect();
        for address in plan.ports.iter().filter_map(|port| port.host_ip) {
            if !of_gateways.contains(&address) && !host::is_local(address)? {
                return Err(Error::failed_precondition(format_args!(
                    "ports at {address}: it is no address of this host"
                )));
            }
        }
        Ok(())
    }

    /// The bridge, with the gateway's addresses if it is ours; what it was before, if that is changed.
    fn bridge(&self, plan: &Plan, host: &mut Inside) -> Result<(Seen, Option<Link>)> {
        let name = &plan.bridge;
        let mut found = host.find_addresses(name)?;
        if found
            .as_ref()
            .is_some_and(|one| one.group == self.grave.mark())
        {
            // It is to go, and could not yet: whoever came to it would lose it.
            self.grave.empty()?;
            found = host.find_addresses(name)?;
        }
        let Some(found) = found else {
            let spec = LinkSpec {
                mac: Some(bridge_mac(name, self.group)?),
                up: Some(true),
                addresses: Some(plan.gateways.clone()),
                // For mapped ports at 127.0.0.1; packets from outside for it are dropped by a filter.
                sysctls: [("ipv4/route_localnet".to_owned(), "1".to_owned())]
                    .into_iter()
                    .chain(host::deaf_to_routers())
                    .collect(),
                ..LinkSpec::default()
            };
            let new = New {
                name,
                kind: &LinkKind::Bridge,
                spec: &spec,
                group: self.group,
            };
            // It is taken away again when nothing is attached to it.
            return Ok((host.create(&new, None)?, None));
        };
        // Asked each time: by now it may be another's than the one that the container was attached to.
        if let Some(networks) = &self.networks {
            networks.check_usable(&plan.tag.id.namespace, &found)?;
        }
        if found.link.kind != LinkKind::Bridge {
            return Err(Error::failed_precondition(format_args!(
                "interface {name} is no bridge but of kind {}",
                found.link.kind.as_str()
            )));
        }
        let mut addresses = found.link.addresses.clone();
        addresses.extend(
            plan.gateways
                .iter()
                .filter(|one| !found.link.addresses.contains(one)),
        );
        if found.group != self.group || addresses.len() == found.link.addresses.len() {
            return Ok((found, None));
        }
        let spec = LinkSpec {
            addresses: Some(addresses),
            ..LinkSpec::default()
        };
        Ok((host.change(name, &spec)?, Some(found.link)))
    }
}

fn attachment(plan: &Plan) -> Attachment {
    Attachment {
        bridge: plan.bridge.clone(),
        hairpin: true,
        isolated: false,
    }
}

/// The subnets of a bridge that is known to have some, with those of the plan.
fn subnets(plan: &Plan, bridge: &Seen, known: &[IpNet]) -> Vec<IpNet> {
    let mut all = known.to_vec();
    for one in bridge.link.addresses.iter().chain(&plan.gateways) {
        if !all.contains(&one.network()) {
            all.push(one.network());
        }
    }
    all
}

/// What was made: the end inside, and hardware address and largest packet of the one outside.
fn result(
    plan: &Plan,
    netns: &Path,
    host: &mut Inside,
    (inner, outer): (Link, (Option<MacAddr>, u32)),
) -> Result<NetResult> {
    let of_host = |name: &LinkName, (mac, mtu): (Option<MacAddr>, u32)| NetInterface {
        name: name.to_string(),
        mac,
        mtu: Some(mtu),
        netns: None,
    };
    let addresses = plan.addresses.iter().map(|address| NetAddress {
        address: *address,
        gateway: plan.gateway(address),
        interface: Some(0),
    });
    Ok(NetResult {
        addresses: addresses.collect(),
        interfaces: vec![
            NetInterface {
                name: inner.name.to_string(),
                mac: inner.mac,
                mtu: Some(inner.mtu),
                netns: Some(netns.to_owned()),
            },
            of_host(&plan.outer, outer),
            of_host(&plan.bridge, host.brief(&plan.bridge)?),
        ],
        routes: inner.routes,
        ..NetResult::default()
    })
}
