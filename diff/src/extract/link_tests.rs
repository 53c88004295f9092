//! Hard links, and the symbolic links on the way to what they name.

use types::Code;

use super::tests::both;
use super::{Root, Target, TreeOpts, apply_tar};
use crate::tar::Kind;
use crate::testing::{Bench, dir, entry, file, link, merge, named, onto, symlink};

#[test]
fn a_hard_link_goes_where_the_links_of_its_own_layer_lead() {
    let lower = [file("d/f"), file("e/f"), file("e/g"), file("q/r/s")];
    let layer = |target: &str, source: &str| {
        let mut layer = vec![file(".wh.d"), symlink("d", target), link("x", source)];
        // What it shows is what `x` was linked to.
        layer.extend([dir("e"), dir("q")]);
        layer
    };
    for (target, source, want) in [
        ("e", "d/f", "e/f"),
        ("/e", "d/f", "e/f"),
        ("q/r/../../e", "d/g", "e/g"),
        ("q", "d/r/s", "q/r/s"),
        ("../q/r", "d/s", "q/r/s"),
    ] {
        let want = [
            "d@".to_owned(),
            "e/".to_owned(),
            "e/f=e/f".to_owned(),
            "e/g=e/g".to_owned(),
            "q/".to_owned(),
            "q/r/".to_owned(),
            "q/r/s=q/r/s".to_owned(),
            format!("x={want}"),
        ];
        let want = want.each_ref().map(String::as_str);
        both(&lower, &layer(target, source), &want);
    }
    for (target, source) in [
        // Not there: what `d` was has been hidden.
        ("q", "d/f"),
        ("nowhere/../e", "d/f"),
        ("e/f", "d/f"),
        ("d", "d/f"),
    ] {
        let bench = Bench::new();
        let [base, plain, upper] = ["base", "plain", "upper"].map(|name| bench.dir(name));
        for to in [&base, &plain] {
            merge(&named(&lower), to).unwrap();
        }
        let tar = named(&layer(target, source));
        for done in [merge(&tar, &plain), onto(&tar, &upper, &[&base])] {
            let error = done.unwrap_err();
            assert!(
                error.is(Code::InvalidArgument),
                "{target} {source}: {error}"
            );
        }
    }
}

/// As an upper directory is archived whose whiteouts are links of each other.
#[test]
fn a_hard_link_to_a_device_that_hides_hides_as_well() {
    let lower = [dir("d"), file("d/a"), file("d/b"), file("d/c"), file("e")];
    let device = |name| entry(Kind::Char, name);
    let all = [
        device("d/a"),
        link("d/b", "d/a"),
        // To one that is a link itself, and one that nothing was there for.
        link("e", "d/b"),
        device("d/nothing"),
        link("d/none", "/d/nothing"),
    ];
    both(&lower, &all, &["d/", "d/c=d/c"]);
    // What the layer has itself stays, whichever comes first.
    let own = [device("d/a"), file("d/b"), link("d/b", "d/a")];
    both(&lower, &own, &["d/", "d/b=d/b", "d/c=d/c", "e=e"]);
    let own = [device("d/a"), link("d/b", "d/a"), file("d/b")];
    both(&lower, &own, &["d/", "d/b=d/b", "d/c=d/c", "e=e"]);
    // No device any more: a link like any other.
    let own = [device("d/a"), file("d/a"), link("d/b", "d/a")];
    let want = ["d/", "d/a=d/a", "d/b=d/a", "d/c=d/c", "e=e"];
    both(&lower, &own, &want);
}

#[test]
fn a_hard_link_to_such_a_device_is_one_where_layers_below_are_not_known_and_none_to_a_deletion() {
    let bench = Bench::new();
    let root = bench.dir("detached");
    let tar = named(&[entry(Kind::Char, "a"), link("b", "a")]);
    let opts = TreeOpts {
        target: Target::Detached,
        ..TreeOpts::default()
    };
    apply_tar(&tar[..], &Root::open(&root).unwrap(), &opts).unwrap();
    for name in ["a", "b"] {
        let facts = rustix::fs::lstat(root.join(name)).unwrap();
        assert!(crate::root::is_whiteout(&facts), "{name}");
    }
    let tar = named(&[file(".wh.a"), link("b", "a")]);
    for done in [
        merge(&tar, &bench.dir("plain")),
        onto(&tar, &bench.dir("upper"), &[&bench.dir("base")]),
    ] {
        let error = done.unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
    }
}
