//! Files whose facts are equal, and whose contents are not.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use types::{Code, Descriptor, Mount, Result, media_type};

use super::{BUFFER, Contents, IsGone, is_to_be_read};
use crate::compare::changes::Walk;
use crate::compare::layer::Node;
use crate::compare::sources::Sources;
use crate::compare::write_layer;
use crate::compression::Compression;
use crate::root::{self, Root};
use crate::scan::scan;
use crate::tar::Writer;
use crate::testing::{Bench, bind};
use crate::{CompareOpts, Comparer as _};

/// What a build sets that wants the same bytes each time.
const EPOCH: i64 = 1_700_000_000;

fn set_time(path: &Path, nanos: i64) {
    let time = Timespec {
        tv_sec: EPOCH,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn write(path: &Path, text: &str, nanos: i64) {
    std::fs::write(path, text).unwrap();
    set_time(path, nanos);
}

async fn diff(bench: &Bench, lower: &[Mount], upper: &[Mount]) -> Descriptor {
    let opts = CompareOpts {
        media_type: media_type::OCI_LAYER.into(),
        ..CompareOpts::default()
    };
    let made = bench.walking.compare(&bench.store, lower, upper, opts);
    made.await.unwrap()
}

/// How many entries a layer has.
async fn entries(bench: &Bench, layer: &Descriptor) -> u64 {
    let blob = Arc::clone(&bench.store).open(&layer.digest).await.unwrap();
    let data = blob.read_at(0, usize::MAX / 2).await.unwrap();
    scan(&data[..]).unwrap().entries
}

/// An overlay on `lower` with these files copied up.
fn on_top(bench: &Bench, lower: &Path, files: &[(&str, &str, i64)]) -> Vec<Mount> {
    let mounts = bench.overlay("upper", &[lower]);
    for (name, text, nanos) in files {
        write(&bench.dir("upper").join(name), text, *nanos);
    }
    mounts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_rewritten_within_its_second_is_in_the_layer() {
    for (before, after) in [(0, 0), (0, 7), (7, 0)] {
        let bench = Bench::new();
        let [old, new, other] = ["old", "new", "other"].map(|name| bench.dir(name));
        for (root, text, nanos) in [(&old, "AAAA", before), (&new, "BBBB", after)] {
            write(&root.join("changed"), text, nanos);
            write(&root.join("same"), "SAME", 0);
            write(&root.join("empty"), "", 0);
        }
        // The root itself is no entry.
        let layer = diff(&bench, &bind(&old), &bind(&new)).await;
        assert_eq!(entries(&bench, &layer).await, 1, "{before} {after}");
        let to = bench.dir("to");
        bench.apply(&layer, &bind(&to)).await.unwrap();
        assert_eq!(std::fs::read(to.join("changed")).unwrap(), b"BBBB");

        // Through an overlay: its upper directory alone, and both sides mounted.
        let changed = ("changed", "BBBB", after);
        let live = on_top(&bench, &old, &[changed, ("same", "SAME", 0)]);
        let mounted = vec![Mount {
            options: vec![format!("lowerdir={}:{}", old.display(), other.display())],
            ..live[0].clone()
        }];
        for lower in [&bind(&old), &mounted] {
            let layer = diff(&bench, lower, &live).await;
            assert_eq!(entries(&bench, &layer).await, 1, "{before} {after}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_times_that_are_not_whole_are_believed() {
    let bench = Bench::new();
    let [old, new] = ["old", "new"].map(|name| bench.dir(name));
    write(&old.join("f"), "AAAA", 7);
    write(&new.join("f"), "BBBB", 7);
    let layer = diff(&bench, &bind(&old), &bind(&new)).await;
    assert_eq!(entries(&bench, &layer).await, 0);
}

#[test]
fn contents_are_read_only_where_facts_do_not_tell() {
    let bench = Bench::new();
    let dir = bench.dir("d");
    let facts = |name: &str, text: &str, nanos| {
        write(&dir.join(name), text, nanos);
        rustix::fs::lstat(dir.join(name)).unwrap()
    };
    let (whole, cut, exact) = (facts("a", "A", 0), facts("b", "B", 5), facts("c", "C", 5));
    let (empty, void) = (facts("d", "", 0), facts("e", "", 0));
    for (old, new, copied_up, want) in [
        (&whole, &cut, false, true),
        (&cut, &whole, false, true),
        (&cut, &exact, false, false),
        (&cut, &exact, true, true),
        // A hard link, or the same tree twice.
        (&whole, &whole, false, false),
        (&whole, &whole, true, false),
        (&empty, &void, true, false),
    ] {
        assert_eq!(is_to_be_read(old, new, copied_up), want);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attribute_that_a_layer_cannot_hold_is_left_out() {
    let bench = Bench::new();
    let [old, new, to] = ["old", "new", "to"].map(|name| bench.dir(name));
    write(&new.join("f"), "text", 0);
    for name in ["user.a=b", "user.k"] {
        set_attribute(&new.join("f"), name);
    }
    let layer = diff(&bench, &bind(&old), &bind(&new)).await;
    bench.apply(&layer, &bind(&to)).await.unwrap();
    let kept = crate::extract::list_xattrs(&to.join("f"), false).unwrap();
    assert_eq!(kept, [(b"user.k".to_vec(), b"v".to_vec())]);
}

fn set_attribute(path: &Path, name: &str) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(path, name, b"v", flags).unwrap();
}

/// The archive of what changed from one directory to another, made on this thread.
fn walked(bench: &Bench, old: &Path, new: &Path, is_gone: IsGone<'_>) -> Result<Vec<u8>> {
    let sources = Sources::open(&bench.dir("mounts"), &bind(old), &bind(new))?;
    Walk::new(&sources, Writer::new(Vec::new()), None, is_gone).run()
}

/// Counts what is told.
#[derive(Clone, Default)]
struct Told(Arc<AtomicU32>);

impl tracing::Subscriber for Told {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn an_attribute_that_is_left_out_is_told_once_and_of_what_is_written_only() {
    let bench = Bench::new();
    let [old, new] = ["old", "new"].map(|name| bench.dir(name));
    for root in [&old, &new] {
        std::fs::create_dir(root.join("d")).unwrap();
        write(&root.join("d/same"), "SAME", 0);
        set_attribute(&root.join("d/same"), "user.a=b");
        set_attribute(&root.join("d"), "user.a=b");
    }
    let told = Told::default();
    let count = || {
        let walk = || walked(&bench, &old, &new, &|| false).unwrap();
        let tar = tracing::subscriber::with_default(told.clone(), walk);
        (
            scan(&tar[..]).unwrap().entries,
            told.0.swap(0, Ordering::SeqCst),
        )
    };
    assert_eq!(count(), (0, 0));
    // A file of two names, and the directory that they are in.
    write(&new.join("d/new"), "text", 0);
    set_attribute(&new.join("d/new"), "user.a=b");
    std::fs::hard_link(new.join("d/new"), new.join("d/other")).unwrap();
    assert_eq!(count(), (3, 2));
}

#[test]
fn a_walk_over_equal_files_ends_when_nobody_wants_it() {
    let bench = Bench::new();
    let [old, new] = ["old", "new"].map(|name| bench.dir(name));
    for name in ["a", "b", "c", "d"] {
        for root in [&old, &new] {
            write(&root.join(name), "SAME", 7);
        }
    }
    walked(&bench, &old, &new, &|| false).unwrap();
    let asked = Cell::new(0);
    let is_gone = || asked.replace(asked.get() + 1) == 2;
    let error = walked(&bench, &old, &new, &is_gone).unwrap_err();
    assert!(error.is(Code::Cancelled), "{error}");
    assert_eq!(asked.get(), 3);
}

#[test]
fn a_file_is_read_no_further_when_nobody_wants_it() {
    let bench = Bench::new();
    let dirs = ["old", "new"].map(|name| {
        let dir = bench.dir(name);
        write(&dir.join("f"), &"x".repeat(8 * BUFFER), 0);
        Root::open(&dir).unwrap().plain_directory(b"").unwrap()
    });
    let [old, new] = &dirs;
    let [before, after] = [old, new].map(|dir| root::stat(dir, b"f").unwrap().unwrap());
    let node = Node {
        dir: new,
        name: b"f",
        path: b"f",
        stat: &after,
    };
    let asked = Cell::new(0);
    let same = |limit| {
        asked.set(0);
        let is_gone = || asked.replace(asked.get() + 1) == limit;
        Contents::new(&is_gone).are_same(old, &before, &node)
    };
    assert!(same(u32::MAX).unwrap());
    assert!(asked.get() >= 8, "at each buffer: {}", asked.get());
    let error = same(3).unwrap_err();
    assert!(error.is(Code::Cancelled), "{error}");
}

#[test]
fn a_layer_that_nobody_reads_is_not_made() {
    /// It would take hours.
    const LEN: u64 = 8 << 40;
    let bench = Bench::new();
    let [old, new] = ["old", "new"].map(|name| bench.dir(name));
    for root in [&old, &new] {
        let file = std::fs::File::create(root.join("f")).unwrap();
        file.set_len(LEN).unwrap();
        set_time(&root.join("f"), 0);
    }
    let (lower, upper, mounts) = (bind(&old), bind(&new), bench.dir("mounts"));
    let (to, nobody) = tokio::sync::mpsc::channel(1);
    drop(nobody);
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let made = write_layer(&mounts, &lower, &upper, Compression::Plain, None, to);
        // The test may have given up.
        let _gone = done.send(made.map_err(|error| error.code()));
    });
    let ended = ended.recv_timeout(Duration::from_secs(60));
    assert_eq!(ended, Ok(Err(Code::Cancelled)));
}
