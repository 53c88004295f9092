//! Keys that nothing here reads: told by name, and told apart. One that no daemon knows is most likely
//! a slip, whatever its value; one of Go's daemon is told only when it asks for something.

use std::collections::BTreeMap;

use toml::{Table, Value};
use types::{Error, Result};

use super::places::{Given, KeyPath};
use super::proxies::KEYS;
use super::{Config, StreamProcessor};

/// What Go's daemon knows and this one does not.
const FOREIGN: &str = include_str!("foreign.toml");
/// Plugins that come and go together.
const CRI: [&str; 3] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
];

/// The keys of Go's daemon that mean nothing here.
#[derive(Debug)]
pub(super) struct Foreign(Table);

impl Foreign {
    /// All of them.
    pub(super) fn known() -> Self {
        // The tests read it: there is no second text that could fail.
        Self(toml::from_str(FOREIGN).unwrap_or_default())
    }

    /// True when `value` is what Go's daemon does without being told.
    pub(super) fn is_default(&self, path: &[impl AsRef<str>], value: &Value) -> bool {
        let Some(known) = self.find(path) else {
            return false;
        };
        match (known, value) {
            (Value::Table(_), Value::Table(inner)) => inner.iter().all(|(key, value)| {
                let path: Vec<&str> = path.iter().map(AsRef::as_ref).chain([&**key]).collect();
                self.is_default(&path, value) || self.is_off(&path, value)
            }),
            (known, value) => known == value,
        }
    }

    /// True when Go's daemon knows the key and `value` asks it for nothing.
    fn is_off(&self, path: &[impl AsRef<str>], value: &Value) -> bool {
        !value.is_table() && is_empty(value) && self.find(path).is_some()
    }

    fn find(&self, path: &[impl AsRef<str>]) -> Option<&Value> {
        let (last, tables) = path.split_last()?;
        let mut table = &self.0;
        for key in tables {
            table = table.get(key.as_ref())?.as_table()?;
        }
        table.get(last.as_ref())
    }
}

/// Looks through what a file says.
struct Search<'a> {
    given: &'a Given,
    known: Table,
    foreign: Foreign,
    warnings: &'a mut Vec<String>,
}

/// Warns of every key that nothing here reads.
///
/// What is known is what a complete configuration prints, its plugins with what is in `full`: no second list to keep in step.
///
/// # Errors
/// None but those of our own defaults.
pub(super) fn keys(
    given: &Given,
    full: &BTreeMap<String, Table>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let mut known = Table::try_from(Config::default()).map_err(Error::internal)?;
    let full = Table::try_from(full).map_err(Error::internal)?;
    known.insert("plugins".into(), full.into());
    for id in ids(given, "stream_processors") {
        let one = Table::try_from(StreamProcessor::default()).map_err(Error::internal)?;
        insert(&mut known, "stream_processors", id, one);
    }
    for id in ids(given, "proxy_plugins") {
        let keys = KEYS.map(|key| (key.to_owned(), Value::Boolean(true)));
        insert(&mut known, "proxy_plugins", id, Table::from_iter(keys));
    }
    let mut search = Search {
        given,
        known,
        foreign: Foreign::known(),
        warnings,
    };
    search.cri();
    let known = std::mem::take(&mut search.known);
    search.table(&mut KeyPath::new(), &given.table, &known);
    Ok(())
}

fn ids<'a>(given: &'a Given, section: &str) -> Vec<&'a String> {
    let table = given.get(&[section]).and_then(Value::as_table);
    table.into_iter().flat_map(Table::keys).collect()
}

fn insert(known: &mut Table, section: &str, id: &str, keys: Table) {
    if let Some(section) = known.get_mut(section).and_then(Value::as_table_mut) {
        section.insert(id.to_owned(), keys.into());
    }
}

impl Search<'_> {
    /// The sections of CRI are a chapter of their own, and told of once.
    fn cri(&mut self) {
        let disabled = self.given.get(&["disabled_plugins"]);
        let disabled = disabled.and_then(Value::as_array).into_iter().flatten();
        let is_disabled = disabled
            .filter_map(Value::as_str)
            .any(|name| name == CRI[0] || name == "cri");
        let said = CRI.iter().find(|uri| {
            let section = self.given.get(&["plugins", uri]);
            section.is_some_and(|section| !is_empty(section))
        });
        if let Some(uri) = said.filter(|_| !is_disabled) {
            let text = "this daemon has no CRI yet: its settings are not used";
            self.warnings.push(self.given.tell(&["plugins", uri], text));
        }
    }

    fn table(&mut self, path: &mut KeyPath, given: &Table, known: &Table) {
        for (key, value) in given {
            if path == &["plugins"] && CRI.contains(&key.as_str()) {
                continue;
            }
            path.push(key.clone());
            match (known.get(key), value) {
                // Values by names that the operator chooses.
                (Some(Value::Table(known)), _) if known.is_empty() => {}
                (Some(Value::Table(known)), Value::Table(given)) => self.table(path, given, known),
                (Some(_), _) => {}
                // A value that asks for nothing is as good as absent where Go's daemon knows it: complete
                // files are full of them. Of one that nobody knows, somebody may expect that it is off.
                (None, _) if self.foreign.is_off(path, value) => {}
                (None, _) if self.foreign.is_default(path, value) => {}
                (None, Value::Table(given)) if self.foreign.find(path).is_some() => {
                    self.table(path, given, &Table::new());
                }
                (None, _) => self.warn(path),
            }
            path.pop();
        }
    }

    fn warn(&mut self, path: &KeyPath) {
        let text = match (self.foreign.find(path), &path[..]) {
            (Some(_), _) => format!("key {:?} is not supported here: ignored", path.join(".")),
            (None, [plugins, uri]) if plugins == "plugins" => {
                format!("section of unknown plugin {uri:?} ignored")
            }
            (None, [plugins, uri, keys @ ..]) if plugins == "plugins" => {
                format!("unknown key {:?} of plugin {uri:?} ignored", keys.join("."))
            }
            (None, _) => format!("unknown key {:?} ignored", path.join(".")),
        };
        self.warnings.push(self.given.tell(path, text));
    }
}

/// True for a value that asks for nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Integer(number) => *number == 0,
        Value::Boolean(set) => !set,
        Value::Array(list) => list.is_empty(),
        Value::Table(table) => table.values().all(is_empty),
        Value::Float(_) | Value::Datetime(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_can_be_told_is_read_and_a_default_of_it_is_no_news() {
        let foreign = Foreign(toml::from_str(FOREIGN).unwrap());
        let path = ["plugins", "io.containerd.internal.v1.opt", "path"];
        assert!(foreign.is_default(&path, &"/opt/containerd".into()));
        assert!(!foreign.is_default(&path, &"/opt/other".into()));
        assert!(!foreign.is_default(&["nonsense"], &"/opt/other".into()));
        assert!(foreign.is_off(&path, &"".into()) && !foreign.is_off(&path, &"x".into()));
        assert!(!foreign.is_off(&["nonsense"], &"".into()));
    }
}
