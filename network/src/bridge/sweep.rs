//! Taking away what is not needed any more, and making again what is.
//!
//! Invariant: what is needed is told by what is attached now; what somebody else has made stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use sys::netlink::{Family, Socket};
use types::network::{IpNet, LinkName, LinkSpec, TenantId};
use types::{Code, Context as _, Error, Errors, Result};

use super::Core;
use super::plan::Plan;
use super::record::{Phase, Record};
use super::tag::{self, Marked, Tag};
use crate::link::Inside;

impl Core {
    /// As [`Core::sweep`], after something has gone from a bridge: nothing when somebody has an address in each of
    /// its networks.
    pub(super) fn sweep_for(&self, bridge: &LinkName) -> Vec<Error> {
        let is_needed = || -> Result<bool> {
            let (known, taken) = (self.nat.subnets(bridge)?, self.nat.addresses()?);
            // No two bridges have networks in common.
            let is_used = |net: &IpNet| taken.iter().any(|(address, _)| net.contains(address));
            Ok(!known.is_empty() && known.iter().all(is_used))
        };
        match is_needed() {
            Ok(true) => Vec::new(),
            Ok(false) => self.sweep(),
            Err(error) => vec![error],
        }
    }

    /// Takes bridges of ours away that nothing is attached to, and filters of bridges that are not there.
    pub(super) fn sweep(&self) -> Vec<Error> {
        let _alone = self.bridges.write();
        let mut all = match tag::list() {
            Ok(all) => all,
            Err(error) => return vec![error],
        };
        // Ends of wires that are gone keep no bridge.
        all.retain(|one| one.group != self.grave.mark());
        let is_used = |bridge: &Marked| all.iter().any(|one| one.master == Some(bridge.index));
        let is_ours = |bridge: &Marked| {
            all.iter()
                .any(|one| one.master == Some(bridge.index) && one.group == self.group)
        };
        let (mut failed, mut has_buried) = (Vec::new(), false);
        for bridge in all.iter().filter(|one| one.is_bridge) {
            if bridge.group == self.group && !is_used(bridge) {
                let mark = self.grave.mark();
                let marked = Inside::host()
                    .and_then(|mut host| host.mark(bridge.index, &bridge.name, mark))
                    .absent_ok();
                has_buried |= matches!(marked, Ok(Some(())));
                failed.extend(marked.err());
            } else if bridge.group == self.group && is_ours(bridge) {
                failed.extend(self.reduce(bridge, &all).err());
            }
        }
        if has_buried {
            // What is routed to it must not wait for a worker. The last wires go along.
            failed.extend(self.grave.empty().err());
        }
        let known = match self.nat.bridges() {
            Ok(known) => known,
            Err(error) => {
                failed.push(error);
                return failed;
            }
        };
        for name in known {
            let bridge = all.iter().find(|one| one.name.as_str() == name);
            if !bridge.is_some_and(is_ours) {
                let forgotten = name.parse().and_then(|name| self.nat.forget(&name));
                failed.extend(forgotten.err());
            }
        }
        failed
    }

    /// Takes networks away from a bridge of ours that no container at it has an address of any more.
    fn reduce(&self, bridge: &Marked, all: &[Marked]) -> Result<()> {
        let at_it = all.iter().filter(|one| one.master == Some(bridge.index));
        let at_it: Vec<_> = at_it.collect();
        let owners: BTreeSet<_> = { at_it.iter() }
            .filter_map(|one| Some(one.tag.as_ref()?.owner()))
            .collect();
        let taken = self.nat.addresses()?.into_iter();
        let mut taken: Vec<IpAddr> = taken
            .filter(|(_, owner)| owners.contains(owner))
            .map(|(address, _)| address)
            .collect();
        let known = self.nat.subnets(&bridge.name)?;
        let is_needed = |net: &IpNet| taken.iter().any(|address| net.contains(address));
        if known.iter().all(is_needed) {
            return Ok(());
        }
        // Somebody may have emptied the packet filters: who is at the bridge is on record, too.
        for one in at_it.iter().filter(|one| one.group == self.group) {
            match self.records.find(&one.name) {
                Ok(Some(record)) if record.phase == Phase::Active => {
                    taken.extend(record.request.addresses.iter().map(IpNet::address));
                }
                Ok(Some(_)) => {}
                // What it has nobody can say.
                Ok(None) | Err(_) => return Ok(()),
            }
        }
        let is_needed = |net: &IpNet| taken.iter().any(|address| net.contains(address));
        let (kept, gone): (Vec<IpNet>, Vec<IpNet>) = known.into_iter().partition(is_needed);
        if gone.is_empty() || kept.is_empty() {
            return Ok(());
        }
        let mut host = Inside::host()?;
        let mut addresses = host.get(&bridge.name)?.link.addresses;
        addresses.retain(|one| !gone.contains(&one.network()));
        let spec = LinkSpec {
            addresses: Some(addresses),
            ..LinkSpec::default()
        };
        host.change(&bridge.name, &spec)?;
        self.nat.serve(&bridge.name, &kept)
    }

    /// Names of all interfaces that an attachment has, or should have, on the host, each with those who have packet
    /// filters under it. At the first call an earlier process' leftovers go: nobody works meanwhile.
    pub(super) fn all_outer(&self) -> Result<BTreeMap<LinkName, BTreeSet<String>>> {
        self.records.sweep()?;
        if !self.has_begun.load(Ordering::Relaxed) {
            self.grave.empty()?;
            self.has_begun.store(true, Ordering::Relaxed);
        }
        let marked = self.marked()?.into_iter().filter(|one| !one.is_bridge);
        let marked = marked.map(|one| one.name);
        let recorded = self.records.list()?.into_iter().map(|(outer, _)| outer);
        let none = |outer| (outer, BTreeSet::new());
        let mut all: BTreeMap<_, BTreeSet<_>> = marked.chain(recorded).map(none).collect();
        for owner in self.nat.attached()? {
            let owners = all.entry(tag::outer_of(&owner)?).or_default();
            owners.insert(owner);
        }
        Ok(all)
    }

    /// Takes away what nobody wants of an attachment, or makes again what it lacks; `owners` had packet filters
    /// under its name. Nothing is looked at but what it has: there may be thousands.
    pub(super) fn reconcile(
        &self,
        outer: &LinkName,
        owners: &BTreeSet<String>,
        wanted: &dyn Fn(&TenantId) -> bool,
    ) -> Result<()> {
        let mut errors = Errors::default();
        let found = self.find_own(outer)?;
        match self.records.find(outer) {
            Ok(None) => {}
            Ok(Some(record)) => {
                errors.note(self.take_up(outer, &record, found.as_ref(), wanted));
            }
            Err(error) => {
                tracing::warn!(%outer, %error, "record of an attachment is damaged");
                // With a wire, who looks decides: it says whose it is. Without one there is nothing.
                if found.is_none() && error.is(Code::DataLoss) {
                    errors.note(self.forget(outer));
                }
            }
        }
        if let Some(one) = self.find_own(outer)? {
            let keep = one.is_bridge || one.tag.as_ref().is_some_and(|tag| wanted(&tag.id));
            if !keep {
                let gone = Inside::host().and_then(|mut host| host.delete(&one.name));
                errors.note(gone.absent_ok());
            }
        }
        for owner in owners {
            if self.is_unknown(outer, owner)? {
                errors.note(self.detach(owner));
            }
        }
        errors.into_result()
    }

    /// True for an owner of packet filters that has neither a record nor an interface, as in
    /// [`Core::unknown_owners`].
    fn is_unknown(&self, outer: &LinkName, owner: &str) -> Result<bool> {
        let is_of = |tag: &Tag| tag.owner() == owner;
        let is_recorded = match self.records.find(outer) {
            Ok(record) => record.is_some_and(|one| is_of(&Tag::of(&one.request))),
            // Whose it is its name says, to who knows the owner.
            Err(_) => true,
        };
        let has_wire = || Ok(self.find_own(outer)?.and_then(|one| one.tag));
        Ok(!is_recorded && !has_wire()?.is_some_and(|tag| is_of(&tag)))
    }

    /// The interface of that name, if it is ours.
    fn find_own(&self, outer: &LinkName) -> Result<Option<Marked>> {
        let found = tag::find(&mut Socket::open(Family::Route)?, outer)?;
        Ok(found.filter(|one| one.group == self.group))
    }

    /// Takes away a record that says nothing, and the packet filters of whom it may have been.
    pub(super) fn forget(&self, outer: &LinkName) -> Result<()> {
        for owner in self.nat.attached()? {
            if tag::outer_of(&owner)? == *outer {
                self.detach(&owner)?;
            }
        }
        self.records.remove(outer)
    }

    fn take_up(
        &self,
        outer: &LinkName,
        record: &Record,
        found: Option<&Marked>,
        wanted: &dyn Fn(&TenantId) -> bool,
    ) -> Result<()> {
        let request = &record.request;
        let (plan, id) = (Plan::of(request)?, &request.id);
        let is_there = found.is_some_and(|one| one.tag.as_ref() == Some(&plan.tag));
        let is_over = record.phase != Phase::Active || !wanted(id);
        let is_lost = || !is_there && record.place.is_at(&request.netns).is_ok_and(|it| !it);
        if is_over || is_lost() {
            return all_of(self.take_down(outer, &plan.tag.owner()));
        }
        if !is_there {
            // Its network namespace is there: who has taken the wire alone is not for us to guess.
            tracing::warn!(%id, interface = %plan.interface, "its interface is gone");
            return Ok(());
        }
        let Some(what) = self.outside_of(&plan)?.missing(self, &plan)? else {
            return Ok(());
        };
        tracing::warn!(%id, what, "somebody has changed a network: it is made again");
        self.mend(&plan).ctx_with(|| format!("network of {id}"))
    }

    /// Makes again what somebody has taken from the packet filters of those that are attached: whoever comes would
    /// find their addresses and ports free, and keep them for good. Nobody else works meanwhile.
    ///
    /// # Errors
    /// The errno of looking. What cannot be made again is logged: it is the other's trouble.
    pub(super) fn recall(&self) -> Result<()> {
        if self.nat.compared()?.is_some() {
            // Somebody who has waited for the same was first.
            return Ok(());
        }
        let era = self.nat.era()?;
        let mut outside = self.outside()?;
        for (_, record) in self.records.list()? {
            let Ok(record) = record else {
                continue;
            };
            if record.phase != Phase::Active {
                continue;
            }
            let Ok(plan) = Plan::of(&record.request) else {
                continue;
            };
            let wire = outside.wire(self, &plan);
            if wire.and_then(|wire| wire.tag.as_ref()) != Some(&plan.tag) {
                continue;
            }
            let Some(what) = outside.missing_filters(&plan) else {
                continue;
            };
            let id = &plan.tag.id;
            tracing::warn!(%id, what, "somebody has changed packet filters: they are made again");
            if let Err(error) = self.mend(&plan) {
                tracing::warn!(%id, %error, "its network is not whole");
            }
            outside = self.outside()?;
        }
        self.nat.note_compared(era);
        Ok(())
    }

    /// Owners of packet filters that have neither a record nor an interface.
    pub(super) fn unknown_owners(&self) -> Result<BTreeSet<String>> {
        let mut unknown = self.nat.attached()?;
        for one in self.marked()?.into_iter().filter_map(|one| one.tag) {
            unknown.remove(&one.owner());
        }
        for (outer, record) in self.records.list()? {
            match record {
                Ok(record) => drop(unknown.remove(&Tag::of(&record.request).owner())),
                // Whose it is its name says, to who knows the owner.
                Err(_) => {
                    unknown.retain(|owner| tag::outer_of(owner).ok().as_ref() != Some(&outer));
                }
            }
        }
        Ok(unknown)
    }
}

/// Several failures as one.
pub(super) fn all_of(failed: Vec<Error>) -> Result<()> {
    let mut errors = Errors::default();
    for error in failed {
        errors.note::<()>(Err(error));
    }
    errors.into_result()
}
