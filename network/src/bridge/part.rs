//! Parting a container: everything of it goes, also what is left of less than the whole. Its wire only is buried:
//! see [`crate::grave`] for when it is gone.

use sys::netlink::{Family, Socket};
use types::network::LinkName;
use types::{Error, Result};

use super::Core;
use super::plan::Plan;
use super::record::{Phase, Record};
use super::tag::{self, Marked, Tag};
use crate::conntrack::{self, Led};
use crate::grave::End;
use crate::link::Inside;
use crate::netns::{Identity, id_of};

impl Core {
    /// Takes everything of an attachment away, if it is to one of the networks or none is named; what
    /// failed.
    pub(super) fn teardown(&self, tag: &Tag, networks: &[String]) -> Vec<Error> {
        let outer = match tag.outer() {
            Ok(outer) => outer,
            Err(error) => return vec![error],
        };
        match self.is_at_another(&outer, networks) {
            Ok(true) => Vec::new(),
            Ok(false) => self.take_down(&outer, &tag.owner()),
            Err(error) => vec![error],
        }
    }

    /// Takes everything away that is under this name and of this owner, the record last; what failed.
    pub(super) fn take_down(&self, outer: &LinkName, owner: &str) -> Vec<Error> {
        let record = self.records.find(outer).ok().flatten();
        // That it was to go is on disk before any of it does: the next start goes on with it.
        if let Some(record) = record.clone().filter(|one| one.phase != Phase::Going) {
            let going = Record {
                phase: Phase::Going,
                ..record
            };
            if let Err(error) = self.records.write(outer, &going) {
                return vec![error];
            }
        }
        let gone = Inside::host().and_then(|mut host| match self.find(host.socket(), outer) {
            Ok(Some(found)) => self.cut(&found, record.as_ref(), &mut host),
            Ok(None) => Ok(()),
            // One of that name that is another's was never made here.
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => Err(error),
        });
        let mut failed: Vec<_> = gone.err().into_iter().collect();
        failed.extend(self.detach(owner).err());
        if failed.is_empty() {
            failed.extend(self.records.remove(outer).err());
        }
        let plan = record.and_then(|record| Plan::of(&record.request).ok());
        failed.extend(match plan {
            Some(plan) => self.sweep_for(&plan.bridge),
            None => self.sweep(),
        });
        failed
    }

    /// Cuts a wire. It is buried when both of its ends can be found, else who calls waits for the kernel.
    fn cut(&self, found: &Marked, record: Option<&Record>, host: &mut Inside) -> Result<()> {
        let buried = record.map_or(Ok(false), |record| self.bury(found, record, host));
        match buried {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // Whatever has become of the other end: it goes with this one.
            Err(error) => {
                tracing::debug!(interface = %found.name, %error, "a wire is taken away at once");
            }
        }
        host.delete_number(outer_end(found))
    }

    /// Buries a wire; false when its other end is not where its record says.
    fn bury(&self, found: &Marked, record: &Record, host: &mut Inside) -> Result<bool> {
        let (Some(place), Some(index)) = (found.other, found.peer) else {
            return Ok(false);
        };
        let mut inside = Inside::open(&record.request.netns)?;
        let ns = inside.ns();
        // Somebody may have moved it: in another namespace its number is some other interface's.
        let is_its = Identity::of(ns)? == record.place && id_of(host.socket(), ns)? == Some(place);
        if !is_its {
            return Ok(false);
        }
        let name = record.request.interface.as_str();
        let inner = (&mut inside, End { index, name });
        self.grave.wire((host, outer_end(found)), inner)?;
        Ok(true)
    }

    /// Gives addresses and ports back. Where datagrams went by them is forgotten, too.
    pub(super) fn detach(&self, owner: &str) -> Result<()> {
        let ports = self.nat.detach(owner)?;
        let led = ports.iter().map(|one| Led {
            port: one.port,
            to: one.to,
        });
        let led: Vec<_> = led.collect();
        let forget = |socket: &mut Socket| conntrack::forget_led(socket, &led);
        if let Err(error) = self.nat.ask(forget) {
            tracing::warn!(owner, %error, "datagrams may go on to where a port led");
        }
        Ok(())
    }

    /// True for what is attached to a bridge that is none of those that are named.
    fn is_at_another(&self, outer: &LinkName, networks: &[String]) -> Result<bool> {
        if networks.is_empty() {
            return Ok(false);
        }
        let is_named = |bridge: &LinkName| networks.iter().any(|name| bridge.as_str() == name);
        let mut socket = Socket::open(Family::Route)?;
        let found = tag::find(&mut socket, outer)?.filter(|one| one.group == self.group);
        let bridge = match found.and_then(|found| found.master) {
            Some(master) => tag::get(&mut socket, master)?,
            None => None,
        };
        if let Some(bridge) = bridge {
            return Ok(!is_named(&bridge.name));
        }
        // It is not there, or somebody has taken it from its bridge: then it is what was asked for.
        let record = self.records.find(outer).ok().flatten();
        let plan = record.and_then(|record| Plan::of(&record.request).ok());
        Ok(plan.is_some_and(|plan| !is_named(&plan.bridge)))
    }
}

fn outer_end(found: &Marked) -> End<'_> {
    End {
        index: found.index,
        name: found.name.as_str(),
    }
}
