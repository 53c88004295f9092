//! Layers that are unpacked at the same time: commits onto a parent, and one extraction for all.

use std::time::Duration;

use tokio::time::timeout;
use types::{Code, Labels, SnapshotKind, label};

use crate::fixture::{House, code, labels, name, scope};

/// The labels of an extraction of `chain`.
fn of(chain: &str) -> Labels {
    labels(&[(label::SNAPSHOT_REF, chain)])
}

#[tokio::test]
async fn a_commit_onto_a_parent_makes_a_child_of_it() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    for key in ["one", "two", "three"] {
        a.prepare(&name(key), None, Labels::new()).await.unwrap();
    }
    let rebase = async |key: &str| {
        let (top, base) = (name("top"), name("base"));
        a.rebase(&top, &name(key), &base, of("top")).await
    };
    assert_eq!(code(rebase("two").await), Code::NotFound);
    a.commit(&name("base"), &name("one"), Labels::new())
        .await
        .unwrap();
    rebase("two").await.unwrap();
    let top = a.stat(&name("top")).await.unwrap();
    assert_eq!(
        (top.kind, top.parent, top.labels),
        (SnapshotKind::Committed, Some(name("base")), of("top"))
    );
    assert_eq!(
        code(a.remove(&name("base")).await),
        Code::FailedPrecondition
    );
    assert_eq!(code(rebase("three").await), Code::AlreadyExists);
    for key in ["top", "base", "three"] {
        a.remove(&name(key)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_a_layer_that_is_being_unpacked_gets_it_made() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    a.prepare(&name("extract-1 chain"), None, of("chain"))
        .await
        .unwrap();
    let (key, ours) = (name("extract-2 chain"), of("chain"));
    let second = a.prepare(&key, None, ours);
    tokio::pin!(second);
    let early = timeout(Duration::from_secs(1), &mut second).await;
    assert!(early.is_err(), "it waits");
    a.commit(&name("chain"), &name("extract-1 chain"), of("chain"))
        .await
        .unwrap();
    assert_eq!(code(second.await), Code::AlreadyExists);
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_an_unpacking_that_failed_unpacks_itself() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let b = house.snapshots(&scope("b"));
    a.prepare(&name("extract-1 chain"), None, of("chain"))
        .await
        .unwrap();
    // Another namespace has its own, and so has who unpacks under another key or without the label.
    b.prepare(&name("extract-1 chain"), None, of("chain"))
        .await
        .unwrap();
    a.prepare(&name("mine"), None, of("chain")).await.unwrap();
    a.prepare(&name("extract-0 chain"), None, Labels::new())
        .await
        .unwrap();
    let (key, ours) = (name("extract-2 chain"), of("chain"));
    let second = a.prepare(&key, None, ours);
    tokio::pin!(second);
    let early = timeout(Duration::from_secs(1), &mut second).await;
    assert!(early.is_err(), "it waits");
    a.remove(&name("extract-1 chain")).await.unwrap();
    second.await.unwrap();
    a.commit(&name("chain"), &name("extract-2 chain"), of("chain"))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_waits_long_for_those_below_is_not_unpacked_once_more() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let first = name("extract-1 chain");
    a.prepare(&first, None, of("chain")).await.unwrap();
    a.attended(&first);
    let (key, ours) = (name("extract-2 chain"), of("chain"));
    let second = a.prepare(&key, None, ours);
    tokio::pin!(second);
    let early = timeout(Duration::from_secs(3600), &mut second).await;
    assert!(early.is_err(), "it waits");
    a.remove(&first).await.unwrap();
    second.await.unwrap();
    // Also when somebody else has removed it.
    a.attended(&key);
    a.remove(&key).await.unwrap();
    assert_eq!(code(a.remove(&key).await), Code::NotFound);
    let third = name("extract-3 chain");
    a.prepare(&third, None, of("chain")).await.unwrap();
}
