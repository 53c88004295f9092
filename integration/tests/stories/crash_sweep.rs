//! The daemon is killed at every step that an operation takes on disk; each time it starts again on
//! what is there, finds nothing wrong but garbage, keeps what it had answered, and does the operation.
//!
//! ```text
//! prepare -> trap at the nth call -> steps until one fails -> start -> examine -> steps again -> tidy
//!    `-- n + 1 <-------------------------------------------------------------------------------'
//! ```

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::{Disk, FileSystem, Host, IMAGE, Output, Program, Trap, apart, archive, until};
use types::Resource;

use crate::crash_start::asked;

/// Calls that make an entry of a directory, take one away, or wait for the disk.
pub(crate) const STEPS_ON_DISK: [&str; 11] = [
    "fsync",
    "fdatasync",
    "syncfs",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
];

/// The same without removals: of an import, all of those are of its ingests, which have a sweep of
/// their own.
const MAKING: [&str; 8] = [
    "fsync",
    "fdatasync",
    "syncfs",
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
];

/// How long what is asynchronous may take: collections, the end of a shim.
const SETTLE: Duration = integration::PATIENCE;

/// What a list of the daemon shows, by the command that prints it.
pub(crate) type List = &'static [&'static str];
pub(crate) const IMAGES: List = &["images", "ls", "-q"];
pub(crate) const LEASES: List = &["leases", "ls", "-q"];
const CONTENT: List = &["content", "ls", "-q"];
pub(crate) const CONTAINERS: List = &["containers", "ls", "-q"];
const NAMESPACES: List = &["namespaces", "ls", "-q"];
const SNAPSHOTS: List = &["snapshots", "ls"];
/// The store of the records, below the root.
pub(crate) const STORE: &str = "io.containerd.metadata.v1.bolt/metadata.redb";
pub(crate) const JOURNAL: &str = "io.containerd.metadata.v1.bolt/metadata.redb.journal";
/// Any name in a list.
const ANY: &str = "*";

/// What a step does to the lists: a name that is there when it was answered, or that is not.
pub(crate) type Facts = Vec<(List, &'static str, bool)>;

/// One call of an operation.
pub(crate) struct Step {
    go: Box<dyn Fn(&Host) -> Output + Send>,
    facts: Facts,
}

impl Step {
    pub(crate) fn of(go: impl Fn(&Host) -> Output + Send + 'static) -> Self {
        Self {
            go: Box::new(go),
            facts: Facts::new(),
        }
    }

    pub(crate) fn ctr(args: &'static [&'static str]) -> Self {
        Self::of(move |host| host.ctr(args))
    }

    pub(crate) fn makes(mut self, list: List, name: &'static str) -> Self {
        self.facts.push((list, name, true));
        self
    }

    fn takes(mut self, list: List, name: &'static str) -> Self {
        self.facts.push((list, name, false));
        self
    }
}

/// An operation, and how often it is interrupted.
pub(crate) struct Sweep {
    pub(crate) name: &'static str,
    pub(crate) steps: Vec<Step>,
    /// Makes what the operation needs.
    pub(crate) prepare: fn(&Host),
    pub(crate) calls: &'static [&'static str],
    /// Only calls on this file, below the root.
    pub(crate) file: Option<&'static str>,
    /// Which call is the next after this one; with `EVERY_CALL=1` it is the very next.
    pub(crate) next: fn(usize) -> usize,
    /// The image is there before and after.
    pub(crate) keeps_image: bool,
}

impl Sweep {
    pub(crate) fn new(name: &'static str, steps: Vec<Step>) -> Self {
        Self {
            name,
            steps,
            prepare: |_| (),
            calls: &STEPS_ON_DISK,
            file: None,
            next: |nth| nth + 1,
            keeps_image: false,
        }
    }

    pub(crate) fn run(self) {
        apart(move || self.run_apart());
    }

    fn run_apart(&self) {
        let disk = Disk::new(FileSystem::Memory);
        let mut host = Host::rooted(self.name, &disk.path().join("root"));
        if self.keeps_image {
            host.image();
        }
        let file = self.file.map(|file| host.root().join(file));
        let mut nth = 1;
        while let Some(call) = self.interrupted(&mut host, file.as_deref(), nth) {
            let point = Point(format!("{}, call {nth}: {call}", self.name));
            if self.keeps_image {
                // What is half-way is no start for it: a name is taken until it is given up.
                self.tidy(&host);
            }
            for step in &self.steps {
                let told = (step.go)(&host);
                assert!(told.code == 0 || is_done(&told), "{told:?}");
            }
            self.tidy(&host);
            drop(point);
            let every_call = std::env::var_os("EVERY_CALL").is_some();
            nth = (if every_call { |nth| nth + 1 } else { self.next })(nth);
        }
        assert!(nth > 2, "there was nothing to interrupt");
        self.tidy(&host);
        host.finish();
        disk.finish();
    }

    /// Kills the daemon at the nth call, starts it again and examines it; tells at which call. `None`
    /// when the operation has less calls.
    fn interrupted(&self, host: &mut Host, file: Option<&Path>, nth: usize) -> Option<String> {
        (self.prepare)(host);
        let trap = Trap::set(host.daemon_pid(), self.calls, file, nth);
        let (facts, failure) = self.go(host);
        let Some(call) = trap.end() else {
            assert!(failure.is_none(), "call {nth}: {failure:?}");
            return None;
        };
        let point = Point(format!("{}, call {nth}: {call}", self.name));
        host.kill();
        host.start();
        for ((list, name), is_there) in facts {
            assert_eq!(has(host, list, name), is_there, "{list:?}: {name}");
        }
        examine(host);
        drop(point);
        Some(call)
    }

    /// Takes the steps until one fails; what the others have answered, and the failure.
    fn go(&self, host: &Host) -> (BTreeMap<(List, &'static str), bool>, Option<Output>) {
        let mut facts = BTreeMap::new();
        for step in &self.steps {
            let told = (step.go)(host);
            let is_answered = told.code == 0;
            for (list, name, is_there) in &step.facts {
                if is_answered {
                    facts.insert((*list, *name), *is_there);
                } else {
                    // It may have been done, or not.
                    facts.remove(&(*list, *name));
                }
            }
            if !is_answered {
                return (facts, Some(told));
            }
        }
        (facts, None)
    }

    /// Removes what the operation made or left, and proves that this was all.
    fn tidy(&self, host: &Host) {
        for task in names(host, &["tasks", "ls", "-q"]) {
            drop(host.ctr(["tasks", "kill", "-s", "KILL", &task]));
            let is_alive = || ["CREATED", "RUNNING"].map(|s| host.task(&task, s).is_some());
            until("the task ends", || is_alive() == [false, false]);
            drop(host.ctr(["tasks", "rm", &task]));
        }
        for container in names(host, CONTAINERS) {
            drop(host.ctr(["containers", "rm", &container]).ok());
        }
        for lease in names(host, LEASES) {
            drop(host.ctr(["leases", "rm", "--sync", &lease]).ok());
        }
        if !self.keeps_image {
            drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
            for snapshot in names(host, SNAPSHOTS).iter().rev() {
                drop(host.ctr(["snapshots", "rm", snapshot]).ok());
            }
            for digest in names(host, CONTENT) {
                drop(host.ctr(["content", "rm", &digest]).ok());
            }
            drop(host.ctr(["namespaces", "rm", "other"]));
        }
        settled(|| [host.leftovers(), stray(host)].concat());
    }
}

/// True for the answer to a step whose first attempt had gone through, unheard.
fn is_done(told: &Output) -> bool {
    ["already exists", "not found"]
        .iter()
        .any(|answer| told.stderr.trim_end().ends_with(answer))
}

/// The first word of each line of a list, but its head.
pub(crate) fn names(host: &Host, list: &[&str]) -> Vec<String> {
    let text = host.ctr(list).ok();
    let words = text.lines().filter_map(|l| l.split_whitespace().next());
    words
        .filter(|word| *word != "KEY")
        .map(str::to_owned)
        .collect()
}

pub(crate) fn has(host: &Host, list: &[&str], name: &str) -> bool {
    let names = names(host, list);
    names.iter().any(|known| name == ANY || known == name)
}

/// Records, files and what they say of each other agree, and garbage goes.
pub(crate) fn examine(host: &Host) {
    let found = host.ctr(["fsck", "--repair", "--quick"]).stdout;
    let is_garbage = |line: &str| line.starts_with("orphan ") || line.starts_with("checked ");
    assert!(found.lines().all(is_garbage), "{found}");
    let left = host.ctr(["fsck", "--quick"]).ok();
    assert!(left.ends_with("nothing is wrong\n"), "{left}");
    let images = host.ctr(["images", "check"]).ok();
    for image in images.lines().skip(1) {
        let is_whole = image.contains(" complete ") && image.trim_end().ends_with("true");
        assert!(is_whole, "{images}");
    }
    // The collector may be at its work: a file goes a moment later than its record.
    until("records and files agree", || {
        let blobs = files(host, "io.containerd.content.v1.content/blobs/sha256");
        let sums = Program::new("sha256sum").args(["/dev/null"]).args(&blobs);
        let sums = sums.run();
        for line in sums.stdout.lines().skip(1) {
            let (sum, path) = line.split_once("  ").expect("a sum and its file");
            assert_eq!(format!("sha256:{sum}"), digest_of(Path::new(path)));
        }
        let mut digests = names(host, CONTENT);
        digests.sort();
        let mut named: Vec<String> = blobs.iter().map(|path| digest_of(path)).collect();
        named.sort();
        sums.code == 0 && digests == named
    });
}

/// Directories of snapshots that are no snapshots; a collection may be at it still.
fn stray(host: &Host) -> Vec<String> {
    let directory = "io.containerd.snapshotter.v1.overlayfs/snapshots";
    let layers = integration::snapshots_in(&host.root().join(directory));
    let snapshots = names(host, SNAPSHOTS);
    if layers.len() == snapshots.len() {
        return Vec::new();
    }
    vec![format!("{layers:?} for {snapshots:?}")]
}

/// Waits until nothing is found.
fn settled(find: impl Fn() -> Vec<String>) {
    let begin = Instant::now();
    loop {
        let found = find();
        if found.is_empty() {
            break;
        }
        assert!(begin.elapsed() < SETTLE, "left: {found:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn digest_of(path: &Path) -> String {
    let hex = path.file_name().unwrap_or_default().to_string_lossy();
    format!("sha256:{hex}")
}

fn files(host: &Host, directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(host.root().join(directory)).expect("list");
    entries.map(|entry| entry.expect("entry").path()).collect()
}

fn import() -> Step {
    let go = |host: &Host| {
        let import = host.ctr_program().args(["images", "import"]);
        import.args([archive()]).run()
    };
    Step::of(go).makes(IMAGES, IMAGE)
}

#[test]
fn an_import_survives_a_kill_at_every_other_call() {
    let sweep = Sweep {
        calls: &MAKING,
        // Every other one: neighbours differ by one of the four files of an ingest, thrice.
        next: |nth| nth + 2,
        ..Sweep::new("sweep-import", vec![import()])
    };
    sweep.run();
}

#[test]
fn a_run_survives_a_kill_at_every_third_call() {
    let ends = |host: &Host| loop {
        let told = host.ctr(["tasks", "ls"]);
        if told.code != 0 || told.stdout.contains("STOPPED") {
            break told;
        }
    };
    let run = |host: &Host| host.run(&["-d", "--null-io"], "c", &["true"]);
    let steps = vec![
        Step::of(run).makes(CONTAINERS, "c"),
        Step::of(ends),
        Step::ctr(&["tasks", "rm", "c"]),
        Step::ctr(&["containers", "rm", "c"]).takes(CONTAINERS, "c"),
    ];
    let sweep = Sweep {
        keeps_image: true,
        // More than a hundred, of a container's whole life each: the longest story of all.
        next: |nth| nth + 3,
        ..Sweep::new("sweep-run", steps)
    };
    sweep.run();
}

#[test]
fn snapshots_survive_a_kill_at_any_call() {
    let steps = vec![
        Step::ctr(&["snapshots", "prepare", "a"]).makes(SNAPSHOTS, "a"),
        Step::ctr(&["snapshots", "commit", "b", "a"])
            .takes(SNAPSHOTS, "a")
            .makes(SNAPSHOTS, "b"),
        Step::ctr(&["snapshots", "prepare", "c", "b"]).makes(SNAPSHOTS, "c"),
        Step::ctr(&["snapshots", "rm", "c"]).takes(SNAPSHOTS, "c"),
        Step::ctr(&["snapshots", "rm", "b"]).takes(SNAPSHOTS, "b"),
    ];
    Sweep::new("sweep-snapshot", steps).run();
}

#[test]
fn leases_and_what_they_hold_survive_a_kill_at_any_call() {
    Sweep::new("sweep-lease", lease()).run();
}

#[test]
fn records_survive_a_kill_at_any_write_to_their_journal() {
    let sweep = Sweep {
        calls: &["pwrite64", "fdatasync"],
        file: Some(JOURNAL),
        ..Sweep::new("sweep-journal", lease())
    };
    sweep.run();
}

#[test]
fn records_survive_a_kill_at_any_write_of_the_store_that_catches_up_with_its_journal() {
    let lease = Step::ctr(&["leases", "create", "--id", "l"]).makes(LEASES, "l");
    // Comes behind all that the store's file gets at once.
    let behind = Step::ctr(&["leases", "create", "--id", "m"]).makes(LEASES, "m");
    let sweep = Sweep {
        calls: &["pwrite64", "fdatasync", "fsync"],
        file: Some(STORE),
        ..Sweep::new("sweep-pages", vec![lease, Step::of(catch_up), behind])
    };
    sweep.run();
}

/// Waits until the store's file gets what its journal has.
fn catch_up(host: &Host) -> Output {
    let written = |file| {
        let found = std::fs::metadata(host.root().join(file)).expect("stat");
        found.modified().expect("a time")
    };
    loop {
        // Who is dead will never write.
        let told = host.ctr(["version"]);
        if told.code != 0 || written(STORE) > written(JOURNAL) {
            break told;
        }
    }
}

/// A snapshot that a lease keeps, and no longer.
fn lease() -> Vec<Step> {
    vec![
        Step::ctr(&["snapshots", "prepare", "held"]).makes(SNAPSHOTS, "held"),
        Step::ctr(&["leases", "create", "--id", "l"]).makes(LEASES, "l"),
        Step::of(hold),
        // From here on the lease alone keeps it.
        Step::ctr(&["snapshots", "label", "held", "containerd.io/gc.root="])
            .makes(SNAPSHOTS, "held"),
        Step::ctr(&["leases", "rm", "--sync", "l"])
            .takes(LEASES, "l")
            .takes(SNAPSHOTS, "held"),
    ]
}

/// Adds the snapshot to the lease, which no command does.
fn hold(host: &Host) -> Output {
    asked(host, "add to the lease", async |client| {
        let held = Resource::Snapshot {
            snapshotter: "overlayfs".into(),
            key: "held".parse()?,
        };
        client.leases().add(&"l".parse()?, &held).await
    })
}

#[test]
fn the_removal_of_an_image_survives_a_kill_at_any_call() {
    let removal = Step::ctr(&["images", "rm", "--sync", IMAGE])
        .takes(IMAGES, IMAGE)
        .takes(SNAPSHOTS, ANY)
        .takes(CONTENT, ANY);
    let sweep = Sweep {
        prepare: Host::image,
        // First the records, then some hundred links of one directory, which are all alike.
        next: |nth| if nth < 16 { nth + 1 } else { nth * 2 },
        ..Sweep::new("sweep-remove", vec![removal])
    };
    sweep.run();
}

#[test]
fn an_ingest_survives_a_kill_at_any_call() {
    let ingest = |host: &Host| {
        let data: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
        let size = data.len().to_string();
        let ingest = host.ctr_program().args(["content", "ingest"]);
        let ingest = ingest.args(["--expected-size", &size, "written"]);
        ingest.input(&data).run()
    };
    Sweep::new("sweep-ingest", vec![Step::of(ingest)]).run();
}

#[test]
pub(crate) fn namespaces_survive_a_kill_at_any_call() {
    let steps = vec![
        Step::ctr(&["namespaces", "create", "other", "a=b"]).makes(NAMESPACES, "other"),
        Step::ctr(&["namespaces", "label", "other", "a=c"]).makes(NAMESPACES, "other"),
        Step::ctr(&["namespaces", "rm", "other"]).takes(NAMESPACES, "other"),
    ];
    Sweep::new("sweep-namespace", steps).run();
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
