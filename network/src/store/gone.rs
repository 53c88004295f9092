//! Interfaces that go, and the records that go after them.

use std::collections::BTreeSet;

use types::network::{LinkName, Place};
use types::{Context as _, Event, Namespace, Result};

use super::Store;
use super::links::missing;
use crate::Undo;
use crate::grave::End;
use crate::link::{Inside, Mark};
use crate::record::{self, Entry, LinkFacts, LinkKey, NsKey, Phase};

impl Store {
    /// The caller has the place alone. `number`: only the one of that record.
    pub(crate) fn delete_link(&self, key: &LinkKey, number: Option<u64>) -> Result<()> {
        let entry = self.known().links.get(key).cloned();
        if number.is_some_and(|number| entry.as_ref().is_none_or(|entry| entry.number != number)) {
            // Somebody was faster.
            return Ok(());
        }
        let mut inside = self.inside(&key.0, &key.1)?;
        let found = self.owned(&mut inside, &key.0, &key.1, &key.2);
        let seen = match found {
            // The other end has taken it along.
            Err(error) if error.is_not_found() && entry.is_some() => None,
            found => Some(found?),
        };
        let mut undo = Undo::default();
        if let Some(entry) = &entry {
            let going = Entry {
                phase: Phase::Going,
                ..entry.clone()
            };
            undo.after("record", || {
                record::write_link(&self.record(entry.number), key, entry)
            });
            // A crash from here on is finished by the next start.
            record::write_link(&self.record(entry.number), key, &going)?;
        }
        if seen.is_some() {
            // Its other end may have gone in a place that is not held.
            inside.delete(&key.2).absent_ok()?;
        }
        undo.keep();
        self.forget_links(&key.0, &key.1, |name, _| *name == key.2)?;
        let Some(seen) = seen else {
            return match number {
                Some(_) => Ok(()),
                None => Err(missing(&key.1, &key.2)),
            };
        };
        self.publish_link(key, &seen, |name, network_namespace, kind| {
            Event::NetworkLinkDelete {
                name,
                network_namespace,
                kind,
            }
        });
        Ok(())
    }

    /// Drops records of interfaces that are gone, and those of their other ends that went along.
    pub(super) fn forget_links(
        &self,
        tenant: &Namespace,
        place: &Place,
        gone: impl Fn(&LinkName, u32) -> bool,
    ) -> Result<()> {
        let (stale, pairs) = {
            let known = self.known();
            let is_gone = |key: &LinkKey, entry: &Entry<LinkFacts>| {
                key.0 == *tenant && key.1 == *place && gone(&key.2, entry.what.index)
            };
            let of = |meant: &dyn Fn(&LinkKey, &Entry<LinkFacts>) -> bool| {
                let all = known.links.iter().filter(|(key, e)| meant(key, e));
                all.map(|(key, e)| (key.clone(), e.clone()))
                    .collect::<Vec<_>>()
            };
            let stale = of(&is_gone);
            let pairs: Vec<u64> = stale.iter().filter_map(|(_, e)| e.what.pair).collect();
            let pairs = of(&|key, e| pairs.contains(&e.number) && !is_gone(key, e));
            (stale, pairs)
        };
        // Of one that is still there, or cannot be looked at, the record is all that says whose it is.
        let went_along = |(key, entry): &(LinkKey, Entry<LinkFacts>)| {
            self.is_there(key, entry.what.index)
                .is_ok_and(|is_there| !is_there)
        };
        for (key, entry) in stale
            .into_iter()
            .chain(pairs.into_iter().filter(went_along))
        {
            self.remove_record(entry.number)?;
            self.known().links.remove(&key);
        }
        Ok(())
    }

    pub(super) fn is_there(&self, key: &LinkKey, index: u32) -> Result<bool> {
        let Some(mut inside) = self.inside(&key.0, &key.1).absent_ok()? else {
            return Ok(false);
        };
        let found = inside.find(&key.2)?;
        Ok(found.is_some_and(|seen| seen.link.index == index))
    }

    /// Where the other ends of the pairs in a place are: of all, or of the one of this name.
    pub(crate) fn places_of_ends(
        &self,
        tenant: &Namespace,
        place: &Place,
        name: Option<&LinkName>,
    ) -> Vec<Place> {
        let known = self.known();
        let here = known.links.iter().filter(|(key, _)| {
            (&key.0, &key.1) == (tenant, place) && name.is_none_or(|name| *name == key.2)
        });
        let ends: Vec<u64> = here.filter_map(|(_, entry)| entry.what.pair).collect();
        let ends = { known.links.iter() }.filter(|(_, entry)| ends.contains(&entry.number));
        ends.map(|(key, _)| key.1.clone()).collect()
    }

    /// Names and numbers of the interfaces that were made in a place.
    pub(super) fn made_in(&self, tenant: &Namespace, place: &Place) -> Vec<(LinkName, u32)> {
        let known = self.known();
        let inside = known
            .links
            .iter()
            .filter(|(key, _)| key.0 == *tenant && key.1 == *place);
        inside
            .map(|(key, entry)| (key.2.clone(), entry.what.index))
            .collect()
    }

    /// Takes away interfaces with our mark, those of `only` or all; then those that drivers have made, too.
    pub(super) fn take_away(
        &self,
        inside: &mut Inside,
        only: Option<&[(LinkName, u32)]>,
    ) -> Result<()> {
        for Mark {
            name, index, group, ..
        } in inside.marks()?
        {
            let is_meant = match only {
                Some(only) => group == self.group && only.contains(&(name.clone(), index)),
                None => group == self.group || self.hidden.contains(&group),
            };
            if is_meant {
                // One end takes the other along.
                inside.delete(&name).absent_ok()?;
            }
        }
        Ok(())
    }

    /// Takes away what a namespace that nobody uses has outside of itself: the kernel takes the rest with it. Of
    /// wires to the host the ends there are buried.
    pub(super) fn part(&self, key: &NsKey, inside: &mut Inside) -> Result<()> {
        let mut host = Inside::host()?;
        let buried = |(end, entry, inner): &(LinkName, Entry<LinkFacts>, u32)| {
            let outer = End {
                index: entry.what.index,
                name: end.as_str(),
            };
            let mut bury = || -> Result<()> {
                if host.number_of_wire(end, self.group)? != Some(outer.index) {
                    return Err(missing(&Place::Host, end));
                }
                self.grave.end_of_wire(&mut host, outer)
            };
            let done = bury().inspect_err(|error| {
                tracing::debug!(name = %end, %error, "a wire is taken away at once");
            });
            done.ok().map(|()| *inner)
        };
        let (ends, marks) = (self.ends_on_host(key), inside.marks()?);
        // Somebody may have moved the other end elsewhere: that wire lives on.
        let is_here = |(_, _, inner): &&(_, _, u32)| {
            let mut ours = marks.iter().filter(|mark| mark.group == self.group);
            ours.any(|mark| mark.index == *inner && !mark.is_within)
        };
        let ends = ends.iter().filter(is_here);
        let buried: BTreeSet<u32> = ends.filter_map(buried).collect();
        for mark in &marks {
            let is_ours = mark.group == self.group || self.hidden.contains(&mark.group);
            if is_ours && !mark.is_within && !buried.contains(&mark.index) {
                // One end takes the other along.
                inside.delete(&mark.name).absent_ok()?;
            }
        }
        Ok(())
    }

    /// The ends on the host of wires from a namespace, with the numbers of the ends there.
    fn ends_on_host(&self, key: &NsKey) -> Vec<(LinkName, Entry<LinkFacts>, u32)> {
        let known = self.known();
        let here = known.links.iter().filter(|(link, entry)| {
            (&link.0, link.1.name()) == (&key.0, key.1.as_str()) && entry.what.pair.is_some()
        });
        here.filter_map(|(_, inner)| {
            let mut ends = known.links.iter().filter(|(end, _)| end.1 == Place::Host);
            let end = ends.find(|(_, end)| Some(end.number) == inner.what.pair);
            end.map(|(end, entry)| (end.2.clone(), entry.clone(), inner.what.index))
        })
        .collect()
    }
}
