//! Random layers, unpacked without their parents and settled on them, against the same on their parents.

use std::path::Path;

use proptest::prelude::*;

use super::at_once::{How, Seen, Shown, made};

/// One entry of an archive: kind, name, what a link names, mode.
type Line = (u8, String, String, u32);

/// Names that collide, nest, delete and try to get out.
fn name() -> impl Strategy<Value = String> {
    let part = proptest::sample::select(vec![
        "a",
        "b",
        "l",
        "a",
        "b",
        "..",
        ".",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        ".wh.l",
    ]);
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn line() -> impl Strategy<Value = Line> {
    let kind = proptest::sample::select(b"555000021".to_vec());
    let target = prop_oneof![Just("/".to_owned()), Just("../x".to_owned()), name()];
    (kind, name(), target, 0..0o1000_u32)
}

/// A layer at the bottom, without what makes whole layers invalid.
fn bottom() -> impl Strategy<Value = Vec<Line>> {
    let name = proptest::sample::select(vec!["a", "b", "a/a", "a/b", "b/a", "a/a/b", "l"]);
    let kind = proptest::sample::select(b"5500".to_vec());
    let one = (kind, name, 0..0o1000_u32);
    let one = one.prop_map(|(kind, name, mode)| (kind, name.to_owned(), String::new(), mode));
    proptest::collection::vec(one, 0..6)
}

/// An archive with names as they are: a library would refuse some.
fn archive(lines: &[Line]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, target, mode) in lines {
        let mut header = tar::Header::new_gnu();
        let raw = header.as_gnu_mut().unwrap();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.typeflag = [*kind];
        let is_link = matches!(kind, b'1' | b'2');
        if is_link {
            raw.linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        let data = if *kind == b'0' { name.as_bytes() } else { &[] };
        header.set_mode(mode | 0o500);
        header.set_uid(u64::from(mode % 5));
        header.set_gid(0);
        header.set_mtime(1_500_000_000 + u64::from(*mode));
        header.set_size(data.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// What becomes of it: the layers' directories; none when it is refused, for whichever of its faults was
/// met first.
async fn outcome(layers: &[Vec<u8>], how: How) -> Option<Vec<Shown>> {
    let mut all = made(layers, how).await.ok()?;
    // A directory that hides what is not there is any other.
    for at in 0..all.len() {
        let (above, below) = all.split_at_mut(at + 1);
        for (path, seen) in &mut above[at] {
            seen.opaque &= is_shown(below, path);
        }
    }
    Some(all)
}

/// True when the layers, top first, show a directory at `path`.
fn is_shown(layers: &[Shown], path: &Path) -> bool {
    let is_directory = |seen: &Seen| seen.mode & 0o170_000 == 0o040_000;
    for layer in layers {
        let parts: Vec<_> = path.ancestors().collect();
        for part in parts.iter().rev() {
            match layer.get(*part) {
                None => break,
                Some(seen) if !is_directory(seen) => return false,
                Some(_) if *part == path => return true,
                Some(_) => {}
            }
        }
        let is_hidden = |part: &&Path| layer.get(*part).is_some_and(|seen| seen.opaque);
        if parts.iter().any(is_hidden) {
            return false;
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_that_are_settled_are_those_that_were_made_on_their_parents(
        bottom in bottom(),
        middle in proptest::collection::vec(line(), 1..7),
        top in proptest::collection::vec(line(), 1..7),
    ) {
        let layers = [bottom, middle, top].map(|lines| archive(&lines));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let (series, at_once) = runtime.block_on(async {
            (outcome(&layers, How::InSeries).await, outcome(&layers, How::AtOnce).await)
        });
        prop_assert_eq!(series, at_once);
    }
}

#[test]
fn a_directory_that_is_emptied_and_deleted_does_not_stay_for_a_deletion_in_it() {
    let of = |names: &[&str]| {
        let line = |name: &&str| (b'5', (*name).to_owned(), String::new(), 0);
        archive(&names.iter().map(line).collect::<Vec<_>>())
    };
    let top = of(&["a/.wh..wh..opq", "a/.wh.a", ".wh.a"]);
    let layers = [of(&[]), of(&["a"]), top];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (series, at_once) = runtime.block_on(async {
        (
            outcome(&layers, How::InSeries).await,
            outcome(&layers, How::AtOnce).await,
        )
    });
    assert!(series.is_some());
    assert_eq!(series, at_once);
}
