//! The hostile corpus: every archive is refused or contained, and what is outside stays as it was.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use proptest::prelude::*;
use sys::mount::TempMount;
use types::Code;

use super::naive::Naive;
use crate::root::MAX_NAME;
use crate::tar::{Entry, Kind};
use crate::testing::{Bench, alone, dir, entry, file, link, merge, named, onto, symlink, tree};

/// Hostile archives, each with what becomes of it: refused, or contained.
#[expect(clippy::too_many_lines, reason = "a table")]
fn corpus() -> Vec<(&'static str, Vec<u8>, bool)> {
    let long = "n".repeat(10_000);
    let deep = "d/".repeat(MAX_NAME / 2 + 10);
    let device = |major, minor| Entry {
        major,
        minor,
        ..entry(Kind::Char, "dev")
    };
    vec![
        (
            "dot dot",
            named(&[file("../../canary"), file("a/../../canary")]),
            true,
        ),
        (
            "absolute",
            named(&[file("/canary"), file("//etc/canary")]),
            true,
        ),
        (
            "link up",
            named(&[symlink("l", "../.."), file("l/canary")]),
            true,
        ),
        (
            "absolute link",
            named(&[symlink("l", "/"), file("l/outside/canary")]),
            true,
        ),
        (
            "link as file",
            named(&[symlink("canary", "../outside/canary"), file("canary")]),
            true,
        ),
        (
            "link chain",
            named(&[symlink("a", "b"), symlink("b", ".."), file("a/a/canary")]),
            true,
        ),
        (
            "link, then directory",
            named(&[symlink("l", "../outside"), dir("l"), file("l/canary")]),
            true,
        ),
        (
            "chmod through a link",
            named(&[
                symlink("l", "../outside"),
                Entry {
                    mode: 0o777,
                    ..dir("l")
                },
            ]),
            true,
        ),
        (
            "dangling parent",
            named(&[symlink("l", "../outside/new"), file("l/x")]),
            true,
        ),
        (
            "proc link",
            named(&[symlink("l", "/proc/self/root/tmp"), file("l/canary")]),
            true,
        ),
        (
            "hard link out",
            named(&[link("x", "../outside/canary")]),
            false,
        ),
        (
            "hard link to absolute",
            named(&[link("x", "/etc/passwd")]),
            false,
        ),
        (
            "hard link through a link",
            named(&[symlink("l", "../outside"), link("x", "l/canary"), file("x")]),
            false,
        ),
        (
            "hard link to a link, written",
            named(&[symlink("l", "../outside/canary"), link("x", "l"), file("x")]),
            true,
        ),
        (
            "hard link to a directory",
            named(&[dir("d"), link("x", "d")]),
            false,
        ),
        (
            "link loop",
            named(&[symlink("a", "b"), symlink("b", "a"), file("a/x")]),
            false,
        ),
        ("file as parent", named(&[file("f"), file("f/x")]), false),
        ("whiteout of dot dot", named(&[file(".wh...")]), false),
        ("whiteout of dot", named(&[file("d/.wh..")]), false),
        ("whiteout of nothing", named(&[file(".wh.")]), false),
        (
            "whiteout through a link",
            named(&[symlink("l", "../outside"), file("l/.wh.canary")]),
            true,
        ),
        (
            "opaque through a link",
            named(&[symlink("l", "../outside"), file("l/.wh..wh..opq")]),
            true,
        ),
        ("long component", named(&[file(&long)]), false),
        ("deep path", named(&[file(&deep)]), false),
        ("device number", named(&[device(4096, 0)]), false),
        ("device minor", named(&[device(0, 1 << 20)]), false),
        (
            "no UTF-8",
            named(&[Entry {
                name: b"\xff\xfe".to_vec(),
                ..file("x")
            }]),
            true,
        ),
        ("empty link", named(&[symlink("l", "")]), false),
        (
            "root replaced",
            named(&[symlink(".", "/"), file("/"), entry(Kind::Fifo, "./")]),
            true,
        ),
        (
            "odd attribute",
            named(&[Entry {
                xattrs: vec![(b"nonsense".to_vec(), vec![1])],
                ..file("f")
            }]),
            true,
        ),
        (
            "long attribute",
            named(&[Entry {
                xattrs: vec![(b"user.x".to_vec(), vec![1; 70_000])],
                ..file("f")
            }]),
            false,
        ),
    ]
}

/// Where a layer goes.
#[derive(Clone, Copy)]
enum Way {
    /// Into a plain tree.
    Plain,
    /// Into an overlay's upper directory.
    Upper,
    /// The same, and what is below is not known.
    Alone,
}

#[test]
fn hostile_archives_are_refused_or_contained() {
    for (name, tar, contained) in corpus() {
        for way in [Way::Plain, Way::Upper, Way::Alone] {
            let temp = tempfile::tempdir().unwrap();
            let [root, outside, lower] = ["root", "outside", "lower"].map(|dir| {
                let path = temp.path().join(dir);
                std::fs::create_dir(&path).unwrap();
                path
            });
            std::fs::write(outside.join("canary"), "alive").unwrap();
            std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o751)).unwrap();
            let facts = |path: &Path| {
                let facts = std::fs::symlink_metadata(path).unwrap();
                (
                    facts.mode(),
                    facts.nlink(),
                    facts.ctime_nsec(),
                    facts.mtime_nsec(),
                )
            };
            let all = || {
                [
                    facts(&outside),
                    facts(&outside.join("canary")),
                    facts(&lower),
                ]
            };
            let before = all();
            let done = match way {
                Way::Plain => merge(&tar, &root),
                Way::Upper => onto(&tar, &root, &[&lower]),
                Way::Alone => alone(&tar, &root),
            };
            match &done {
                Ok(()) => assert!(contained, "{name} was not refused"),
                Err(error) => {
                    assert!(!contained, "{name}: {error}");
                    assert!(error.is(Code::InvalidArgument), "{name}: {error}");
                }
            }
            assert_eq!(all(), before, "{name} reached outside");
            let mut left: Vec<_> = std::fs::read_dir(temp.path())
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            left.sort();
            assert_eq!(left, ["lower", "outside", "root"], "{name}");
            assert!(
                !Path::new("/canary").exists() && !Path::new("/tmp/canary").exists(),
                "{name}"
            );
        }
    }
}

/// Names that collide, nest, delete and try to get out.
fn name() -> impl Strategy<Value = String> {
    let part = || {
        proptest::sample::select(vec![
            "a",
            "b",
            "l",
            "a",
            "b",
            "..",
            ".",
            "",
            ".wh.a",
            ".wh.b",
            ".wh..wh..opq",
            ".wh.l",
        ])
    };
    proptest::collection::vec(part(), 1..4).prop_map(|parts| parts.join("/"))
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let target = prop_oneof![
        Just("/".to_owned()),
        Just("../outside".to_owned()),
        Just("../../outside/canary".to_owned()),
        name(),
    ];
    (0..7_u8, name(), target, 0..0o10000_u32).prop_map(|(kind, name, target, mode)| {
        let made = match kind {
            0..=1 => dir(&name),
            2..=3 => file(&name),
            4 => symlink(&name, &target),
            5 => link(&name, &target),
            _ => entry(Kind::Fifo, &name),
        };
        Entry {
            mode: mode | 0o500,
            ..made
        }
    })
}

/// A layer below, without hard links: an overlay parts the names of a file that it changes.
fn below() -> impl Strategy<Value = Vec<Entry>> {
    let name = proptest::sample::select(vec!["a", "b", "a/a", "a/b", "b/a", "a/a/b", "l"]);
    let target = proptest::sample::select(vec!["a", "b", "/b", "..", "a/b", "l", "/", "none"]);
    let one = (0..5_u8, name, target).prop_map(|(kind, name, target)| match kind {
        0..=1 => dir(name),
        2..=3 => file(name),
        _ => symlink(name, target),
    });
    proptest::collection::vec(one, 0..6)
}

/// Extracts `layer` over `lower` into a plain tree and into an upper directory, and into one on nothing.
fn contained_and_alike(lower: &[Entry], layer: &[Entry]) {
    let bench = Bench::new();
    let [outside, base, plain, upper, detached] =
        ["outside", "base", "plain", "upper", "detached"].map(|name| bench.dir(name));
    std::fs::write(outside.join("canary"), "alive").unwrap();
    for root in [&base, &plain] {
        // A layer that does not unpack is no layer.
        if merge(&named(lower), root).is_err() {
            return;
        }
    }
    let facts = |path: &Path| {
        let facts = std::fs::symlink_metadata(path).unwrap();
        (
            facts.mode(),
            facts.nlink(),
            facts.ctime(),
            facts.ctime_nsec(),
        )
    };
    let guarded = [
        outside.clone(),
        outside.join("canary"),
        base.clone(),
        bench.temp.path().into(),
    ];
    let all = || guarded.iter().map(|path| facts(path)).collect::<Vec<_>>();
    let (before, lower_tree) = (all(), tree(&base, true));
    let tar = named(layer);
    let done = [merge(&tar, &plain), onto(&tar, &upper, &[&base])];
    // What becomes of it on its parents is seen where it is settled on them.
    let early = alone(&tar, &detached);
    let is_alike = as_the_naive_one(lower, layer, &plain, &done[0]);
    assert_eq!(all(), before, "outside was touched");
    assert_eq!(tree(&base, true), lower_tree, "the lower layer was touched");
    for error in done
        .iter()
        .chain([&early])
        .filter_map(|done| done.as_ref().err())
    {
        assert!(error.is(Code::InvalidArgument), "{error}");
    }
    if !is_alike {
        return;
    }
    let [first, second] = done.each_ref().map(Result::is_ok);
    assert_eq!(first, second, "{done:?}");
    if first {
        let mounts = bench.overlay("upper", &[&base]);
        let mounted = TempMount::new(&mounts, &bench.dir("points")).unwrap();
        assert_eq!(
            tree(mounted.path(), false),
            tree(&plain, false),
            "the two ways differ"
        );
    }
}

/// What became of `layer` over `lower` in `plain` is what becomes of it in memory. True when the same is to
/// become of it over an upper directory.
///
/// Parity: links and files of layers below are not looked at there, as in Go: a directory takes their place.
fn as_the_naive_one(
    lower: &[Entry],
    layer: &[Entry],
    plain: &Path,
    done: &types::Result<()>,
) -> bool {
    let mut naive = Naive::new();
    naive.unpack(lower).unwrap();
    let wanted = naive.unpack(layer);
    assert_eq!(done.is_ok(), wanted.is_ok(), "{done:?}, {wanted:?}");
    // Of a refused one as much is there as came before, and that is the same, too.
    let seen = tree(plain, false).into_iter();
    let seen: BTreeMap<_, _> = seen
        .map(|(path, seen)| (path, (seen.mode, seen.data, seen.first)))
        .collect();
    assert_eq!(seen, naive.shown());
    !naive.is_through_below
}

#[test]
fn a_number_that_a_removed_directory_had_is_no_memory_of_it() {
    // The root's mark removes `b`; the next entry makes it anew, likely under the same inode number.
    let layer = [file(".wh..wh..opq"), file("b/a/.wh.b"), file(".wh.b")];
    contained_and_alike(&[file("b/a")], &layer);
}

#[test]
fn a_directory_in_place_of_the_link_that_led_there_is_not_where_its_name_leads() {
    let layer = [symlink("a", ".."), dir("a/a"), dir("a/a/b"), dir("a")];
    contained_and_alike(&[], &layer);
}

#[test]
fn a_hard_link_in_place_of_the_directory_that_its_source_is_in_is_refused() {
    for lower in [&[file("a/b")][..], &[]] {
        let layer = [file("a/b"), link("a", "a/b")];
        contained_and_alike(lower, &layer[usize::from(!lower.is_empty())..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_archives_are_contained_and_both_ways_agree(
        lower in below(),
        layer in proptest::collection::vec(any_entry(), 1..9),
    ) {
        contained_and_alike(&lower, &layer);
    }
}
