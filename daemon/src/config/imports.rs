//! `imports`: more configuration files, merged over the one that names them.
//!
//! Later files win: scalars are replaced unless the new one asks for nothing, lists grow without
//! duplicates, tables are merged; a proxy plugin or stream processor is replaced as a whole. A file is
//! read once, however often it is named.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use types::{Error, Result};

use super::unknown::is_empty;

/// Tables whose entries make sense as a whole only.
const WHOLE: [&str; 3] = ["proxy_plugins", "stream_processors", "timeouts"];

/// The files that `table`, read from `file`, imports: in the order of the list, each pattern sorted.
///
/// # Errors
/// The errno of a directory that cannot be read. A pattern that nothing fits is none.
pub(super) fn named(table: &Table, file: &Path) -> Result<Vec<PathBuf>> {
    let patterns = table
        .get("imports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let home = file.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    for pattern in patterns.filter_map(Value::as_str) {
        found.extend(matching(&home.join(pattern))?);
    }
    Ok(found)
}

/// The files that fit a path whose last part may hold `*`.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name()) else {
        return Ok(Vec::new());
    };
    let name = name.to_string_lossy();
    if !name.contains('*') {
        return Ok(vec![pattern.to_owned()]);
    }
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Error::os(
                format_args!("read {}", directory.display()),
                error,
            ));
        }
    };
    let names: BTreeSet<_> = entries
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.file_name())
        .filter(|found| fits(&name, &found.to_string_lossy()))
        .collect();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

/// True when `name` fits `pattern`, where `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(rest) = name.strip_prefix(head) else {
        return false;
    };
    rest.char_indices()
        .map(|(at, _)| at)
        .chain([rest.len()])
        .any(|at| fits(tail, &rest[at..]))
}

/// Puts `over` onto `base`.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) if WHOLE.contains(&key.as_str()) => {
                base.extend(over);
            }
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (Some(Value::Array(base)), Value::Array(over)) => {
                for value in over {
                    if !base.contains(&value) {
                        base.push(value);
                    }
                }
            }
            // As in Go: a drop-in that is a complete file must not undo what was set before it.
            (Some(_), value) if is_empty(&value) => {}
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, name, want) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml.bak", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("a", "a", true),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn later_files_win_and_lists_grow() {
        let read = |text: &str| toml::from_str::<Table>(text).unwrap();
        let mut base = read(
            "root = '/a'\ndisabled_plugins = ['x']\n[grpc]\nuid = 1\ngid = 1\n[plugins.p]\na = 1\nb = 1",
        );
        merge(
            &mut base,
            read(
                "root = '/b'\ndisabled_plugins = ['y', 'x']\n[grpc]\nuid = 0\ngid = 2\n[plugins.p]\na = 2",
            ),
        );
        let want = read(
            "root = '/b'\ndisabled_plugins = ['x', 'y']\n[grpc]\nuid = 1\ngid = 2\n[plugins.p]\na = 2\nb = 1",
        );
        assert_eq!(base, want);
    }
}
