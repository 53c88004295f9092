//! The text formats of control group files. Pure parsers; the readers treat a missing file as empty.

use std::path::Path;

/// `name value` lines, in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flat(Vec<(Box<str>, u64)>);

impl Flat {
    /// Parses the text; lines of another form are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.into(), value.trim().parse().ok()?))
        };
        Self(text.lines().filter_map(pair).collect())
    }

    /// The value of `name`, zero when it is absent.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.find(name).unwrap_or(0)
    }

    /// The value of `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<u64> {
        self.0
            .iter()
            .find(|(known, _)| &**known == name)
            .map(|(_, value)| *value)
    }

    /// True when nothing was there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads a file of `name value` lines.
pub(super) fn flat(path: &Path) -> Flat {
    Flat::parse(&read(path))
}

/// The sizes of huge pages that a group counts, sorted: those with a file `hugetlb.<size>.<counter>`.
pub(super) fn huge_sizes(dir: &Path, counter: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let size = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(counter)?;
        let size = size.strip_suffix('.')?;
        // `rsvd.` and others count something else.
        (!size.contains('.')).then(|| size.to_owned())
    };
    let mut sizes: Vec<String> = entries.flatten().filter_map(size).collect();
    sizes.sort();
    sizes
}

/// Reads a text file; missing is empty.
pub(super) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Reads one number; `max` is `limit`.
pub(super) fn number(path: &Path, limit: u64) -> Option<u64> {
    parse_number(&read(path), limit)
}

fn parse_number(text: &str, limit: u64) -> Option<u64> {
    match text.trim() {
        "max" => Some(limit),
        number => number.parse().ok(),
    }
}

/// `8:0` as two numbers.
pub(super) fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_numbers_and_devices() {
        let flat = Flat::parse("cache 1\nrss 18446744073709551615\nbad\nworse x\n");
        assert_eq!(
            (flat.get("cache"), flat.get("rss"), flat.get("bad")),
            (1, u64::MAX, 0)
        );
        assert_eq!(flat.find("worse"), None);
        assert!(Flat::parse("").is_empty());
        let numbers = [
            ("max\n", Some(7)),
            ("12\n", Some(12)),
            ("", None),
            ("x", None),
        ];
        for (text, want) in numbers {
            assert_eq!(parse_number(text, 7), want, "{text}");
        }
        assert_eq!(device("8:16"), Some((8, 16)));
        assert_eq!(device("Total"), None);
    }
}
