//! Single nodes: what they get of their directories, and devices.

use std::path::Path;

use super::node::{Stored, write_runs};
use super::*;
use crate::testing::{Bench, dir, entry, file, merge, named, onto, symlink, tree};
use sys::mount::TempMount;

#[test]
fn what_a_directory_hands_down_is_known_on_every_way_to_it() {
    // User, group and others may read and write; all of it is masked; a named group may read.
    let entry = |tag: u16, bits: u16, id: u32| {
        let [tag, bits] = [tag, bits].map(u16::to_le_bytes);
        [&tag[..], &bits, &id.to_le_bytes()].concat()
    };
    let acl = [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 6, u32::MAX),
        entry(4, 6, u32::MAX),
        entry(8, 4, 42),
        entry(16, 6, u32::MAX),
        entry(32, 6, u32::MAX),
    ];
    let again = [
        Entry {
            mode: 0o2755,
            gid: 42,
            ..dir("d")
        },
        Entry {
            xattrs: vec![(b"system.posix_acl_default".to_vec(), acl.concat())],
            ..dir("d")
        },
    ];
    for again in again {
        let layer = [
            dir("d"),
            symlink("l", "d"),
            file("l/a"),
            again,
            Entry {
                mode: 0o600,
                ..file("l/b")
            },
            Entry {
                mode: 0o700,
                ..dir("l/c")
            },
        ];
        let bench = Bench::new();
        let [base, plain, upper] = ["base", "plain", "upper"].map(|name| bench.dir(name));
        merge(&named(&layer), &plain).unwrap();
        onto(&named(&layer), &upper, &[&base]).unwrap();
        for root in [plain, upper] {
            let seen = tree(&root, false);
            for (path, mode) in [("d/a", 0o644), ("d/b", 0o600), ("d/c", 0o700)] {
                let seen = &seen[Path::new(path)];
                assert_eq!((seen.owner, seen.mode & 0o7777), ((0, 0), mode), "{path}");
            }
        }
    }
}

/// A character device.
fn device(name: &str, major: u32, minor: u32) -> Entry {
    Entry {
        major,
        minor,
        ..entry(Kind::Char, name)
    }
}

#[test]
fn devices_are_left_out_where_they_cannot_be_made() {
    let layer = [
        device("d/null", 1, 3),
        entry(Kind::Block, "d/disk"),
        entry(Kind::Fifo, "d/fifo"),
        file("d/f"),
    ];
    for (skip_devices, want) in [
        (false, vec!["d", "d/disk", "d/f", "d/fifo", "d/null"]),
        (true, vec!["d", "d/f", "d/fifo"]),
    ] {
        let bench = Bench::new();
        let root = bench.dir("t");
        // What stands in its place is not taken away for one that is not made.
        merge(&named(&[file("kept")]), &root).unwrap();
        let opts = TreeOpts {
            skip_devices,
            ..TreeOpts::default()
        };
        let layer = [&layer[..], &[device("kept", 1, 3)]].concat();
        apply_tar(&named(&layer)[..], &Root::open(&root).unwrap(), &opts).unwrap();
        let seen = tree(&root, false);
        let names: Vec<_> = seen.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, [want, vec!["kept"]].concat());
        let kept = &seen[Path::new("kept")];
        assert_eq!(kept.mode & 0o170_000 == 0o100_000, skip_devices);
    }
}

#[test]
fn a_whiteout_as_overlayfs_has_it_deletes_on_every_way() {
    let lower = [file("d/gone"), file("d/kept"), file("old/f")];
    let layer = [
        device("d/gone", 0, 0),
        device("old", 0, 0),
        device("nothing", 0, 0),
        file("d/new"),
        device("d/new", 0, 0),
    ];
    let want = ["d/", "d/kept=d/kept", "d/new=d/new"];
    tests::both(&lower, &layer, &want);
    // Through a mount of the overlay, and in a user namespace, where one is all that can be made.
    for skip_devices in [false, true] {
        let bench = Bench::new();
        let base = bench.dir("base");
        merge(&named(&lower), &base).unwrap();
        let mounts = bench.overlay("upper", &[&base]);
        let mounted = TempMount::new(&mounts, &bench.dir("points")).unwrap();
        let opts = TreeOpts {
            skip_devices,
            ..TreeOpts::default()
        };
        let root = Root::open(mounted.path()).unwrap();
        apply_tar(&named(&layer)[..], &root, &opts).unwrap();
        let seen: Vec<_> = tree(mounted.path(), false).into_keys().collect();
        assert_eq!(seen, ["d", "d/kept", "d/new"].map(PathBuf::from));
    }
}

#[test]
fn a_ratio_counts_the_bytes_of_small_files_and_the_blocks_of_scattered_data() {
    let written = |pieces: &[(u64, usize)]| {
        let file = tempfile::tempfile().unwrap();
        let (mut stored, mut room) = (Stored::default(), Room::new(1 << 30, u64::MAX));
        for (at, len) in pieces {
            let wrote = write_runs(&file, &vec![b'x'; *len], *at, &mut stored).unwrap();
            room.wrote(&wrote).unwrap();
        }
        room.sums()
    };
    assert_eq!(written(&[(0, 1)]), (4096, 1));
    // In pieces, as they come in.
    assert_eq!(written(&[(0, 4090), (4090, 10)]), (8192, 4090 + 4096));
    // A byte in each block.
    assert_eq!(written(&[(4095, 1), (8192, 1), (12288, 1)]), (12288, 8193));
    // What the blob lets expect has a ceiling of its own.
    let mut room = Room::new(1 << 30, 5);
    room.take(5).unwrap();
    let error = room.take(1).unwrap_err();
    assert!(error.is(types::Code::ResourceExhausted), "{error}");
}

#[test]
fn a_tree_has_the_ratio_of_its_blob_beside_the_ceiling_of_all() {
    let bench = Bench::new();
    let root = Root::open(&bench.dir("t")).unwrap();
    for (blob, most) in [
        (Some(0), UNSUSPECTED),
        (Some(UNSUSPECTED), 2 * UNSUSPECTED),
        (None, 3 * UNSUSPECTED),
    ] {
        let opts = TreeOpts {
            limits: Limits {
                ratio: 2,
                stored: 3 * UNSUSPECTED,
                ..Limits::default()
            },
            blob,
            ..TreeOpts::default()
        };
        let mut tree = Tree::new(&root, &opts).unwrap();
        tree.room.take(most).unwrap();
        let error = tree.room.take(1).unwrap_err();
        assert!(error.is(types::Code::ResourceExhausted), "{error}");
    }
}
