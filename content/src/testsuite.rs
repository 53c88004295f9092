//! Conformance: what every [`ContentStore`] must do, local, scoped or behind a socket.
//!
//! Each check works on ingests and blobs of its own and panics with what is wrong. [`run`] runs all.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed check is a panic: this is test code that other crates call"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use types::{Algorithm, Code, Digest, Fields, Filter, IngestRef, Labels};

use crate::{ContentStore, Hasher, Ingest, IngestSpec};

/// What a store can do beyond the minimum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caps {
    /// It keeps labels.
    pub labels: bool,
    /// It is at the other end of a socket: what a writer does, and that it goes, is seen a moment later;
    /// nobody can take a name over from one that gives up before others can; and a blob that is open is
    /// known by its digest alone.
    pub is_distant: bool,
}

/// How long a moment may last.
const MOMENT: Duration = Duration::from_secs(60);

/// Runs every check.
pub async fn run(store: &dyn ContentStore, caps: Caps) {
    a_committed_blob_reads_back(store).await;
    small_and_large_writes_arrive_in_order(store).await;
    an_ingest_resumes_where_it_was(store, caps).await;
    a_second_writer_is_refused(store, caps).await;
    a_mismatch_is_refused_and_the_ingest_stays(store).await;
    a_known_blob_is_refused_at_open_and_at_commit(store).await;
    truncation_starts_anew(store).await;
    an_aborted_ingest_is_gone(store, caps).await;
    an_abandoned_ingest_is_gone(store, caps).await;
    other_algorithms_commit(store).await;
    deleted_blobs_are_gone_and_open_ones_stay_readable(store, caps).await;
    lists_are_ordered_and_filtered(store).await;
    an_empty_blob_is_a_blob(store).await;
    labels(store, caps).await;
}

/// A spec without expectations.
#[must_use]
pub fn spec(reference: &str) -> IngestSpec {
    IngestSpec {
        reference: reference.parse().unwrap(),
        total: None,
        expected: None,
    }
}

fn name(reference: &str) -> IngestRef {
    reference.parse().unwrap()
}

fn hash(algorithm: Algorithm, data: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(data);
    hasher.finish().unwrap()
}

/// Writes and commits a blob.
pub async fn put(store: &dyn ContentStore, reference: &str, data: &[u8]) -> Digest {
    let mut ingest = store.ingest(spec(reference)).await.unwrap();
    ingest.write(Bytes::copy_from_slice(data)).await.unwrap();
    let size = Some(data.len() as u64);
    ingest.commit(size, None, Labels::new()).await.unwrap()
}

/// Reads a whole blob.
pub async fn get(store: &dyn ContentStore, digest: &Digest) -> Vec<u8> {
    let blob = store.open(digest).await.unwrap();
    let mut data = Vec::new();
    loop {
        let piece = blob.read_at(data.len() as u64, 1000).await.unwrap();
        if piece.is_empty() {
            assert_eq!(data.len() as u64, blob.size(), "size and data differ");
            return data;
        }
        data.extend_from_slice(&piece);
    }
}

async fn fails(store: &dyn ContentStore, spec: IngestSpec) -> Code {
    match store.ingest(spec).await {
        Ok(_) => panic!("an ingest was opened that must be refused"),
        Err(error) => error.code(),
    }
}

async fn write(ingest: &mut Box<dyn Ingest>, data: &'static [u8]) {
    ingest.write(Bytes::from_static(data)).await.unwrap();
}

/// Data, size, times and digest are those that were written.
pub async fn a_committed_blob_reads_back(store: &dyn ContentStore) {
    let data: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = put(store, "suite-read", &data).await;
    assert_eq!(digest, hash(Algorithm::Sha256, &data));
    assert_eq!(get(store, &digest).await, data);
    let info = store.info(&digest).await.unwrap();
    assert_eq!((&info.digest, info.size), (&digest, data.len() as u64));
    let gone = store.status(&name("suite-read")).await.unwrap_err();
    assert!(gone.is_not_found(), "the ingest is gone after its commit");
    let blob = store.open(&digest).await.unwrap();
    assert!(blob.read_at(1 << 40, 10).await.unwrap().is_empty());
    assert_eq!(blob.read_at(39_990, 100).await.unwrap(), data[39_990..]);
}

/// Pieces of all sizes end up in the order of their writes.
pub async fn small_and_large_writes_arrive_in_order(store: &dyn ContentStore) {
    let mut ingest = store.ingest(spec("suite-order")).await.unwrap();
    let mut all = Vec::new();
    for n in 0..60_usize {
        let len = [1, 700, 32 << 10, 300 << 10][n % 4];
        let piece: Vec<u8> = (0..len).map(|i| (i * 7 + n).to_le_bytes()[0]).collect();
        all.extend_from_slice(&piece);
        ingest.write(piece.into()).await.unwrap();
        assert_eq!(ingest.status().offset, all.len() as u64);
        if n == 31 {
            assert_eq!(
                ingest.digest().await.unwrap(),
                hash(Algorithm::Sha256, &all)
            );
        }
    }
    let digest = ingest.commit(None, None, Labels::new()).await.unwrap();
    assert_eq!(digest, hash(Algorithm::Sha256, &all));
    assert!(get(store, &digest).await == all);
}

/// Opens an ingest whose writer has just gone.
async fn reopened(store: &dyn ContentStore, reference: &str, caps: Caps) -> Box<dyn Ingest> {
    let began = Instant::now();
    loop {
        match store.ingest(spec(reference)).await {
            Ok(ingest) => return ingest,
            Err(error) => {
                let is_early = caps.is_distant && began.elapsed() < MOMENT;
                assert!(is_early && error.is(Code::Unavailable), "{error}");
            }
        }
        tokio::task::yield_now().await;
    }
}

/// All that was written has come to the store.
async fn arrived(store: &dyn ContentStore, reference: &str, length: u64, caps: Caps) {
    let began = Instant::now();
    loop {
        let status = store.status(&name(reference)).await.unwrap();
        assert_eq!(status.reference, name(reference));
        if status.offset == length {
            return;
        }
        let is_early = caps.is_distant && began.elapsed() < MOMENT;
        assert!(is_early, "{} of {length}", status.offset);
        tokio::task::yield_now().await;
    }
}

/// A dropped writer keeps its data; the next one goes on at the end of it.
pub async fn an_ingest_resumes_where_it_was(store: &dyn ContentStore, caps: Caps) {
    let mut ingest = store.ingest(spec("suite-resume")).await.unwrap();
    write(&mut ingest, b"hello ").await;
    let started = ingest.status().started_at;
    if caps.is_distant {
        arrived(store, "suite-resume", 6, caps).await;
    }
    drop(ingest);
    arrived(store, "suite-resume", 6, caps).await;
    let mut ingest = reopened(store, "suite-resume", caps).await;
    assert_eq!(ingest.status().offset, 6);
    assert_eq!(ingest.status().started_at, started, "the start is kept");
    write(&mut ingest, b"world").await;
    let digest = ingest.commit(Some(11), None, Labels::new()).await.unwrap();
    assert_eq!(get(store, &digest).await, b"hello world");
}

/// One writer per ingest.
pub async fn a_second_writer_is_refused(store: &dyn ContentStore, caps: Caps) {
    let mut first = store.ingest(spec("suite-one")).await.unwrap();
    assert_eq!(fails(store, spec("suite-one")).await, Code::Unavailable);
    write(&mut first, b"still mine").await;
    arrived(store, "suite-one", 10, caps).await;
    drop(first);
    let next = reopened(store, "suite-one", caps).await;
    assert_eq!(next.status().offset, 10);
    next.abandon().await.unwrap();
}

/// Wrong size or digest: `FailedPrecondition`, no blob, data kept.
pub async fn a_mismatch_is_refused_and_the_ingest_stays(store: &dyn ContentStore) {
    let other = hash(Algorithm::Sha256, b"something else");
    for (size, expected) in [(Some(3), None), (None, Some(other.clone()))] {
        let mut ingest = store.ingest(spec("suite-mismatch")).await.unwrap();
        ingest.truncate(0).await.unwrap();
        write(&mut ingest, b"data").await;
        let error = ingest
            .commit(size, expected, Labels::new())
            .await
            .unwrap_err();
        assert!(error.is(Code::FailedPrecondition), "{error}");
        assert_eq!(
            store.status(&name("suite-mismatch")).await.unwrap().offset,
            4
        );
    }
    assert!(store.info(&other).await.unwrap_err().is_not_found());
    assert!(store.open(&other).await.unwrap_err().is_not_found());
    store.abort(&name("suite-mismatch")).await.unwrap();
}

/// `AlreadyExists` at both ends of an ingest.
pub async fn a_known_blob_is_refused_at_open_and_at_commit(store: &dyn ContentStore) {
    let digest = put(store, "suite-known", b"known").await;
    let known = IngestSpec {
        expected: Some(digest.clone()),
        ..spec("suite-known-2")
    };
    assert_eq!(fails(store, known).await, Code::AlreadyExists);
    let mut again = store.ingest(spec("suite-known-3")).await.unwrap();
    write(&mut again, b"known").await;
    let error = again.commit(None, None, Labels::new()).await.unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    let gone = store.status(&name("suite-known-3")).await.unwrap_err();
    assert!(gone.is_not_found(), "the ingest is gone also then");
    assert_eq!(get(store, &digest).await, b"known");
}

/// `truncate(0)` forgets data and hash; beyond the end is out of range.
pub async fn truncation_starts_anew(store: &dyn ContentStore) {
    let mut ingest = store.ingest(spec("suite-truncate")).await.unwrap();
    write(&mut ingest, b"wrong").await;
    let error = ingest.truncate(100).await.unwrap_err();
    assert!(error.is(Code::OutOfRange), "{error}");
    ingest.truncate(0).await.unwrap();
    assert_eq!(ingest.status().offset, 0);
    write(&mut ingest, b"right").await;
    let digest = ingest.commit(Some(5), None, Labels::new()).await.unwrap();
    assert_eq!(digest, hash(Algorithm::Sha256, b"right"));
    assert_eq!(get(store, &digest).await, b"right");
}

/// An aborted ingest is not found and begins at zero.
pub async fn an_aborted_ingest_is_gone(store: &dyn ContentStore, caps: Caps) {
    let reference = name("suite-abort");
    assert!(store.abort(&reference).await.unwrap_err().is_not_found());
    let mut ingest = store.ingest(spec("suite-abort")).await.unwrap();
    write(&mut ingest, b"part").await;
    drop(ingest);
    store.abort(&reference).await.unwrap();
    assert!(store.status(&reference).await.unwrap_err().is_not_found());
    let ingest = reopened(store, "suite-abort", caps).await;
    assert_eq!(ingest.status().offset, 0);
    drop(ingest);
    store.abort(&reference).await.unwrap();
}

/// A writer that gives up leaves nothing, also when another waits for the name all the time.
pub async fn an_abandoned_ingest_is_gone(store: &dyn ContentStore, caps: Caps) {
    let reference = name("suite-abandon");
    if caps.is_distant {
        for _ in 0..20 {
            let mut ingest = store.ingest(spec("suite-abandon")).await.unwrap();
            assert_eq!(ingest.status().offset, 0);
            write(&mut ingest, b"part").await;
            ingest.abandon().await.unwrap();
            assert!(store.status(&reference).await.unwrap_err().is_not_found());
        }
        return;
    }
    for _ in 0..20 {
        let mut ingest = store.ingest(spec("suite-abandon")).await.unwrap();
        write(&mut ingest, b"part").await;
        let next = async {
            loop {
                match store.ingest(spec("suite-abandon")).await {
                    Ok(ingest) => return ingest,
                    Err(error) => assert!(error.is(Code::Unavailable), "{error}"),
                }
                tokio::task::yield_now().await;
            }
        };
        let (gone, mut next) = tokio::join!(ingest.abandon(), next);
        gone.unwrap();
        assert_eq!(next.status().offset, 0);
        write(&mut next, b"whole").await;
        let digest = next.commit(Some(5), None, Labels::new()).await.unwrap();
        store.delete(&digest).await.unwrap();
        assert!(store.status(&reference).await.unwrap_err().is_not_found());
    }
}

/// sha384 and sha512, known at open or only at commit.
pub async fn other_algorithms_commit(store: &dyn ContentStore) {
    for (n, algorithm) in Algorithm::ALL.into_iter().enumerate() {
        for early in [false, true] {
            let data = format!("algorithm {n} {early}").into_bytes();
            let want = hash(algorithm, &data);
            let mut ingest = store
                .ingest(IngestSpec {
                    expected: early.then(|| want.clone()),
                    ..spec("suite-algorithm")
                })
                .await
                .unwrap();
            // A store that shares the blob of somebody else needs no data.
            let have = usize::try_from(ingest.status().offset).unwrap();
            let rest = Bytes::copy_from_slice(&data[have..]);
            ingest.write(rest).await.unwrap();
            let found = ingest
                .commit(None, Some(want.clone()), Labels::new())
                .await
                .unwrap();
            assert_eq!(found, want);
            assert_eq!(get(store, &want).await, data);
        }
    }
}

/// Deletion hides a blob; who has it open can go on reading, unless it is at the other end of a socket.
pub async fn deleted_blobs_are_gone_and_open_ones_stay_readable(
    store: &dyn ContentStore,
    caps: Caps,
) {
    let digest = put(store, "suite-delete", b"short life").await;
    let open = store.open(&digest).await.unwrap();
    store.delete(&digest).await.unwrap();
    assert!(store.info(&digest).await.unwrap_err().is_not_found());
    assert!(store.open(&digest).await.unwrap_err().is_not_found());
    assert!(store.delete(&digest).await.unwrap_err().is_not_found());
    let read = open.read_at(0, 100).await;
    if caps.is_distant {
        assert!(read.unwrap_err().is_not_found());
    } else {
        assert_eq!(&read.unwrap()[..], b"short life");
    }
}

/// Lists of blobs and ingests.
pub async fn lists_are_ordered_and_filtered(store: &dyn ContentStore) {
    let mut want = Vec::new();
    for data in [b"list 1", b"list 2", b"list 3"] {
        want.push(put(store, "suite-list", data).await);
    }
    want.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    let all = store.list(&Filter::default()).await.unwrap();
    assert!(all.is_sorted_by(|a, b| a.digest.as_str() < b.digest.as_str()));
    let filters: Vec<String> = want.iter().map(|d| format!("digest=={d}")).collect();
    let some = store.list(&Filter::parse(&filters).unwrap()).await.unwrap();
    let found: Vec<Digest> = some.into_iter().map(|i| i.digest).collect();
    assert_eq!(found, want);
    for reference in ["suite-ingest b", "suite-ingest/a"] {
        drop(store.ingest(spec(reference)).await.unwrap());
    }
    let only = Filter::parse(&["ref==\"suite-ingest/a\""]).unwrap();
    let found = store.statuses(&only).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].reference, name("suite-ingest/a"));
    assert!(store.statuses(&Filter::default()).await.unwrap().len() >= 2);
    for reference in ["suite-ingest b", "suite-ingest/a"] {
        store.abort(&name(reference)).await.unwrap();
    }
}

/// Zero bytes have a digest too.
pub async fn an_empty_blob_is_a_blob(store: &dyn ContentStore) {
    let ingest = store.ingest(spec("suite-empty")).await.unwrap();
    let digest = ingest.commit(Some(0), None, Labels::new()).await.unwrap();
    assert_eq!(digest, hash(Algorithm::Sha256, b""));
    assert_eq!(store.open(&digest).await.unwrap().size(), 0);
}

/// Labels change by mask, or the store says that it has none.
pub async fn labels(store: &dyn ContentStore, caps: Caps) {
    let digest = put(store, "suite-labels", b"labelled").await;
    let both = Labels::new().with("a.b/c", "1").with("d", "2");
    let all = Fields::default();
    if !caps.labels {
        let error = store.update(&digest, both, &all).await.unwrap_err();
        assert!(error.is(Code::NotImplemented), "{error}");
        return;
    }
    let info = store.update(&digest, both.clone(), &all).await.unwrap();
    assert_eq!(info.labels, both);
    let one = Fields::new(vec!["labels.a.b/c".into()]);
    let change = Labels::new().with("a.b/c", "").with("d", "ignored");
    let info = store.update(&digest, change, &one).await.unwrap();
    assert_eq!(info.labels, Labels::new().with("d", "2"));
    assert_eq!(store.info(&digest).await.unwrap(), info);
    let bad = Fields::new(vec!["size".into()]);
    let error = store.update(&digest, both, &bad).await.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    let absent = hash(Algorithm::Sha256, b"absent");
    let error = store
        .update(&absent, Labels::new(), &all)
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
}
