//! Tests of module `content`.

use std::sync::Arc;

use ::content::testsuite::{self, Caps, get, spec};
use ::content::{ContentStore, IngestSpec};
use bytes::Bytes;
use types::{Code, Digest, Filter, Labels, label};

use crate::Policy;
use crate::fixture::{House, code, labels, lost, namespace, put, scope, sha};

/// Namespaces keep labels.
const CAPS: Caps = Caps {
    labels: true,
    is_distant: false,
};

fn expecting(reference: &str, digest: &Digest) -> IngestSpec {
    IngestSpec {
        expected: Some(digest.clone()),
        ..spec(reference)
    }
}

#[tokio::test]
async fn conforms() {
    for policy in [Policy::Shared, Policy::Isolated] {
        let house = House::with(policy).await;
        testsuite::run(house.content(&scope("a")).as_ref(), CAPS).await;
        let leased = house.leased("b", Labels::new()).await;
        testsuite::run(house.content(&leased).as_ref(), CAPS).await;
    }
}

#[tokio::test]
async fn a_blob_of_another_namespace_is_not_found_here() {
    let house = House::new().await;
    let (a, b) = (house.content(&scope("a")), house.content(&scope("b")));
    let digest = put(a.as_ref(), b"mine", labels(&[("k", "v")])).await;
    assert_eq!(a.info(&digest).await.unwrap().labels, labels(&[("k", "v")]));
    assert_eq!(code(b.info(&digest).await), Code::NotFound);
    assert_eq!(code(b.open(&digest).await), Code::NotFound);
    assert_eq!(code(b.delete(&digest).await), Code::NotFound);
    assert!(b.list(&Filter::default()).await.unwrap().is_empty());
    assert_eq!(house.events().await, ["a /content/create"]);
}

#[tokio::test]
async fn delete_unlinks_and_the_collector_removes_the_file() {
    let house = House::new().await;
    let a = house.content(&scope("a"));
    let digest = put(
        a.as_ref(),
        b"mine",
        labels(&[("containerd.io/gc.root", "x")]),
    )
    .await;
    a.delete(&digest).await.unwrap();
    assert_eq!(code(a.info(&digest).await), Code::NotFound);
    assert_eq!(
        house.blobs().await,
        std::slice::from_ref(&digest),
        "unlinked, not removed"
    );
    assert_eq!(
        house.events().await,
        ["a /content/create", "a /content/delete"]
    );
    assert_eq!(house.metadata.gc().await.unwrap().blobs, 1);
    assert!(house.blobs().await.is_empty());
}

#[tokio::test]
async fn a_file_stays_while_any_namespace_names_it() {
    let house = House::new().await;
    let root = labels(&[("containerd.io/gc.root", "x")]);
    let digest = put(house.content(&scope("a")).as_ref(), b"both", root.clone()).await;
    put(house.content(&scope("b")).as_ref(), b"both", root).await;
    house.content(&scope("a")).delete(&digest).await.unwrap();
    house.metadata.gc().await.unwrap();
    assert_eq!(
        get(house.content(&scope("b")).as_ref(), &digest).await,
        b"both"
    );
}

#[tokio::test]
async fn a_shared_blob_is_linked_without_data() {
    let house = House::new().await;
    let digest = put(
        house.content(&scope("a")).as_ref(),
        b"shared",
        Labels::new(),
    )
    .await;
    let b = house.content(&scope("b"));
    let mut ingest = b.ingest(expecting("r", &digest)).await.unwrap();
    let status = ingest.status();
    assert_eq!(
        (status.offset, status.total),
        (6, 6),
        "nothing is left to send"
    );
    assert_eq!(ingest.digest().await.unwrap(), digest);
    assert_eq!(
        code(b.info(&digest).await),
        Code::NotFound,
        "not before the commit"
    );
    let size = Some(6);
    ingest
        .commit(size, Some(digest.clone()), labels(&[("k", "v")]))
        .await
        .unwrap();
    assert_eq!(get(b.as_ref(), &digest).await, b"shared");
    let info = b.info(&digest).await.unwrap();
    assert_eq!((info.size, info.labels), (6, labels(&[("k", "v")])));
    assert_eq!(
        house.events().await,
        ["a /content/create", "b /content/create"]
    );
}

#[tokio::test]
async fn a_shared_ingest_keeps_the_blob_when_its_owner_lets_go() {
    let house = House::new().await;
    let a = house.content(&scope("a"));
    let digest = put(a.as_ref(), b"shared", Labels::new()).await;
    let b = house.content(&scope("b"));
    let ingest = b.ingest(expecting("r", &digest)).await.unwrap();
    a.delete(&digest).await.unwrap();
    house.metadata.gc().await.unwrap();
    ingest
        .commit(None, Some(digest.clone()), Labels::new())
        .await
        .unwrap();
    assert_eq!(get(b.as_ref(), &digest).await, b"shared");
}

#[tokio::test]
async fn a_shared_ingest_verifies_and_can_be_written_after_all() {
    let house = House::new().await;
    let digest = put(
        house.content(&scope("a")).as_ref(),
        b"shared",
        Labels::new(),
    )
    .await;
    let b = house.content(&scope("b"));
    for (size, expected) in [(Some(7), None), (None, Some(sha(b"other")))] {
        let ingest = b.ingest(expecting("r", &digest)).await.unwrap();
        assert_eq!(
            code(ingest.commit(size, expected, Labels::new()).await),
            Code::FailedPrecondition
        );
    }
    let mut ingest = b.ingest(expecting("r", &digest)).await.unwrap();
    assert_eq!(code(ingest.truncate(7).await), Code::OutOfRange);
    ingest
        .write(Bytes::from_static(b" and more"))
        .await
        .unwrap();
    assert_eq!(ingest.status().offset, 15);
    let longer = ingest.commit(None, None, Labels::new()).await.unwrap();
    assert_eq!(get(b.as_ref(), &longer).await, b"shared and more");
    let mut ingest = b.ingest(expecting("r", &digest)).await.unwrap();
    ingest.truncate(0).await.unwrap();
    ingest.write(Bytes::from_static(b"else")).await.unwrap();
    let other = ingest.commit(None, None, Labels::new()).await.unwrap();
    assert_eq!(get(b.as_ref(), &other).await, b"else");
}

#[tokio::test]
async fn another_total_is_not_the_shared_blob() {
    let house = House::new().await;
    let digest = put(
        house.content(&scope("a")).as_ref(),
        b"shared",
        Labels::new(),
    )
    .await;
    let mut wrong = expecting("r", &digest);
    wrong.total = Some(99);
    let ingest = house.content(&scope("b")).ingest(wrong).await.unwrap();
    assert_eq!(ingest.status().offset, 0);
}

#[tokio::test]
async fn isolated_namespaces_must_bring_the_data() {
    let house = House::with(Policy::Isolated).await;
    let digest = put(house.content(&scope("a")).as_ref(), b"mine", Labels::new()).await;
    let b = house.content(&scope("b"));
    let mut ingest = b.ingest(expecting("r", &digest)).await.unwrap();
    assert_eq!(
        ingest.status().offset,
        0,
        "that the backend has it does not show"
    );
    ingest.write(Bytes::from_static(b"mine")).await.unwrap();
    ingest
        .commit(None, Some(digest.clone()), Labels::new())
        .await
        .unwrap();
    assert_eq!(get(b.as_ref(), &digest).await, b"mine");
    let shareable = types::NamespaceInfo {
        name: namespace("a"),
        labels: labels(&[(label::NAMESPACE_SHAREABLE, "true")]),
    };
    house
        .metadata
        .namespaces()
        .update(shareable, &types::Fields::default())
        .await
        .unwrap();
    let ingest = house
        .content(&scope("c"))
        .ingest(expecting("r", &digest))
        .await
        .unwrap();
    assert_eq!(ingest.status().offset, 4, "shareable content is linked");
}

#[tokio::test]
async fn what_is_there_already_joins_the_lease_all_the_same() {
    let house = House::new().await;
    let digest = put(house.content(&scope("a")).as_ref(), b"there", Labels::new()).await;
    let held = [format!("content {digest}")];
    let opener = house.leased("a", Labels::new()).await;
    let refused = house.content(&opener).ingest(expecting("r", &digest)).await;
    assert_eq!(code(refused), Code::AlreadyExists);
    assert_eq!(house.held(&opener).await, held);
    let committer = house.leased("a", Labels::new()).await;
    let store = house.content(&committer);
    let mut ingest = store.ingest(spec("r")).await.unwrap();
    assert_eq!(house.held(&committer).await, ["ingests r"]);
    ingest.write(Bytes::from_static(b"there")).await.unwrap();
    assert_eq!(
        code(ingest.commit(None, None, Labels::new()).await),
        Code::AlreadyExists
    );
    assert_eq!(
        house.held(&committer).await,
        held,
        "the ingest is out, the blob is in"
    );
    store.delete(&digest).await.unwrap();
    assert!(
        house.held(&committer).await.is_empty(),
        "and out of the caller's lease"
    );
    assert_eq!(
        house.held(&opener).await,
        held,
        "others keep what they hold"
    );
}

#[tokio::test]
async fn a_lost_lease_is_not_found_and_nothing_is_made() {
    let house = House::new().await;
    let store = house.content(&lost("a"));
    let error = store.ingest(spec("r")).await.unwrap_err();
    assert_eq!(error.to_string(), "lease does not exist: not found");
    assert!(store.statuses(&Filter::default()).await.unwrap().is_empty());
    let leased = house.leased("a", Labels::new()).await;
    let store = house.content(&leased);
    let mut ingest = store.ingest(spec("r")).await.unwrap();
    ingest.write(Bytes::from_static(b"late")).await.unwrap();
    let leases = house.metadata.leases(&leased.namespace);
    leases
        .delete(leased.lease.as_ref().unwrap(), false)
        .await
        .unwrap();
    assert_eq!(
        code(ingest.commit(None, None, Labels::new()).await),
        Code::NotFound
    );
    assert!(house.blobs().await.is_empty());
}

#[tokio::test]
async fn refs_belong_to_a_namespace_and_backend_refs_never_repeat() {
    let house = House::new().await;
    let (a, b) = (house.content(&scope("a")), house.content(&scope("b")));
    let mut first = a.ingest(spec("same ref")).await.unwrap();
    let mut second = b.ingest(spec("same ref")).await.unwrap();
    first.write(Bytes::from_static(b"a")).await.unwrap();
    second.write(Bytes::from_static(b"bb")).await.unwrap();
    let reference = "same ref".parse().unwrap();
    assert_eq!(a.status(&reference).await.unwrap().offset, 1);
    assert_eq!(b.status(&reference).await.unwrap().offset, 2);
    drop(first);
    a.abort(&reference).await.unwrap();
    drop(a.ingest(spec("same ref")).await.unwrap());
    let mut backend: Vec<_> = house
        .local
        .statuses(&Filter::default())
        .await
        .unwrap()
        .into_iter()
        .map(|status| status.reference.to_string())
        .collect();
    backend.sort();
    assert_eq!(backend, ["a/3/same ref", "b/2/same ref"]);
}

#[tokio::test]
async fn an_ingest_and_a_blob_outlive_the_daemon() {
    let house = House::new().await;
    let a = house.content(&scope("a"));
    let digest = put(
        a.as_ref(),
        b"whole",
        labels(&[("containerd.io/gc.root", "x")]),
    )
    .await;
    let mut ingest = a.ingest(spec("half")).await.unwrap();
    ingest.write(Bytes::from_static(b"ha")).await.unwrap();
    drop((ingest, a));
    let house = house.restart().await;
    house.metadata.gc().await.unwrap();
    let a = house.content(&scope("a"));
    assert_eq!(get(a.as_ref(), &digest).await, b"whole");
    let mut ingest = a.ingest(spec("half")).await.unwrap();
    assert_eq!(ingest.status().offset, 2);
    ingest.write(Bytes::from_static(b"lf")).await.unwrap();
    let digest = ingest.commit(Some(4), None, Labels::new()).await.unwrap();
    assert_eq!(get(a.as_ref(), &digest).await, b"half");
}

#[tokio::test]
async fn an_orphan_of_a_crash_is_adopted_by_the_next_commit_or_collected() {
    let house = House::new().await;
    // A blob in the backend without a record: the daemon died between the two.
    let digest = put(&house.local, b"orphan", Labels::new()).await;
    let other = put(&house.local, b"garbage", Labels::new()).await;
    let a = house.content(&scope("a"));
    assert_eq!(code(a.info(&digest).await), Code::NotFound);
    put(
        a.as_ref(),
        b"orphan",
        labels(&[("containerd.io/gc.root", "x")]),
    )
    .await;
    assert_eq!(house.blobs().await.len(), 2);
    // A fresh daemon looks at every backend without being told.
    house.metadata.gc().await.unwrap();
    assert_eq!(house.blobs().await, std::slice::from_ref(&digest));
    assert_eq!(code(house.local.info(&other).await), Code::NotFound);
}

/// Commits of one digest in many namespaces, deletions and collections, all at once: a namespace that
/// has the record has the bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_and_collections_race_without_losing_a_blob() {
    let house = Arc::new(House::new().await);
    let collector = {
        let house = Arc::clone(&house);
        tokio::spawn(async move {
            for _ in 0..60 {
                house.metadata.gc().await.unwrap();
            }
        })
    };
    let workers: Vec<_> = (0..4)
        .map(|n| {
            let house = Arc::clone(&house);
            tokio::spawn(async move {
                let store = house.content(&scope(&format!("ns{n}")));
                let root = labels(&[("containerd.io/gc.root", "x")]);
                for round in 0..15 {
                    let mut ingest = match round % 2 {
                        0 => store.ingest(spec("r")).await.unwrap(),
                        _ => store
                            .ingest(expecting("r", &sha(b"contended")))
                            .await
                            .unwrap(),
                    };
                    if ingest.status().offset == 0 {
                        ingest
                            .write(Bytes::from_static(b"contended"))
                            .await
                            .unwrap();
                    }
                    let digest = ingest.commit(Some(9), None, root.clone()).await.unwrap();
                    assert_eq!(get(store.as_ref(), &digest).await, b"contended");
                    store.delete(&digest).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    collector.await.unwrap();
    house.metadata.gc().await.unwrap();
    assert!(house.blobs().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_who_want_one_blob_write_it_once() {
    let house = House::new().await;
    for round in 0..20 {
        let data = Bytes::from(format!("blob of round {round}"));
        let digest = sha(&data);
        let writers: Vec<_> = (0..8)
            .map(|_| {
                let (store, data) = (house.content(&scope("a")), data.clone());
                let spec = expecting("r", &digest);
                tokio::spawn(async move {
                    loop {
                        let mut ingest = match store.ingest(spec.clone()).await {
                            Ok(ingest) => ingest,
                            Err(error) if error.is_already_exists() => return false,
                            Err(_) => continue,
                        };
                        if ingest.status().offset > 0 {
                            return false;
                        }
                        ingest.write(data).await.unwrap();
                        ingest.commit(None, None, Labels::new()).await.unwrap();
                        return true;
                    }
                })
            })
            .collect();
        let mut written = 0;
        for writer in writers {
            written += usize::from(writer.await.unwrap());
        }
        assert_eq!(written, 1, "round {round}");
    }
}
