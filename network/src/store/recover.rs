//! The next start: what is there as a whole stays; what was not finished goes.
//!
//! Invariant: only what the kernel says is gone is forgotten. What cannot be looked at stays known as it was
//! written down, so that nobody takes it for something without a record.

use std::path::Path;
use std::sync::atomic::Ordering;

use types::network::{LinkName, Place};
use types::{Context as _, Error, Namespace, Result};

use super::Store;
use crate::link::{Inside, Mark, Seen, is_on_its_way};
use crate::record::{self, Entry, LinkFacts, LinkKey, NsFacts, NsKey, Phase, Read};

/// An interface that a record says is there: place, tenant when the place is one's own, number.
type Claim = (Option<Namespace>, Place, u32);

fn claim(tenant: &Namespace, place: &Place, index: u32) -> Claim {
    let tenant = (*place != Place::Host).then(|| tenant.clone());
    (tenant, place.clone(), index)
}

impl Store {
    pub(super) fn recover(&self) -> Result<()> {
        drop_halves(&self.records)?;
        if let Err(error) = self.grave.empty() {
            tracing::warn!(%error, "interfaces that an earlier daemon has taken away are left");
        }
        let (mut namespaces, mut links) = (Vec::new(), Vec::new());
        let mut last = 0;
        for (number, read) in self.written()? {
            last = number;
            match read {
                Some(Read::Ns(key, entry)) => namespaces.push((key, entry)),
                Some(Read::Link(key, entry)) => links.push((key, entry)),
                None => {}
            }
        }
        self.next.store(last + 1, Ordering::Relaxed);
        for (key, entry) in namespaces {
            let inside = links
                .iter()
                .filter(|(link, _)| (&link.0, &link.1) == (&key.0, &Place::Named(key.1.clone())));
            let inside: Vec<_> = inside
                .map(|(link, entry)| (link.2.clone(), entry.what.index))
                .collect();
            self.take_up_namespace(&key, &entry, &inside);
        }
        self.mark_anew(&links);
        // Not before all places are known. What goes takes its other end along, so it is first.
        links.sort_by_key(|(_, entry)| entry.is_active());
        let claims: Vec<(u64, Claim)> = links
            .iter()
            .filter(|(_, entry)| entry.phase != Phase::Coming)
            .map(|(key, entry)| (entry.number, claim(&key.0, &key.1, entry.what.index)))
            .collect();
        for (key, entry) in links {
            let (name, number) = (key.2.clone(), entry.number);
            let others = claims.iter().filter(|(by, _)| *by != number);
            let others: Vec<&Claim> = others.map(|(_, claim)| claim).collect();
            let as_written = (key.clone(), entry.clone());
            if let Err(error) = self.take_up_link(key, entry, &others) {
                tracing::warn!(%name, number, %error, "interface of an earlier daemon stays for now");
                self.known().links.insert(as_written.0, as_written.1);
            }
        }
        self.sweep_ways();
        Ok(())
    }

    /// Gives interfaces of the host that are on record their mark, when they have that of earlier versions.
    /// Others have it, too: without a record it says nothing.
    fn mark_anew(&self, links: &[(LinkKey, Entry<LinkFacts>)]) {
        if self.group == self.old_group {
            return;
        }
        let marked = Inside::host().and_then(|mut inside| {
            for Mark {
                name, index, group, ..
            } in inside.marks()?
            {
                let is_it = |(key, entry): &(LinkKey, Entry<LinkFacts>)| {
                    (&key.1, &key.2, entry.what.index) == (&Place::Host, &name, index)
                };
                if group == self.old_group && links.iter().any(is_it) {
                    inside.mark(index, &name, self.group)?;
                }
            }
            Ok(())
        });
        if let Err(error) = marked {
            tracing::warn!(%error, "interfaces of an earlier version may pass for others'");
        }
    }

    /// Takes away interfaces that were on their way to their own names, wherever: nobody was told of them.
    fn sweep_ways(&self) {
        let places = self.all_namespaces();
        let named = places
            .iter()
            .map(|key| self.inside(&key.0, &Place::Named(key.1.clone())));
        for inside in std::iter::once_with(Inside::host).chain(named) {
            let swept = inside.and_then(|mut inside| {
                for Mark { name, .. } in inside.marks()? {
                    if is_on_its_way(&name, self.group) {
                        tracing::warn!(%name, "interface of a creation that was cut off is taken away");
                        inside.delete(&name).absent_ok()?;
                    }
                }
                Ok(())
            });
            if let Err(error) = swept {
                tracing::warn!(%error, "interfaces of creations that were cut off may stay");
            }
        }
    }

    /// Takes every record for what it says.
    pub(super) fn read_all(&self) -> Result<()> {
        for (_, read) in self.written()? {
            match read {
                Some(Read::Ns(key, entry)) => drop(self.known().namespaces.insert(key, entry)),
                Some(Read::Link(key, entry)) => drop(self.known().links.insert(key, entry)),
                None => {}
            }
        }
        Ok(())
    }

    /// All records with their numbers, in their order; of one that is damaged the number only. A failure to
    /// read one is a failure: without it what it is about would pass for nobody's.
    fn written(&self) -> Result<Vec<(u64, Option<Read>)>> {
        let mut all = Vec::new();
        for number in numbers(&self.records)? {
            match record::read(&self.record(number), number) {
                Ok(read) => all.push((number, Some(read))),
                Err(error) if error.errno().is_some() => return Err(error),
                // What it was about is named by a check.
                Err(error) => {
                    tracing::warn!(number, %error, "record of a network is damaged");
                    all.push((number, None));
                }
            }
        }
        Ok(all)
    }

    fn take_up_namespace(&self, key: &NsKey, entry: &Entry<NsFacts>, inside: &[(LinkName, u32)]) {
        let (name, number) = (key.1.clone(), entry.number);
        let was_active = entry.is_active();
        let is_whole = self.is_whole(key, entry);
        self.known().namespaces.insert(key.clone(), entry.clone());
        match (was_active, is_whole) {
            (true, Ok(true)) => return,
            (true, Err(error)) => {
                tracing::warn!(name, %error, "network namespace cannot be looked at");
                return;
            }
            (true, Ok(false)) => {
                tracing::warn!(name, "network namespace is gone, and its record goes");
            }
            (false, _) => {}
        }
        // What was adopted lives on: what was made in it does not go along.
        let emptied = match was_active {
            true => Ok(()),
            false => self.empty(key, &entry.what, inside),
        };
        if let Err(error) = emptied.and_then(|()| self.forget_namespace(key, number)) {
            tracing::warn!(name, %error, "network namespace that was not finished stays for now");
            if let Some(entry) = self.known().namespaces.get_mut(key) {
                entry.phase = Phase::Going;
            }
        }
    }

    fn take_up_link(
        &self,
        key: LinkKey,
        mut entry: Entry<LinkFacts>,
        others: &[&Claim],
    ) -> Result<()> {
        let inside = self.inside(&key.0, &key.1).absent_ok()?;
        let there = self.marked_in(inside, &key.2)?;
        match (entry.phase, entry.what.moved_from.take()) {
            (Phase::Active, None) => match there {
                Some((_, seen)) if seen.link.index == entry.what.index => {
                    self.known().links.insert(key, entry);
                    Ok(())
                }
                _ => self.remove_record(entry.number),
            },
            (Phase::Active, Some(from)) => match there {
                Some((_, seen)) if is_moved(&entry.what, &seen) => {
                    entry.what.index = seen.link.index;
                    self.keep_link(key, entry)
                }
                _ => self.take_up_where_it_was(&key, from, entry, others),
            },
            // Nobody was told of it, or it was to go anyhow. Under its name there may be another one by now.
            (Phase::Coming | Phase::Going, _) => {
                if let Some((mut inside, seen)) = there {
                    let index = seen.link.index;
                    let is_it = match entry.phase {
                        Phase::Going => index == entry.what.index,
                        _ => !others.contains(&&claim(&key.0, &key.1, index)),
                    };
                    if is_it {
                        inside.delete(&key.2).absent_ok()?;
                    }
                }
                self.remove_record(entry.number)
            }
        }
    }

    /// The interface of that name that has our mark.
    fn marked_in(&self, inside: Option<Inside>, name: &LinkName) -> Result<Option<(Inside, Seen)>> {
        let Some(mut inside) = inside else {
            return Ok(None);
        };
        let seen = inside.find(name)?.filter(|seen| seen.group == self.group);
        Ok(seen.map(|seen| (inside, seen)))
    }

    /// A move that had not come so far: it is where it was, or was moved and has not its new name.
    fn take_up_where_it_was(
        &self,
        to: &LinkKey,
        (place, name): (Place, LinkName),
        mut entry: Entry<LinkFacts>,
        others: &[&Claim],
    ) -> Result<()> {
        let tenant = &to.0;
        let inside = self.inside(tenant, &place).absent_ok()?;
        match self.marked_in(inside, &name)? {
            Some((_, seen)) if seen.link.index == entry.what.index => {
                return self.keep_link((tenant.clone(), place, name), entry);
            }
            _ => {}
        }
        let Some(mut inside) = self.inside(tenant, &to.1).absent_ok()? else {
            return self.remove_record(entry.number);
        };
        let is_it = |seen: &Seen| {
            let claimed = claim(tenant, &to.1, seen.link.index);
            seen.group == self.group
                && entry.what.moved_mac.is_some()
                && seen.link.mac == entry.what.moved_mac
                && !others.contains(&&claimed)
        };
        match inside.list()?.into_iter().find(is_it) {
            Some(seen) => {
                entry.what.index = seen.link.index;
                self.keep_link((tenant.clone(), to.1.clone(), seen.link.name), entry)
            }
            None => self.remove_record(entry.number),
        }
    }

    fn keep_link(&self, key: LinkKey, mut entry: Entry<LinkFacts>) -> Result<()> {
        entry.what.moved_mac = None;
        record::write_link(&self.record(entry.number), &key, &entry)?;
        self.known().links.insert(key, entry);
        Ok(())
    }
}

/// True when what is seen at the end of a move is what was moved: its number may be another one there.
fn is_moved(facts: &LinkFacts, seen: &Seen) -> bool {
    match (facts.moved_mac, seen.link.mac) {
        (Some(was), Some(is)) => was == is,
        _ => facts.index == seen.link.index,
    }
}

/// Takes records away that a daemon was killed over before they were whole: only one daemon writes here.
fn drop_halves(directory: &Path) -> Result<()> {
    let failed = |e| Error::os(format_args!("read {}", directory.display()), e);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            let path = entry.path();
            // Records are files: what somebody else has put here is no reason not to start.
            if !entry.file_type().map_err(failed)?.is_file() {
                tracing::warn!(path = %path.display(), "it is no record, and stays");
                continue;
            }
            std::fs::remove_file(&path)
                .map_err(|e| Error::os(format_args!("remove {}", path.display()), e))?;
        }
    }
    Ok(())
}

/// Names in a directory that are numbers.
fn numbers(directory: &Path) -> Result<Vec<u64>> {
    let failed = |e| Error::os(format_args!("read {}", directory.display()), e);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut all: Vec<u64> = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    all.sort_unstable();
    Ok(all)
}
