//! What is known of snapshots, and lists of them.

use protos::services::snapshots::Kind;
use tonic::Code;

use super::Snapshots;
use crate::peer::{Peer, labels, refused};
use crate::stock;

rules! {
    both {
        a_snapshot_has_kind_parent_labels_and_times
        a_list_comes_in_pages_of_a_hundred
        a_list_passes_what_one_of_its_filters_passes
        a_list_keeps_to_namespace_and_snapshotter
        a_filter_must_parse
    }
    ours {
        a_filter_that_does_not_parse_has_its_class
    }
}

/// Filters that do not parse.
const BAD: [&str; 5] = ["kind==", "(((", "labels.", "kind = x", "name==\"b"];

async fn a_snapshot_has_kind_parent_labels_and_times(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    let pairs = [(stock::ROOT, "yes"), ("a.b/c", "d")];
    let prepared = snapshots.prepare_with("a", "one", &pairs).await;
    prepared.expect("prepare");
    snapshots.view("v", "one").await.expect("view");
    for (key, kind, parent) in [
        ("one", Kind::COMMITTED, ""),
        ("a", Kind::ACTIVE, "one"),
        ("v", Kind::VIEW, "one"),
    ] {
        let info = snapshots.stat(key).await.expect("stat");
        assert_eq!((info.name.as_str(), info.parent.as_str()), (key, parent));
        assert_eq!(info.kind, kind.into());
        assert!(info.created_at.seconds > 0);
        assert!(info.updated_at.seconds >= info.created_at.seconds);
    }
    let before = snapshots.stat("a").await.expect("stat");
    assert_eq!(before.labels, labels(&pairs));
    let updated = snapshots.update("a", &[("e", "f")], Some(&["labels.e"]));
    let updated = updated.await.expect("update");
    assert_eq!(updated.created_at, before.created_at);
    let time = |at: &protos::well_known::Timestamp| (at.seconds, at.nanos);
    assert!(time(&updated.updated_at) > time(&before.updated_at));
}

async fn a_list_comes_in_pages_of_a_hundred(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let mut want = Vec::new();
    for number in 0..101 {
        let key = format!("k{number}");
        snapshots.prepare(&key, "").await.expect("prepare");
        want.push(key);
    }
    want.sort();
    let pages = snapshots.pages(&[]).await.expect("list");
    let lengths: Vec<_> = pages.iter().map(Vec::len).collect();
    assert_eq!(lengths, [100, 1]);
    assert_eq!(snapshots.list(&[]).await, want);
}

async fn a_list_passes_what_one_of_its_filters_passes(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    snapshots.layer("two", "one").await;
    let pairs = [(stock::ROOT, "yes"), ("k.l/m", "1")];
    let prepared = snapshots.prepare_with("a", "one", &pairs).await;
    prepared.expect("prepare");
    snapshots.view("v", "two").await.expect("view");
    for (filters, want) in [
        (&[][..], &["a", "one", "two", "v"][..]),
        (&["kind==committed"], &["one", "two"]),
        (&["kind==active"], &["a"]),
        (&["kind==view"], &["v"]),
        (&["kind!=committed"], &["a", "v"]),
        (&["name==one"], &["one"]),
        (&["name~=^t"], &["two"]),
        (&["parent==one"], &["a", "two"]),
        (&["parent==\"\""], &["one"]),
        (&["parent==one,kind==active"], &["a"]),
        (&["labels.\"k.l/m\"==1"], &["a"]),
        (&["labels.\"k.l/m\""], &["a"]),
        (&["name==v", "name==one"], &["one", "v"]),
        (&["nothing"], &[]),
        (&["name==none"], &[]),
    ] {
        assert_eq!(snapshots.list(filters).await, want, "{filters:?}");
    }
}

async fn a_list_keeps_to_namespace_and_snapshotter(peer: &Peer) {
    let mut one = Snapshots::of(peer);
    let mut other = Snapshots::within(peer, "other");
    let mut native = Snapshots::in_snapshotter(peer, "native");
    one.layer("one", "").await;
    other.layer("other", "").await;
    native.layer("native", "").await;
    assert_eq!(one.list(&[]).await, ["one"]);
    assert_eq!(other.list(&[]).await, ["other"]);
    assert_eq!(native.list(&[]).await, ["native"]);
    let pages = Snapshots::within(peer, "empty").pages(&[]).await;
    assert_eq!(pages.expect("list").len(), 0);
}

async fn a_filter_must_parse(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    for filter in BAD {
        let answer = snapshots.pages(&[filter]).await;
        let text = answer.expect_err("a refusal").message().to_owned();
        assert!(text.ends_with(": invalid argument"), "{text}");
    }
}

/// Go 1.6 has but the text.
async fn a_filter_that_does_not_parse_has_its_class(peer: &Peer) {
    for filter in BAD {
        let answer = Snapshots::of(peer).pages(&[filter]).await;
        refused(Code::InvalidArgument, answer);
    }
}
