//! The protocol with the program that makes images, with scripts in its place.

use bytes::Bytes;

use super::look::taken;
use super::*;
use crate::stream::pipe;
use crate::tar::Kind;
use crate::testing::{archive, dir, entry, file, link, script};

/// A program in `temp` that is called as mkfs.erofs is.
fn made(temp: &Path, text: &str, tar: &[u8], limits: Limits) -> Result<()> {
    let program = temp.join("mkfs");
    script(&program, &format!("#!/bin/sh\n{text}\n"));
    let (sender, source) = pipe();
    let making = Making {
        program: &program,
        options: &["-zlz4".to_owned()],
        image: &temp.join("image"),
        directory: temp,
        root: root(),
        limits,
        data: limits.data_of(tar.len() as u64),
        longest: 1 << 20,
        stop: Stop::default(),
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in tar.chunks(1000) {
                sender.send(Ok(Bytes::copy_from_slice(piece)));
            }
        });
        making.make_within(source, within(120_000))
    })
}

fn within(milliseconds: u64) -> Bounds {
    Bounds {
        silence: Duration::from_millis(milliseconds),
        ..BOUNDS
    }
}

fn root() -> Entry {
    Entry {
        uid: 1000,
        ..dir("./")
    }
}

fn sample() -> Vec<u8> {
    archive(&[
        (dir("d"), b""),
        (file("d/f"), &[b'x'; 200_000]),
        (file("d/.wh.gone"), b""),
        (link("h", "d/f"), b""),
    ])
}

/// The protocol alone, with a program that only notes how it was called.
#[test]
fn the_program_gets_the_archive_and_what_it_is_to_make() {
    let temp = tempfile::tempdir().unwrap();
    let text = "for last; do :; done\necho \"$TMPDIR $*\" >\"$last.called\"\ncat >\"$last\"";
    let mut tar = sample();
    // Behind the archive there may be more, which belongs to the layer.
    tar.resize(tar.len() + 100_000, 0);
    made(temp.path(), text, &tar, Limits::default()).unwrap();
    let image = temp.path().join("image");
    let got = std::fs::read(&image).unwrap();
    assert_eq!(&got[512..], tar);
    // Before it comes the root as it is where the archive does not say.
    let first = Reader::new(&got[..]).next().unwrap().unwrap();
    assert_eq!(first, root());
    let called = std::fs::read_to_string(image.with_extension("called")).unwrap();
    let want = format!(
        "{} --tar=f --aufs --quiet -Enoinline_data -zlz4 {}\n",
        temp.path().display(),
        image.display()
    );
    assert_eq!(called, want);
}

#[test]
fn how_the_program_fails_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let (tar, limits) = (sample(), Limits::default());
    for (text, code, said) in [
        (
            "echo broken >&2; exit 3",
            Code::NotImplemented,
            "status 3: broken",
        ),
        (
            "cat >/dev/null; kill -9 $$",
            Code::NotImplemented,
            "status 137",
        ),
        (
            "for last; do :; done; head -c 2000000 /dev/zero >\"$last\"; exec sleep 1000",
            Code::NotImplemented,
            "more than 1048576 bytes",
        ),
    ] {
        let error = made(temp.path(), text, &tar, limits).unwrap_err();
        assert!(error.is(code), "{text}: {error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    std::fs::remove_file(temp.path().join("image")).unwrap();
    // Who takes no more than the archive is not in the wrong.
    let text = "exec head -c 1024 >/dev/null";
    made(temp.path(), text, &tar, limits).unwrap();
}

#[test]
fn a_program_that_does_not_go_on_is_ended() {
    let temp = tempfile::tempdir().unwrap();
    let program = temp.path().join("mkfs");
    script(&program, "#!/bin/sh\nexec sleep 1000\n");
    let (sender, source) = pipe();
    drop(sender);
    let making = Making {
        program: &program,
        options: &[],
        image: &temp.path().join("image"),
        directory: temp.path(),
        root: root(),
        limits: Limits::default(),
        data: u64::MAX,
        longest: u64::MAX,
        stop: Stop::default(),
    };
    let done = making.make_within(source, within(300));
    let error = done.unwrap_err();
    assert!(error.is(Code::DeadlineExceeded), "{error}");
    // One that takes too much memory is ended at the first look.
    let (sender, source) = pipe();
    drop(sender);
    let little = Bounds {
        memory: 0,
        ..BOUNDS
    };
    let error = making.make_within(source, little).unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
    making.stop.tell();
    let (sender, source) = pipe();
    drop(sender);
    let error = making.make(source).unwrap_err();
    assert!(error.is(Code::Cancelled), "{error}");
}

#[test]
fn what_would_come_out_otherwise_is_left_to_the_other_differ() {
    let temp = tempfile::tempdir().unwrap();
    let with = |key: &[u8]| Entry {
        xattrs: vec![(key.to_vec(), b"y".to_vec())],
        ..file("f")
    };
    let sparse = Entry {
        sparse: Some(Vec::new()),
        ..file("f")
    };
    for odd in [
        file("a/../f"),
        file("no/parent"),
        file("./.wh."),
        file(".wh..."),
        link("l", "../f"),
        with(b"trusted.overlay.redirect"),
        with(b"user.overlay.opaque"),
    ] {
        let tar = archive(&[(odd.clone(), b"")]);
        let done = made(temp.path(), "exec cat >/dev/null", &tar, Limits::default());
        let error = done.expect_err("declined");
        assert!(error.is(Code::NotImplemented), "{odd:?}: {error}");
    }
    taken(&sparse).unwrap_err();
    for plain in [
        entry(Kind::Directory, "./"),
        file("/f"),
        file(".wh..wh..opq"),
        with(b"user.k"),
    ] {
        taken(&plain).unwrap();
    }
}

#[test]
fn bombs_and_damage_end_before_the_program_does() {
    let temp = tempfile::tempdir().unwrap();
    // It does not end by itself: nobody waits until it is silent for too long.
    let wait = "cat >/dev/null\nexec sleep 1000";
    let started = Instant::now();
    let few = Limits {
        entries: 3,
        ..Limits::default()
    };
    let error = made(temp.path(), wait, &sample(), few).unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    let little = Limits {
        stored: 100_000,
        ..Limits::default()
    };
    let error = made(temp.path(), wait, &sample(), little).unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    let mut damaged = sample();
    damaged[0] ^= 1;
    let error = made(temp.path(), wait, &damaged, Limits::default()).unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn what_a_program_can_is_read_in_its_help() {
    let temp = tempfile::tempdir().unwrap();
    let program = temp.path().join("mkfs");
    for (text, can) in [
        ("echo ' --tar=X generate a full image' >&2", true),
        ("echo ' --tar=[fi]'; exit 1", true),
        ("echo ' --quiet'", false),
    ] {
        script(&program, &format!("#!/bin/sh\n{text}\n"));
        assert_eq!(packs_archives(&program), can, "{text}");
    }
    assert!(!packs_archives(&temp.path().join("nowhere")));
}

/// An archive of a file `f` whose header has this flag, after these records.
fn odd(flag: u8, records: Option<(u8, &[u8])>) -> Vec<u8> {
    let header = |name: &str, flag, size: usize| {
        let entry = Entry {
            size: size as u64,
            ..file(name)
        };
        let mut block = Vec::new();
        Writer::new(&mut block).entry(&entry).unwrap();
        block[156] = flag;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    };
    let mut tar = Vec::new();
    if let Some((kind, records)) = records {
        tar.extend(header("records", kind, records.len()));
        tar.extend(records);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.extend(header("f", flag, 0));
    tar.resize(tar.len() + 1024, 0);
    tar
}

#[test]
fn what_other_programs_read_otherwise_is_left_to_the_other_differ() {
    let temp = tempfile::tempdir().unwrap();
    let make = |tar: &[u8]| made(temp.path(), "exec cat >/dev/null", tar, Limits::default());
    let xattr = b"30 LIBARCHIVE.xattr.user.k=dg\n";
    for tar in [
        odd(0, None),
        odd(b'0', Some((b'g', b"14 path=other\n"))),
        odd(b'0', Some((b'g', b"13 comment=x\n14 path=other\n"))),
        odd(b'0', Some((b'x', xattr))),
    ] {
        let error = make(&tar).expect_err("declined");
        assert!(error.is(Code::NotImplemented), "{error}");
    }
    make(&odd(b'0', None)).unwrap();
    make(&odd(b'0', Some((b'g', b"13 comment=x\n")))).unwrap();
    make(&odd(
        b'0',
        Some((b'x', b"31 SCHILY.xattr.user.key=value\n")),
    ))
    .unwrap();
}

#[test]
fn only_a_program_that_is_waited_for_is_silent() {
    let mut silence = Silence::new(1);
    let begin = silence.since;
    let at = |seconds| begin + Duration::from_secs(seconds);
    assert_eq!(silence.after(1, true, at(5)).as_secs(), 5);
    // It waits for a layer that comes in.
    assert_eq!(silence.after(1, false, at(9)).as_secs(), 0);
    assert_eq!(silence.after(1, true, at(10)).as_secs(), 1);
    assert_eq!(silence.after(2, true, at(12)).as_secs(), 0);
    assert_eq!(silence.after(2, true, at(15)).as_secs(), 3);
}
