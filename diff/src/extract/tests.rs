//! Deletions, links into lower layers, replacements; the hostile corpus; GNU tar as a peer.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use types::Code;

use super::*;
use crate::tar::Time;
use crate::testing::{Bench, archive, dir, entry, file, link, merge, named, onto, symlink, tree};
use sys::mount::TempMount;

/// Extracts `tar` over `lower` in both ways and checks that both show `want` (paths with contents;
/// directories and links with their kind).
pub(super) fn both(lower: &[Entry], tar: &[Entry], want: &[&str]) {
    let bench = Bench::new();
    let [base, plain] = ["base", "plain"].map(|name| bench.dir(name));
    for to in [&base, &plain] {
        merge(&named(lower), to).unwrap();
    }
    merge(&named(tar), &plain).unwrap();
    let mounts = bench.overlay("upper", &[&base]);
    onto(&named(tar), &bench.dir("upper"), &[&base]).unwrap();
    let mounted = TempMount::new(&mounts, &bench.dir("points")).unwrap();
    for (how, root) in [("plain", plain.as_path()), ("overlay", mounted.path())] {
        let seen: Vec<_> = tree(root, false)
            .into_iter()
            .map(|(path, seen)| match seen.mode & 0o170_000 {
                0o040_000 => format!("{}/", path.display()),
                0o120_000 => format!("{}@", path.display()),
                _ => format!("{}={}", path.display(), String::from_utf8_lossy(&seen.data)),
            })
            .collect();
        assert_eq!(seen, want, "{how}");
    }
    assert_eq!(tree(&plain, false), tree(mounted.path(), false));
}

#[test]
fn a_whiteout_hides_what_is_below_and_spares_its_own_layer() {
    let lower = [dir("d"), file("d/a"), file("d/b"), file("f")];
    both(&lower, &[file("d/.wh.a")], &["d/", "d/b=d/b", "f=f"]);
    both(&lower, &[file(".wh.d")], &["f=f"]);
    both(
        &lower,
        &[file(".wh.missing")],
        &["d/", "d/a=d/a", "d/b=d/b", "f=f"],
    );
    // File and whiteout of one name, in either order: the file is there.
    both(
        &lower,
        &[file("f"), file(".wh.f")],
        &["d/", "d/a=d/a", "d/b=d/b", "f=f"],
    );
    both(
        &lower,
        &[file(".wh.f"), file("f")],
        &["d/", "d/a=d/a", "d/b=d/b", "f=f"],
    );
    // A directory deleted and made anew, in either order.
    let anew = ["d/", "d/n=d/n", "f=f"];
    both(&lower, &[file(".wh.d"), dir("d"), file("d/n")], &anew);
    both(&lower, &[dir("d"), file("d/n"), file(".wh.d")], &anew);
    both(&lower, &[file(".wh.d"), file("d/n")], &anew);
}

#[test]
fn an_opaque_directory_hides_all_below_it_wherever_the_mark_stands() {
    let lower = [dir("d"), file("d/a"), dir("d/s"), file("d/s/x"), file("f")];
    let opaque = || file("d/.wh..wh..opq");
    both(
        &lower,
        &[dir("d"), opaque(), file("d/n")],
        &["d/", "d/n=d/n", "f=f"],
    );
    both(
        &lower,
        &[dir("d"), file("d/n"), opaque()],
        &["d/", "d/n=d/n", "f=f"],
    );
    both(
        &lower,
        &[dir("d"), file("d/s/n"), opaque()],
        &["d/", "d/s/", "d/s/n=d/s/n", "f=f"],
    );
    both(&lower, &[file("n"), file(".wh..wh..opq")], &["n=n"]);
    both(
        &lower,
        &[dir("d"), file("d/n"), file(".wh..wh..opq")],
        &["d/", "d/n=d/n"],
    );
}

#[test]
fn the_last_of_duplicate_entries_wins() {
    let lower = [dir("x"), file("x/old")];
    let twice = |name: &str| Entry {
        mode: 0o600,
        ..file(name)
    };
    both(&[], &[file("f"), twice("f")], &["f=f"]);
    both(&lower, &[file("x")], &["x=x"]);
    both(
        &lower,
        &[file("x"), dir("x"), file("x/new")],
        &["x/", "x/new=x/new"],
    );
    both(&lower, &[symlink("x", "elsewhere"), dir("x")], &["x/"]);
    both(
        &lower,
        &[dir("x"), file("x/a"), symlink("x", "to")],
        &["x@"],
    );
    let temp = tempfile::tempdir().unwrap();
    merge(&named(&[file("f"), twice("f")]), temp.path()).unwrap();
    assert_eq!(
        std::fs::metadata(temp.path().join("f")).unwrap().mode() & 0o7777,
        0o600
    );
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let bench = Bench::new();
    let [bottom, top, upper] = ["bottom", "top", "upper"].map(|name| bench.dir(name));
    let owned = |name: &str| Entry {
        uid: 5,
        gid: 6,
        mode: 0o640,
        ..file(name)
    };
    let base = [
        Entry {
            mode: 0o711,
            ..dir("d")
        },
        owned("d/a"),
        symlink("s", "d/a"),
        file("hidden"),
    ];
    merge(&named(&base), &bottom).unwrap();
    onto(&named(&[file(".wh.hidden")]), &top, &[&bottom]).unwrap();
    let tar = [
        Entry {
            kind: Kind::Link,
            link: b"/d/a".to_vec(),
            ..owned("b")
        },
        link("t", "s"),
    ];
    let lowers = [top.as_path(), bottom.as_path()];
    onto(&named(&tar), &upper, &lowers).unwrap();
    let mounts = bench.overlay("upper", &lowers);
    let mounted = TempMount::new(&mounts, &bench.dir("points")).unwrap();
    let seen = tree(mounted.path(), true);
    let (a, b) = (&seen[Path::new("d/a")], &seen[Path::new("b")]);
    assert_eq!(
        (a.first.as_path(), a.owner, a.mode & 0o7777),
        (Path::new("b"), (5, 6), 0o640)
    );
    assert_eq!((&a.data, a.mtime), (&b.data, b.mtime));
    assert_eq!(seen[Path::new("d")].mode & 0o7777, 0o711);
    assert_eq!(seen[Path::new("d")].mtime, Some((1_500_000_000, 0)));
    assert_eq!(seen[Path::new("t")].data, b"d/a");
    drop(mounted);
    for missing in ["hidden", "nowhere", "d", "/", ""] {
        let error = onto(&named(&[link("l", missing)]), &upper, &lowers).unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{missing}: {error}");
    }
    // Opaque in this layer: what was below cannot be linked.
    let fresh = bench.dir("fresh");
    let tar = [dir("d"), file("d/.wh..wh..opq"), link("l", "d/a")];
    onto(&named(&tar), &fresh, &lowers).unwrap_err();
}

#[test]
fn parents_that_the_archive_leaves_out_are_like_those_below() {
    let bench = Bench::new();
    let [base, upper] = ["base", "upper"].map(|name| bench.dir(name));
    let parent = Entry {
        uid: 3,
        gid: 4,
        mode: 0o1730,
        ..dir("p")
    };
    merge(&named(&[parent]), &base).unwrap();
    onto(&named(&[file("p/q/f")]), &upper, &[&base]).unwrap();
    let seen = tree(&upper, true);
    let p = &seen[Path::new("p")];
    assert_eq!(
        (p.owner, p.mode & 0o7777, p.mtime),
        ((3, 4), 0o1730, Some((1_500_000_000, 0)))
    );
    assert_eq!(seen[Path::new("p/q")].mode & 0o7777, 0o755);
}

#[test]
fn attributes_are_exact() {
    let temp = tempfile::tempdir().unwrap();
    // A parent that hands down its group.
    std::os::unix::fs::chown(temp.path(), None, Some(42)).unwrap();
    std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o2777)).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let entries = [
        Entry {
            mode: 0o6755,
            uid: 1000,
            gid: 1001,
            mtime: Time {
                seconds: 1,
                nanos: 999_999_999,
            },
            xattrs: vec![
                (b"security.capability".to_vec(), capability.to_vec()),
                (b"user.note".to_vec(), b"a=b\n\0".to_vec()),
                (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
            ],
            ..file("f")
        },
        Entry {
            mode: 0o7777,
            ..dir("d")
        },
        Entry {
            mode: 0o666,
            ..dir("d2")
        },
        Entry {
            uid: 9,
            gid: 9,
            mtime: Time {
                seconds: -5,
                nanos: 0,
            },
            ..symlink("s", "nowhere")
        },
        Entry {
            mode: 0o602,
            major: 4095,
            minor: 1_048_575,
            ..entry(Kind::Block, "b")
        },
        Entry {
            mode: 0o622,
            ..entry(Kind::Fifo, "p")
        },
    ];
    merge(&named(&entries), temp.path()).unwrap();
    let seen = tree(temp.path(), true);
    let at = |name: &str| &seen[Path::new(name)];
    assert_eq!((at("f").mode, at("f").owner), (0o106_755, (1000, 1001)));
    assert_eq!(at("f").mtime, Some((1, 999_999_999)));
    assert_eq!(at("f").xattrs.len(), 2);
    assert_eq!(at("f").xattrs[0].1, capability);
    assert_eq!((at("d").mode, at("d").owner), (0o047_777, (0, 0)));
    assert_eq!(at("d2").mode, 0o040_666);
    // Parity: nothing is older than 1970.
    assert_eq!((at("s").owner, at("s").mtime), ((9, 9), Some((0, 0))));
    assert_eq!(
        (at("b").mode, at("b").rdev),
        (0o060_602, rustix::fs::makedev(4095, 1_048_575))
    );
    assert_eq!(at("p").mode, 0o010_622);
}

#[test]
fn limits_hold() {
    let temp = tempfile::tempdir().unwrap();
    let opts = TreeOpts {
        limits: Limits {
            entries: 2,
            ..Limits::default()
        },
        ..TreeOpts::default()
    };
    let tar = named(&[file("a"), file("b"), file("c")]);
    let error = apply_tar(&tar[..], &Root::open(temp.path()).unwrap(), &opts).unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
}

#[test]
fn zeroes_become_holes() {
    let temp = tempfile::tempdir().unwrap();
    let mut data = vec![0; 4 << 20];
    data[3 << 20] = 1;
    merge(
        &archive(&[(file("f"), &data), (file("g"), &[0; 100])]),
        temp.path(),
    )
    .unwrap();
    let facts = std::fs::metadata(temp.path().join("f")).unwrap();
    assert!(facts.blocks() * 512 <= 128 * 1024, "{}", facts.blocks());
    assert_eq!(std::fs::read(temp.path().join("f")).unwrap(), data);
    assert_eq!(std::fs::read(temp.path().join("g")).unwrap(), [0; 100]);
}

#[test]
fn ordinary_archives_come_out_as_gnu_tar_unpacks_them() {
    let temp = tempfile::tempdir().unwrap();
    let source = temp.path().join("source");
    let long = "long-name-".repeat(20);
    std::fs::create_dir_all(source.join(&long).join("deep")).unwrap();
    std::fs::write(source.join(&long).join("deep/file"), vec![7; 100_000]).unwrap();
    std::fs::hard_link(source.join(&long).join("deep/file"), source.join("hard")).unwrap();
    std::os::unix::fs::symlink(&long, source.join("sym")).unwrap();
    std::os::unix::fs::lchown(source.join("sym"), Some(12), Some(13)).unwrap();
    let sparse = std::fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    for at in (0..3 << 20).step_by(64 << 10).skip(1) {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", at).unwrap();
    }
    for (format, more) in [
        ("gnu", "--sparse"),
        ("gnu", "--no-xattrs"),
        ("posix", "--sparse"),
        ("posix", "--sparse-version=0.1"),
        ("posix", "--sparse-version=0.0"),
        ("ustar", "--no-xattrs"),
        ("v7", "--no-xattrs"),
        ("oldgnu", "--sparse"),
    ] {
        let archive = temp.path().join("a.tar");
        let mut arguments = vec![format!("--format={format}"), more.to_owned()];
        if more.starts_with("--sparse-version") {
            arguments.push("--sparse".into());
        }
        let source = source.to_str().unwrap();
        arguments.extend([
            "-cf".into(),
            archive.display().to_string(),
            "-C".into(),
            source.into(),
        ]);
        // Old formats cannot hold the long name.
        let old = ["ustar", "v7"].contains(&format);
        arguments.extend(if old {
            vec!["sparse".into(), "hard".into()]
        } else {
            vec![".".into()]
        });
        gnu_tar(&arguments);
        let [theirs, ours] = ["theirs", "ours"].map(|name| {
            let path = temp.path().join(format!("{name}-{format}{more}"));
            std::fs::create_dir(&path).unwrap();
            path
        });
        let to = theirs.display().to_string();
        gnu_tar(&[
            "-xpf".into(),
            archive.display().to_string(),
            "-C".into(),
            to,
        ]);
        merge(&std::fs::read(&archive).unwrap(), &ours).unwrap();
        assert_eq!(tree(&ours, true), tree(&theirs, true), "{format} {more}");
    }
}

fn gnu_tar(arguments: &[String]) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test program without other children"
    )]
    let status = std::process::Command::new("tar")
        .args(arguments)
        .status()
        .unwrap();
    assert!(status.success(), "tar {arguments:?}");
}

#[test]
fn links_do_not_let_a_tree_grow_deeper_than_a_path() {
    let temp = tempfile::tempdir().unwrap();
    let deep = vec!["d"; 1500].join("/");
    let mut entries = vec![dir(&deep), symlink("l", &deep)];
    entries.extend((1..=1500).map(|depth| dir(&format!("l/{}", vec!["e"; depth].join("/")))));
    let error = merge(&named(&entries), temp.path()).unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    // Still within reach of everyone.
    std::fs::remove_dir_all(temp.path()).unwrap();
}

#[test]
fn a_directory_is_emptied_once() {
    let lower: Vec<_> = (0..500).map(|n| file(&format!("d/old{n}"))).collect();
    let bench = Bench::new();
    let [base, plain, upper] = ["base", "plain", "upper"].map(|name| bench.dir(name));
    for to in [&base, &plain] {
        merge(&named(&lower), to).unwrap();
    }
    let mut tar: Vec<_> = (0..1000).map(|n| file(&format!("d/new{n}"))).collect();
    tar.extend((0..5000).map(|_| file("d/.wh..wh..opq")));
    tar.extend((0..5000).map(|_| file(".wh.d")));
    let started = std::time::Instant::now();
    merge(&named(&tar), &plain).unwrap();
    onto(&named(&tar), &upper, &[&base]).unwrap();
    // Ten million looks at files took minutes.
    assert!(started.elapsed().as_secs() < 60);
    for root in [&plain, &upper] {
        assert_eq!(std::fs::read_dir(root.join("d")).unwrap().count(), 1000);
    }
}

#[test]
fn what_is_remembered_to_the_end_is_bounded() {
    let temp = tempfile::tempdir().unwrap();
    let limits = Limits {
        bytes: 1 << 20,
        paths: 1000,
        ..Limits::default()
    };
    let opts = TreeOpts {
        limits,
        ..TreeOpts::default()
    };
    let root = Root::open(temp.path()).unwrap();
    let again: Vec<_> = (0..200).map(|_| dir("directory")).collect();
    apply_tar(&*named(&again[..100]), &root, &opts).unwrap();
    let error = apply_tar(&*named(&again), &root, &opts).unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
}
