//! Configurations of CNI networks: what a file says, and which file counts.
//!
//! Invariant: an error names the file and the key. Files count in the order of their names, and a
//! broken one is an error where it would have counted, never silently the next one's turn.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use types::{Context as _, Error, Result, bound_json};

use super::version::Version;

/// Most bytes of a configuration file.
const MAX_FILE: u64 = 1024 * 1024;
/// Endings of files with one plugin, and of those with a chain.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// A network: a chain of plugins that an attachment goes through.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// What its plugins are spoken to in.
    pub version: Version,
    /// `CHECK` is not to be called.
    pub disable_check: bool,
    /// `GC` is not to be called.
    pub disable_gc: bool,
    /// Plugins beside the file are not to be added.
    pub inlined_only: bool,
    /// In the order of `ADD`.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    /// Name of its program.
    pub program: String,
    /// Capabilities that it declares.
    pub capabilities: BTreeSet<String>,
    /// Its configuration as written.
    pub conf: Map<String, Value>,
}

impl Network {
    /// True when one of its plugins declares the capability.
    #[must_use]
    pub fn is_capable_of(&self, capability: &str) -> bool {
        let mut plugins = self.plugins.iter();
        plugins.any(|plugin| plugin.capabilities.contains(capability))
    }

    /// The list as JSON; [`parse`] reads it as the same network.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let plugins: Vec<_> = self.plugins.iter().map(|p| p.conf.clone()).collect();
        serde_json::json!({
            "cniVersion": self.version.as_str(),
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "loadOnlyInlinedPlugins": true,
            "plugins": plugins,
        })
    }
}

/// Reads a configuration: a chain when it has `plugins`, a single plugin when it has `type`.
///
/// # Errors
/// `InvalidArgument` with the key, `ResourceExhausted`.
pub fn parse(text: &[u8]) -> Result<Network> {
    bound_json(text)?;
    let value: Value = serde_json::from_slice(text)
        .map_err(|e| Error::invalid_argument(format_args!("no JSON: {e}")))?;
    from_json(value)
}

/// As [`parse`], for what is JSON already.
///
/// # Errors
/// `InvalidArgument` with the key.
pub fn from_json(value: Value) -> Result<Network> {
    let Value::Object(conf) = value else {
        return Err(Error::invalid_argument("no JSON object"));
    };
    let name = text(&conf, "name")?.unwrap_or_default().to_owned();
    check_name(&name)?;
    let mut network = Network {
        name,
        version: version(&conf)?,
        disable_check: flag(&conf, "disableCheck")?,
        disable_gc: flag(&conf, "disableGC")?,
        inlined_only: flag(&conf, "loadOnlyInlinedPlugins")?,
        plugins: Vec::new(),
    };
    match conf.get("plugins") {
        Some(Value::Array(plugins)) => {
            for (at, plugin) in plugins.iter().enumerate() {
                let read = Plugin::from_json(plugin);
                let read = read.map_err(|e| e.ctx(format!("plugins[{at}]")))?;
                network.plugins.push(read);
            }
        }
        Some(_) => return Err(bad("plugins", "is no list")),
        None if conf.contains_key("type") => {
            // The old form: nothing beside it was ever added to it.
            network.inlined_only = true;
            network.plugins = vec![Plugin::from_json(&Value::Object(conf))?];
        }
        None => {}
    }
    if network.plugins.is_empty() && network.inlined_only {
        return Err(bad("plugins", "has nothing in it"));
    }
    Ok(network)
}

impl Plugin {
    fn from_json(value: &Value) -> Result<Self> {
        let Value::Object(conf) = value else {
            return Err(Error::invalid_argument("no JSON object"));
        };
        let program = text(conf, "type")?.unwrap_or_default().to_owned();
        // It is searched in directories: it must not lead out of them.
        if program.is_empty() || program.contains(['/', '\0']) || program.starts_with('.') {
            return Err(bad("type", "is no name of a program"));
        }
        let capabilities = match conf.get("capabilities") {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Object(declared)) => declared
                .iter()
                .filter(|(_, is_declared)| **is_declared == Value::Bool(true))
                .map(|(name, _)| name.clone())
                .collect(),
            Some(_) => return Err(bad("capabilities", "is no object")),
        };
        Ok(Self {
            program,
            capabilities,
            conf: conf.clone(),
        })
    }
}

/// Letters, digits, `.`, `_` and `-`, the first one a letter or a digit: the rule of the
/// specification. So a name can be part of a file's name.
fn check_name(name: &str) -> Result<()> {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let begins = name
        .as_bytes()
        .first()
        .is_some_and(u8::is_ascii_alphanumeric);
    /// Room for the other parts of a file's name.
    const MAX_NAME: usize = 200;
    if !begins || !name.bytes().all(inside) || name.len() > MAX_NAME {
        return Err(bad("name", &format!("{name:?} is no name of a network")));
    }
    Ok(())
}

/// The highest that both sides know.
fn version(conf: &Map<String, Value>) -> Result<Version> {
    let own = text(conf, "cniVersion")?;
    let Some(listed) = conf.get("cniVersions") else {
        let own = own.unwrap_or_default().parse::<Version>();
        return own.map_err(|e| e.ctx("cniVersion"));
    };
    let Value::Array(listed) = listed else {
        return Err(bad("cniVersions", "is no list"));
    };
    let mut texts: Vec<&str> = own.into_iter().collect();
    for one in listed {
        let one = one.as_str();
        texts.push(one.ok_or_else(|| bad("cniVersions", "has something else than texts"))?);
    }
    // One that is newer than what is known here is for somebody else.
    let known = texts.iter().filter_map(|text| text.parse().ok()).max();
    known.ok_or_else(|| bad("cniVersions", "has none that is known here: 0.1.0 to 1.1.0"))
}

fn text<'a>(conf: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
    match conf.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(bad(key, "is no text")),
    }
}

/// Parity: libcni/conf.go takes `"true"` for `true`, and configurations have it.
fn flag(conf: &Map<String, Value>, key: &str) -> Result<bool> {
    match conf.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(bad(key, "is neither true nor false")),
    }
}

fn bad(key: &str, what: &str) -> Error {
    Error::invalid_argument(format_args!("{key}: {what}"))
}

/// The configuration files of a directory, in the order in which they count. None without a directory.
///
/// # Errors
/// The errno of reading it.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    with_endings(directory, &ENDINGS)
}

fn with_endings(directory: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::os(format_args!("read {}", directory.display()), e);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| endings.contains(&ending)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a configuration file, with the plugins in the directory beside it that has the network's name.
///
/// # Errors
/// As [`parse`], with the file; the errno of reading it.
pub fn load(file: &Path) -> Result<Network> {
    let mut network = read(file, parse)?;
    let beside = file.parent().map(|parent| parent.join(&network.name));
    if let Some(beside) = beside.filter(|_| !network.inlined_only) {
        for file in with_endings(&beside, &["conf"])? {
            let plugin = read(&file, |text| {
                bound_json(text)?;
                let value = serde_json::from_slice(text)
                    .map_err(|e| Error::invalid_argument(format_args!("no JSON: {e}")))?;
                Plugin::from_json(&value)
            })?;
            network.plugins.push(plugin);
        }
    }
    if network.plugins.is_empty() {
        let error = bad("plugins", "is missing, and no file beside has one");
        return Err(error.ctx(file.display().to_string()));
    }
    Ok(network)
}

fn read<T>(file: &Path, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    let named = || file.display().to_string();
    let opened = std::fs::File::open(file);
    let opened = opened.map_err(|e| Error::os(format_args!("open {}", named()), e))?;
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(opened, MAX_FILE + 1), &mut text)
        .map_err(|e| Error::os(format_args!("read {}", named()), e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::resource_exhausted(format_args!(
            "{}: more than {MAX_FILE} bytes",
            named()
        )));
    }
    parse(&text).ctx_with(named)
}

/// The network of this name; of several the one whose file counts first.
///
/// # Errors
/// `NotFound` with what is wrong with the files that could not be read.
pub fn find(directory: &Path, name: &str) -> Result<Network> {
    let mut broken = Vec::new();
    for file in files(directory)? {
        match load(&file) {
            Ok(network) if network.name == name => return Ok(network),
            Ok(_) => {}
            Err(error) => broken.push(error.to_string()),
        }
    }
    let shown = directory.display();
    let mut text = format!("CNI network {name:?} in {shown}");
    if !broken.is_empty() {
        text.push_str(&format!(" (not read: {})", broken.join("; ")));
    }
    Err(Error::not_found(text))
}

/// The network that counts first.
///
/// # Errors
/// `NotFound` when there is none, else what is wrong with its file.
pub fn first(directory: &Path) -> Result<Network> {
    match files(directory)?.first() {
        Some(file) => load(file),
        None => Err(Error::not_found(format_args!(
            "a CNI network in {}",
            directory.display()
        ))),
    }
}
