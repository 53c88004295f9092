//! What the machine holds for the daemon at a quiet moment, and what of it is more than at another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// How much a figure may differ from what it was.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// Not at all.
    Same,
    /// It may be less, or so much more.
    More(u64),
}

#[derive(Clone, Debug)]
struct Figure {
    value: u64,
    rule: Rule,
}

/// Figures by name, and the traces that some of them count, line by line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    figures: BTreeMap<String, Figure>,
    lines: BTreeSet<String>,
}

impl Figures {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: u64, rule: Rule) {
        self.figures.insert(name.into(), Figure { value, rule });
    }

    /// A figure; 0 when there is none.
    pub(crate) fn value(&self, name: &str) -> u64 {
        self.figures.get(name).map_or(0, |figure| figure.value)
    }

    /// What is not to be compared any more.
    pub(crate) fn forget(&mut self, names: &[&str]) {
        self.figures
            .retain(|name, _| !names.contains(&name.as_str()));
    }

    /// Those that it has not, as they are there.
    pub(crate) fn take_over(&mut self, other: &Self, names: &[&str]) {
        for (name, figure) in &other.figures {
            if names.contains(&name.as_str()) {
                self.figures
                    .entry(name.clone())
                    .or_insert_with(|| figure.clone());
            }
        }
    }

    /// Counts lines; they are shown when there are others later.
    pub(crate) fn count<'a>(
        &mut self,
        name: &str,
        lines: impl IntoIterator<Item = &'a str>,
        rule: Rule,
    ) {
        let lines: BTreeSet<String> = lines
            .into_iter()
            .map(|line| format!("{name}: {line}"))
            .collect();
        self.add(name, lines.len() as u64, rule);
        self.lines.extend(lines);
    }

    /// What is not as it was, in words; nothing when all is well.
    pub(crate) fn drift(&self, first: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, then) in &first.figures {
            let Some(now) = self.figures.get(name) else {
                found.push(format!("{name}: {} then, gone now", then.value));
                continue;
            };
            let (is_well, bound) = match then.rule {
                Rule::Same => (now.value == then.value, String::new()),
                Rule::More(more) => (
                    now.value <= then.value + more,
                    format!(" (at most {})", then.value + more),
                ),
            };
            if !is_well {
                found.push(format!(
                    "{name}: {} then, {} now{bound}",
                    then.value, now.value
                ));
            }
        }
        if !found.is_empty() {
            let new = self.lines.difference(&first.lines);
            found.extend(new.map(|line| format!("  new: {line}")));
            let gone = first.lines.difference(&self.lines);
            found.extend(gone.map(|line| format!("  gone: {line}")));
        }
        found
    }

    /// All of them in a line.
    pub(crate) fn line(&self) -> String {
        let words = self.figures.iter();
        let words: Vec<_> = words
            .map(|(name, f)| format!("{name} {}", f.value))
            .collect();
        words.join(", ")
    }
}

/// A figure of `smaps_rollup`, in KiB.
pub(crate) fn memory(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.expect("the line").split_whitespace().next();
    value.expect("a value").parse().expect("a number")
}

/// Entries of a directory, as many as there are below it or in it.
pub(crate) fn entries(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(name).collect()
}

/// Parent and state of a process; `None` for one that has ended.
pub(crate) fn parent(pid: u32) -> Option<(u32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = text.rsplit(')').next()?.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((words.next()?.parse().ok()?, state))
}

/// Children of these processes that have ended and that nobody has waited for.
pub(crate) fn zombies(parents: &[u32]) -> Vec<String> {
    let pids = entries("/proc").into_iter();
    let pids = pids.filter_map(|name| name.parse::<u32>().ok());
    let of = |pid: &u32| parent(*pid).is_some_and(|(of, is)| is == 'Z' && parents.contains(&of));
    pids.filter(of).map(|pid| pid.to_string()).collect()
}

/// Files below a directory and what they take on the disk, in KiB.
pub(crate) fn size(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let (mut blocks, mut stack) = (0, vec![dir.to_owned()]);
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            // Gone meanwhile, or another process's.
            let Ok(about) = entry.metadata() else {
                continue;
            };
            blocks += about.blocks();
            // What is mounted is not the directory's.
            let is_root = entry.file_name() == "rootfs" || entry.file_name() == "work";
            if about.is_dir() && !is_root {
                stack.push(entry.path());
            }
        }
    }
    blocks / 2
}

#[test]
fn a_drift_is_named_with_what_is_new() {
    let of = |shims: &[&str], memory| {
        let mut figures = Figures::default();
        figures.count("mount", shims.iter().copied(), Rule::Same);
        figures.add("memory", memory, Rule::More(10));
        figures
    };
    let first = of(&["/a", "/b"], 100);
    assert!(of(&["/a", "/b"], 110).drift(&first).is_empty());
    assert!(of(&["/a", "/b"], 1).drift(&first).is_empty());
    assert_eq!(
        of(&["/b"], 50).drift(&first),
        ["mount: 2 then, 1 now", "  gone: mount: /a"]
    );
    assert_eq!(
        of(&["/a", "/b", "/c"], 111).drift(&first),
        [
            "memory: 100 then, 111 now (at most 110)",
            "mount: 2 then, 3 now",
            "  new: mount: /c"
        ]
    );
    assert_eq!(
        Figures::default().drift(&first)[0],
        "memory: 100 then, gone now"
    );
}
