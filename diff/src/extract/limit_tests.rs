//! Ceilings: what a layer takes is counted whatever it is made of.

use types::Code;

use super::*;
use crate::testing::{Bench, archive, dir, file, link, named, symlink};

/// The targets that there are, on a lower layer with nothing in it.
fn targets(bench: &Bench) -> [Target; 3] {
    let upper = Target::Upper {
        lowers: vec![bench.dir("nothing")],
        userxattr: false,
    };
    [Target::Merged, upper, Target::Detached]
}

/// Unpacks into each of them.
fn everywhere(tar: &[u8], limits: Limits) -> [Result<()>; 3] {
    let bench = Bench::new();
    let mut number = 0;
    targets(&bench).map(|target| {
        number += 1;
        let root = Root::open(&bench.dir(&format!("{number}"))).unwrap();
        let opts = TreeOpts {
            target,
            limits,
            ..TreeOpts::default()
        };
        apply_tar(tar, &root, &opts)
    })
}

/// All of them refuse with less than `most`, and none with that.
fn limited(tar: &[u8], most: u64, limits: impl Fn(u64) -> Limits) {
    for done in everywhere(tar, limits(most)) {
        done.unwrap();
    }
    for done in everywhere(tar, limits(most - 1)) {
        let error = done.unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
    }
}

#[test]
fn directories_that_only_names_imply_are_counted() {
    let limits = |paths| Limits {
        paths,
        ..Limits::default()
    };
    // `a`, `a/b`, `c`, `c/d`.
    let tar = named(&[file("a/b/f"), file("c/d/f"), file("a/b/g")]);
    limited(&tar, 8, limits);
    // One that has an entry later is counted with that.
    let tar = named(&[file("a/f"), dir("a")]);
    limited(&tar, 2, limits);
}

#[test]
fn files_count_for_whole_blocks_and_each_block_once() {
    let limits = |stored| Limits {
        stored,
        ..Limits::default()
    };
    let data = vec![b'x'; 700_000];
    // Pieces of a stream are no multiples of a block.
    let tar = archive(&[(file("a"), &data[..]), (file("b"), b"1"), (file("c"), b"")]);
    limited(&tar, 700_000_u64.next_multiple_of(4096) + 4096, limits);
}

#[test]
fn extended_attributes_are_counted_those_that_come_from_below_too() {
    let limits = |stored| Limits {
        stored,
        ..Limits::default()
    };
    let noted = |entry: Entry| Entry {
        xattrs: vec![(b"user.note".to_vec(), vec![b'x'; 91])],
        ..entry
    };
    let all = [
        noted(file("f")),
        noted(dir("d")),
        noted(dir("d")),
        noted(link("l", "f")),
    ];
    let tar = archive(&all.map(|entry| (entry, &b""[..])));
    limited(&tar, 400, limits);
    let bench = Bench::new();
    let lower = bench.dir("lower");
    let below = [noted(dir("p")), noted(file("p/f"))];
    let below = archive(&below.map(|entry| (entry, &b""[..])));
    apply_tar(
        &below[..],
        &Root::open(&lower).unwrap(),
        &TreeOpts::default(),
    )
    .unwrap();
    for (number, tar) in [named(&[file("p/q/.wh.x")]), named(&[link("l", "p/f")])]
        .iter()
        .enumerate()
    {
        let stored = [100, 200][number];
        for less in [0, 1] {
            let upper = bench.dir(&format!("upper-{number}-{less}"));
            let opts = TreeOpts {
                target: Target::Upper {
                    lowers: vec![lower.clone()],
                    userxattr: false,
                },
                limits: limits(stored - less),
                ..TreeOpts::default()
            };
            let done = apply_tar(&tar[..], &Root::open(&upper).unwrap(), &opts);
            assert_eq!(done.is_ok(), less == 0, "{number}: {done:?}");
        }
    }
}

/// Links of which each leads to the one before and then up again very often.
fn chain(count: usize, ups: usize) -> Vec<Entry> {
    let ups = "../".repeat(ups);
    let mut all = vec![symlink("l0", &format!("{ups}nowhere"))];
    all.extend((1..=count).map(|n| symlink(&format!("l{n}"), &format!("l{}/{ups}", n - 1))));
    all
}

#[test]
fn a_way_has_no_more_steps_than_links_of_an_honest_layer_ask_for() {
    let bench = Bench::new();
    for (count, ups, is_too_long) in [(39, 1300, true), (2, 1000, false)] {
        let mut layer = chain(count, ups);
        layer.push(file(&format!("l{count}/there/f")));
        let root = bench.dir(&format!("{count}"));
        let done = crate::testing::merge(&named(&layer), &root);
        if is_too_long {
            let error = done.unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{error}");
        } else {
            done.unwrap();
            assert!(root.join("there/f").exists() && root.join("nowhere").exists());
        }
    }
}

#[test]
fn the_names_below_are_hidden_once() {
    let bench = Bench::new();
    let [lower, upper] = ["lower", "upper"].map(|name| bench.dir(name));
    for n in 0..1000 {
        std::fs::write(lower.join(format!("{n}")), "").unwrap();
    }
    let mut layer = vec![file("7"), dir("8")];
    // Four million looks at names took minutes.
    layer.extend((0..4000).map(|_| file(".wh..wh..opq")));
    let started = std::time::Instant::now();
    crate::testing::onto(&named(&layer), &upper, &[&lower]).unwrap();
    assert!(started.elapsed().as_secs() < 30);
    let mounts = bench.overlay("upper", &[&lower]);
    let mounted = sys::mount::TempMount::new(&mounts, &bench.dir("points")).unwrap();
    let names = std::fs::read_dir(mounted.path()).unwrap();
    assert_eq!(names.count(), 2);
}

#[test]
fn a_layer_that_nobody_waits_for_ends_at_the_next_entry() {
    let bench = Bench::new();
    let opts = TreeOpts::default();
    opts.stop.tell();
    let root = bench.dir("t");
    let tar = named(&[file("a")]);
    let done = apply_tar(&tar[..], &Root::open(&root).unwrap(), &opts);
    assert!(done.unwrap_err().is(Code::Cancelled));
    assert!(!root.join("a").exists());
}
