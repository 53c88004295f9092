//! What is known of a blob, its labels, lists, and how it goes.

use std::collections::HashMap;

use protos::events::ContentDelete;
use tonic::Code;

use super::{Content, digest};
use crate::events::event;
use crate::heard::Heard;
use crate::peer::{NAMESPACE, Peer, labels, refused};
use crate::stock;

rules! {
    both {
        a_blob_has_size_labels_and_times
        what_is_not_there_is_not_found
        what_is_no_digest_is_refused
        a_blob_of_another_namespace_is_not_there
        labels_are_a_matter_of_the_namespace
        an_update_sets_the_labels_of_its_mask
        a_mask_of_all_labels_and_no_mask_replace_them
        an_empty_value_removes_a_label
        no_other_field_can_be_updated
        a_label_that_is_too_long_is_refused
        a_list_comes_in_pages_of_a_hundred
        a_list_passes_what_one_of_its_filters_passes
        a_filter_must_parse
        a_deleted_blob_is_not_there_and_an_event_tells
        a_deletion_takes_the_blob_out_of_the_callers_lease_alone
        the_file_goes_with_the_last_namespace_that_has_the_blob
    }
    ours {
        the_times_are_those_of_the_namespace
    }
}

/// Digest of no blob here.
const NONE: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

async fn a_blob_has_size_labels_and_times(peer: &Peer) {
    let mut content = Content::of(peer);
    let pairs = [(stock::ROOT, "yes"), ("a.b/c", "d")];
    let blob = content.put_with(b"hello", &pairs).await;
    let info = content.info(&blob).await.expect("info");
    assert_eq!(info.digest, digest(b"hello"));
    assert_eq!(info.size, 5);
    assert_eq!(info.labels, labels(&pairs));
    assert!(info.created_at.seconds > 0);
    assert_eq!(info.created_at, info.updated_at);
    let changed = content.update(&blob, &[("e", "f")], Some(&["labels.e"]));
    let changed = changed.await.expect("update");
    assert_eq!(changed.created_at, info.created_at);
    let time = |at: &protos::well_known::Timestamp| (at.seconds, at.nanos);
    assert!(time(&changed.updated_at) > time(&info.updated_at));
    assert_eq!(content.info(&blob).await.expect("info"), changed);
}

async fn what_is_not_there_is_not_found(peer: &Peer) {
    let mut content = Content::of(peer);
    content.put(b"hello").await;
    for answer in [
        content.info(NONE).await.map(drop),
        content.update(NONE, &[("a", "1")], None).await.map(drop),
        content.read(NONE, 0, 0).await.map(drop),
        content.delete(NONE).await,
    ] {
        let text = refused(Code::NotFound, answer);
        assert!(text.ends_with(": not found"), "{text}");
        assert!(text.contains(NONE), "{text}");
    }
}

async fn what_is_no_digest_is_refused(peer: &Peer) {
    let mut content = Content::of(peer);
    content.put(b"hello").await;
    let short = &NONE[..70];
    let long = format!("{NONE}a");
    let upper = NONE.replace(":a", ":A");
    for text in [
        "",
        "x",
        "sha256",
        "sha256:",
        "sha256:../../../etc/passwd",
        "../sha256:a",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        short,
        &long,
        &upper,
    ] {
        for answer in [
            content.info(text).await.map(drop),
            content.update(text, &[("a", "1")], None).await.map(drop),
            content.read(text, 0, 0).await.map(drop),
            content.delete(text).await,
        ] {
            refused(Code::InvalidArgument, answer);
        }
    }
}

async fn a_blob_of_another_namespace_is_not_there(peer: &Peer) {
    let mut content = Content::of(peer);
    let blob = content.put(b"hello").await;
    let mut other = Content::within(peer, "other");
    for answer in [
        other.info(&blob).await.map(drop),
        other.update(&blob, &[("a", "1")], None).await.map(drop),
        other.read(&blob, 0, 0).await.map(drop),
        other.delete(&blob).await,
    ] {
        refused(Code::NotFound, answer);
    }
    assert_eq!(other.list(&[]).await, [""; 0]);
    assert!(content.has(&blob).await);
}

async fn labels_are_a_matter_of_the_namespace(peer: &Peer) {
    let (mut one, mut other) = (Content::of(peer), Content::within(peer, "other"));
    let (ours, theirs) = ([(stock::ROOT, "1")], [(stock::ROOT, "2"), ("a", "b")]);
    let blob = one.put_with(b"hello", &ours).await;
    other.put_with(b"hello", &theirs).await;
    assert_eq!(one.info(&blob).await.expect("info").labels, labels(&ours));
    let there = other.info(&blob).await.expect("info").labels;
    assert_eq!(there, labels(&theirs));
    let answer = other.update(&blob, &[(stock::ROOT, "3")], None).await;
    answer.expect("update");
    assert_eq!(one.info(&blob).await.expect("info").labels, labels(&ours));
}

async fn the_times_are_those_of_the_namespace(peer: &Peer) {
    let (mut one, mut other) = (Content::of(peer), Content::within(peer, "other"));
    let blob = one.put(b"hello").await;
    other.put(b"hello").await;
    let before = one.info(&blob).await.expect("info").created_at;
    assert_ne!(other.info(&blob).await.expect("info").created_at, before);
}

async fn an_update_sets_the_labels_of_its_mask(peer: &Peer) {
    let mut content = Content::of(peer);
    let before = [(stock::ROOT, "yes"), ("b.c/d", "2"), ("e", "3")];
    let blob = content.put_with(b"hello", &before).await;
    let new = [("b.c/d", "x"), ("e", "y"), ("f", "z"), ("g", "not asked")];
    let paths = ["labels.b.c/d", "labels.f"];
    let answer = content.update(&blob, &new, Some(&paths)).await;
    let want = [(stock::ROOT, "yes"), ("b.c/d", "x"), ("e", "3"), ("f", "z")];
    assert_eq!(answer.expect("update").labels, labels(&want));
}

async fn a_mask_of_all_labels_and_no_mask_replace_them(peer: &Peer) {
    let mut content = Content::of(peer);
    let before = [(stock::ROOT, "yes"), ("a", "1")];
    let blob = content.put_with(b"hello", &before).await;
    for (value, paths) in [("2", Some(&["labels"][..])), ("3", None), ("4", Some(&[]))] {
        let new = [(stock::ROOT, "yes"), ("b", value)];
        let answer = content.update(&blob, &new, paths).await;
        assert_eq!(answer.expect("update").labels, labels(&new));
    }
    let answer = content.update(&blob, &[], None).await.expect("update");
    assert_eq!(answer.labels, HashMap::new());
}

async fn an_empty_value_removes_a_label(peer: &Peer) {
    let mut content = Content::of(peer);
    let before = [(stock::ROOT, "yes"), ("a", "1")];
    let blob = content.put_with(b"hello", &before).await;
    let answer = content.update(&blob, &[("a", "")], Some(&["labels.a"]));
    let want = labels(&[(stock::ROOT, "yes")]);
    assert_eq!(answer.await.expect("update").labels, want);
    let both = [(stock::ROOT, "yes"), ("b", "")];
    let answer = content.update(&blob, &both, None).await.expect("update");
    assert_eq!(content.info(&blob).await.expect("info").labels, want);
    drop(answer);
}

async fn no_other_field_can_be_updated(peer: &Peer) {
    let mut content = Content::of(peer);
    let blob = content.put(b"hello").await;
    for path in ["size", "digest", "created_at", "x", "Labels", ""] {
        let answer = content.update(&blob, &[("a", "1")], Some(&[path])).await;
        refused(Code::InvalidArgument, answer);
        let paths = ["labels.a", path];
        let answer = content.update(&blob, &[("a", "1")], Some(&paths)).await;
        refused(Code::InvalidArgument, answer);
    }
    let info = content.info(&blob).await.expect("info");
    assert_eq!(info.labels, labels(&[(stock::ROOT, "yes")]));
}

async fn a_label_that_is_too_long_is_refused(peer: &Peer) {
    let mut content = Content::of(peer);
    let blob = content.put(b"hello").await;
    let (fits, long) = ("v".repeat(4095), "v".repeat(4096));
    let paths = Some(&["labels.k"][..]);
    let answer = content.update(&blob, &[("k", &long)], paths).await;
    refused(Code::InvalidArgument, answer);
    let answer = content.update(&blob, &[("k", &fits)], paths).await;
    assert_eq!(answer.expect("update").labels["k"], fits);
}

async fn a_list_comes_in_pages_of_a_hundred(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut want = Vec::new();
    for number in 0..101 {
        want.push(content.put(format!("blob {number}").as_bytes()).await);
    }
    want.sort();
    let pages = content.pages(&[]).await.expect("list");
    assert_eq!([pages[0].len(), pages[1].len()], [100, 1]);
    assert_eq!(pages.len(), 2);
    assert_eq!(content.list(&[]).await, want);
    let page = Content::within(peer, "other").pages(&[]).await;
    assert_eq!(page.expect("list").len(), 0);
}

async fn a_list_passes_what_one_of_its_filters_passes(peer: &Peer) {
    let mut content = Content::of(peer);
    let (one, two) = (
        [(stock::ROOT, "x"), ("k.l/m", "1")],
        [(stock::ROOT, "y"), ("k.l/m", "2")],
    );
    let a = content.put_with(b"a", &one).await;
    let b = content.put_with(b"b", &two).await;
    let c = content.put_with(b"c", &[(stock::ROOT, "x")]).await;
    let named = format!("digest=={a}");
    let other = format!("digest!={a}");
    let root = format!("labels.\"{}\"==x", stock::ROOT);
    let both = format!("labels.\"k.l/m\",labels.\"{}\"==x", stock::ROOT);
    for (filters, want) in [
        (&[named.as_str()][..], vec![&a]),
        (&[other.as_str()], vec![&b, &c]),
        (&[root.as_str()], vec![&a, &c]),
        (&["labels.\"k.l/m\""], vec![&a, &b]),
        (&["labels.\"k.l/m\"==2"], vec![&b]),
        (&["labels.\"k.l/m\"~=^[12]$"], vec![&a, &b]),
        (&[both.as_str()], vec![&a]),
        (&[named.as_str(), "labels.\"k.l/m\"==2"], vec![&a, &b]),
        (&["nothing"], vec![]),
        (&["labels.nothing"], vec![]),
        (&[""], vec![&a, &b, &c]),
    ] {
        let mut want: Vec<String> = want.into_iter().cloned().collect();
        want.sort();
        assert_eq!(content.list(filters).await, want, "{filters:?}");
    }
}

async fn a_filter_must_parse(peer: &Peer) {
    let mut content = Content::of(peer);
    content.put(b"hello").await;
    for filter in ["digest==", "(((", "labels.", "digest = x", "a==\"b"] {
        let text = refused(Code::InvalidArgument, content.pages(&[filter]).await);
        assert!(text.ends_with(": invalid argument"), "{text}");
        refused(Code::InvalidArgument, content.ingests(&[filter]).await);
    }
}

async fn a_deleted_blob_is_not_there_and_an_event_tells(peer: &Peer) {
    let mut content = Content::of(peer);
    let blob = content.put(b"hello").await;
    let mut watch = Heard::matching(peer, &["topic==\"/content/delete\""]).await;
    content.delete(&blob).await.expect("delete");
    assert!(!content.has(&blob).await);
    refused(Code::NotFound, content.read(&blob, 0, 0).await);
    refused(Code::NotFound, content.delete(&blob).await);
    let told = watch.told(peer).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].namespace, NAMESPACE);
    assert_eq!(event::<ContentDelete>(&told[0]).digest, blob);
}

async fn a_deletion_takes_the_blob_out_of_the_callers_lease_alone(peer: &Peer) {
    stock::lease(peer, "mine", &[]).await;
    stock::lease(peer, "theirs", &[]).await;
    let blob = Content::leased(peer, "mine").put_with(b"hello", &[]).await;
    stock::add(peer, "theirs", ("content", &blob)).await;
    let held = vec![("content".to_owned(), blob.clone())];
    assert_eq!(stock::held(peer, "mine").await, held);
    let answer = Content::leased(peer, "mine").delete(&blob).await;
    answer.expect("delete");
    assert_eq!(stock::held(peer, "mine").await, []);
    assert_eq!(stock::held(peer, "theirs").await, held);
}

async fn the_file_goes_with_the_last_namespace_that_has_the_blob(peer: &Peer) {
    let (mut one, mut other) = (Content::of(peer), Content::within(peer, "other"));
    let blob = one.put(b"hello").await;
    other.put(b"hello").await;
    let (algorithm, hex) = blob.split_once(':').expect("a digest");
    let blobs = peer
        .host
        .root()
        .join("io.containerd.content.v1.content/blobs");
    let file = blobs.join(algorithm).join(hex);
    assert_eq!(std::fs::read(&file).expect("read"), b"hello");
    one.delete(&blob).await.expect("delete");
    stock::collect(peer).await;
    assert!(file.exists());
    assert_eq!(other.read(&blob, 0, 0).await.expect("read"), b"hello");
    other.delete(&blob).await.expect("delete");
    stock::collect(peer).await;
    assert!(!file.exists());
}
