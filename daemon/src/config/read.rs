//! From text to [`Config`]: versions, unknown keys, clear refusals.
//!
//! Invariant: what reads text touches no file. An unknown key is a warning that names it,
//! a wrong value is an error that names it; both name the file and the line.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use types::{Context as _, Error, Result};

use super::migrate::migrate;
use super::places::{Given, culprit};
use super::{
    Bad, Config, DEFAULT_PATH, DROP_INS, PRINTED_VERSION, VERSION, checks, imports, plugins,
    unknown,
};

/// A configuration and what the operator should hear about it.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The values.
    pub(crate) config: Config,
    /// One line each.
    pub(crate) warnings: Vec<String>,
    /// There is no file, or nothing in it.
    pub(crate) is_blank: bool,
}

/// Values that flags set over the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// `--address`.
    pub(crate) address: Option<String>,
    /// `--root`.
    pub(crate) root: Option<PathBuf>,
    /// `--state`.
    pub(crate) state: Option<PathBuf>,
    /// `--log-level`.
    pub(crate) level: Option<super::Level>,
}

/// Reads the file at `path` (default: [`DEFAULT_PATH`], which may be missing) and what it imports,
/// lets the flags win and checks the whole.
///
/// # Errors
/// The errno for a file that was named and cannot be read, `InvalidArgument` for what does not fit.
pub(crate) fn load(path: Option<&Path>, flags: Overrides) -> Result<Loaded> {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    // Without a file there may still be those that the default imports.
    let first = if path.is_none() && !file.exists() {
        imports::matching(Path::new(DROP_INS)).ctx("config")?
    } else {
        vec![file.to_owned()]
    };
    let (given, mut loaded) = match &*first {
        [] => {
            let loaded = Loaded {
                is_blank: true,
                ..Loaded::default()
            };
            (Given::default(), loaded)
        }
        first => files(first).ctx("config")?,
    };
    let config = &mut loaded.config;
    config.grpc.address = flags
        .address
        .unwrap_or(std::mem::take(&mut config.grpc.address));
    config.root = flags.root.unwrap_or(std::mem::take(&mut config.root));
    config.state = flags.state.unwrap_or(std::mem::take(&mut config.state));
    config.debug.level = flags.level.unwrap_or(config.debug.level);
    config.root = absolute(&config.root)?;
    config.state = absolute(&config.state)?;
    config.grpc.address = socket(&config.grpc.address)?;
    config.ttrpc.address = socket(&config.ttrpc.address)?;
    config.debug.address = socket(&config.debug.address)?;
    let refuse = |Bad(path, error): Bad| given.refuse(&path, error).ctx("config");
    config.validate().map_err(refuse)?;
    let unsupported = checks::unsupported(config, &given).ctx("config")?;
    loaded.warnings.extend(unsupported);
    Ok(loaded)
}

/// What the one file says, in the layout that is read here: what it imports stays named.
///
/// # Errors
/// As [`load`].
pub(crate) fn migrated(path: Option<&Path>) -> Result<(String, Vec<String>)> {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    let mut warnings = Vec::new();
    let mut table = open(file, &mut warnings).ctx("config")?.table;
    table.insert("version".into(), Value::Integer(PRINTED_VERSION));
    let text =
        toml::to_string_pretty(&table).map_err(|e| Error::internal(e).ctx("encode config"))?;
    Ok((text, warnings))
}

/// Reads files, each over those before, and what they import.
fn files(first: &[PathBuf]) -> Result<(Given, Loaded)> {
    let mut merged = Given::default();
    let mut warnings = Vec::new();
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<_> = first.iter().rev().cloned().collect();
    let mut is_blank = true;
    while let Some(file) = waiting.pop() {
        // One file has many names; only its own tells that it was read.
        if !seen.insert(fs::canonicalize(&file).unwrap_or(file.clone())) {
            continue;
        }
        let given = open(&file, &mut warnings)?;
        is_blank &= given.is_blank();
        // The last one pushed is read next: the order of the list.
        waiting.extend(imports::named(&given.table, &file)?.into_iter().rev());
        let mut table = merged.learn(given);
        if seen.len() > 1 {
            table.remove("version");
        }
        imports::merge(&mut merged.table, table);
    }
    let config = assemble(&merged)?;
    let loaded = Loaded {
        config,
        warnings,
        is_blank,
    };
    Ok((merged, loaded))
}

fn open(file: &Path, warnings: &mut Vec<String>) -> Result<Given> {
    let text = fs::read_to_string(file)
        .map_err(|e| Error::os(format_args!("open {}", file.display()), e))?;
    check(&text, Some(file), warnings)
}

/// The socket's path in an address, from the root: shims are told it and run elsewhere.
fn socket(address: &str) -> Result<String> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    Ok(absolute(Path::new(path))?.display().to_string())
}

/// The path from the root. An empty one stays: what it means is decided elsewhere.
fn absolute(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Ok(PathBuf::new());
    }
    std::path::absolute(path).map_err(|e| Error::os(format_args!("resolve {}", path.display()), e))
}

/// Reads one file's text, without what it imports.
///
/// # Errors
/// `InvalidArgument` with the line for wrong syntax, a wrong type or a value out of range.
#[cfg(test)]
pub(super) fn parse(text: &str) -> Result<Loaded> {
    let mut warnings = Vec::new();
    let given = check(text, None, &mut warnings)?;
    let config = assemble(&given)?;
    Ok(Loaded {
        config,
        warnings,
        is_blank: given.is_blank(),
    })
}

/// Reads one file's text as a table of the newest layout whose every value fits.
fn check(text: &str, file: Option<&Path>, warnings: &mut Vec<String>) -> Result<Given> {
    let mut given = Given::read(text, file)?;
    let version = version(&given)?;
    migrate(&mut given, version, warnings);
    silent(&mut given.table)?;
    let config = assemble(&given)?;
    let full = plugins::complete(&config.plugins).map_err(|(uri, error)| {
        let fits = |t: Table| plugins::fits(&uri, t);
        let table = given.get(&["plugins", &uri]).and_then(Value::as_table);
        let key = culprit(table.unwrap_or(&Table::new()), &fits);
        let path = [vec!["plugins".to_owned(), uri.clone()], key].concat();
        given.refuse(&path, error)
    })?;
    unknown::keys(&given, &full, warnings)?;
    for list in ["disabled_plugins", "required_plugins"] {
        let names = given
            .get(&[list])
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        for name in names
            .filter_map(Value::as_str)
            .filter(|name| !name.contains('.'))
        {
            let text = format!("plugin {name:?} is not a full plugin URI");
            warnings.push(given.tell(&[list], text));
        }
    }
    given
        .table
        .insert("version".into(), Value::Integer(version));
    Ok(given)
}

/// Complete files write an empty text where they want the default. What is not known here stays to be told.
fn silent(table: &mut Table) -> Result<()> {
    let known = Table::try_from(Config::default()).map_err(Error::internal)?;
    let says = |known: &Table, key: &str, value: &Value| {
        value.as_str() != Some("") || !known.contains_key(key)
    };
    table.retain(|key, value| says(&known, key, value));
    for section in ["grpc", "ttrpc", "debug"] {
        let known = known.get(section).and_then(Value::as_table);
        let given = table.get_mut(section).and_then(Value::as_table_mut);
        if let (Some(known), Some(given)) = (known, given) {
            given.retain(|key, value| says(known, key, value));
        }
    }
    Ok(())
}

/// The version of a file; one that does not say is of the first, and so is what dockerd writes, which says
/// 0.
fn version(given: &Given) -> Result<i64> {
    let version = match given.get(&["version"]) {
        None | Some(Value::Integer(0)) => return Ok(1),
        Some(Value::Integer(version)) => *version,
        Some(other) => {
            let error = Error::invalid_argument(format_args!(
                "version must be a number, not {}",
                other.type_str()
            ));
            return Err(given.refuse(&["version"], error));
        }
    };
    if !(1..=VERSION).contains(&version) {
        let error = Error::invalid_argument(format_args!(
            "unsupported config version {version}: versions 1 to {VERSION} are known"
        ));
        return Err(given.refuse(&["version"], error));
    }
    Ok(version)
}

/// The configuration in migrated tables.
fn assemble(given: &Given) -> Result<Config> {
    let read = |table: Table| -> std::result::Result<Config, toml::de::Error> { table.try_into() };
    read(given.table.clone()).map_err(|e| {
        let key = culprit(&given.table, &|t| read(t).is_ok());
        let error = Error::invalid_argument(e.message().replace('\n', ", "));
        let named = match key.last() {
            Some(name) => error.ctx(name.clone()),
            None => error,
        };
        given.refuse(&key, named)
    })
}
