//! Damaged records under running containers: the daemon says what it did about them and goes on, and
//! what somebody only notices by looking is found by `fsck`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::{Host, IMAGE, Program, bin_dir, until};

/// Rounds of random damage; `ROUNDS=1000` looks further.
const ROUNDS: u64 = 24;

const METADATA: &str = "io.containerd.metadata.v1.bolt/metadata.redb";
const JOURNAL: &str = "io.containerd.metadata.v1.bolt/metadata.redb.journal";
const INDEX: &str = "io.containerd.snapshotter.v1.overlayfs/metadata.redb";

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit.max(1)
    }
}

/// Cuts a file short or flips one bit of it.
fn damage(path: &Path, random: &mut Random) {
    let mut bytes = std::fs::read(path).expect("read");
    match random.below(4) {
        0 => bytes.truncate(random.below(bytes.len())),
        // Most of the file is pages that nobody needs any more; its head never is.
        1 => {
            let at = random.below(512);
            bytes[at] ^= 1 << random.below(8);
        }
        _ => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
    }
    std::fs::write(path, bytes).expect("write");
}

fn rounds() -> u64 {
    let told = std::env::var("ROUNDS").ok();
    told.map_or(ROUNDS, |text| text.parse().expect("a number"))
}

/// What was logged since `from`.
fn since(host: &Host, from: usize) -> String {
    host.log()[from..].to_owned()
}

/// Nothing is wrong once the collector has had what was left for it.
fn clean(host: &Host) {
    until("nothing is wrong", || {
        let told = host.ctr(["fsck"]);
        let orphans = |line: &str| line.starts_with("orphan ") || line.starts_with("checked ");
        assert!(
            told.stdout.lines().all(orphans),
            "{}{}",
            told.stdout,
            told.stderr
        );
        // What a kill in the middle of a collection has left is set aside when the index is restored.
        let is_aside = |line: &str| line.contains("/snapshots/lost-");
        let mut lines = told.stdout.lines();
        lines.all(|line| line.starts_with("checked ") || is_aside(line))
    });
}

#[test]
fn whatever_is_damaged_containers_run_on_and_nothing_is_lost() {
    let mut host = Host::new("damaged");
    host.image();
    host.sleeper("one");
    let pid = host.task("one", "RUNNING").expect("running");
    let images = host.ctr(["images", "ls", "-q"]).ok();
    // There are two copies of all of this from now on.
    host.stop();
    host.start();
    let mut random = Random(7);
    // What was removed since the daemon was started.
    let mut removed = Vec::<String>::new();
    // Where the round before begins in the log.
    let mut before = 0;
    for round in 0..rounds() {
        host.kill();
        let which = [METADATA, INDEX, JOURNAL][random.below(3)];
        damage(&host.root().join(which), &mut random);
        let from = host.log().len();
        host.start();
        let log = since(&host, from);
        // The engine's way to say that a file is damaged is caught, and told at this level.
        let mut panics = log.lines().filter(|line| line.contains("panicked"));
        assert!(panics.all(|line| line.contains("level=debug")), "{log}");
        assert_eq!(
            host.ctr(["images", "ls", "-q"]).ok(),
            images,
            "round {round}"
        );
        let containers = host.ctr(["containers", "ls", "-q"]).ok();
        let back: Vec<_> = containers.lines().filter(|id| *id != "one").collect();
        assert!(containers.lines().any(|id| id == "one"), "round {round}");
        // That they were removed is the last that stood in the journal.
        let may_be_back = |id: &&str| which == JOURNAL && removed.iter().any(|gone| gone == id);
        assert!(back.iter().all(may_be_back), "round {round}: {back:?}");
        for id in &back {
            drop(host.ctr(["containers", "rm", *id]));
        }
        removed = back.into_iter().map(str::to_owned).collect();
        until("the task is known", || {
            host.task("one", "RUNNING") == Some(pid)
        });
        // A new one each time: what was written after a restoration is not lost by the next one.
        let id = format!("r{round}");
        let told = host.run(&["--rm"], &id, &["true"]);
        let log = since(&host, before);
        assert_eq!(told.code, 0, "round {round}: {}\n{log}", told.stderr);
        removed.push(id);
        before = from;
    }
    // A record whose removal was lost with the journal has no snapshot any more: told, and put right.
    drop(host.ctr(["fsck", "--repair"]));
    clean(&host);
    host.remove("one");
    // What was found without a record, and what a lease holds whose end was lost with the journal.
    for lease in host.ctr(["leases", "ls", "-q"]).ok().lines() {
        drop(host.ctr(["leases", "rm", "--sync", lease]).ok());
    }
    host.finish();
}

/// What had no record when the store was restored is held until somebody lets it go.
fn let_go(host: &Host) {
    let leases = host.ctr(["leases", "ls", "-q"]).ok();
    for lease in leases.lines().filter(|id| id.starts_with("recovered-")) {
        drop(host.ctr(["leases", "rm", "--sync", lease]).ok());
    }
}

#[test]
fn a_restoration_is_told_with_the_place_of_the_damaged_file() {
    let mut host = Host::new("restored");
    host.image();
    for which in [METADATA, INDEX] {
        let path = host.root().join(which);
        for halves in [0, 1] {
            host.stop();
            let from = host.log().len();
            let bytes = std::fs::read(&path).expect("read");
            let cut = bytes.len() / 2 * halves;
            std::fs::write(&path, &bytes[..cut]).expect("write");
            host.start();
            let log = since(&host, from);
            assert!(log.contains("restored from its"), "{log}");
            let kept = kept(&path, cut);
            assert!(log.contains(&kept.display().to_string()), "{log}");
        }
    }
    clean(&host);
    let_go(&host);
    host.finish();
}

/// The damaged file that was kept aside, by its length.
fn kept(path: &Path, len: usize) -> PathBuf {
    let directory = path.parent().expect("a directory");
    let files = std::fs::read_dir(directory).expect("list");
    let mut all = files.map(|file| file.expect("entry").path());
    all.find(|file| {
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let size = std::fs::metadata(file).expect("stat").len();
        name.contains("damaged-") && size == len as u64
    })
    .expect("the damaged file is kept")
}

#[test]
fn without_file_and_journal_records_are_rebuilt_and_containers_run_on() {
    let mut host = Host::new("rebuilt");
    host.image();
    host.sleeper("one");
    let pid = host.task("one", "RUNNING").expect("running");
    host.kill();
    let file = host.root().join(METADATA);
    let mut journal = file.clone().into_os_string();
    journal.push(".journal");
    std::fs::write(&file, "gone").expect("write");
    std::fs::write(&journal, "gone").expect("write");
    let from = host.log().len();
    host.start();
    let log = since(&host, from);
    for told in [
        "metadata was lost",
        "1 containers that have a task",
        "lost: names of images",
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
    until("the task is known", || {
        host.task("one", "RUNNING") == Some(pid)
    });
    let facts = host.ctr(["containers", "info", "one"]).ok();
    assert!(facts.contains("\"SnapshotKey\": \"one\""), "{facts}");
    assert!(host.ctr(["leases", "ls"]).ok().contains("recovered-"));
    let exec = ["tasks", "exec", "--exec-id", "x", "one", "echo", "alive"];
    assert_eq!(host.ctr(exec).ok().trim(), "alive");
    clean(&host);
    // Nothing is brought twice, and what is gone can be made again.
    host.image();
    drop(host.run(&["--rm"], "two", &["true"]).ok());
    host.remove("one");
    let_go(&host);
    clean(&host);
    host.finish();
}

/// `containerd fsck` over the host's files.
fn fsck(host: &Host, flags: &[&str]) -> integration::Output {
    Program::new(bin_dir().join("containerd"))
        .args(["--root"])
        .args([host.root()])
        .args(["--state"])
        .args([host.state()])
        .args(["--config"])
        .args([host.path("config.toml")])
        .args(["fsck"])
        .args(flags)
        .run()
}

#[test]
fn fsck_names_a_damaged_blob_and_takes_it_from_everybody() {
    let mut host = Host::new("fsck");
    host.image();
    let busy = fsck(&host, &[]);
    assert_eq!(busy.code, 8, "{}", busy.stderr);
    assert_eq!(busy.stderr.lines().count(), 1, "{}", busy.stderr);
    assert!(busy.stderr.contains("ctr fsck"), "{}", busy.stderr);
    host.stop();
    let whole = fsck(&host, &[]);
    assert_eq!(
        (whole.code, whole.stdout.lines().count()),
        (0, 1),
        "{}",
        whole.stdout
    );

    let blobs = host
        .root()
        .join("io.containerd.content.v1.content/blobs/sha256");
    let files = std::fs::read_dir(&blobs).expect("list");
    let paths = files.map(|file| file.expect("entry").path());
    let largest = paths.max_by_key(|path| std::fs::metadata(path).expect("stat").len());
    let largest = largest.expect("a blob");
    let mut bytes = std::fs::read(&largest).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).expect("write");
    let found = fsck(&host, &[]);
    assert_eq!(found.code, 4, "{}", found.stdout);
    let digest = largest
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let line = format!("damaged content sha256:{digest}: its bytes are sha256:");
    assert!(found.stdout.contains(&line), "{}", found.stdout);

    host.start();
    let repaired = host.ctr(["fsck", "--repair"]);
    // The image itself is for somebody to bring again.
    assert_eq!(repaired.code, 4, "{}", repaired.stdout);
    assert!(
        repaired.stdout.contains("[repaired]"),
        "{}",
        repaired.stdout
    );
    let image = format!("dangling image {}/{IMAGE}: its ", host.namespace());
    for told in [&repaired.stdout, &host.ctr(["fsck"]).stdout] {
        let line = told.lines().find(|line| line.starts_with(&image));
        let line = line.unwrap_or_else(|| panic!("no image: {told}"));
        assert!(line.contains(&digest) && line.ends_with("[left]"), "{line}");
    }
    host.image();
    clean(&host);
    drop(host.run(&["--rm"], "again", &["true"]).ok());
    clean(&host);
    host.finish();
}

/// Everything below a directory: kind and mode, size, time of the last change, data.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let facts = path.symlink_metadata().expect("stat");
        let mut data = Vec::new();
        if facts.is_dir() {
            let entries = std::fs::read_dir(&path).expect("list");
            open.extend(entries.map(|entry| entry.expect("entry").path()));
        } else if facts.is_file() {
            data = std::fs::read(&path).expect("read");
        }
        let fact = (
            facts.mode(),
            facts.size(),
            facts.mtime(),
            facts.mtime_nsec(),
        );
        found.insert(path, (fact.0, fact.1, fact.2, fact.3, data));
    }
    found
}

#[test]
fn fsck_restores_only_when_it_is_told_to_repair() {
    let mut host = Host::new("fsck-only");
    host.image();
    host.stop();
    for which in [METADATA, INDEX] {
        let path = host.root().join(which);
        let half = std::fs::metadata(&path).expect("stat").len() / 2;
        let file = std::fs::File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(half)).expect("cut");
    }
    // Opening the store would make it.
    let ingests = host.root().join("io.containerd.content.v1.content/ingest");
    std::fs::remove_dir(ingests).expect("remove directory");
    let before = tree(&host.root());
    let records = host.root().join(METADATA);
    let records = format!("damaged records: open metadata {}: ", records.display());
    let index = "damaged index of snapshotter overlayfs: open snapshot index: ".to_owned();
    for _ in 0..2 {
        let told = fsck(&host, &[]);
        assert_eq!(told.code, 4, "{}{}", told.stdout, told.stderr);
        let lines: Vec<&str> = told.stdout.lines().collect();
        assert_eq!(lines.len(), 3, "{}", told.stdout);
        for (line, start) in lines.iter().zip([&records, &index]) {
            assert!(line.starts_with(start), "{line}");
            assert!(line.ends_with("[to repair]"), "{line}");
        }
        assert_eq!(told.stderr, "");
        let after = tree(&host.root());
        let changed: Vec<_> = after
            .iter()
            .filter(|(path, facts)| before.get(*path) != Some(*facts))
            .map(|(path, _)| path)
            .chain(before.keys().filter(|path| !after.contains_key(*path)))
            .collect();
        assert!(changed.is_empty(), "{changed:?}");
        assert!(!host.state().join("fsck").exists());
    }
    let told = fsck(&host, &["--repair"]);
    assert_eq!(told.code, 1, "{}{}", told.stdout, told.stderr);
    for (line, start) in told.stdout.lines().zip([&records, &index]) {
        assert!(line.starts_with(start), "{line}");
        assert!(line.ends_with("[repaired]"), "{line}");
    }
    let told = fsck(&host, &[]);
    assert_eq!(told.code, 0, "{}", told.stdout);
    host.start();
    drop(host.run(&["--rm"], "again", &["true"]).ok());
    clean(&host);
    host.finish();
}

#[test]
fn a_second_daemon_on_a_root_ends_at_once_with_one_line() {
    let host = Host::new("second");
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        let begin = Instant::now();
        let second = Program::new(bin_dir().join("containerd"))
            .args(["--root"])
            .args([host.root()])
            .args(["--state"])
            .args([host.path("other-state")])
            .args(["--address"])
            .args([host.path("other.sock")])
            .args(["--config"])
            .args([host.path("config.toml")])
            .run();
        quickest = quickest.min(begin.elapsed());
        assert_eq!(second.code, 75, "EX_TEMPFAIL: somebody has it");
        let last = second.stderr.lines().last().expect("a line");
        let root = host.root().display().to_string();
        assert!(last.contains(&root) && last.contains("in use"), "{last}");
    }
    // It ends with an error within five seconds. What the disk keeps waiting besides is not the daemon's:
    // the best of three counts.
    assert!(quickest < Duration::from_secs(5), "{quickest:?}");
    drop(host.ctr(["version"]).ok());
    host.finish();
}
