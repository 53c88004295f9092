//! Images and archives into snapshots that take images, and into others.

use std::collections::BTreeSet;
use std::io::Write as _;

use content::Hasher;
use types::{Code, Digest};

use super::testing::image;
use super::*;
use crate::compression::Encoder;
use crate::testing::{Bench, archive, bind, dir, file, link, script, tree};

/// A snapshot as the erofs snapshotter makes them.
fn snapshot(bench: &Bench, name: &str) -> (PathBuf, Vec<Mount>) {
    let directory = bench.dir(name);
    let files = bench.dir(&format!("{name}/fs"));
    std::fs::write(directory.join(EROFS_LAYER), "").unwrap();
    (directory, bind(&files))
}

fn names(directory: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(directory).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// There is nothing of a layer.
fn is_bare(directory: &Path) -> bool {
    names(directory)
        .iter()
        .all(|name| name == EROFS_LAYER || name == "fs")
        && names(&directory.join("fs")).is_empty()
}

fn erofs(bench: &Bench) -> Erofs {
    Erofs::new(bench.walking.clone(), ErofsOpts::default())
}

async fn apply(
    erofs: &Erofs,
    bench: &Bench,
    layer: &Descriptor,
    mounts: &[Mount],
) -> Result<Descriptor> {
    let opts = ApplyOpts {
        sync: true,
        ..ApplyOpts::default()
    };
    erofs.apply(&bench.store, layer, mounts, opts).await
}

fn sample() -> Vec<u8> {
    image(|dir| std::fs::write(dir.join("f"), vec![b'x'; 300_000]).unwrap())
}

fn zstd(data: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(Compression::Zstd, Vec::new()).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_an_image_is_taken_as_it_is() {
    let bench = Bench::new();
    let good = sample();
    let diff_id = Hasher::digest(&good).unwrap();
    let packed = zstd(&good);
    for (number, (media, blob)) in [
        (media_type::EROFS_LAYER, &good),
        ("application/vnd.example.layer.v1.erofs", &good),
        ("application/vnd.erofs.layer.v1+zstd", &packed),
    ]
    .into_iter()
    .enumerate()
    {
        let (directory, mounts) = snapshot(&bench, &format!("{number}"));
        // On its own, as layers are unpacked that come at once.
        let alone = vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![format!("upperdir={}", mounts[0].source)],
        }];
        let mounts = if number == 1 { alone } else { mounts };
        let layer = bench.stored(media, blob.clone()).await;
        let done = apply(&erofs(&bench), &bench, &layer, &mounts)
            .await
            .unwrap();
        assert_eq!((&done.digest, done.size), (&diff_id, good.len() as u64));
        assert_eq!(done.media_type, media.split('+').next().unwrap());
        assert_eq!(std::fs::read(directory.join(EROFS_IMAGE)).unwrap(), good);
        assert!(!directory.join(EROFS_PART).exists());
        // One layer for one snapshot.
        let error = apply(&erofs(&bench), &bench, &layer, &mounts)
            .await
            .unwrap_err();
        assert!(error.is(Code::FailedPrecondition), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_image_leaves_nothing() {
    let bench = Bench::new();
    let good = sample();
    let cut = good[..good.len() - 4096].to_vec();
    let zeroes = vec![0; 1 << 20];
    let mut flipped = good.clone();
    flipped[1100] ^= 1;
    let archive = archive(&[(file("f"), b"x")]);
    let plain = media_type::EROFS_LAYER;
    let in_zstd = "application/vnd.erofs.layer.v1+zstd";
    for (number, (media, blob, code)) in [
        (plain, Vec::new(), Code::InvalidArgument),
        (plain, cut.clone(), Code::InvalidArgument),
        (plain, zeroes, Code::InvalidArgument),
        (plain, flipped, Code::InvalidArgument),
        (plain, archive, Code::InvalidArgument),
        // It is what its type says, or nothing.
        (plain, zstd(&good), Code::InvalidArgument),
        (in_zstd, good.clone(), Code::InvalidArgument),
        (in_zstd, zstd(&cut), Code::InvalidArgument),
        // A bomb: a GiB that is nothing, and more than that.
        (in_zstd, bomb(), Code::ResourceExhausted),
    ]
    .into_iter()
    .enumerate()
    {
        let (directory, mounts) = snapshot(&bench, &format!("{number}"));
        let layer = bench.stored(media, blob).await;
        let small = bench.walking.clone().with_limits(crate::Limits {
            stored: 64 << 20,
            ..crate::Limits::default()
        });
        let erofs = Erofs::new(small, ErofsOpts::default());
        let error = apply(&erofs, &bench, &layer, &mounts).await.unwrap_err();
        assert!(error.is(code), "{number}: {error}");
        assert!(is_bare(&directory), "{number}: {:?}", names(&directory));
    }
}

/// More zeroes than an image may have.
fn bomb() -> Vec<u8> {
    let mut encoder = Encoder::new(Compression::Zstd, Vec::new()).unwrap();
    for _ in 0..65 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_blob_is_another_is_refused() {
    let bench = Bench::new();
    let good = sample();
    let layer = bench.stored(media_type::EROFS_LAYER, good.clone()).await;
    let mut other = good;
    // In the data, which no checksum of the image covers.
    let last = other.len() - 1;
    other[last] ^= 1;
    let digest: &Digest = &layer.digest;
    let blob = bench
        .temp
        .path()
        .join("content/blobs")
        .join(digest.as_str().replace(':', "/"));
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, other).unwrap();
    let (directory, mounts) = snapshot(&bench, "s");
    let error = apply(&erofs(&bench), &bench, &layer, &mounts)
        .await
        .unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert!(is_bare(&directory));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_can_be_forbidden() {
    let bench = Bench::new();
    let (directory, mounts) = snapshot(&bench, "s");
    let layer = bench.stored(media_type::EROFS_LAYER, sample()).await;
    let opts = ErofsOpts {
        take_images: false,
        ..ErofsOpts::default()
    };
    let erofs = Erofs::new(bench.walking.clone(), opts);
    let error = apply(&erofs, &bench, &layer, &mounts).await.unwrap_err();
    assert!(error.is(Code::PermissionDenied), "{error}");
    assert!(is_bare(&directory));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_for_it_is_left_to_others() {
    let bench = Bench::new();
    let image = bench.stored(media_type::EROFS_LAYER, sample()).await;
    let (_, taking) = snapshot(&bench, "taking");
    let mut mapped = taking.clone();
    mapped[0].options.push("uidmap=0:1:2".into());
    let mut below = taking.clone();
    below[0].target = "below".into();
    let odd = Mount {
        kind: "ext4".into(),
        source: "/dev/null".into(),
        ..Mount::default()
    };
    let erofs = erofs(&bench);
    for mounts in [
        bind(&bench.dir("plain")),
        bench.overlay("upper", &[&bench.dir("lower")]),
        mapped,
        below,
        vec![odd],
        Vec::new(),
    ] {
        let error = apply(&erofs, &bench, &image, &mounts).await.unwrap_err();
        assert!(error.is(Code::NotImplemented), "{mounts:?}: {error}");
    }
    let mut shown = taking.clone();
    shown[0].options = vec!["ro".into()];
    let error = apply(&erofs, &bench, &image, &shown).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    for media in ["text/plain", "application/vnd.erofs.layer.v1+gzip"] {
        let layer = bench.stored(media, sample()).await;
        let error = apply(&erofs, &bench, &layer, &taking).await.unwrap_err();
        assert!(error.is(Code::NotImplemented), "{media}: {error}");
    }
    std::fs::write(Path::new(&taking[0].source).join("f"), "").unwrap();
    let error = apply(&erofs, &bench, &image, &taking).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    let none = erofs.compare(&bench.store, &[], &[], CompareOpts::default());
    assert!(none.await.unwrap_err().is(Code::NotImplemented));
}

/// A differ whose program is this script.
fn with_program(bench: &Bench, text: &str) -> Erofs {
    let program = bench.temp.path().join("mkfs");
    script(&program, &format!("#!/bin/sh\n{text}\n"));
    Erofs {
        program,
        ..erofs(bench)
    }
}

/// A program that can do it by its help alone: it copies an image that is there.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_given_to_a_program_that_makes_images_of_those() {
    let bench = Bench::new();
    let tar = archive(&[(dir("d"), b""), (file("d/f"), b"text")]);
    let layer = bench.stored(media_type::OCI_LAYER_ZSTD, zstd(&tar)).await;
    let good = bench.temp.path().join("good");
    std::fs::write(&good, sample()).unwrap();
    let help = "[ \"$1\" = --help ] && { echo x >>\"$0.asked\"; echo ' --tar=f'; exit; }\n";
    let text = format!(
        "{help}for last; do :; done\ncat >/dev/null\nexec cp {} \"$last\"",
        good.display()
    );
    let differ = with_program(&bench, &text);
    for name in ["one", "two"] {
        let (directory, mounts) = snapshot(&bench, name);
        let done = apply(&differ, &bench, &layer, &mounts).await.unwrap();
        assert_eq!(done.digest, Hasher::digest(&tar).unwrap());
        assert_eq!(done.media_type, media_type::OCI_LAYER);
        assert_eq!(
            std::fs::read(directory.join(EROFS_IMAGE)).unwrap(),
            sample_of(&good)
        );
    }
    let asked = bench.temp.path().join("mkfs.asked");
    assert_eq!(std::fs::read_to_string(asked).unwrap(), "x\n");
    // One that makes something else.
    let differ = with_program(&bench, &format!("{help}cat >/dev/null"));
    let (directory, mounts) = snapshot(&bench, "three");
    let error = apply(&differ, &bench, &layer, &mounts).await.unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
    assert!(is_bare(&directory));
    // One beside which the snapshot is committed.
    let (directory, mounts) = snapshot(&bench, "four");
    let image = directory.join(EROFS_IMAGE);
    let text = format!(
        "{help}for last; do :; done\ncat >/dev/null\ncp {} \"$last\"\necho other >{}",
        good.display(),
        image.display()
    );
    let differ = with_program(&bench, &text);
    let error = apply(&differ, &bench, &layer, &mounts).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert_eq!(std::fs::read(&image).unwrap(), b"other\n");
    assert!(!directory.join(EROFS_PART).exists());
    std::fs::remove_file(&image).unwrap();
    // One that cannot.
    let differ = with_program(&bench, "echo ' --quiet'");
    let error = apply(&differ, &bench, &layer, &mounts).await.unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
    assert!(is_bare(&directory));
}

fn sample_of(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// With the machine's own `mkfs.erofs`, where it makes images of archives: Debian 12's does not.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_an_archive_has_the_tree_that_unpacking_gives() {
    let bench = Bench::new();
    let entries = [
        (dir("d"), &b""[..]),
        (file("d/f"), b"text"),
        (link("h", "d/f"), b""),
        (dir("o"), b""),
        (file("o/.wh..wh..opq"), b""),
        (file("d/.wh.gone"), b""),
    ];
    let layer = bench.stored(media_type::OCI_LAYER, archive(&entries)).await;
    let (directory, mounts) = snapshot(&bench, "s");
    let alone = |upper: &str| {
        vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![format!("upperdir={upper}")],
        }]
    };
    let made = apply(&erofs(&bench), &bench, &layer, &alone(&mounts[0].source)).await;
    if packs_archives(Path::new(MKFS)) {
        made.unwrap();
        let (lower, to) = (bench.dir("lower"), bench.dir("upper"));
        std::fs::create_dir_all(lower.join("o")).unwrap();
        std::fs::create_dir(lower.join("d")).unwrap();
        std::fs::write(lower.join("d/gone"), "").unwrap();
        bench
            .apply(&layer, &bench.overlay("upper", &[&lower]))
            .await
            .unwrap();
        let image = Mount {
            kind: "erofs".into(),
            source: directory.join(EROFS_IMAGE).display().to_string(),
            target: String::new(),
            options: vec!["ro".into(), "loop".into()],
        };
        let shown = sys::mount::TempMount::new(&[image], &bench.dir("mounts")).unwrap();
        // The time of what hides a file is seen by nobody.
        let seen = |root: &Path| {
            let mut tree = tree(root, true);
            tree.get_mut(Path::new("d/gone")).unwrap().mtime = None;
            tree
        };
        assert_eq!(seen(shown.path()), seen(&to));
        let mut mark = [0; 1];
        rustix::fs::lgetxattr(
            shown.path().join("o"),
            "trusted.overlay.opaque",
            &mut mark[..],
        )
        .unwrap();
        assert_eq!(&mark, b"y");
        shown.unmount().unwrap();
    } else {
        assert!(made.unwrap_err().is(Code::NotImplemented));
        assert!(is_bare(&directory));
    }
}
