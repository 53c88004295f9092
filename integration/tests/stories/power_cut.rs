//! The power fails in the middle of an import: what was answered stands, nothing damaged is served.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::{Disk, FileSystem, Host, IMAGE, Program, apart, archive, until};

use crate::layout::layered;

/// Cuts per file system.
const CUTS: u64 = 20;

/// How often each answer is cut off: some of what is not flushed goes to the disk all the same, with
/// what others flush.
const ROUNDS: usize = 4;

/// Beyond the whole of an import, in case that this one takes longer than the measured one.
pub(crate) const REACH: f64 = 1.2;

#[test]
fn an_import_on_ext4_survives_power_cuts() {
    apart(|| cuts(FileSystem::Ext4, "power-ext4"));
}

#[test]
fn an_import_on_xfs_survives_power_cuts() {
    apart(|| cuts(FileSystem::Xfs, "power-xfs"));
}

#[test]
fn layers_on_ext4_survive_power_cuts() {
    apart(|| layers(FileSystem::Ext4, "layers-ext4"));
}

#[test]
fn layers_on_xfs_survive_power_cuts() {
    apart(|| layers(FileSystem::Xfs, "layers-xfs"));
}

#[test]
fn what_was_answered_on_ext4_survives_a_power_cut() {
    apart(|| answers(FileSystem::Ext4, "answers-ext4"));
}

#[test]
fn what_was_answered_on_xfs_survives_a_power_cut() {
    apart(|| answers(FileSystem::Xfs, "answers-xfs"));
}

/// Calls, and a list that shows afterwards whether they had their effect: a name, there or not.
type Answer = (&'static [&'static [&'static str]], List, &'static str, bool);
type List = &'static [&'static str];

const NAMESPACES: List = &["namespaces", "ls", "-q"];
const SNAPSHOTS: List = &["snapshots", "ls"];
const LEASES: List = &["leases", "ls", "-q"];
const IMAGES: List = &["images", "ls", "-q"];

const ANSWERS: [Answer; 8] = [
    (
        &[&["namespaces", "create", "other"]],
        NAMESPACES,
        "other",
        true,
    ),
    (
        &[&["namespaces", "rm", "other"]],
        NAMESPACES,
        "other",
        false,
    ),
    (&[&["leases", "create", "--id", "l"]], LEASES, "l", true),
    (&[&["leases", "rm", "l"]], LEASES, "l", false),
    (
        &[
            &["snapshots", "prepare", "a"],
            &["snapshots", "commit", "b", "a"],
        ],
        SNAPSHOTS,
        "b",
        true,
    ),
    (&[&["snapshots", "rm", "b"]], SNAPSHOTS, "b", false),
    (
        &[&["images", "tag", IMAGE, "example.test/tag:1"]],
        IMAGES,
        "example.test/tag:1",
        true,
    ),
    (
        &[&["images", "rm", "example.test/tag:1"]],
        IMAGES,
        "example.test/tag:1",
        false,
    ),
];

fn answers(kind: FileSystem, name: &str) {
    let disk = Disk::new(kind);
    let mut host = Host::rooted(name, &disk.path().join("root"));
    host.image();
    for (calls, list, name, is_there) in (0..ROUNDS).flat_map(|_| ANSWERS) {
        let point = Point(format!("{calls:?}"));
        for call in calls {
            drop(host.ctr(*call).ok());
        }
        disk.cut();
        host.kill();
        disk.remount();
        host.start();
        sound(&host);
        let shown = host.ctr(list).ok();
        let mut names = shown.lines().filter_map(|line| line.split(' ').next());
        assert_eq!(names.any(|shown| shown == name), is_there, "{shown}");
        drop(point);
    }
    clean(&host, IMAGE);
    host.finish();
    disk.finish();
}

fn cuts(kind: FileSystem, name: &str) {
    let disk = Disk::new(kind);
    let mut host = Host::rooted(name, &disk.path().join("root"));
    let image = Imported {
        name: IMAGE,
        archive: archive(),
    };
    survives(&disk, &mut host, &image, |host| {
        assert_eq!(host.run(&["--rm"], "p", &["echo", "up"]).ok(), "up\n");
    });
    host.finish();
    disk.finish();
}

/// An image whose layers are unpacked at the same time and settled afterwards.
fn layers(kind: FileSystem, name: &str) {
    let disk = Disk::new(kind);
    let mut host = Host::rooted(name, &disk.path().join("root"));
    let (name, archive) = layered(&host);
    let image = Imported { name, archive };
    survives(&disk, &mut host, &image, |_| {});
    host.finish();
    disk.finish();
}

/// What is imported again and again.
struct Imported {
    name: &'static str,
    archive: PathBuf,
}

impl Imported {
    fn program(&self, host: &Host) -> Program {
        let import = ["images", "import", "--base-name", "example.test/layers"];
        host.ctr_program().args(import).args([&self.archive])
    }
}

fn survives(disk: &Disk, host: &mut Host, image: &Imported, works: impl Fn(&Host)) {
    drop(image.program(host).run().ok());
    let whole = tree(host);
    clean(host, image.name);
    let begin = Instant::now();
    drop(image.program(host).run().ok());
    let length = begin.elapsed();
    clean(host, image.name);
    for number in 0..CUTS {
        // Some of them right after the answer.
        let at = (number % 4 > 0).then(|| length.mul_f64(share(number) * REACH));
        let point = Point(format!(
            "cut {number} after {at:?} of an import of {length:?}"
        ));
        let answered = cut(disk, host, image.program(host), at);
        sound(host);
        let images = host.ctr(["images", "ls", "-q"]).ok();
        let is_there = images.trim() == image.name;
        assert!(is_there || !answered, "what was answered is gone");
        if is_there {
            assert_eq!(differences(&whole, &tree(host)), Vec::<String>::new());
        }
        drop(image.program(host).run().ok());
        assert_eq!(differences(&whole, &tree(host)), Vec::<String>::new());
        works(host);
        clean(host, image.name);
        drop(point);
    }
}

/// Cuts the power `at` this time after an import has begun, or when it was answered, and starts again.
/// True when it had been answered.
fn cut(disk: &Disk, host: &mut Host, import: Program, at: Option<Duration>) -> bool {
    let mut import = Some(std::thread::spawn(move || import.run()));
    let mut code = || import.take().map(|it| it.join().expect("import").code);
    let mut done = None;
    match at {
        // Not a condition: any instant will do, and these are taken at random.
        Some(at) => std::thread::sleep(at),
        None => done = code(),
    }
    disk.cut();
    host.kill();
    let answered = done.or_else(code) == Some(0);
    disk.remount();
    host.start();
    answered
}

/// Nothing but garbage is wrong; what is there is what it is named after.
fn sound(host: &Host) {
    let found = host.ctr(["fsck"]).stdout;
    let faults: Vec<&str> = found.lines().filter(|l| is_fault(l)).collect();
    assert!(faults.is_empty(), "{found}");
    let blobs = host.ctr(["content", "ls", "-q"]).ok();
    let directory = host.root().join("io.containerd.content.v1.content/blobs");
    for digest in blobs.lines() {
        let hex = digest.strip_prefix("sha256:").expect("of SHA-256");
        let file = directory.join("sha256").join(hex);
        let sum = Program::new("sha256sum").args([file]).run().ok();
        assert_eq!(sum.split(' ').next(), Some(hex));
    }
}

/// True for a line of `fsck` about more than garbage and the layer that was being unpacked: an active
/// snapshot is not promised to survive, and this one is begun anew.
fn is_fault(line: &str) -> bool {
    let is_layer = line.starts_with("missing snapshot ") && line.contains("/overlayfs/extract-");
    let faults = ["damaged ", "missing ", "dangling "];
    !is_layer && faults.iter().any(|fault| line.starts_with(fault))
}

/// Removes the image and what a cut import has left; then nothing is left that is wrong.
fn clean(host: &Host, image: &str) {
    let leases = host.ctr(["leases", "ls", "-q"]).ok();
    for lease in leases.lines() {
        drop(host.ctr(["leases", "rm", lease]).ok());
    }
    drop(host.ctr(["images", "rm", "--sync", image]).ok());
    drop(host.ctr(["fsck", "--repair"]));
    let left = host.ctr(["fsck"]).ok();
    let is_empty = left.starts_with("checked 0 blobs (0 bytes read), 0 ingests, 0 snapshots, ");
    assert!(is_empty && left.ends_with("nothing is wrong\n"), "{left}");
}

/// Kind and mode, owner, time, size, and hash of data or target.
type Entry = (u32, (u32, u32), (i64, i64), u64, u64);

/// The files of the unpacked image, seen through a mount: where there are two, of that with more layers.
pub(crate) fn tree(host: &Host) -> BTreeMap<PathBuf, Entry> {
    let table = host.ctr(["snapshots", "ls"]).ok();
    let rows = table.lines().map(str::split_whitespace);
    let rows: Vec<(&str, &str)> = rows
        .filter_map(|mut row| Some((row.next()?, row.next()?)))
        .filter(|(name, _)| name.starts_with("sha256:"))
        .collect();
    let is_top = |name: &str| !rows.iter().any(|(_, parent)| *parent == name);
    let tops = rows.iter().filter(|(name, _)| is_top(name));
    let top = tops.max_by_key(|(_, parent)| parent.starts_with("sha256:"));
    let (layer, _) = top.expect("a top layer");
    // No view: nothing would keep one from the collector.
    drop(host.ctr(["snapshots", "prepare", "v", layer]).ok());
    let target = host.path("tree");
    fs::create_dir_all(&target).expect("make the mount point");
    let mount = host.ctr(["snapshots", "mounts", &target.to_string_lossy(), "v"]);
    drop(Program::new("sh").args(["-c", &mount.ok()]).run().ok());
    let mut found = BTreeMap::new();
    walk(&target, Path::new(""), &mut found);
    // A child that another test forks holds all descriptors until its exec.
    until("the tree is unmounted", || {
        Program::new("umount").args([&target]).run().code == 0
    });
    drop(host.ctr(["snapshots", "rm", "v"]).ok());
    found
}

fn walk(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, Entry>) {
    for entry in fs::read_dir(root.join(at)).expect("list") {
        let name = at.join(entry.expect("entry").file_name());
        let path = root.join(&name);
        let facts = path.symlink_metadata().expect("stat");
        let mut hash = DefaultHasher::new();
        let size = if facts.is_dir() {
            walk(root, &name, found);
            0
        } else if facts.is_symlink() {
            fs::read_link(&path).expect("read link").hash(&mut hash);
            facts.len()
        } else {
            fs::read(&path).expect("read").hash(&mut hash);
            facts.len()
        };
        let (owner, time) = (
            (facts.uid(), facts.gid()),
            (facts.mtime(), facts.mtime_nsec()),
        );
        found.insert(name, (facts.mode(), owner, time, size, hash.finish()));
    }
}

/// What one tree has and the other has not, or has otherwise.
pub(crate) fn differences(
    left: &BTreeMap<PathBuf, Entry>,
    right: &BTreeMap<PathBuf, Entry>,
) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let differs = |name: &&&PathBuf| left.get(**name) != right.get(**name);
    let text = |name: &PathBuf| {
        let (name, left, right) = (name.display(), left.get(name), right.get(name));
        format!("{name}: {left:?}, {right:?}")
    };
    names
        .iter()
        .filter(differs)
        .map(|name| text(name))
        .collect()
}

/// A share of a whole: the same at every run, and without a pattern (splitmix64).
pub(crate) fn share(number: u64) -> f64 {
    let mut bits = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let part = u32::try_from((bits ^ (bits >> 31)) >> 32).unwrap_or(u32::MAX);
    f64::from(part) / f64::from(u32::MAX)
}

/// Names the point at which a test fails.
pub(crate) struct Point(pub(crate) String);

impl Drop for Point {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(writeln!(std::io::stderr(), "at {}", self.0));
        }
    }
}
