//! SIGHUP: the configuration is read again, and what can change does.
//!
//! Invariant: a file that cannot be read as a whole changes nothing. What changed and what waits for a
//! restart is one line of the log, by key; the latter is told again each time, until the restart.

use std::path::PathBuf;

use metadata::gc::SchedulerOpts;
use tokio::sync::watch;
use toml::{Table, Value};
use types::{Error, Result};

use crate::config::{self, Config, Overrides};
use crate::transfers::Transfers;
use crate::{log, store};

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The file that was named.
    pub(crate) file: Option<PathBuf>,
    /// The flags.
    pub(crate) flags: Overrides,
    /// What they said last.
    pub(crate) said: Config,
}

/// Sections and keys that change while the daemon runs.
const LIVE: [&[&str]; 6] = [
    &["debug", "level"],
    &["oom_score"],
    &["plugins", "io.containerd.gc.v1.scheduler"],
    &["plugins", TRANSFER, "config_path"],
    &["plugins", TRANSFER, "max_concurrent_downloads"],
    &["plugins", TRANSFER, "max_concurrent_uploaded_layers"],
];
const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// Keys that say where the rest is and not what it is.
const FORM: [&str; 2] = ["version", "imports"];

/// What can be told of a change.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    source: &'a mut Source,
    collector: watch::Sender<SchedulerOpts>,
    transfers: Option<Transfers>,
}

impl<'a> Live<'a> {
    /// What runs as the source said.
    pub(crate) fn new(
        source: &'a mut Source,
        collector: watch::Sender<SchedulerOpts>,
        transfers: Option<Transfers>,
    ) -> Self {
        Self {
            source,
            collector,
            transfers,
        }
    }

    /// Reads the configuration again and does what it says, as far as that can be.
    pub(crate) fn reload(&mut self) {
        if let Err(error) = self.try_reload() {
            tracing::error!(%error, "reload refused: nothing has changed");
        }
    }

    fn try_reload(&mut self) -> Result<()> {
        let loaded = config::load(self.source.file.as_deref(), self.source.flags.clone())?;
        let news = News::between(&self.source.said, &loaded.config)?;
        // All that can fail comes before anything is changed.
        let collector = store::collector(&loaded.config)?;
        let transfer: config::Transfer = loaded.config.section(TRANSFER)?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        // Zero leaves it alone, as at the start.
        if news.has("oom_score") && loaded.config.oom_score != 0 {
            sys::limits::set_oom_score(std::process::id(), loaded.config.oom_score)?;
        }
        if news.has("debug") {
            log::set_level(loaded.config.debug.level)?;
        }
        if news.has("plugins.io.containerd.gc") {
            self.collector.send_replace(collector);
        }
        if let Some(transfers) = self
            .transfers
            .as_ref()
            .filter(|_| news.has("plugins.io.containerd.transfer"))
        {
            transfers.adapt(&transfer);
        }
        self.source.said = merged(&self.source.said, &loaded.config)?;
        let (changed, waiting) = (list(&news.changed), list(&news.waiting));
        tracing::info!(changed, needs_restart = waiting, "configuration reloaded");
        Ok(())
    }
}

fn list(keys: &[String]) -> String {
    match keys {
        [] => "nothing".to_owned(),
        keys => keys.join(", "),
    }
}

/// What differs between two configurations, by key.
#[derive(Debug, Default, PartialEq)]
struct News {
    changed: Vec<String>,
    waiting: Vec<String>,
}

impl News {
    fn between(old: &Config, new: &Config) -> Result<Self> {
        let mut news = Self::default();
        news.note(&mut Vec::new(), &table(old)?, &table(new)?);
        Ok(news)
    }

    /// True when something below `key` has changed.
    fn has(&self, key: &str) -> bool {
        self.changed.iter().any(|changed| changed.starts_with(key))
    }

    fn note(&mut self, path: &mut Vec<String>, old: &Table, new: &Table) {
        let none = Value::Table(Table::new());
        let gone = old.keys().filter(|key| !new.contains_key(*key));
        for key in new.keys().chain(gone) {
            if path.is_empty() && FORM.contains(&key.as_str()) {
                continue;
            }
            let (was, is) = (old.get(key).unwrap_or(&none), new.get(key).unwrap_or(&none));
            path.push(key.clone());
            match (was, is) {
                (was, is) if was == is => {}
                (Value::Table(was), Value::Table(is)) => self.note(path, was, is),
                _ if is_live(path) => self.changed.push(path.join(".")),
                _ => self.waiting.push(path.join(".")),
            }
            path.pop();
        }
    }
}

fn is_live(path: &[String]) -> bool {
    let is_below =
        |live: &&[&str]| path.len() >= live.len() && live.iter().zip(path).all(|(a, b)| a == b);
    LIVE.iter().any(is_below)
}

/// A configuration in full.
fn table(config: &Config) -> Result<Table> {
    toml::from_str(&config.to_toml()?).map_err(Error::internal)
}

/// `old` with what changes from `new`.
fn merged(old: &Config, new: &Config) -> Result<Config> {
    let mut merged = old.clone();
    merged.debug.level = new.debug.level;
    merged.oom_score = new.oom_score;
    let full = table(new)?;
    let given = full.get("plugins").and_then(Value::as_table);
    for live in LIVE {
        let ["plugins", uri, keys @ ..] = live else {
            continue;
        };
        let section = given
            .and_then(|given| given.get(*uri))
            .and_then(Value::as_table);
        let Some(section) = section else {
            continue;
        };
        let into = merged.plugins.entry((*uri).to_owned()).or_default();
        let is_live = |key: &String| keys.is_empty() || keys.contains(&key.as_str());
        let live = section.iter().filter(|(key, _)| is_live(key));
        into.extend(live.map(|(key, value)| (key.clone(), value.clone())));
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, format!("version = 3\n{text}")).unwrap();
        config::load(Some(&file), Overrides::default())
            .unwrap()
            .config
    }

    #[test]
    fn what_changes_and_what_waits_is_told_by_key_until_the_restart() {
        let old = config("[grpc]\ngid = 1");
        let new = config(
            "root = '/other'\n[grpc]\ngid = 2\n[debug]\nlevel = 'debug'\nformat = 'json'\n\
             [plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 7\n\
             [plugins.'io.containerd.transfer.v1.local']\nconfig_path = '/hosts'\n\
             check_platform_supported = true\n\
             [proxy_plugins.far]\ntype = 'diff'\naddress = '/far'",
        );
        let news = News::between(&old, &new).unwrap();
        let changed = [
            "debug.level",
            "plugins.io.containerd.gc.v1.scheduler.mutation_threshold",
            "plugins.io.containerd.transfer.v1.local.config_path",
        ];
        assert_eq!(news.changed, changed);
        let waiting = [
            "debug.format",
            "grpc.gid",
            "plugins.io.containerd.transfer.v1.local.check_platform_supported",
            "proxy_plugins.far.address",
            "proxy_plugins.far.type",
            "root",
        ];
        let mut told = news.waiting.clone();
        told.sort();
        told.retain(|key| {
            !["capabilities", "platform", "exports"]
                .iter()
                .any(|end| key.ends_with(end))
        });
        assert_eq!(told, waiting);
        let running = merged(&old, &new).unwrap();
        let again = News::between(&running, &new).unwrap();
        assert_eq!((again.changed, again.waiting), (vec![], news.waiting));
        assert_eq!(News::between(&new, &new).unwrap(), News::default());
    }
}
