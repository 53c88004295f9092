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

/// The files that fit a path whose parts may hold `*`. Without one it is itself, there or not.
pub(super) fn matching(pattern: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    let mut has_star = false;
    for part in pattern.components() {
        let name = part.as_os_str().to_string_lossy();
        if name.contains('*') {
            has_star = true;
            let mut next = Vec::new();
            for directory in &found {
                next.extend(fitting(directory, &name)?);
            }
            found = next;
        } else {
            found.iter_mut().for_each(|path| path.push(part));
        }
    }
    if has_star {
        found.retain(|path| path.exists());
    }
    Ok(found)
}

/// What is in a directory under names that fit, sorted; nothing when it is none.
fn fitting(directory: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(Vec::new()),
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
        .filter(|found| fits(pattern, &found.to_string_lossy()))
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
    fn a_star_may_be_in_any_part() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["b/x.toml", "a/x.toml", "a/y.toml", "c/z/x.toml"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let found = |pattern: &str| -> Vec<String> {
            let found = matching(&dir.path().join(pattern)).unwrap().into_iter();
            let below = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().to_owned();
            found
                .map(|path| below(path).display().to_string())
                .collect()
        };
        for (pattern, want) in [
            ("*/x.toml", &["a/x.toml", "b/x.toml"][..]),
            ("*/*.toml", &["a/x.toml", "a/y.toml", "b/x.toml"]),
            ("*/*/x.toml", &["c/z/x.toml"]),
            ("a*/../b/*", &["a/../b/x.toml"]),
            ("none/*.toml", &[]),
            ("none.toml", &["none.toml"]),
        ] {
            assert_eq!(found(pattern), want, "{pattern}");
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
