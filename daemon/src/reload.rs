//! SIGHUP: the configuration is read again, and what can change does.
//!
//! Invariant: a file that cannot be read as a whole changes nothing. What changed and what waits for a
//! restart is one line of the log, by key; the latter is told again each time, until the restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use metadata::gc::SchedulerOpts;
use runtime_v2::Tasks;
use tokio::sync::watch;
use toml::{Table, Value};
use types::{Error, Result};

use crate::config::{self, Config, Loaded, Overrides};
use crate::engine::Engine;
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
    /// There was no file at the start, or nothing in it.
    pub(crate) was_blank: bool,
    /// Somebody wants it to be read again, at the next opportunity.
    pub(crate) asked: bool,
}

impl Source {
    /// What it says now.
    ///
    /// # Errors
    /// Those of [`config::load`]; `FailedPrecondition` when the file that there was has gone or is empty:
    /// nobody means by that to have the defaults in the place of all that is set.
    fn read(&self) -> Result<Loaded> {
        let loaded = config::load(self.file.as_deref(), self.flags.clone())?;
        if loaded.is_blank && !self.was_blank {
            let file = self.file.as_deref();
            let file = file.unwrap_or(Path::new(config::DEFAULT_PATH));
            let what = if file.exists() { "is empty" } else { "is gone" };
            return Err(Error::failed_precondition(format_args!(
                "config: {} {what}, a restart would take the defaults",
                file.display()
            )));
        }
        Ok(loaded)
    }
}

/// Sections and keys that change while the daemon runs.
const LIVE: [&[&str]; 7] = [
    &["debug", "level"],
    &["oom_score"],
    &["plugins", "io.containerd.gc.v1.scheduler"],
    &["plugins", TASKS, "max_concurrent_starts"],
    &["plugins", TRANSFER, "config_path"],
    &["plugins", TRANSFER, "max_concurrent_downloads"],
    &["plugins", TRANSFER, "max_concurrent_uploaded_layers"],
];
const TASKS: &str = "io.containerd.runtime.v2.task";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// Keys that say where the rest is and not what it is.
const FORM: [&str; 2] = ["version", "imports"];

/// What can be told of a change.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    source: &'a mut Source,
    collector: watch::Sender<SchedulerOpts>,
    transfers: Option<Transfers>,
    tasks: Arc<Tasks>,
}

impl<'a> Live<'a> {
    /// What runs as the source said.
    pub(crate) fn new(
        source: &'a mut Source,
        collector: watch::Sender<SchedulerOpts>,
        engine: &Engine,
    ) -> Self {
        Self {
            source,
            collector,
            transfers: engine.transfers.clone(),
            tasks: Arc::clone(&engine.tasks),
        }
    }

    /// Notes that the configuration is to be read again as soon as that can be.
    pub(crate) fn ask(&mut self) {
        tracing::info!("the configuration is read again when the hand-over is done");
        self.source.asked = true;
    }

    /// True when it is to be.
    pub(crate) fn is_asked(&self) -> bool {
        self.source.asked
    }

    /// Reads the configuration again and does what it says, as far as that can be.
    pub(crate) fn reload(&mut self) {
        self.source.asked = false;
        if let Err(error) = self.try_reload() {
            tracing::error!(%error, "reload refused: nothing has changed");
        }
    }

    fn try_reload(&mut self) -> Result<()> {
        let loaded = self.source.read()?;
        let news = News::between(&self.source.said, &loaded.config)?;
        // All that can fail comes before anything is changed.
        let collector = store::collector(&loaded.config)?;
        let transfer: config::Transfer = loaded.config.section(TRANSFER)?;
        let tasks: config::Tasks = loaded.config.section(TASKS)?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        if news.has("oom_score") {
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
        if news.has("plugins.io.containerd.runtime") {
            self.tasks.bound(tasks.max_concurrent_starts);
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
                // Zero leaves it alone, as at the start: what it was before, nobody knows any more.
                (_, Value::Integer(0)) if path[..] == ["oom_score"] => {
                    self.waiting.push(path.join("."));
                }
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
    if new.oom_score != 0 {
        merged.oom_score = new.oom_score;
    }
    let full = table(new)?;
    let given = full.get("plugins").and_then(Value::as_table);
    for live in LIVE {
        let ["plugins", uri, keys @ ..] = live else {
            continue;
        };
        let section = given
            .and_then(|given| given.get(*uri))
            .and_then(Value::as_table);
        let into = merged.plugins.entry((*uri).to_owned()).or_default();
        let is_live = |key: &str| keys.is_empty() || keys.contains(&key);
        // What is not given any more has its default again.
        into.retain(|key, _| !is_live(key));
        let live = section
            .into_iter()
            .flatten()
            .filter(|(key, _)| is_live(key));
        into.extend(live.map(|(key, value)| (key.clone(), value.clone())));
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_become_empty_or_has_gone_resets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let source = |was_blank| Source {
            file: Some(file.clone()),
            flags: Overrides::default(),
            said: Config::default(),
            was_blank,
            asked: false,
        };
        let told = |was_blank| {
            source(was_blank)
                .read()
                .map(drop)
                .map_err(|e| e.to_string())
        };
        let gone = told(false).unwrap_err();
        assert!(gone.contains("no such file"), "{gone}");
        for text in ["", "# root = '/x'\n\n"] {
            std::fs::write(&file, text).unwrap();
            let empty = told(false).unwrap_err();
            assert!(empty.contains("config.toml is empty, a restart"), "{empty}");
            told(true).unwrap();
        }
        std::fs::write(&file, "version = 3\n").unwrap();
        told(false).unwrap();
    }

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
        // And back: what is not given any more is no news for ever, and can be given again.
        let back = merged(&running, &old).unwrap();
        let again = News::between(&back, &old).unwrap();
        assert!(again.changed.is_empty(), "{again:?}");
        assert_eq!(News::between(&back, &new).unwrap().changed, changed);
    }

    #[test]
    fn a_score_of_zero_waits_for_a_restart() {
        let (some, none) = (config("oom_score = 5"), config("oom_score = 0"));
        let news = News::between(&some, &none).unwrap();
        assert_eq!(
            (news.changed, news.waiting),
            (vec![], vec!["oom_score".to_owned()])
        );
        assert_eq!(merged(&some, &none).unwrap().oom_score, 5);
        let news = News::between(&none, &some).unwrap();
        assert_eq!(
            (news.changed, news.waiting),
            (vec!["oom_score".to_owned()], vec![])
        );
    }
}
