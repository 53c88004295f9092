//! Whether what is recorded and what is there are the same.

use types::network::{LinkName, Place};
use types::{Context as _, Fault, Finding, Repair, Result};

use super::Store;
use crate::link::{Inside, Mark};
use crate::netns::check_unused;
use crate::record::NsKey;
use crate::repaired;

impl Store {
    /// The faults; repaired when that is asked for and loses nobody anything.
    pub(crate) fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        self.check_namespaces(repair, &mut findings)?;
        self.check_links(repair, &mut findings)?;
        Ok(findings)
    }

    fn check_namespaces(&self, repair: bool, findings: &mut Vec<Finding>) -> Result<()> {
        let known = self.known().namespaces.clone();
        for (key, entry) in known.iter().filter(|(_, entry)| entry.is_active()) {
            // It may go just now.
            if self.is_whole(key, entry)? || !self.is_active(key, entry.number) {
                continue;
            }
            let path = self.pins.path(&key.0, &key.1);
            let text = format!(
                "{} is no longer network namespace {}",
                path.display(),
                entry.what.inode
            );
            let repair = repaired(repair, || self.forget_namespace(key, entry.number));
            findings.push(finding(Fault::Missing, &key.0, &key.1, text, repair));
        }
        for (tenant, name) in self.pins.list()? {
            let path = self.pins.path(&tenant, &name);
            // Now, not before the files were listed: one that comes has its record first.
            let is_known = self
                .known()
                .namespaces
                .contains_key(&(tenant.clone(), name.clone()));
            if is_known || !path.exists() {
                continue;
            }
            let inode = self.pins.inode(&tenant, &name)?;
            let used = inode.map_or(Ok(()), |inode| check_unused(&name, inode));
            let (text, repair) = match used {
                Ok(()) => {
                    let text = format!("{} has no record", path.display());
                    (text, repaired(repair, || self.pins.remove(&tenant, &name)))
                }
                Err(error) => (
                    format!("{} has no record: {error}", path.display()),
                    Repair::Impossible,
                ),
            };
            findings.push(finding(Fault::Orphan, &tenant, &name, text, repair));
        }
        Ok(())
    }

    fn is_active(&self, key: &NsKey, number: u64) -> bool {
        let known = self.known();
        known
            .namespaces
            .get(key)
            .is_some_and(|entry| entry.is_active() && entry.number == number)
    }

    /// Interfaces that have our mark and no record, and records of interfaces that are gone.
    fn check_links(&self, repair: bool, findings: &mut Vec<Finding>) -> Result<()> {
        let known = self.known().links.clone();
        for (key, entry) in known.iter().filter(|(_, entry)| entry.is_active()) {
            // Of what cannot be looked at nothing is said: its place was named above.
            let is_there = self.is_there(key, entry.what.index).unwrap_or(true);
            // What was repaired before may have taken it along.
            if is_there || !self.known().links.contains_key(key) {
                continue;
            }
            let forget = || {
                self.remove_record(entry.number)?;
                self.known().links.remove(key);
                Ok(())
            };
            findings.push(Finding {
                fault: Fault::Missing,
                object: format!("interface {}", key.2),
                text: format!("there is no interface {} in {}", key.2, key.1),
                repair: repaired(repair, forget),
            });
        }
        self.check_marks(None, repair, findings)?;
        for key in self.all_namespaces() {
            self.check_marks(Some(&key), repair, findings)?;
        }
        Ok(())
    }

    fn check_marks(
        &self,
        of: Option<&NsKey>,
        repair: bool,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let place = of.map_or(Place::Host, |of| Place::Named(of.1.clone()));
        let inside = match of {
            Some(of) => self.inside(&of.0, &place).absent_ok(),
            None => Inside::host().map(Some),
        };
        // One that is another by now was named above.
        let Ok(Some(mut inside)) = inside else {
            return Ok(());
        };
        for Mark {
            name, index, group, ..
        } in inside.marks()?
        {
            if group != self.group || self.is_known(of, &name, index) {
                continue;
            }
            let repair = repaired(repair, || inside.delete(&name).absent_ok().map(drop));
            findings.push(Finding {
                fault: Fault::Orphan,
                object: format!("interface {name}"),
                text: format!(
                    "interface {name} in {place} is marked as made here and has no record"
                ),
                repair,
            });
        }
        Ok(())
    }

    /// True for an interface that has a record, also one that comes or goes just now.
    fn is_known(&self, of: Option<&NsKey>, name: &LinkName, index: u32) -> bool {
        let known = self.known();
        let mut there = known.links.iter().filter(|(key, _)| {
            let is_in = match of {
                Some(of) => key.0 == of.0 && key.1.name() == of.1,
                None => key.1 == Place::Host,
            };
            is_in && key.2 == *name
        });
        there.any(|(_, entry)| !entry.is_active() || entry.what.index == index)
    }
}

fn finding(
    fault: Fault,
    tenant: &types::Namespace,
    name: &str,
    text: String,
    repair: Repair,
) -> Finding {
    Finding {
        fault,
        object: format!("network-namespace {tenant}/{name}"),
        text,
        repair,
    }
}
