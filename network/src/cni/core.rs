//! What the driver does, blocking: every function here has the container's turn.
//!
//! Invariant: a set-up that fails leaves what was there before it, or a record of what is left.

use std::path::PathBuf;

use serde_json::Value;
use types::network::{NetRequest, NetResult, TenantId};
use types::{Code, Context as _, Error, Errors, Result};

use super::answer::Answer;
use super::chain::{Chain, plain_input};
use super::conf::{find, first};
use super::place::{is_whole, living, refuse_taken};
use super::plugin::{About, Command, Plugins};
use super::record::{Damaged, Phase, Record, Records};
use super::wish::{Meant, known_as, wishes};

#[derive(Debug)]
pub(super) struct Core {
    pub(super) networks: PathBuf,
    pub(super) plugins: Plugins,
    pub(super) records: Records,
}

impl Core {
    pub(super) fn setup(&self, request: &NetRequest) -> Result<NetResult> {
        let wishes = wishes(&self.networks, request)?;
        let shelf = self.records.create(&request.id)?;
        let container = known_as(&request.id);
        let chain = Chain {
            plugins: &self.plugins,
            shelf: &shelf,
            container: &container,
        };
        let mut made: Vec<Record> = Vec::new();
        let mut result = NetResult::default();
        for wish in wishes {
            match self.attach(&chain, &wish) {
                Ok((answer, is_new)) => {
                    Answer::merge(&mut result, answer);
                    made.extend(is_new.then_some(wish));
                }
                Err(error) => {
                    // What was there before this call stays.
                    for record in made.iter().rev() {
                        let record = shelf.find(record).ok().flatten();
                        for error in record.into_iter().flat_map(|r| chain.delete(r)) {
                            tracing::warn!(id = %request.id, %error, "will be tried again");
                        }
                    }
                    shelf.close();
                    return Err(error);
                }
            }
        }
        Ok(result)
    }

    pub(super) fn teardown(&self, id: &TenantId, meant: &Meant) -> Result<Vec<Error>> {
        self.delete(
            id,
            |record| meant.has_record(record),
            |_, network, interface| meant.has(network, interface),
        )
    }

    /// Deletes what is unfinished and what has lost its network namespace, as by a reboot; with `keep`
    /// nothing else.
    pub(super) fn sweep(&self, id: &TenantId, keep: bool) -> Result<()> {
        let is_lost =
            |record: &Record| living(record).is_ok_and(|path| path.as_os_str().is_empty());
        let failed = self.delete(
            id,
            |record| !keep || record.phase != Phase::Added || is_lost(record),
            // What it is of may be at work.
            |is_of_another_boot, _, _| !keep || is_of_another_boot,
        )?;
        let mut errors = Errors::default();
        for error in failed {
            errors.note::<()>(Err(error));
        }
        errors.into_result()
    }

    /// Deletes what is meant; a damaged record is asked about by whether it is of another boot, network
    /// and interface.
    fn delete(
        &self,
        id: &TenantId,
        is_meant: impl Fn(&Record) -> bool,
        is_damaged_meant: impl Fn(bool, &str, &str) -> bool,
    ) -> Result<Vec<Error>> {
        let Some(shelf) = self.records.open(id)? else {
            return Ok(Vec::new());
        };
        let container = known_as(id);
        let chain = Chain {
            plugins: &self.plugins,
            shelf: &shelf,
            container: &container,
        };
        let mut failed = Vec::new();
        // The last one that was made first.
        for record in shelf.records()?.into_iter().rev() {
            match record {
                Ok(record) if is_meant(&record) => failed.extend(chain.delete(record)),
                Ok(_) => {}
                Err(damaged) if damaged.error.is(Code::DataLoss) => {
                    let (network, interface) = damaged.about().unwrap_or_default();
                    let is_old = shelf.is_of_another_boot(&damaged);
                    if is_damaged_meant(is_old, network, interface) {
                        failed.extend(self.give_up(&chain, &damaged, PathBuf::new()).err());
                    } else {
                        tracing::warn!(%id, error = %damaged.error, "left until the container parts");
                    }
                }
                Err(damaged) => failed.push(damaged.error),
            }
        }
        shelf.close();
        Ok(failed)
    }

    /// Undoes what can be undone of an attachment whose record is damaged, and puts the record aside.
    fn give_up(&self, chain: &Chain<'_>, damaged: &Damaged, netns: PathBuf) -> Result<()> {
        let container = chain.container;
        tracing::warn!(container, error = %damaged.error, "a damaged record is put aside");
        if let Some((network, interface)) = damaged.about() {
            match find(&self.networks, network) {
                Ok(network) => chain.forget(&network, interface, netns),
                Err(error) => tracing::warn!(container, %error, "may have something left"),
            }
        }
        chain.shelf.put_aside(damaged)
    }

    pub(super) fn check(&self, id: &TenantId, meant: &Meant) -> Result<()> {
        let missing = |what: &dyn std::fmt::Display| {
            Error::not_found(format_args!("CNI network {what} of {id}"))
        };
        let shelf = self.records.open(id)?.ok_or_else(|| missing(meant))?;
        let container = known_as(id);
        let chain = Chain {
            plugins: &self.plugins,
            shelf: &shelf,
            container: &container,
        };
        for one in meant.each() {
            let mut is_there = false;
            for record in shelf.records()? {
                match record {
                    Ok(record) if one.has_record(&record) => chain.check(&record)?,
                    Err(damaged) if damaged.about().is_some_and(|(n, i)| one.has(n, i)) => {
                        return Err(damaged.error);
                    }
                    _ => continue,
                }
                is_there = true;
            }
            if !is_there {
                return Err(missing(&one));
            }
        }
        Ok(())
    }

    pub(super) fn status(&self) -> Result<()> {
        let network = first(&self.networks)?;
        for plugin in &network.plugins {
            let name = &plugin.program;
            if !self.plugins.versions(name)?.contains(&network.version) {
                return Err(Error::unavailable(format_args!(
                    "CNI network {:?}: CNI plugin {name:?} does not speak version {}",
                    network.name, network.version
                )));
            }
            if network.version.has_status() {
                let input = Value::Object(plain_input(&network, plugin));
                let about = About::default();
                self.plugins
                    .call(name, Command::Status, &about, &input)
                    .ctx_with(|| format!("CNI network {:?}", network.name))?;
            }
        }
        Ok(())
    }

    pub(super) fn collect(&self, name: &str) -> Result<()> {
        let network = find(&self.networks, name)?;
        if network.disable_gc || !network.version.has_status() {
            return Ok(());
        }
        let mut valid = Vec::new();
        for id in self.records.list()? {
            let Some(shelf) = self.records.open(&id)? else {
                continue;
            };
            for record in shelf.records()? {
                // One that cannot be read may be of this network: nothing of it must be forgotten.
                let record = record.map_err(|damaged| damaged.error)?;
                if record.network()?.name == name {
                    valid.push(serde_json::json!({
                        "containerID": known_as(&id),
                        "ifname": record.interface,
                    }));
                }
            }
        }
        let mut errors = Errors::default();
        for plugin in &network.plugins {
            let mut input = plain_input(&network, plugin);
            input.insert("cni.dev/valid-attachments".into(), valid.clone().into());
            let (about, input) = (About::default(), Value::Object(input));
            errors.note(
                self.plugins
                    .call(&plugin.program, Command::Gc, &about, &input),
            );
        }
        errors
            .into_result()
            .ctx_with(|| format!("CNI network {name:?}"))
    }

    /// Makes an attachment unless it is there; whether it was made.
    fn attach(&self, chain: &Chain<'_>, wish: &Record) -> Result<(NetResult, bool)> {
        match chain.shelf.find(wish) {
            Ok(Some(found)) => {
                if let Some(result) = kept(chain, wish, found)? {
                    return Ok((result, false));
                }
            }
            Ok(None) => {}
            Err(damaged) if damaged.error.is(Code::DataLoss) => {
                // Nothing can be known to be of anybody else: the container is the one that asks.
                self.give_up(chain, &damaged, wish.netns.clone())?;
            }
            Err(damaged) => return Err(damaged.error),
        }
        refuse_other(chain, wish)?;
        refuse_taken(wish)?;
        let answer = chain.add(wish.clone())?;
        Ok((answer.to_result()?, true))
    }
}

/// What was made before, if it is still there; else what is left of it is taken away.
fn kept(chain: &Chain<'_>, wish: &Record, found: Record) -> Result<Option<NetResult>> {
    let is_there = !living(&found)?.as_os_str().is_empty();
    if found.phase == Phase::Added && is_there {
        if !found.is_same_wish(wish) {
            return Err(Error::already_exists(format_args!(
                "another CNI attachment of {} as {}",
                chain.container, wish.interface
            )));
        }
        if is_whole(&found)? {
            let version = found.network()?.version;
            let (answer, _) = Answer::parse(&found.result.unwrap_or_default(), version)?;
            return Ok(Some(answer.to_result()?));
        }
    }
    // Half of it may be there, which no plugin has to cope with.
    match chain.delete(found).into_iter().next() {
        Some(error) => Err(error.ctx("undo an earlier attempt")),
        None => Ok(None),
    }
}

/// Refuses an interface that another network of the container has, or has not quite given back: to undo
/// the one would take it from the other.
fn refuse_other(chain: &Chain<'_>, wish: &Record) -> Result<()> {
    for record in chain.shelf.records()? {
        // A damaged one is in the way of its own network only; the interface is looked for besides.
        let Ok(record) = record else { continue };
        let is_other =
            record.interface == wish.interface && !living(&record)?.as_os_str().is_empty();
        if is_other {
            return Err(Error::already_exists(format_args!(
                "interface {} of {}: CNI network {:?} has it",
                wish.interface,
                chain.container,
                record.network()?.name
            )));
        }
    }
    Ok(())
}
