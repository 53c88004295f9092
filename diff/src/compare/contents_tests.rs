//! Files whose facts are equal, and whose contents are not.

use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use types::{Descriptor, Mount, media_type};

use super::is_to_be_read;
use crate::scan::scan;
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
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(new.join("f"), name, b"v", flags).unwrap();
    }
    let layer = diff(&bench, &bind(&old), &bind(&new)).await;
    bench.apply(&layer, &bind(&to)).await.unwrap();
    let kept = crate::extract::list_xattrs(&to.join("f"), false).unwrap();
    assert_eq!(kept, [(b"user.k".to_vec(), b"v".to_vec())]);
}
