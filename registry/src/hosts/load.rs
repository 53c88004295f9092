//! Finding and reading the directory of a host.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use types::{Error, Result};

use super::{HostConfig, MAX_HOSTS_FILE, parse, unknown_keys};

/// The name of the file.
const FILE: &str = "hosts.toml";
/// Entries of a directory that are looked at.
const MAX_FILES: usize = 4096;

/// The hosts for the registry `host` (`name` or `name:port`), from the first of the directories
/// `roots` that knows it; `None` when none does. Reads files: blocks.
///
/// # Errors
/// Those of the file system other than that something is not there.
pub fn load(roots: &[PathBuf], host: &str) -> Result<Option<Vec<HostConfig>>> {
    for root in roots {
        for name in names(host) {
            let dir = root.join(name);
            match fs::metadata(&dir) {
                Ok(facts) if facts.is_dir() => return read(&dir).map(Some),
                Ok(_) => {}
                Err(error) if absent(&error) => {}
                Err(error) => return Err(Error::os(format_args!("stat {}", dir.display()), error)),
            }
        }
    }
    Ok(None)
}

/// Names of directories for a host, best first.
fn names(host: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((name, port)) = host.rsplit_once(':').filter(|(name, _)| !name.is_empty()) {
        names.push(format!("{name}_{port}_"));
    }
    // A reference may name any host, also one that is a way out of the directory.
    if !matches!(host, "" | "." | "..") && !host.contains('/') {
        names.push(host.to_owned());
    }
    names.push("_default".to_owned());
    names
}

fn read(dir: &Path) -> Result<Vec<HostConfig>> {
    let path = dir.join(FILE);
    let text = match fs::File::open(&path) {
        Ok(file) => {
            let mut text = String::new();
            file.take(MAX_HOSTS_FILE + 1)
                .read_to_string(&mut text)
                .map_err(|error| Error::os(format_args!("read {}", path.display()), error))?;
            text
        }
        Err(error) if absent(&error) => String::new(),
        Err(error) => return Err(Error::os(format_args!("open {}", path.display()), error)),
    };
    if text.is_empty() {
        return certificates(dir);
    }
    if text.len() as u64 > MAX_HOSTS_FILE {
        return Err(Error::resource_exhausted(format_args!(
            "{} is larger than {MAX_HOSTS_FILE} bytes",
            path.display()
        )));
    }
    for key in unknown_keys(&text) {
        tracing::warn!(key, path = %path.display(), "unknown key in hosts file");
    }
    // Parity: core/remotes/docker/config/hosts.go: a file with a mistake in it does not keep a node
    // from pulling; the registry itself is asked.
    parse(&text, dir).or_else(|error| {
        tracing::error!(%error, path = %path.display(), "mirrors are not used: mistake in hosts file");
        certificates(dir)
    })
}

/// Docker's layout: `*.crt` are authorities, `*.cert` with `*.key` is who we are.
fn certificates(dir: &Path) -> Result<Vec<HostConfig>> {
    let failed = |error| Error::os(format_args!("read {}", dir.display()), error);
    let mut host = HostConfig::default();
    let entries = fs::read_dir(dir).map_err(failed)?;
    for entry in entries.take(MAX_FILES) {
        let path = entry.map_err(failed)?.path();
        let kind = path.extension().and_then(|e| e.to_str());
        match kind {
            _ if path.is_dir() => {}
            Some("crt") => host.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = key.exists().then_some(key);
                host.client.push((path, key));
            }
            _ => {}
        }
    }
    host.ca.sort();
    host.client.sort();
    Ok(vec![host])
}

fn absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
