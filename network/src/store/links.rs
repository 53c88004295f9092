//! Interfaces with their records.
//!
//! Of the host's interfaces a tenant sees its own and those that nobody made here; of the latter it changes
//! none. In a namespace of its own it sees and changes all.

use std::time::SystemTime;

use types::network::{Link, LinkKind, LinkName, LinkSpec, NewLink, Place};
use types::{Error, Event, Fields, Filter, Labels, Namespace, Result, Scope};

use super::{Store, relabelled};
use crate::Undo;
use crate::link::{Inside, New, Seen, validate_kind};
use crate::record::{self, Entry, LinkFacts, LinkKey, Phase};

/// A move, a rename, or both.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) place: Place,
    pub(crate) name: LinkName,
    pub(crate) to_place: Place,
    pub(crate) to_name: LinkName,
}

/// Who may do what with an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The tenant's.
    Own,
    /// Nobody's: it was not made here.
    Free,
    /// Somebody else's.
    Hidden,
}

pub(super) fn missing(place: &Place, name: &LinkName) -> Error {
    Error::not_found(format_args!("interface {name} in {place}"))
}

/// Refuses a name that is taken, whoever has it.
fn check_free(inside: &mut Inside, place: &Place, name: &LinkName) -> Result<()> {
    match inside.find(name)? {
        None => Ok(()),
        Some(_) => Err(Error::already_exists(format_args!(
            "interface {name} in {place}"
        ))),
    }
}

impl Store {
    fn standing(&self, tenant: &Namespace, place: &Place, seen: &Seen) -> Standing {
        if *place != Place::Host {
            return Standing::Own;
        }
        let key = (tenant.clone(), place.clone(), seen.link.name.clone());
        let known = self.known();
        let own = known
            .links
            .get(&key)
            .is_some_and(|e| e.what.index == seen.link.index);
        match own {
            true => Standing::Own,
            false if seen.group == self.group => Standing::Hidden,
            false if self.hidden.contains(&seen.group) => Standing::Hidden,
            false if seen.group == self.grave.mark() => Standing::Hidden,
            false => Standing::Free,
        }
    }

    /// Refuses an interface of the host that another tenant has made.
    pub(crate) fn check_usable(&self, tenant: &Namespace, seen: &Seen) -> Result<()> {
        let is_hidden = || self.standing(tenant, &Place::Host, seen) == Standing::Hidden;
        if seen.group == self.group && is_hidden() {
            return Err(Error::permission_denied(format_args!(
                "interface {} of the host",
                seen.link.name
            )));
        }
        Ok(())
    }

    /// The interface with what its record says of it.
    fn told(&self, tenant: &Namespace, place: &Place, seen: Seen) -> Link {
        let mut link = seen.link;
        link.place = place.clone();
        let key = (tenant.clone(), place.clone(), link.name.clone());
        let known = self.known();
        if let Some(entry) = known.links.get(&key).filter(|e| e.what.index == link.index) {
            link.labels = entry.labels.clone();
            link.created_at = Some(entry.created_at);
        }
        link
    }

    /// The interface, if the tenant may see it.
    fn visible(
        &self,
        inside: &mut Inside,
        tenant: &Namespace,
        place: &Place,
        name: &LinkName,
    ) -> Result<Seen> {
        let seen = inside.find(name)?.ok_or_else(|| missing(place, name))?;
        match self.standing(tenant, place, &seen) {
            Standing::Hidden => Err(missing(place, name)),
            Standing::Own | Standing::Free => Ok(seen),
        }
    }

    /// The interface, if the tenant may change it.
    pub(super) fn owned(
        &self,
        inside: &mut Inside,
        tenant: &Namespace,
        place: &Place,
        name: &LinkName,
    ) -> Result<Seen> {
        let seen = self.visible(inside, tenant, place, name)?;
        if self.standing(tenant, place, &seen) == Standing::Free {
            return Err(Error::failed_precondition(format_args!(
                "interface {name} of the host was not made here, and is not changed here"
            )));
        }
        Ok(seen)
    }

    /// Refuses a bridge that the tenant may not see.
    fn check_bridge(
        &self,
        inside: &mut Inside,
        tenant: &Namespace,
        place: &Place,
        spec: &LinkSpec,
    ) -> Result<()> {
        if let Some(Some(attachment)) = &spec.attachment {
            self.visible(inside, tenant, place, &attachment.bridge)?;
        }
        Ok(())
    }

    /// The caller has the places alone.
    pub(crate) fn create_link(&self, scope: &Scope, new: &NewLink) -> Result<Link> {
        let tenant = &scope.namespace;
        new.labels.validate()?;
        let labels = new.labels.clone().without_empty();
        validate_kind(&new.name, &new.kind, &new.spec)?;
        let mut inside = self.inside(tenant, &new.place)?;
        self.check_bridge(&mut inside, tenant, &new.place, &new.spec)?;
        let key = (tenant.clone(), new.place.clone(), new.name.clone());
        if let Some(seen) = inside.find(&new.name)? {
            return self.create_again(&mut inside, &key, &seen, new, &labels);
        }
        let mut elsewhere = self.elsewhere(&mut inside, tenant, new)?;
        let entry = |labels| {
            let facts = LinkFacts {
                index: 0,
                moved_from: None,
                moved_mac: None,
                pair: None,
            };
            self.entry(scope, labels, facts)
        };
        let mut records = vec![(key.clone(), entry(labels))];
        // The other end lives as long as this one: it is in no lease of its own.
        if let LinkKind::Veth(Some(peer)) = &new.kind {
            let place = peer.place.clone().unwrap_or_else(|| new.place.clone());
            let mut of_peer = entry(Labels::new());
            of_peer.lease = None;
            records.push(((tenant.clone(), place, peer.name.clone()), of_peer));
        }
        let mut undo = Undo::default();
        for (key, entry) in &records {
            let number = entry.number;
            undo.after("record", move || self.remove_record(number));
            record::write_link(&self.record(number), key, entry)?;
        }
        let parts = New {
            name: &new.name,
            kind: &new.kind,
            spec: &new.spec,
            group: self.group,
        };
        let made = inside.create(&parts, elsewhere.as_mut())?;
        self.settle(&mut inside, elsewhere.as_mut(), &made, &mut records)
            .inspect_err(|_| inside.drop_made(made.link.index, &new.name))?;
        undo.keep();
        self.known().links.extend(records);
        self.publish_link(&key, &made, |name, network_namespace, kind| {
            Event::NetworkLinkCreate {
                name,
                network_namespace,
                kind,
            }
        });
        Ok(self.told(tenant, &new.place, made))
    }

    /// Writes down that an interface, and the other end of a pair, are there.
    fn settle(
        &self,
        inside: &mut Inside,
        elsewhere: Option<&mut Inside>,
        made: &Seen,
        records: &mut [(LinkKey, Entry<LinkFacts>)],
    ) -> Result<()> {
        let numbers: Vec<u64> = records.iter().map(|(_, entry)| entry.number).collect();
        let beside = elsewhere.unwrap_or(inside);
        for (at, (key, entry)) in records.iter_mut().enumerate() {
            entry.what.index = match at {
                0 => made.link.index,
                _ => beside.get(&key.2)?.link.index,
            };
            entry.what.pair = numbers
                .iter()
                .copied()
                .find(|number| *number != entry.number);
            entry.phase = Phase::Active;
            record::write_link(&self.record(entry.number), key, entry)?;
        }
        Ok(())
    }

    pub(super) fn publish_link(
        &self,
        key: &LinkKey,
        seen: &Seen,
        event: impl FnOnce(String, String, String) -> Event,
    ) {
        let kind = seen.link.kind.as_str().to_owned();
        let event = event(seen.link.name.to_string(), key.1.name().to_owned(), kind);
        self.publish(&key.0, event);
    }

    /// An interface of that name is there: it is the one that is asked for, or in the way.
    fn create_again(
        &self,
        inside: &mut Inside,
        key: &LinkKey,
        seen: &Seen,
        new: &NewLink,
        labels: &Labels,
    ) -> Result<Link> {
        let entry = self.known().links.get(key).cloned();
        let same = entry
            .is_some_and(|entry| entry.what.index == seen.link.index && entry.labels == *labels);
        if !same || !is_same_kind(&seen.link.kind, &new.kind) {
            return Err(Error::already_exists(format_args!(
                "interface {} in {}",
                new.name, new.place
            )));
        }
        let seen = inside.change(&new.name, &new.spec)?;
        Ok(self.told(&key.0, &key.1, seen))
    }

    /// The place of the other end or the parent, if it is not that of the interface itself.
    fn elsewhere(
        &self,
        inside: &mut Inside,
        tenant: &Namespace,
        new: &NewLink,
    ) -> Result<Option<Inside>> {
        let Some(other) = new.kind.other() else {
            return Ok(None);
        };
        let place = other.place.as_ref().unwrap_or(&new.place);
        let is_peer = matches!(new.kind, LinkKind::Veth(_));
        let mut elsewhere = match *place == new.place {
            true => None,
            false => Some(self.inside(tenant, place)?),
        };
        let there = elsewhere.as_mut().unwrap_or(inside);
        if is_peer {
            // Before there is a record that says that it comes.
            check_free(there, place, &other.name)?;
        } else {
            self.visible(there, tenant, place, &other.name)?;
        }
        Ok(elsewhere)
    }

    pub(crate) fn get_link(
        &self,
        tenant: &Namespace,
        place: &Place,
        name: &LinkName,
    ) -> Result<Link> {
        let mut inside = self.inside(tenant, place)?;
        let seen = self.visible(&mut inside, tenant, place, name)?;
        Ok(self.told(tenant, place, seen))
    }

    pub(crate) fn list_links(
        &self,
        tenant: &Namespace,
        place: &Place,
        filter: &Filter,
    ) -> Result<Vec<Link>> {
        let all = self.inside(tenant, place)?.list()?;
        let seen = all
            .into_iter()
            .filter(|seen| self.standing(tenant, place, seen) != Standing::Hidden);
        let told = seen.map(|seen| self.told(tenant, place, seen));
        Ok(told.filter(|link| filter.matches(link)).collect())
    }

    /// The caller has the place alone.
    pub(crate) fn update_link(
        &self,
        key: &LinkKey,
        spec: &LinkSpec,
        labels: Option<(&Labels, &Fields)>,
    ) -> Result<Link> {
        let (tenant, place, name) = (&key.0, &key.1, &key.2);
        let mut inside = self.inside(tenant, place)?;
        let seen = self.owned(&mut inside, tenant, place, name)?;
        self.check_bridge(&mut inside, tenant, place, spec)?;
        let mut entry = self
            .known()
            .links
            .get(key)
            .cloned()
            .filter(|e| e.what.index == seen.link.index);
        if let Some((labels, fields)) = labels {
            let Some(entry) = &mut entry else {
                return Err(Error::failed_precondition(format_args!(
                    "interface {name} in {place} was not made here, and has no labels"
                )));
            };
            entry.labels = relabelled(&entry.labels, labels, fields, "interface")?;
        }
        let seen = inside.change(name, spec)?;
        if let Some(mut entry) = entry {
            entry.updated_at = SystemTime::now();
            record::write_link(&self.record(entry.number), key, &entry)?;
            self.known().links.insert(key.clone(), entry);
        }
        self.publish_link(key, &seen, |name, network_namespace, kind| {
            Event::NetworkLinkUpdate {
                name,
                network_namespace,
                kind,
            }
        });
        Ok(self.told(tenant, place, seen))
    }

    /// The caller has both places alone.
    pub(crate) fn transfer_link(&self, tenant: &Namespace, to: &Transfer) -> Result<Link> {
        let mut inside = self.inside(tenant, &to.place)?;
        let before = (tenant.clone(), to.place.clone(), to.name.clone());
        let after = (tenant.clone(), to.to_place.clone(), to.to_name.clone());
        let seen = self.owned(&mut inside, tenant, &to.place, &to.name)?;
        let entry = self.known().links.get(&before).cloned();
        let entry = entry.filter(|e| e.what.index == seen.link.index);
        let Some(mut entry) = entry else {
            return Err(Error::failed_precondition(format_args!(
                "interface {} in {} was not made here, and is not moved",
                to.name, to.place
            )));
        };
        let was = entry.clone();
        // What cannot be is refused before there is a record that says that it is.
        let mut target = match to.place == to.to_place {
            true => None,
            false => Some(self.inside(tenant, &to.to_place)?),
        };
        if before != after {
            let there = target.as_mut().unwrap_or(&mut inside);
            check_free(there, &to.to_place, &to.to_name)?;
        }
        entry.what.moved_from = Some((to.place.clone(), to.name.clone()));
        entry.what.moved_mac = seen.link.mac;
        let mut undo = Undo::default();
        undo.after("record", || {
            record::write_link(&self.record(was.number), &before, &was)
        });
        record::write_link(&self.record(entry.number), &after, &entry)?;
        let moved = match &mut target {
            None => inside.rename(&to.name, &to.to_name)?,
            Some(target) => inside.transfer(&to.name, target, &to.to_name)?,
        };
        undo.keep();
        entry.what.index = moved.link.index;
        (entry.what.moved_from, entry.what.moved_mac) = (None, None);
        entry.updated_at = SystemTime::now();
        {
            let mut known = self.known();
            known.links.remove(&before);
            known.links.insert(after.clone(), entry.clone());
        }
        record::write_link(&self.record(entry.number), &after, &entry)?;
        self.publish_link(&after, &moved, |name, network_namespace, kind| {
            Event::NetworkLinkUpdate {
                name,
                network_namespace,
                kind,
            }
        });
        Ok(self.told(tenant, &to.to_place, moved))
    }
}

/// What is there says less than what is asked for: of what is out of sight there is no name.
fn is_same_kind(there: &LinkKind, wanted: &LinkKind) -> bool {
    let mut there = there.clone();
    match (&mut there, wanted) {
        (LinkKind::Veth(a), LinkKind::Veth(b))
        | (LinkKind::Macvlan(a, _), LinkKind::Macvlan(b, _))
        | (LinkKind::Ipvlan(a, _), LinkKind::Ipvlan(b, _))
        | (LinkKind::Vlan(a, _), LinkKind::Vlan(b, _)) => {
            if a.is_none() {
                a.clone_from(b);
            } else if let (Some(a), Some(b)) = (a, b) {
                a.place.clone_from(&b.place);
            }
        }
        (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => {
            if a.parent.is_none() || b.parent.is_some() {
                a.parent.clone_from(&b.parent);
            }
            if b.port.is_none() {
                a.port = None;
            }
        }
        _ => {}
    }
    there == *wanted
}
