//! Attachments as their records have them, and the records against what is there.
//!
//! Invariant: looking changes nothing. What is repaired is either made again, when a living attachment lacks
//! it, or taken away, when nothing says that anybody wants it.

use std::collections::BTreeSet;
use std::time::SystemTime;

use types::network::{JoinState, Joined, LinkName, NetRequest, TenantId};
use types::{Context as _, Error, Fault, Finding, Namespace, Repair, Result};

use super::check::Outside;
use super::plan::Plan;
use super::record::{Phase, Record};
use super::sweep::all_of;
use super::tag::{self, Marked, Tag};
use super::{Core, NAME};
use crate::link::Inside;
use crate::netns::{check_unused, is_used_as};
use crate::{SOON, repaired};

impl Core {
    /// The attachments of a tenant or of all; with `look` each with what is not as it was made.
    pub(super) fn list(&self, tenant: Option<&Namespace>, look: bool) -> Result<Vec<Joined>> {
        let mut all = Vec::new();
        let marked = self.marked()?;
        let mut outside = match look {
            true => Some(self.outside()?),
            false => None,
        };
        let mut wires: Vec<&Marked> = marked.iter().filter(|one| !one.is_bridge).collect();
        for (outer, record) in self.records.list()? {
            let found = wires.iter().position(|one| one.name == outer);
            let found = found.map(|at| wires.swap_remove(at));
            all.extend(match record {
                Ok(record) => Some(self.joined(&record, outside.as_mut())),
                Err(error) => found.and_then(|one| unrecorded(one, error.to_string())),
            });
        }
        // Nobody hears of one without a record, unless from here.
        let lone = wires.into_iter();
        all.extend(lone.filter_map(|one| unrecorded(one, "it has no record".to_owned())));
        all.retain(|joined| tenant.is_none_or(|tenant| joined.id.namespace == *tenant));
        all.sort_by(|a, b| (&a.id, &a.interface).cmp(&(&b.id, &b.interface)));
        Ok(all)
    }

    fn joined(&self, record: &Record, outside: Option<&mut Outside>) -> Joined {
        let request = &record.request;
        let plan = Plan::of(request);
        let network = plan
            .as_ref()
            .map(|plan| plan.bridge.to_string())
            .unwrap_or_default();
        let checked = match (plan, outside) {
            (Ok(plan), Some(outside)) => self.check_at(outside, &plan, &request.netns),
            (Ok(_), None) => Ok(()),
            (Err(error), _) => Err(error),
        };
        Joined {
            driver: NAME.to_owned(),
            id: request.id.clone(),
            interface: request.interface.to_string(),
            network,
            netns: request.netns.clone(),
            addresses: request.addresses.clone(),
            ports: request.ports.clone(),
            state: match record.phase {
                Phase::Coming => JoinState::Joining,
                Phase::Active => JoinState::Joined,
                Phase::Going => JoinState::Parting,
            },
            fault: checked.err().map(|e| e.to_string()).unwrap_or_default(),
        }
    }

    /// Compares records with what is there, both ways. `lost` are containers of which there is no record:
    /// their attachments are nobody's when nobody is in their network namespaces either.
    pub(super) fn inspect(&self, lost: &BTreeSet<TenantId>, repair: bool) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let marked = self.marked()?;
        let mut recorded = BTreeSet::new();
        if !self.nat.is_possible()? {
            return Ok(findings);
        }
        let left = self.grave.left()?;
        let mut outside = self.outside()?;
        for (outer, record) in self.records.list()? {
            let found = marked.iter().find(|one| one.name == outer);
            recorded.insert(outer.clone());
            let finding = match record {
                Ok(record) => {
                    let found = (found, &mut outside);
                    self.inspect_record(&outer, &record, found, lost, repair)?
                }
                Err(error) => Some(self.inspect_damaged(&outer, (found, lost), &error, repair)),
            };
            findings.extend(finding);
        }
        let orphans = marked.iter().filter(|one| !one.is_bridge);
        for one in orphans.filter(|one| !recorded.contains(&one.name)) {
            findings.push(self.orphan(one, lost, repair));
        }
        for owner in self.unknown_owners()? {
            let what = "packet filters have it, no record does";
            let gone = || self.detach(&owner);
            let object = format!("network-attachment {owner}");
            findings.push(finding(Fault::Orphan, object, what, repaired(repair, gone)));
        }
        self.inspect_bridges(&mut findings, repair)?;
        findings.extend(self.inspect_grave(left, repair));
        Ok(findings)
    }

    /// What was taken away by somebody who died before the kernel had done so.
    fn inspect_grave(&self, left: Vec<LinkName>, repair: bool) -> Vec<Finding> {
        // Also what was repaired here: nobody may be there any more to take it away.
        let done = repaired(repair, || self.grave.empty());
        let orphan = |name: LinkName| {
            let object = format!("interface {name}");
            let text = "it was taken away, and is still there";
            finding(Fault::Orphan, object, text, done)
        };
        left.into_iter().map(orphan).collect()
    }

    fn inspect_record(
        &self,
        outer: &LinkName,
        record: &Record,
        (found, outside): (Option<&Marked>, &mut Outside),
        lost: &BTreeSet<TenantId>,
        repair: bool,
    ) -> Result<Option<Finding>> {
        let request = &record.request;
        let tag = Tag::of(request);
        let object = format!("network-attachment {}", tag.owner());
        let gone = || all_of(self.take_down(outer, &tag.owner()));
        let noted =
            |fault, text: &str, repair| Ok(Some(finding(fault, object.clone(), text, repair)));
        if record.phase != Phase::Active {
            let text = "it was not finished";
            return noted(Fault::Dangling, text, repaired(repair, gone));
        }
        let is_there = found.is_some_and(|one| one.tag.as_ref() == Some(&tag));
        if !is_there {
            let is_ns = record.place.is_at(&request.netns)?;
            let text = match is_ns {
                true => format!("interface {outer} of the host is gone"),
                false => format!("network namespace {} is gone", request.netns.display()),
            };
            // A wire that no longer says whose it is still carries what is sent by it.
            let repair = match found.is_none_or(is_idle) {
                true => repaired(repair, gone),
                false => Repair::Impossible,
            };
            return noted(Fault::Missing, &text, repair);
        }
        if lost.contains(&request.id) && is_unused(record)? {
            let text = "there is no container of that id, and nobody in its network namespace";
            return noted(Fault::Dangling, text, repaired(repair, gone));
        }
        let plan = Plan::of(request)?;
        match outside.missing(self, &plan)? {
            Some(what) => {
                let mended = repaired(repair, || self.mend(&plan));
                noted(Fault::Missing, &what, mended)
            }
            None => Ok(None),
        }
    }

    fn inspect_damaged(
        &self,
        outer: &LinkName,
        (found, lost): (Option<&Marked>, &BTreeSet<TenantId>),
        error: &Error,
        repair: bool,
    ) -> Finding {
        let tag = found.and_then(|one| one.tag.as_ref());
        let owner = tag.map(Tag::owner).unwrap_or_default();
        let gone = || {
            if found.is_some() {
                Inside::host()?.delete(outer).absent_ok()?;
            }
            self.forget(outer)?;
            all_of(self.sweep())
        };
        let object = format!(
            "network-attachment {}",
            if tag.is_some() {
                &owner
            } else {
                outer.as_str()
            }
        );
        let done = match found.is_none_or(|one| is_abandoned(one, lost)) {
            true => repaired(repair, gone),
            false => Repair::Impossible,
        };
        finding(Fault::Damaged, object, &error.to_string(), done)
    }

    /// An interface of ours that has no record. Of one that is in use only who asked for it can say what
    /// belongs into a record: it is written when the same is asked for again.
    fn orphan(&self, one: &Marked, lost: &BTreeSet<TenantId>, repair: bool) -> Finding {
        let owner = one.tag.as_ref().map(Tag::owner);
        let gone = || match &owner {
            Some(owner) => all_of(self.take_down(&one.name, owner)),
            None => Inside::host()?.delete(&one.name).absent_ok().map(drop),
        };
        let whose = owner.as_deref().unwrap_or("nobody");
        let text = format!("it is marked as made here for {whose}, and has no record");
        let object = format!("interface {}", one.name);
        let done = match is_abandoned(one, lost) {
            true => repaired(repair, gone),
            false => Repair::Impossible,
        };
        finding(Fault::Orphan, object, &text, done)
    }

    /// Bridges of ours that nothing is attached to, and packet filters of bridges that are not there.
    fn inspect_bridges(&self, findings: &mut Vec<Finding>, repair: bool) -> Result<()> {
        // What is repaired by now may have taken them along.
        let all = tag::list()?;
        let swept = || all_of(self.sweep());
        let is_used = |bridge: &Marked| all.iter().any(|one| one.master == Some(bridge.index));
        let ours = all
            .iter()
            .filter(|one| one.is_bridge && one.group == self.group);
        for bridge in ours.filter(|bridge| !is_used(bridge)) {
            let object = format!("interface {}", bridge.name);
            let text = "it was made here as a bridge, and nothing is attached to it";
            findings.push(finding(
                Fault::Orphan,
                object,
                text,
                repaired(repair, swept),
            ));
        }
        for name in self.nat.bridges()? {
            let is_there = |one: &&Marked| one.is_bridge && one.name.as_str() == name;
            if all.iter().any(|one| is_there(&one) && is_used(one)) {
                continue;
            }
            let object = format!("packet filters of bridge {name}");
            let text = "nothing is attached to it";
            findings.push(finding(
                Fault::Orphan,
                object,
                text,
                repaired(repair, swept),
            ));
        }
        Ok(())
    }
}

/// What is known of an attachment that no record tells of: the interface says whose it is.
fn unrecorded(one: &Marked, fault: String) -> Option<Joined> {
    let tag = one.tag.clone()?;
    Some(Joined {
        driver: NAME.to_owned(),
        id: tag.id,
        interface: tag.interface.to_string(),
        network: String::new(),
        netns: std::path::PathBuf::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
        state: JoinState::Damaged,
        fault,
    })
}

/// True for a wire that nobody was told of, or whose container is lost, and that nobody is behind.
fn is_abandoned(one: &Marked, lost: &BTreeSet<TenantId>) -> bool {
    let Some(tag) = &one.tag else {
        return true;
    };
    lost.contains(&tag.id) && is_idle(one)
}

/// True when nobody is in the network namespace of a wire's other end. What cannot be told is in use.
fn is_idle(one: &Marked) -> bool {
    let used = one.other.map_or(Ok(false), is_used_as);
    let used = used.inspect_err(|error| {
        tracing::warn!(interface = %one.name, %error, "who uses it cannot be told");
    });
    !used.unwrap_or(true)
}

/// True when nobody is in the network namespace of what was not joined just now.
fn is_unused(record: &Record) -> Result<bool> {
    let NetRequest { netns, .. } = &record.request;
    let age = SystemTime::now().duration_since(record.made_at);
    // Of a path that leads elsewhere it cannot be told; the wire says that it is there.
    if age.unwrap_or_default() < SOON || !record.place.is_at(netns)? {
        return Ok(false);
    }
    let inside = Inside::open(netns)?;
    Ok(check_unused("", inside.ns().inode()).is_ok())
}

fn finding(fault: Fault, object: String, text: &str, repair: Repair) -> Finding {
    Finding {
        fault,
        object,
        text: text.to_owned(),
        repair,
    }
}
