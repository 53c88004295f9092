//! From text to [`Config`]: versions, unknown keys, clear refusals.
//!
//! Invariant: what reads text touches no file. An unknown key is a warning that names it,
//! a wrong value is an error that names the line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use types::{Context as _, Error, Result};

use super::proxies::KEYS;
use super::{Config, DEFAULT_PATH, StreamProcessor, VERSION, imports, plugins};

/// A configuration and what the operator should hear about it.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The values.
    pub(crate) config: Config,
    /// One line each.
    pub(crate) warnings: Vec<String>,
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
    let mut loaded = if path.is_none() && !file.exists() {
        Loaded::default()
    } else {
        files(file)?
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
    config.validate().ctx("config")?;
    Ok(loaded)
}

/// Reads a file and, over it, what it imports.
fn files(first: &Path) -> Result<Loaded> {
    let mut merged = Table::new();
    let mut warnings = Vec::new();
    let mut seen = BTreeSet::new();
    let mut waiting = vec![first.to_owned()];
    while let Some(file) = waiting.pop() {
        // One file has many names; only its own tells that it was read.
        if !seen.insert(fs::canonicalize(&file).unwrap_or(file.clone())) {
            continue;
        }
        let name = || format!("config {}", file.display());
        let text = fs::read_to_string(&file)
            .map_err(|e| Error::os(format_args!("open {}", file.display()), e).ctx("config"))?;
        let mut table = check(&text, &mut warnings).ctx_with(name)?;
        // The last one pushed is read next: the order of the list.
        waiting.extend(
            imports::named(&table, &file)
                .ctx_with(name)?
                .into_iter()
                .rev(),
        );
        if seen.len() > 1 {
            table.remove("version");
        }
        imports::merge(&mut merged, table);
    }
    let config = assemble(merged, &mut warnings)?;
    Ok(Loaded { config, warnings })
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
    let table = check(text, &mut warnings)?;
    let config = assemble(table, &mut warnings)?;
    Ok(Loaded { config, warnings })
}

/// Reads one file's text as a table whose every value fits.
fn check(text: &str, warnings: &mut Vec<String>) -> Result<Table> {
    let mut given: Table = toml::from_str(text).map_err(|e| refuse(text, &e))?;
    let version = version(&given)?;
    let config: Config = toml::from_str(text).map_err(|e| refuse(text, &e))?;
    let full = plugins::complete(&config.plugins)?;
    unknown_keys(&given, &full, warnings)?;
    for name in config
        .disabled_plugins
        .iter()
        .chain(&config.required_plugins)
    {
        if version > 1 && !name.starts_with("io.containerd.") {
            warnings.push(format!("plugin {name:?} is not a full plugin URI"));
        }
    }
    given.insert("version".into(), Value::Integer(version));
    Ok(given)
}

/// The version of a file; one that does not say is of the first.
fn version(given: &Table) -> Result<i64> {
    let version = match given.get("version") {
        None => 1,
        Some(Value::Integer(version)) => *version,
        Some(other) => {
            return Err(Error::invalid_argument(format_args!(
                "version must be a number, not {}",
                other.type_str()
            )));
        }
    };
    if !(1..=VERSION).contains(&version) {
        return Err(Error::invalid_argument(format_args!(
            "unsupported config version {version}: versions 1 to {VERSION} are known"
        )));
    }
    Ok(version)
}

/// The configuration in checked and merged tables.
fn assemble(table: Table, warnings: &mut Vec<String>) -> Result<Config> {
    let mut config: Config = table
        .try_into()
        .map_err(|e: toml::de::Error| Error::invalid_argument(e.message()))?;
    servers(&mut config, warnings)?;
    Ok(config)
}

/// One line for a parse error.
fn refuse(text: &str, error: &toml::de::Error) -> Error {
    let message = error.message().replace('\n', ", ");
    let Some(span) = error.span() else {
        return Error::invalid_argument(message);
    };
    let line = text.get(..span.start).unwrap_or(text).matches('\n').count() + 1;
    Error::invalid_argument(message).ctx(format!("line {line}"))
}

/// Warns of every key that nothing here reads.
///
/// What is known is what a complete configuration prints: no second list to keep in step.
fn unknown_keys(
    given: &Table,
    plugins: &BTreeMap<String, Table>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let known = Table::try_from(Config::default()).map_err(Error::internal)?;
    for (key, value) in said(given) {
        match (known.get(key), value) {
            (None, _) => warnings.push(format!("unknown key {key:?} in config ignored")),
            (Some(_), Value::Table(tables)) if key == "plugins" => {
                plugin_keys(tables, plugins, warnings);
            }
            (Some(_), Value::Table(tables)) if key == "stream_processors" => {
                let known = Table::try_from(StreamProcessor::default());
                processor_keys(tables, &known.map_err(Error::internal)?, warnings);
            }
            (Some(_), Value::Table(given)) if key == "proxy_plugins" => {
                for (id, plugin) in given {
                    let keys = plugin.as_table().into_iter().flat_map(said);
                    for (name, _) in keys.filter(|(name, _)| !KEYS.contains(&name.as_str())) {
                        warnings.push(format!(
                            "unknown key {name:?} of proxy plugin {id:?} in config ignored"
                        ));
                    }
                }
            }
            (Some(Value::Table(known)), Value::Table(given)) => {
                for (name, _) in said(given).filter(|(name, _)| !known.contains_key(*name)) {
                    warnings.push(format!("unknown key \"{key}.{name}\" in config ignored"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The same for stream processors.
fn processor_keys(given: &Table, known: &Table, warnings: &mut Vec<String>) {
    for (id, section) in said(given) {
        let keys = section.as_table().into_iter().flat_map(said);
        for (key, _) in keys.filter(|(key, _)| !known.contains_key(*key)) {
            warnings.push(format!(
                "unknown key {key:?} of stream processor {id:?} in config ignored"
            ));
        }
    }
}

/// The same for plugin sections.
fn plugin_keys(given: &Table, full: &BTreeMap<String, Table>, warnings: &mut Vec<String>) {
    for (uri, section) in said(given) {
        let Some(known) = full.get(uri) else {
            if !SERVERS.contains(&uri.as_str()) {
                warnings.push(format!(
                    "section of unknown plugin {uri:?} in config ignored"
                ));
            }
            continue;
        };
        let keys = section.as_table().into_iter().flat_map(said);
        for (key, _) in keys.filter(|(key, _)| !known.contains_key(*key)) {
            warnings.push(format!(
                "unknown key {key:?} of plugin {uri:?} in config ignored"
            ));
        }
    }
}

/// What a table says. A value that asks for nothing is as good as absent, and ignoring it loses
/// nothing: complete files are full of them.
fn said(table: &Table) -> impl Iterator<Item = (&String, &Value)> {
    table.iter().filter(|(_, value)| !is_empty(value))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Integer(number) => *number == 0,
        Value::Boolean(set) => !set,
        Value::Array(list) => list.is_empty(),
        Value::Table(table) => table.values().all(is_empty),
        Value::Float(_) | Value::Datetime(_) => false,
    }
}

/// Sections to which version 4 moved the sockets and the log.
const SERVERS: [&str; 3] = [
    "io.containerd.server.v1.grpc",
    "io.containerd.server.v1.ttrpc",
    "io.containerd.server.v1.debug",
];

/// Reads them as if they stood where they used to.
fn servers(config: &mut Config, warnings: &mut Vec<String>) -> Result<()> {
    let [grpc, ttrpc, debug] = SERVERS;
    merge(grpc, &mut config.grpc, &mut config.plugins, warnings)?;
    merge(ttrpc, &mut config.ttrpc, &mut config.plugins, warnings)?;
    merge(debug, &mut config.debug, &mut config.plugins, warnings)
}

fn merge<T>(
    uri: &str,
    into: &mut T,
    plugins: &mut BTreeMap<String, Table>,
    warnings: &mut Vec<String>,
) -> Result<()>
where
    T: Clone + serde::Serialize + serde::de::DeserializeOwned,
{
    let Some(section) = plugins.remove(uri) else {
        return Ok(());
    };
    let mut table = Table::try_from(into.clone()).map_err(Error::internal)?;
    for (key, value) in section {
        if table.insert(key.clone(), value).is_none() {
            warnings.push(format!(
                "unknown key {key:?} of plugin {uri:?} in config ignored"
            ));
        }
    }
    *into = table.try_into().map_err(|e: toml::de::Error| {
        Error::invalid_argument(e.message()).ctx(format!("plugin {uri:?}"))
    })?;
    Ok(())
}
