//! One attachment through all plugins of its network: `ADD` in order, `DEL` in reverse, `CHECK`.
//!
//! Invariant: after a failed `ADD` every plugin gets a `DEL`, and only when all of these worked the
//! record goes. `DEL` goes on past a plugin that fails, and can be repeated.

use std::path::PathBuf;

use serde_json::{Map, Value};
use types::{Code, Error, Result};

use super::answer::Answer;
use super::conf::{Network, Plugin};
use super::place::living;
use super::plugin::{About, Command, Plugins};
use super::record::{Phase, Record, Shelf};

/// What attachments are made with.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    pub(super) plugins: &'a Plugins,
    pub(super) shelf: &'a Shelf,
    /// What plugins know the container by.
    pub(super) container: &'a str,
}

impl Chain<'_> {
    /// Makes the attachment, whole or not at all.
    ///
    /// # Errors
    /// Of the plugin that failed; with it, if it is so, that something could not be undone and will
    /// be tried again.
    pub(super) fn add(&self, mut record: Record) -> Result<Answer> {
        let network = record.network()?;
        record.phase = Phase::Adding;
        record.result = None;
        self.shelf.write(&record)?;
        let error = match self.add_all(&network, &mut record) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let left = self.delete(record);
        let error = error.ctx(format!("CNI network {:?}", network.name));
        if left.is_empty() {
            return Err(error);
        }
        let left: Vec<_> = left.iter().map(ToString::to_string).collect();
        Err(error.ctx(format!("(not yet undone: {})", left.join("; "))))
    }

    fn add_all(&self, network: &Network, record: &mut Record) -> Result<Answer> {
        let mut last = Answer::default();
        for plugin in &network.plugins {
            let input = self.input(network, plugin, record, record.result.as_ref());
            let about = self.about(record, record.netns.clone())?;
            let program = &plugin.program;
            let answered = self.plugins.call(program, Command::Add, &about, &input)?;
            let refused = |e: Error| e.ctx(format!("CNI plugin {program:?}: ADD"));
            let answered = answered.ok_or_else(|| refused(Error::unknown("answered nothing")))?;
            let (answer, version) = Answer::parse(&answered, network.version).map_err(refused)?;
            // What the next one gets is in the network's version; as it was written if it is that.
            record.result = Some(
                if version == network.version && answered.get("cniVersion").is_some() {
                    answered
                } else {
                    answer.to_json(network.version)
                },
            );
            // A plugin that is undone needs what it has answered.
            self.shelf.write(record)?;
            last = answer;
        }
        record.phase = Phase::Added;
        self.shelf.write(record)?;
        Ok(last)
    }

    /// Takes an attachment away; what failed, to be tried again.
    pub(super) fn delete(&self, mut record: Record) -> Vec<Error> {
        let network = match record.network() {
            Ok(network) => network,
            Err(error) => return vec![error],
        };
        if record.phase != Phase::Deleting {
            record.phase = Phase::Deleting;
            if let Err(error) = self.shelf.write(&record) {
                return vec![error];
            }
        }
        let named = |e: Error| e.ctx(format!("CNI network {:?}", network.name));
        let mut failed = Vec::new();
        for plugin in network.plugins.iter().rev() {
            if let Err(error) = self.delete_one(&network, plugin, &record) {
                failed.push(named(error));
            }
        }
        if failed.is_empty()
            && let Err(error) = self.shelf.remove(&record)
        {
            failed.push(error);
        }
        failed
    }

    fn delete_one(&self, network: &Network, plugin: &Plugin, record: &Record) -> Result<()> {
        // Missing is not the same as not knowing the container: it may have made something once.
        self.plugins.find(&plugin.program)?;
        let result = record
            .result
            .as_ref()
            .filter(|_| network.version.has_check());
        let input = self.input(network, plugin, record, result);
        let about = self.about(record, living(record)?)?;
        match self
            .plugins
            .call(&plugin.program, Command::Del, &about, &input)
        {
            Ok(_) => Ok(()),
            Err(error) if error.is(Code::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks the plugins whether what they have made is there.
    ///
    /// # Errors
    /// `FailedPrecondition` with what is not, `DeadlineExceeded`.
    pub(super) fn check(&self, record: &Record) -> Result<()> {
        let network = record.network()?;
        let named = |e: Error| e.ctx(format!("CNI network {:?}", network.name));
        let netns = living(record)?;
        if record.phase != Phase::Added || netns.as_os_str().is_empty() {
            let what = if record.phase == Phase::Added {
                format!("network namespace {} is gone", record.netns.display())
            } else {
                "only a part is there".to_owned()
            };
            return Err(named(Error::failed_precondition(what)));
        }
        if network.disable_check || !network.version.has_check() {
            return Ok(());
        }
        for plugin in &network.plugins {
            let input = self.input(&network, plugin, record, record.result.as_ref());
            let about = self.about(record, netns.clone())?;
            let program = &plugin.program;
            let checked = self.plugins.call(program, Command::Check, &about, &input);
            checked.map_err(|e| {
                let code = match e.code() {
                    Code::DeadlineExceeded => Code::DeadlineExceeded,
                    _ => Code::FailedPrecondition,
                };
                named(e.reclass(code))
            })?;
        }
        Ok(())
    }

    /// Has plugins give back what they know of by the container alone: of an attachment whose record is
    /// damaged there is nothing else. What they cannot, is logged.
    pub(super) fn forget(&self, network: &Network, interface: &str, netns: PathBuf) {
        let mut record = Record::new(network, interface.to_owned(), netns);
        record.phase = Phase::Deleting;
        for plugin in network.plugins.iter().rev() {
            let input = self.input(network, plugin, &record, None);
            let done = self.about(&record, record.netns.clone()).and_then(|about| {
                let program = &plugin.program;
                self.plugins.call(program, Command::Del, &about, &input)
            });
            if let Err(error) = done {
                tracing::warn!(network = network.name, interface, %error, "may be left of a damaged record");
            }
        }
    }

    fn about(&self, record: &Record, netns: PathBuf) -> Result<About> {
        Ok(About {
            container: self.container.to_owned(),
            netns,
            interface: record.interface.clone(),
            args: record.args.clone(),
            lock: Some(self.shelf.lock()?),
        })
    }

    fn input(
        &self,
        network: &Network,
        plugin: &Plugin,
        record: &Record,
        result: Option<&Value>,
    ) -> Value {
        let mut conf = plain_input(network, plugin);
        let wanted = record.capabilities.iter();
        let wanted: Map<_, _> = wanted
            .filter(|(name, _)| plugin.capabilities.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            conf.insert("runtimeConfig".into(), wanted.into());
        }
        if let Some(result) = result {
            conf.insert("prevResult".into(), result.clone());
        }
        Value::Object(conf)
    }
}

/// What every call of a plugin is told.
pub(super) fn plain_input(network: &Network, plugin: &Plugin) -> Map<String, Value> {
    let mut conf = plugin.conf.clone();
    conf.shift_remove("capabilities");
    // A configuration cannot speak for us.
    conf.shift_remove("runtimeConfig");
    conf.shift_remove("prevResult");
    conf.insert("cniVersion".into(), network.version.as_str().into());
    conf.insert("name".into(), network.name.clone().into());
    conf
}
