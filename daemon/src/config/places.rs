//! Where a value was written: what is refused or ignored is named with its file and line.
//!
//! Invariant: a place is kept under the path that its value has *after* migration, so that whoever
//! looks at a value need not know how old its file is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};
use types::{Error, Result};

/// A key with those that it stands below.
pub(super) type KeyPath = Vec<String>;

/// A line of a file; of no file in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    file: Option<PathBuf>,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        write!(f, "line {}", self.line)
    }
}

/// Values with their places.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) table: Table,
    places: BTreeMap<KeyPath, Place>,
}

impl Given {
    /// Reads a file's text.
    ///
    /// # Errors
    /// `InvalidArgument` with the place of what is no TOML.
    pub(super) fn read(text: &str, file: Option<&Path>) -> Result<Self> {
        let place = |at: usize| Place {
            file: file.map(Path::to_owned),
            line: text.get(..at).unwrap_or(text).matches('\n').count() + 1,
        };
        let refuse = |e: toml::de::Error| {
            let at = place(e.span().map_or(text.len(), |span| span.start));
            Error::invalid_argument(e.message().replace('\n', ", ")).ctx(at.to_string())
        };
        let parsed = DeTable::parse(text).map_err(refuse)?;
        let mut places = BTreeMap::new();
        note(&mut Vec::new(), parsed.get_ref(), &mut |path, at| {
            places.insert(path, place(at));
        });
        let table = toml::from_str(text).map_err(refuse)?;
        Ok(Self { table, places })
    }

    /// True when nothing was written.
    pub(super) fn is_blank(&self) -> bool {
        self.places.is_empty()
    }

    /// Moves what is at `from` to `to`; what is there already stays.
    pub(super) fn shift(&mut self, from: &[&str], to: &[&str]) {
        let Some(value) = take(&mut self.table, from) else {
            return;
        };
        put(&mut self.table, to, value);
        let moved: Vec<_> = self
            .places
            .keys()
            .filter(|p| is_below(p, from))
            .cloned()
            .collect();
        for path in moved {
            let rest = path.iter().skip(from.len()).cloned();
            let new = to.iter().map(|&key| key.to_owned()).chain(rest).collect();
            if let Some(place) = self.places.remove(&path) {
                self.places.entry(new).or_insert(place);
            }
        }
    }

    /// Takes away what is at `path`.
    pub(super) fn take(&mut self, path: &[&str]) {
        take(&mut self.table, path);
        self.places.retain(|place, _| !is_below(place, path));
    }

    /// The value at `path`.
    pub(super) fn get(&self, path: &[&str]) -> Option<&Value> {
        let (last, tables) = path.split_last()?;
        let mut table = &self.table;
        for key in tables {
            table = table.get(*key)?.as_table()?;
        }
        table.get(*last)
    }

    /// The place of the value at `path`, or of what it stands in.
    pub(super) fn place(&self, path: &[impl AsRef<str>]) -> Option<&Place> {
        let path: KeyPath = path.iter().map(|key| key.as_ref().to_owned()).collect();
        (1..=path.len())
            .rev()
            .find_map(|length| self.places.get(&path[..length]))
    }

    /// What the operator should hear about the value at `path`.
    pub(super) fn tell(&self, path: &[impl AsRef<str>], text: impl fmt::Display) -> String {
        match self.place(path) {
            Some(place) => format!("{place}: {text}"),
            None => text.to_string(),
        }
    }

    /// The error, with the place of the value at `path`.
    pub(super) fn refuse(&self, path: &[impl AsRef<str>], error: Error) -> Error {
        match self.place(path) {
            Some(place) => error.ctx(place.to_string()),
            None => error,
        }
    }

    /// Takes over the places of a file that is merged over this one.
    pub(super) fn learn(&mut self, other: Self) -> Table {
        self.places.extend(other.places);
        other.table
    }
}

fn note<'t>(path: &mut KeyPath, table: &DeTable<'t>, tell: &mut impl FnMut(KeyPath, usize)) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        tell(path.clone(), key.span().start);
        let value: &Spanned<DeValue<'t>> = value;
        if let DeValue::Table(inner) = value.get_ref() {
            note(path, inner, tell);
        }
        path.pop();
    }
}

fn is_below(path: &[String], top: &[&str]) -> bool {
    path.len() >= top.len() && path.iter().zip(top).all(|(a, b)| a == b)
}

fn take(table: &mut Table, path: &[&str]) -> Option<Value> {
    match path {
        [] => None,
        [last] => table.remove(*last),
        [first, rest @ ..] => take(table.get_mut(*first)?.as_table_mut()?, rest),
    }
}

/// Puts `value` at `path`, below what is there.
fn put(table: &mut Table, path: &[&str], value: Value) {
    let [first, rest @ ..] = path else {
        return;
    };
    let below = match rest {
        [] => value,
        _ => {
            let mut inner = Table::new();
            put(&mut inner, rest, value);
            Value::Table(inner)
        }
    };
    match (table.get_mut(*first), below) {
        (Some(Value::Table(there)), Value::Table(more)) => {
            for (key, value) in more {
                put(there, &[&key], value);
            }
        }
        (Some(_), _) => {}
        (None, below) => {
            table.insert((*first).to_owned(), below);
        }
    }
}

/// Which key of `table` makes it unfit: the first that does not fit when it stands alone.
pub(super) fn culprit(table: &Table, fits: &dyn Fn(Table) -> bool) -> KeyPath {
    let alone = |key: &str, value: Value| Table::from_iter([(key.to_owned(), value)]);
    let found = table
        .iter()
        .find(|(key, value)| !fits(alone(key, (*value).clone())));
    let Some((key, value)) = found else {
        return KeyPath::new();
    };
    let mut path = vec![key.clone()];
    if let Value::Table(inner) = value {
        path.extend(culprit(inner, &|t| fits(alone(key, Value::Table(t)))));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a = 1\n[b.c]\nd = 2\ne.f = 3\n";

    #[test]
    fn a_value_is_found_where_it_was_written_also_after_it_moved() {
        let mut given = Given::read(TEXT, Some(Path::new("/f"))).unwrap();
        let told = |given: &Given, path: &[&str]| given.place(path).map(ToString::to_string);
        assert_eq!(told(&given, &["a"]).unwrap(), "/f: line 1");
        assert_eq!(told(&given, &["b", "c", "e", "f"]).unwrap(), "/f: line 4");
        assert_eq!(told(&given, &["b", "none"]).unwrap(), "/f: line 2");
        assert_eq!(told(&given, &["none"]), None);
        given.shift(&["b", "c"], &["x"]);
        assert_eq!(told(&given, &["x", "d"]).unwrap(), "/f: line 3");
        assert_eq!(given.get(&["x", "d"]), Some(&Value::Integer(2)));
        assert_eq!(given.get(&["b", "c"]), None);
    }

    #[test]
    fn what_is_there_stays_where_something_is_moved_to() {
        let mut given = Given::read("[a]\nx = 1\ny = 1\n[b]\nx = 2\n", None).unwrap();
        given.shift(&["a"], &["b"]);
        let want: Table = toml::from_str("[b]\nx = 2\ny = 1\n").unwrap();
        assert_eq!(given.table, want);
        assert_eq!(given.place(&["b", "x"]).unwrap().to_string(), "line 5");
    }

    #[test]
    fn the_culprit_is_the_key_that_does_not_fit_alone() {
        let table: Table = toml::from_str(TEXT).unwrap();
        let fits = |t: Table| !t.to_string().contains('3');
        assert_eq!(culprit(&table, &fits), ["b", "c", "e", "f"]);
        assert_eq!(culprit(&table, &|_| true), KeyPath::new());
    }
}
