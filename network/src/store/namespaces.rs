//! Network namespaces with their records.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sys::netns::NetNs;
use types::network::{LinkName, NetNamespace, Place};
use types::{Code, Error, Event, Fields, Filter, Identifier, Labels, Namespace, Result, Scope};

use super::{Store, relabelled};
use crate::Undo;
use crate::link::Inside;
use crate::netns::check_unused;
use crate::record::{self, Entry, NsFacts, NsKey, Phase};

/// What clients call the place that has no name.
const HOST: &str = "host";

impl Store {
    /// The caller has the place alone.
    pub(crate) fn create_namespace(
        &self,
        scope: &Scope,
        name: &str,
        adopted: PathBuf,
        labels: Labels,
    ) -> Result<NetNamespace> {
        Identifier::check(name).map_err(|e| e.ctx("name of a network namespace"))?;
        if name == HOST {
            return Err(Error::invalid_argument(format_args!(
                "name {name:?} is that of the daemon's own network namespace"
            )));
        }
        labels.validate()?;
        let labels = labels.without_empty();
        let key = (scope.namespace.clone(), name.to_owned());
        let there = self.known().namespaces.get(&key).cloned();
        match there {
            Some(entry) if entry.is_active() => {
                if entry.what.adopted == adopted && entry.labels == labels {
                    // Asked for again, perhaps since the answer was lost.
                    return Ok(self.described(&key, &entry));
                }
                return Err(Error::already_exists(format_args!(
                    "network namespace {name:?}"
                )));
            }
            Some(entry) => self.forget_namespace(&key, entry.number)?,
            None => {}
        }
        let found = match adopted.as_os_str().is_empty() {
            true => None,
            false => Some(crate::netns::open_adopted(&adopted)?),
        };
        let inode = found.as_ref().map_or(0, NetNs::inode);
        let facts = NsFacts { inode, adopted };
        let mut entry = self.entry(scope, labels, facts);
        let mut undo = Undo::default();
        let number = entry.number;
        let of_record = key.clone();
        undo.after("record", move || {
            self.known().namespaces.remove(&of_record);
            self.remove_record(number)
        });
        record::write_ns(&self.record(number), &key, &entry)?;
        // A check must not take what is made just now for something without a record.
        self.introduce(&key, &entry)?;
        let pinned = match found {
            None => self.pins.create(&key.0, name)?,
            Some(found) => self.pins.adopt(&key.0, name, found)?,
        };
        let pin = key.clone();
        undo.after("network namespace", move || {
            self.pins.remove(&pin.0, &pin.1)
        });
        entry.what.inode = pinned.inode();
        entry.phase = Phase::Active;
        record::write_ns(&self.record(number), &key, &entry)?;
        undo.keep();
        self.known().namespaces.insert(key.clone(), entry.clone());
        let made = self.described(&key, &entry);
        let event = Event::NetworkNamespaceCreate {
            name: made.name.clone(),
            path: made.path.display().to_string(),
            labels: made.labels.clone(),
        };
        self.publish(&key.0, event);
        Ok(made)
    }

    /// Makes a namespace known that comes, unless it is one that another tenant has: who has a name for a
    /// namespace does in it what he likes.
    fn introduce(&self, key: &NsKey, entry: &Entry<NsFacts>) -> Result<()> {
        let (inode, adopted) = (entry.what.inode, &entry.what.adopted);
        let mut known = self.known();
        let mut others = known
            .namespaces
            .iter()
            .filter(|(other, entry)| other.0 != key.0 && entry.what.inode == inode);
        // A number may be given again to one that has nothing to do with a record that is old.
        let is_taken =
            inode != 0 && others.any(|(key, entry)| self.is_whole(key, entry).unwrap_or(true));
        if is_taken {
            return Err(Error::failed_precondition(format_args!(
                "network namespace {} is another tenant's",
                adopted.display()
            )));
        }
        known.namespaces.insert(key.clone(), entry.clone());
        Ok(())
    }

    pub(crate) fn get_namespace(&self, key: &NsKey) -> Result<NetNamespace> {
        Ok(self.described(key, &self.namespace(key)?))
    }

    /// Whose namespaces are what `path` stands for, by whatever way it leads there; nobody's what is none.
    ///
    /// # Errors
    /// The errno, when it cannot be told.
    pub(crate) fn named_at(&self, path: &Path) -> Result<Vec<NsKey>> {
        let found = match NetNs::open(path) {
            Err(error) if error.is(Code::NotFound) || error.is(Code::InvalidArgument) => {
                return Ok(Vec::new());
            }
            found => found?,
        };
        let known = self.known();
        // A number may be given again to one that has nothing to do with a record that is old.
        let is_it = |(key, entry): &(&NsKey, &Entry<NsFacts>)| {
            entry.what.inode == found.inode() && self.is_whole(key, entry).unwrap_or(true)
        };
        let keys = known.namespaces.iter().filter(is_it);
        Ok(keys.map(|(key, _)| key.clone()).collect())
    }

    /// Whose namespaces there are, whatever becomes of them.
    pub(crate) fn all_namespaces(&self) -> Vec<NsKey> {
        self.known().namespaces.keys().cloned().collect()
    }

    pub(crate) fn list_namespaces(&self, tenant: &Namespace, filter: &Filter) -> Vec<NetNamespace> {
        let known = self.known();
        let own = known
            .namespaces
            .iter()
            .filter(|(key, entry)| key.0 == *tenant && entry.is_active());
        own.map(|(key, entry)| self.described(key, entry))
            .filter(|one| filter.matches(one))
            .collect()
    }

    /// The caller has the place alone.
    pub(crate) fn update_namespace(
        &self,
        key: &NsKey,
        labels: &Labels,
        fields: &Fields,
    ) -> Result<NetNamespace> {
        let mut entry = self.namespace(key)?;
        entry.labels = relabelled(&entry.labels, labels, fields, "network namespace")?;
        entry.updated_at = SystemTime::now();
        record::write_ns(&self.record(entry.number), key, &entry)?;
        self.known().namespaces.insert(key.clone(), entry.clone());
        let event = Event::NetworkNamespaceUpdate {
            name: key.1.clone(),
            labels: entry.labels.clone(),
        };
        self.publish(&key.0, event);
        Ok(self.described(key, &entry))
    }

    /// The caller has the place alone. `number`: only that one.
    pub(crate) fn delete_namespace(&self, key: &NsKey, number: Option<u64>) -> Result<()> {
        let found = self.known().namespaces.get(key).cloned();
        let found = found.filter(|entry| number.is_none_or(|number| number == entry.number));
        let Some(mut entry) = found else {
            return match number {
                // Somebody was faster.
                Some(_) => Ok(()),
                None => Err(Error::not_found(format_args!(
                    "network namespace {:?}",
                    key.1
                ))),
            };
        };
        // Of what was adopted only the name goes.
        if entry.what.inode != 0 && entry.what.adopted.as_os_str().is_empty() {
            check_unused(&key.1, entry.what.inode)?;
        }
        let was = entry.clone();
        let kept: OnceCell<NetNs> = OnceCell::new();
        let mut undo = Undo::default();
        undo.after("record", || {
            self.known().namespaces.insert(key.clone(), was.clone());
            record::write_ns(&self.record(was.number), key, &was)
        });
        entry.phase = Phase::Going;
        // A crash from here on is finished by the next start.
        record::write_ns(&self.record(entry.number), key, &entry)?;
        self.known().namespaces.insert(key.clone(), entry.clone());
        match self.withdraw(key, &entry.what)? {
            Some((ns, mut inside)) => {
                let ns = kept.get_or_init(|| ns);
                undo.after("name", || ns.pin(&self.pins.path(&key.0, &key.1)));
                self.part(key, &mut inside)?;
            }
            None => {
                let inside = self.made_in(&key.0, &Place::Named(key.1.clone()));
                self.empty(key, &entry.what, &inside)?;
            }
        }
        self.forget_namespace(key, entry.number)?;
        undo.keep();
        if let Some(ns) = kept.into_inner() {
            self.grave.namespace(ns);
        }
        let name = key.1.clone();
        self.publish(&key.0, Event::NetworkNamespaceDelete { name });
        Ok(())
    }

    /// Takes its name from a namespace that was made here, unless somebody uses it: who came by its path just
    /// now is seen, and who comes from here on comes too late. It lives as long as what this answers.
    fn withdraw(&self, key: &NsKey, facts: &NsFacts) -> Result<Option<(NetNs, Inside)>> {
        let is_made = facts.inode != 0 && facts.adopted.as_os_str().is_empty();
        if !is_made || self.pins.inode(&key.0, &key.1)? != Some(facts.inode) {
            return Ok(None);
        }
        let path = self.pins.path(&key.0, &key.1);
        let (kept, inside) = (NetNs::open(&path)?, Inside::open(&path)?);
        self.pins.remove(&key.0, &key.1)?;
        if let Err(error) = check_unused(&key.1, facts.inode) {
            kept.pin(&path)?;
            return Err(error);
        }
        Ok(Some((kept, inside)))
    }

    /// Takes away the interfaces of a namespace that goes, of one that was adopted those that were made under
    /// its name. With others the kernel would do it, too, but later: their other ends would be in the way for a
    /// while.
    pub(super) fn empty(
        &self,
        key: &NsKey,
        facts: &NsFacts,
        recorded: &[(LinkName, u32)],
    ) -> Result<()> {
        // Nothing, or another one: there is nothing of ours to take away.
        if self.pins.inode(&key.0, &key.1)? != Some(facts.inode) {
            return Ok(());
        }
        let mut inside = Inside::open(&self.pins.path(&key.0, &key.1))?;
        let is_adopted = !facts.adopted.as_os_str().is_empty();
        self.take_away(&mut inside, is_adopted.then_some(recorded))
    }

    /// Takes away what there is of a namespace, and the records of what was in it.
    pub(super) fn forget_namespace(&self, key: &NsKey, number: u64) -> Result<()> {
        self.pins.remove(&key.0, &key.1)?;
        self.forget_links(&key.0, &Place::Named(key.1.clone()), |_, _| true)?;
        self.remove_record(number)?;
        self.known().namespaces.remove(key);
        Ok(())
    }

    /// True when what stands behind the record is there.
    pub(super) fn is_whole(&self, key: &NsKey, entry: &Entry<NsFacts>) -> Result<bool> {
        Ok(self.pins.inode(&key.0, &key.1)? == Some(entry.what.inode))
    }
}
