//! Making snapshots, and the mounts that they are used through.

use protos::events::SnapshotPrepare;
use protos::services::snapshots::Kind;
use protos::types::Mount;
use tonic::{Code, Status};

use super::{OVERLAY, Snapshots, option, upper};
use crate::events::event;
use crate::heard::Heard;
use crate::peer::{NAMESPACE, Peer, labels, refused};
use crate::stock;

rules! {
    both {
        a_snapshotter_must_be_named_and_known
        a_key_is_a_free_text_of_its_namespace
        a_key_that_is_taken_is_refused
        a_parent_must_be_there
        a_parent_must_be_committed
        a_parent_is_one_of_the_namespace
        what_is_made_joins_the_lease
        a_lease_must_be_there
        a_label_that_is_too_long_is_refused
        a_prepared_snapshot_is_told_and_a_view_is_not
        mounts_of_an_active_snapshot_are_a_bind_or_an_overlay
        mounts_of_a_view_are_read_only
        mounts_can_be_asked_for_again
        a_committed_snapshot_has_no_mounts
        a_target_that_is_there_answers_a_remote_prepare
        a_target_that_is_not_there_is_to_be_unpacked
        many_are_made_at_once
    }
    ours {
        a_key_that_is_taken_is_leased
        a_target_that_is_there_is_leased
        the_event_names_the_snapshotter
        a_key_must_not_be_empty
        a_prepare_that_is_given_up_leaves_all_or_nothing
    }
}

/// Label of the name that a remote snapshotter may have already.
const TARGET: &str = "containerd.io/snapshot.ref";

async fn a_snapshotter_must_be_named_and_known(peer: &Peer) {
    for name in ["", "nothing", "../overlayfs"] {
        let mut snapshots = Snapshots::in_snapshotter(peer, name);
        for answer in [
            snapshots.prepare("k", "").await.map(drop),
            snapshots.view("k", "").await.map(drop),
            snapshots.mounts("k").await.map(drop),
            snapshots.commit("n", "k").await,
            snapshots.remove("k").await,
            snapshots.stat("k").await.map(drop),
            snapshots.update("k", &[], None).await.map(drop),
            snapshots.pages(&[]).await.map(drop),
            snapshots.usage("k").await.map(drop),
            snapshots.cleanup().await,
        ] {
            refused(Code::InvalidArgument, answer);
        }
    }
}

async fn a_key_is_a_free_text_of_its_namespace(peer: &Peer) {
    let (mut one, mut other) = (Snapshots::of(peer), Snapshots::within(peer, "other"));
    for key in [
        "extract-1 sha256:ab/c",
        "../../x",
        "\u{e9}",
        ".",
        "/",
        "a:b,c\\d",
    ] {
        let here = upper(&one.prepare(key, "").await.expect("prepare"));
        let there = upper(&other.prepare(key, "").await.expect("prepare"));
        assert_ne!(here, there);
        assert_eq!(one.stat(key).await.expect("stat").name, key);
        one.remove(key).await.expect("remove");
        refused(Code::NotFound, one.stat(key).await);
        assert_eq!(other.stat(key).await.expect("stat").name, key);
    }
}

async fn a_key_must_not_be_empty(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    refused(Code::InvalidArgument, snapshots.prepare("", "").await);
    refused(Code::InvalidArgument, snapshots.view("", "").await);
    snapshots.prepare("a", "").await.expect("prepare");
    refused(Code::InvalidArgument, snapshots.commit("", "a").await);
    assert_eq!(snapshots.list(&[]).await, ["a"]);
}

fn held(keys: &[&str]) -> Vec<(String, String)> {
    let kind = format!("snapshots/{OVERLAY}");
    keys.iter()
        .map(|key| (kind.clone(), (*key).to_owned()))
        .collect()
}

/// Makes one snapshot of each kind; their keys.
async fn kinds(snapshots: &mut Snapshots) -> [&'static str; 3] {
    snapshots.layer("committed", "").await;
    snapshots.prepare("active", "").await.expect("prepare");
    snapshots.view("view", "committed").await.expect("view");
    ["active", "committed", "view"]
}

/// Go leases them since 1.7.
async fn a_key_that_is_taken_is_leased(peer: &Peer) {
    let keys = kinds(&mut Snapshots::of(peer)).await;
    stock::lease(peer, "l", &[]).await;
    let mut leased = Snapshots::leased(peer, "l");
    for key in keys {
        refused(Code::AlreadyExists, leased.prepare(key, "").await);
    }
    assert_eq!(stock::held(peer, "l").await, held(&keys));
}

async fn a_key_that_is_taken_is_refused(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let keys = kinds(&mut snapshots).await;
    for key in keys {
        let text = refused(Code::AlreadyExists, snapshots.prepare(key, "").await);
        assert!(text.ends_with(": already exists"), "{text}");
    }
    refused(
        Code::AlreadyExists,
        snapshots.view("active", "committed").await,
    );
    assert_eq!(snapshots.list(&[]).await, keys);
}

async fn a_parent_must_be_there(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    refused(Code::NotFound, snapshots.prepare("a", "none").await);
    refused(Code::NotFound, snapshots.view("a", "none").await);
    assert_eq!(snapshots.list(&[]).await, [""; 0]);
}

async fn a_parent_must_be_committed(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let keys = kinds(&mut snapshots).await;
    for parent in ["active", "view"] {
        refused(Code::InvalidArgument, snapshots.prepare("a", parent).await);
        refused(Code::InvalidArgument, snapshots.view("a", parent).await);
    }
    assert_eq!(snapshots.list(&[]).await, keys);
    // The key has stayed free.
    snapshots.prepare("a", "committed").await.expect("prepare");
}

async fn a_parent_is_one_of_the_namespace(peer: &Peer) {
    Snapshots::within(peer, "other").layer("base", "").await;
    let mut snapshots = Snapshots::of(peer);
    refused(Code::NotFound, snapshots.prepare("a", "base").await);
    let mut native = Snapshots::in_snapshotter(peer, "native");
    native.layer("base", "").await;
    refused(Code::NotFound, snapshots.prepare("a", "base").await);
    native.prepare("a", "base").await.expect("prepare");
}

async fn what_is_made_joins_the_lease(peer: &Peer) {
    stock::lease(peer, "l", &[]).await;
    let mut snapshots = Snapshots::leased(peer, "l");
    snapshots.prepare("a", "").await.expect("prepare");
    assert_eq!(stock::held(peer, "l").await, held(&["a"]));
    snapshots.commit("b", "a").await.expect("commit");
    assert_eq!(stock::held(peer, "l").await, held(&["b"]));
    snapshots.view("c", "b").await.expect("view");
    assert_eq!(stock::held(peer, "l").await, held(&["b", "c"]));
    snapshots.remove("c").await.expect("remove");
    assert_eq!(stock::held(peer, "l").await, held(&["b"]));
}

async fn a_lease_must_be_there(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("base", "").await;
    snapshots.prepare("active", "").await.expect("prepare");
    let mut leased = Snapshots::leased(peer, "none");
    for answer in [
        leased.prepare("a", "base").await.map(drop),
        leased.view("a", "base").await.map(drop),
        leased.commit("b", "active").await,
    ] {
        let text = refused(Code::NotFound, answer);
        assert!(text.contains("lease does not exist"), "{text}");
    }
    assert_eq!(snapshots.list(&[]).await, ["active", "base"]);
}

async fn a_label_that_is_too_long_is_refused(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let (fits, long) = ("v".repeat(4095), "v".repeat(4096));
    let answer = snapshots.prepare_with("a", "", &[("k", &long)]).await;
    refused(Code::InvalidArgument, answer);
    refused(Code::NotFound, snapshots.stat("a").await);
    let pairs = [(stock::ROOT, "yes"), ("k", fits.as_str())];
    let answer = snapshots.prepare_with("a", "", &pairs).await;
    answer.expect("prepare");
    let answer = snapshots.commit_with("b", "a", &[("k", &long)]).await;
    refused(Code::InvalidArgument, answer);
    let paths = Some(&["labels.k"][..]);
    let answer = snapshots.update("a", &[("k", &long)], paths).await;
    refused(Code::InvalidArgument, answer);
    let info = snapshots.stat("a").await.expect("stat");
    assert_eq!(info.labels, labels(&pairs));
}

async fn a_prepared_snapshot_is_told_and_a_view_is_not(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("base", "").await;
    let mut watch = Heard::matching(peer, &["topic~=|^/snapshot/|"]).await;
    snapshots.prepare("a", "base").await.expect("prepare");
    snapshots.view("v", "base").await.expect("view");
    refused(Code::AlreadyExists, snapshots.prepare("a", "base").await);
    refused(Code::NotFound, snapshots.prepare("b", "none").await);
    let told = watch.told(peer).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].topic, "/snapshot/prepare");
    assert_eq!(told[0].namespace, NAMESPACE);
    let event: SnapshotPrepare = event(&told[0]);
    assert_eq!((event.key.as_str(), event.parent.as_str()), ("a", "base"));
}

/// Go tells it since 1.7.
async fn the_event_names_the_snapshotter(peer: &Peer) {
    let mut watch = Heard::matching(peer, &["event.snapshotter==native"]).await;
    for name in [OVERLAY, "native"] {
        let mut snapshots = Snapshots::in_snapshotter(peer, name);
        snapshots.layer("base", "").await;
        snapshots.remove("base").await.expect("remove");
    }
    let told = watch.told(peer).await;
    let topics: Vec<_> = told.iter().map(|one| one.topic.as_str()).collect();
    let kinds = ["prepare", "commit", "remove"];
    assert_eq!(topics, kinds.map(|kind| format!("/snapshot/{kind}")));
}

/// The options of the only mount, those of the kernel's features left out.
fn options(mounts: &[Mount]) -> Vec<&str> {
    let options = mounts[0].options.iter().map(String::as_str);
    let given = |option: &&str| !["index=off", "userxattr"].contains(option);
    options.filter(given).collect()
}

async fn mounts_of_an_active_snapshot_are_a_bind_or_an_overlay(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let first = snapshots.prepare("a", "").await.expect("prepare");
    assert_eq!((first.len(), first[0].type_.as_str()), (1, "bind"));
    let mut given = options(&first);
    given.sort_unstable();
    assert_eq!(given, ["rbind", "rw"]);
    let bottom = first[0].source.clone();
    assert!(std::path::Path::new(&bottom).is_dir());
    snapshots.commit("one", "a").await.expect("commit");

    let second = snapshots.prepare("b", "one").await.expect("prepare");
    assert_eq!((second.len(), second[0].type_.as_str()), (1, "overlay"));
    assert_eq!(second[0].source, "overlay");
    let middle = upper(&second).display().to_string();
    let names: Vec<_> = options(&second)
        .iter()
        .filter_map(|option| Some(option.split_once('=')?.0))
        .collect();
    assert_eq!(names, ["workdir", "upperdir", "lowerdir"]);
    assert_eq!(option(&second[0], "lowerdir"), Some(bottom.as_str()));
    snapshots.commit("two", "b").await.expect("commit");

    let third = snapshots.prepare("c", "two").await.expect("prepare");
    let lower = format!("{middle}:{bottom}");
    assert_eq!(option(&third[0], "lowerdir"), Some(lower.as_str()));
}

async fn mounts_of_a_view_are_read_only(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    let active = snapshots.prepare("a", "one").await.expect("prepare");
    let bottom = option(&active[0], "lowerdir").expect("a parent").to_owned();
    snapshots.commit("two", "a").await.expect("commit");
    for (key, parent) in [("none", ""), ("only", "one")] {
        let mounts = snapshots.view(key, parent).await.expect("view");
        assert_eq!((mounts.len(), mounts[0].type_.as_str()), (1, "bind"));
        let mut given = options(&mounts);
        given.sort_unstable();
        assert_eq!(given, ["rbind", "ro"]);
        assert_eq!(mounts[0].source == bottom, parent == "one");
    }
    let mounts = snapshots.view("both", "two").await.expect("view");
    assert_eq!((mounts.len(), mounts[0].type_.as_str()), (1, "overlay"));
    let lower = format!("lowerdir={}:{bottom}", upper(&active).display());
    assert_eq!(options(&mounts), [lower]);
}

async fn mounts_can_be_asked_for_again(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    snapshots.layer("two", "one").await;
    for (key, parent) in [("a", ""), ("b", "one"), ("c", "two")] {
        let made = snapshots.prepare(key, parent).await.expect("prepare");
        assert_eq!(snapshots.mounts(key).await.expect("mounts"), made);
        let key = format!("{key} view");
        let made = snapshots.view(&key, parent).await.expect("view");
        assert_eq!(snapshots.mounts(&key).await.expect("mounts"), made);
    }
    refused(Code::NotFound, snapshots.mounts("none").await);
}

async fn a_committed_snapshot_has_no_mounts(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    refused(Code::FailedPrecondition, snapshots.mounts("one").await);
}

async fn a_target_that_is_there_is_leased(peer: &Peer) {
    Snapshots::of(peer).layer("layer", "").await;
    stock::lease(peer, "l", &[]).await;
    let mut leased = Snapshots::leased(peer, "l");
    let answer = leased.prepare_with("extract", "", &[(TARGET, "layer")]);
    refused(Code::AlreadyExists, answer.await);
    assert_eq!(stock::held(peer, "l").await, held(&["layer"]));
}

async fn a_target_that_is_there_answers_a_remote_prepare(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("layer", "").await;
    let pairs = [(stock::ROOT, "yes"), (TARGET, "layer")];
    let answer = snapshots.prepare_with("extract", "", &pairs).await;
    refused(Code::AlreadyExists, answer);
    // There is nothing to unpack, and nothing to do it in.
    refused(Code::NotFound, snapshots.stat("extract").await);
    assert_eq!(snapshots.list(&[]).await, ["layer"]);
}

async fn a_target_that_is_not_there_is_to_be_unpacked(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let pairs = [(stock::ROOT, "yes"), (TARGET, "layer")];
    let mounts = snapshots.prepare_with("extract", "", &pairs).await;
    assert_eq!(mounts.expect("prepare").len(), 1);
    let info = snapshots.stat("extract").await.expect("stat");
    assert_eq!(info.labels, labels(&pairs));
    refused(Code::NotFound, snapshots.stat("layer").await);
}

async fn many_are_made_at_once(peer: &Peer) {
    Snapshots::of(peer).layer("base", "").await;
    let mut makers = tokio::task::JoinSet::new();
    for number in 0..32 {
        let mut snapshots = Snapshots::of(peer);
        makers.spawn(async move {
            let (own, name) = (format!("own {number}"), format!("layer {number}"));
            snapshots.prepare(&own, "base").await?;
            // All want the one, one gets it.
            let shared = snapshots.prepare("shared", "base").await.is_ok();
            snapshots.commit(&name, &own).await?;
            Ok::<_, Status>(shared)
        });
    }
    let mut got = 0;
    while let Some(done) = makers.join_next().await {
        got += usize::from(done.expect("a maker").expect("no error"));
    }
    assert_eq!(got, 1);
    let mut snapshots = Snapshots::of(peer);
    assert_eq!(snapshots.list(&["kind==committed"]).await.len(), 33);
    assert_eq!(snapshots.list(&["kind==active"]).await, ["shared"]);
}

/// Go leaves directories.
async fn a_prepare_that_is_given_up_leaves_all_or_nothing(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("base", "").await;
    let mut given_up = 0;
    for number in 0..40_u64 {
        let key = format!("k{number}");
        let mut client = Snapshots::of(peer);
        let patience = std::time::Duration::from_micros(number * 50);
        let work = client.prepare(&key, "base");
        given_up += usize::from(tokio::time::timeout(patience, work).await.is_err());
    }
    assert!(given_up > 0, "none was given up");
    for number in 0..40 {
        let key = format!("k{number}");
        // It comes in the end, or never did.
        match snapshots.prepare(&key, "base").await {
            Ok(_) => {}
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
        let info = snapshots.stat(&key).await.expect("stat");
        assert_eq!(info.kind, Kind::ACTIVE.into());
        assert_eq!(snapshots.mounts(&key).await.expect("mounts").len(), 1);
        snapshots.remove(&key).await.expect("remove");
    }
    stock::collect(peer).await;
    let directory = "io.containerd.snapshotter.v1.overlayfs/snapshots";
    let left = integration::snapshots_in(&peer.host.root().join(directory));
    assert_eq!(left.len(), 1, "{left:?}");
}
