//! Writing a blob: offsets, lengths and digests, and what a commit does.

use ::content::Hasher;
use protos::events::ContentCreate;
use protos::services::content::{WriteAction, WriteContentRequest};
use tonic::Code;
use types::Algorithm;

use super::{Content, EMPTY, Writing, digest, message, stat};
use crate::events::event;
use crate::heard::Heard;
use crate::peer::{NAMESPACE, Peer, labels, refused};
use crate::stock;

rules! {
    both {
        the_first_message_must_have_a_ref
        an_answer_tells_where_the_ingest_stands
        a_blob_is_written_piece_by_piece
        the_stream_ends_with_the_answer_to_a_commit
        an_offset_behind_or_ahead_is_out_of_range
        an_offset_of_zero_starts_anew
        a_commit_at_offset_zero_starts_anew_too
        a_wrong_length_is_refused_and_the_ingest_stays
        a_wrong_digest_is_refused_and_the_ingest_stays
        labels_come_with_the_commit
        a_label_without_a_value_is_none
        a_label_that_is_too_long_is_refused_and_the_ingest_stays
        a_blob_that_is_there_is_not_written_again_but_leased
        a_digest_learnt_under_way_ends_the_stream_when_the_blob_is_there
        a_commit_of_what_is_there_takes_the_ingest_and_leases_the_blob
        a_commit_that_expects_what_is_there_takes_the_ingest
        a_lease_must_be_there
    }
    ours {
        an_expected_digest_must_be_one
        an_offset_below_zero_is_out_of_range
        a_commit_that_expects_what_is_there_leases_the_blob
        digests_of_longer_hashes_are_kept
        another_hash_than_that_of_the_ingest_may_be_committed
        an_event_tells_of_a_new_blob
    }
}

/// A commit at this offset of what is there.
fn commit(reference: &str, offset: i64) -> WriteContentRequest {
    WriteContentRequest {
        labels: labels(&[(stock::ROOT, "yes")]),
        ..message(WriteAction::COMMIT, reference, offset, b"")
    }
}

/// A message that appends at this offset.
fn write(reference: &str, offset: i64, data: &[u8]) -> WriteContentRequest {
    message(WriteAction::WRITE, reference, offset, data)
}

/// An ingest that holds `hello`.
async fn hello(content: &mut Content, reference: &str) -> Writing {
    let opened = content.open(write(reference, 0, b"hello")).await;
    let (writing, answer) = opened.expect("open");
    assert_eq!(answer.offset, 5);
    writing
}

/// Hashers that Go 1.6 does not know.
pub(super) fn longer() -> [Hasher; 2] {
    [Algorithm::Sha384, Algorithm::Sha512].map(Hasher::new)
}

/// Writes a blob with a digest of this hasher's.
pub(super) async fn put_as(content: &mut Content, mut hasher: Hasher, data: &[u8]) -> String {
    hasher.update(data);
    let digest = hasher.finish().expect("a digest").to_string();
    let message = WriteContentRequest {
        expected: digest.clone(),
        data: data.to_vec().into(),
        ..commit(&digest, 0)
    };
    let answers = content.write(vec![message]).await.expect("write");
    assert_eq!(answers[0].digest, digest);
    digest
}

async fn the_first_message_must_have_a_ref(peer: &Peer) {
    let mut content = Content::of(peer);
    for first in [stat(""), write("", 0, b"hello"), commit("", 0)] {
        let text = refused(Code::InvalidArgument, content.write(vec![first]).await);
        assert!(
            text.contains("first message must have a reference"),
            "{text}"
        );
    }
}

async fn an_answer_tells_where_the_ingest_stands(peer: &Peer) {
    let mut content = Content::of(peer);
    let first = WriteContentRequest {
        total: 5,
        ..stat("r")
    };
    let (mut writing, opened) = content.open(first).await.expect("open");
    assert_eq!(opened.action, WriteAction::STAT.into());
    assert_eq!((opened.offset, opened.total), (0, 5));
    assert_eq!(opened.digest, EMPTY);
    assert!(opened.started_at.seconds > 0);
    assert!(opened.updated_at.seconds >= opened.started_at.seconds);
    let written = writing.ask(write("r", 0, b"hel")).await.expect("write");
    assert_eq!(written.action, WriteAction::WRITE.into());
    assert_eq!((written.offset, written.digest), (3, digest(b"hel")));
    assert_eq!(written.started_at, opened.started_at);
    let asked = writing.ask(stat("r")).await.expect("stat");
    assert_eq!((asked.offset, asked.digest), (3, digest(b"hel")));
    writing.close().await.expect("close");
    content.abort("r").await.expect("abort");
}

async fn a_blob_is_written_piece_by_piece(peer: &Peer) {
    let mut content = Content::of(peer);
    let (mut writing, _) = content.open(stat("r")).await.expect("open");
    for (offset, data) in [(0, &b"he"[..]), (2, b"l"), (3, b""), (3, b"l")] {
        // Only the first message of a stream needs the ref.
        let answer = writing.ask(write("", offset, data)).await.expect("write");
        let now = offset + i64::try_from(data.len()).expect("small");
        assert_eq!(answer.offset, now);
    }
    let last = WriteContentRequest {
        data: b"o".to_vec().into(),
        total: 5,
        expected: digest(b"hello"),
        ..commit("", 4)
    };
    let answer = writing.ask(last).await.expect("commit");
    assert_eq!(answer.action, WriteAction::COMMIT.into());
    assert_eq!((answer.offset, answer.digest), (5, digest(b"hello")));
    let read = content.read(&digest(b"hello"), 0, 0).await.expect("read");
    assert_eq!(read, b"hello");
    refused(Code::NotFound, content.status("r").await);
}

async fn the_stream_ends_with_the_answer_to_a_commit(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut writing = hello(&mut content, "r").await;
    writing.ask(commit("r", 5)).await.expect("commit");
    writing.ended().await.expect("end");
}

async fn an_offset_behind_or_ahead_is_out_of_range(peer: &Peer) {
    let mut content = Content::of(peer);
    for offset in [2, 4, 6, 1 << 40] {
        hello(&mut content, "r").await.close().await.expect("close");
        for first in [write("r", offset, b"x"), commit("r", offset)] {
            let text = refused(Code::OutOfRange, content.write(vec![first]).await);
            let want = format!("write @{offset} must occur at current offset 5");
            assert!(text.contains(&want), "{text}");
        }
        assert_eq!(content.status("r").await.expect("status").offset, 5);
    }
    content.abort("r").await.expect("abort");
}

async fn an_offset_below_zero_is_out_of_range(peer: &Peer) {
    let mut content = Content::of(peer);
    hello(&mut content, "r").await.close().await.expect("close");
    for offset in [-1, i64::MIN] {
        let answer = content.write(vec![write("r", offset, b"x")]).await;
        refused(Code::OutOfRange, answer);
    }
    content.abort("r").await.expect("abort");
}

async fn an_offset_of_zero_starts_anew(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut writing = hello(&mut content, "r").await;
    let answer = writing.ask(write("r", 0, b"by")).await.expect("write");
    assert_eq!((answer.offset, answer.digest), (2, digest(b"by")));
    let answer = writing.ask(write("r", 2, b"e")).await.expect("write");
    assert_eq!((answer.offset, answer.digest), (3, digest(b"bye")));
    let answer = writing.ask(commit("r", 3)).await.expect("commit");
    assert_eq!(answer.digest, digest(b"bye"));
    let read = content.read(&digest(b"bye"), 0, 0).await.expect("read");
    assert_eq!(read, b"bye");
}

async fn a_commit_at_offset_zero_starts_anew_too(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut writing = hello(&mut content, "r").await;
    let answer = writing.ask(commit("r", 0)).await.expect("commit");
    assert_eq!((answer.offset, answer.digest.as_str()), (0, EMPTY));
    assert!(content.has(EMPTY).await);
    assert!(!content.has(&digest(b"hello")).await);
}

async fn a_wrong_length_is_refused_and_the_ingest_stays(peer: &Peer) {
    let mut content = Content::of(peer);
    for total in [4, 6, 1 << 40] {
        let mut writing = hello(&mut content, "r").await;
        let wrong = WriteContentRequest {
            total,
            ..commit("r", 5)
        };
        refused(Code::FailedPrecondition, writing.ask(wrong).await);
        assert_eq!(content.status("r").await.expect("status").offset, 5);
        assert!(!content.has(&digest(b"hello")).await);
    }
    let right = WriteContentRequest {
        total: 5,
        ..commit("r", 5)
    };
    content.write(vec![stat("r"), right]).await.expect("commit");
    assert!(content.has(&digest(b"hello")).await);
}

async fn a_wrong_digest_is_refused_and_the_ingest_stays(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut writing = hello(&mut content, "r").await;
    let expecting = |data: &[u8]| WriteContentRequest {
        expected: digest(data),
        ..commit("r", 5)
    };
    refused(
        Code::FailedPrecondition,
        writing.ask(expecting(b"bye")).await,
    );
    for other in [&b"hello"[..], b"bye"] {
        assert!(!content.has(&digest(other)).await);
    }
    assert_eq!(content.status("r").await.expect("status").offset, 5);
    let answers = content.write(vec![stat("r"), expecting(b"hello")]).await;
    assert_eq!(answers.expect("commit")[1].digest, digest(b"hello"));
    assert!(content.has(&digest(b"hello")).await);
}

async fn labels_come_with_the_commit(peer: &Peer) {
    let mut content = Content::of(peer);
    let early = WriteContentRequest {
        labels: labels(&[("early", "1")]),
        ..write("r", 0, b"hello")
    };
    let (mut writing, _) = content.open(early).await.expect("open");
    writing.ask(commit("r", 5)).await.expect("commit");
    let info = content.info(&digest(b"hello")).await.expect("info");
    assert_eq!(info.labels, labels(&[(stock::ROOT, "yes")]));
}

async fn a_label_that_is_too_long_is_refused_and_the_ingest_stays(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut writing = hello(&mut content, "r").await;
    let long = "v".repeat(4096);
    let wrong = WriteContentRequest {
        labels: labels(&[("k", &long)]),
        ..commit("r", 5)
    };
    refused(Code::InvalidArgument, writing.ask(wrong).await);
    assert!(!content.has(&digest(b"hello")).await);
    assert_eq!(content.status("r").await.expect("status").offset, 5);
    content.abort("r").await.expect("abort");
}

async fn a_blob_that_is_there_is_not_written_again_but_leased(peer: &Peer) {
    let blob = Content::of(peer).put(b"hello").await;
    stock::lease(peer, "l", &[]).await;
    let mut content = Content::leased(peer, "l");
    let first = WriteContentRequest {
        expected: blob.clone(),
        ..stat("r")
    };
    refused(Code::AlreadyExists, content.open(first).await);
    assert_eq!(stock::held(peer, "l").await, [("content".to_owned(), blob)]);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
}

async fn a_digest_learnt_under_way_ends_the_stream_when_the_blob_is_there(peer: &Peer) {
    let mut content = Content::of(peer);
    let blob = content.put(b"hello").await;
    for action in [WriteAction::STAT, WriteAction::WRITE] {
        let first = content.open(write("r", 0, b"hel")).await;
        let (mut writing, _) = first.expect("open");
        let second = WriteContentRequest {
            expected: blob.clone(),
            ..message(action, "r", 3, b"")
        };
        refused(Code::AlreadyExists, writing.ask(second).await);
        assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
    }
}

async fn a_commit_of_what_is_there_takes_the_ingest_and_leases_the_blob(peer: &Peer) {
    let blob = Content::of(peer).put(b"hello").await;
    stock::lease(peer, "l", &[]).await;
    let mut content = Content::leased(peer, "l");
    let mut writing = hello(&mut content, "r").await;
    refused(Code::AlreadyExists, writing.ask(commit("r", 5)).await);
    assert_eq!(stock::held(peer, "l").await, [("content".to_owned(), blob)]);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
}

/// A commit that says what it expects.
fn expecting(blob: &str) -> WriteContentRequest {
    WriteContentRequest {
        expected: blob.into(),
        ..commit("r", 5)
    }
}

async fn a_commit_that_expects_what_is_there_takes_the_ingest(peer: &Peer) {
    let mut content = Content::of(peer);
    let blob = content.put(b"hello").await;
    let mut writing = hello(&mut content, "r").await;
    refused(Code::AlreadyExists, writing.ask(expecting(&blob)).await);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
}

/// Go answers before it comes to the lease.
async fn a_commit_that_expects_what_is_there_leases_the_blob(peer: &Peer) {
    let blob = Content::of(peer).put(b"hello").await;
    stock::lease(peer, "l", &[]).await;
    let mut writing = hello(&mut Content::leased(peer, "l"), "r").await;
    refused(Code::AlreadyExists, writing.ask(expecting(&blob)).await);
    assert_eq!(stock::held(peer, "l").await, [("content".to_owned(), blob)]);
}

async fn a_lease_must_be_there(peer: &Peer) {
    let blob = Content::of(peer).put(b"hello").await;
    let mut content = Content::leased(peer, "none");
    for first in [
        stat("r"),
        write("r", 0, b"bye"),
        message(WriteAction::COMMIT, "r", 0, b"bye"),
        WriteContentRequest {
            expected: blob.clone(),
            ..stat("r")
        },
    ] {
        let text = refused(Code::NotFound, content.write(vec![first]).await);
        assert!(text.contains("lease does not exist"), "{text}");
    }
    let mut content = Content::of(peer);
    assert!(!content.has(&digest(b"bye")).await);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
}

async fn an_expected_digest_must_be_one(peer: &Peer) {
    let mut content = Content::of(peer);
    for text in [
        "x",
        "sha256:",
        "sha256:../..",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
    ] {
        let first = WriteContentRequest {
            expected: text.into(),
            ..stat("r")
        };
        refused(Code::InvalidArgument, content.open(first).await);
    }
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
}

async fn digests_of_longer_hashes_are_kept(peer: &Peer) {
    let mut content = Content::of(peer);
    for hasher in longer() {
        let digest = put_as(&mut content, hasher.clone(), b"hello").await;
        assert_eq!(content.list(&[]).await, [digest.as_str()]);
        let wrong = WriteContentRequest {
            expected: digest.clone(),
            data: b"bye".to_vec().into(),
            ..commit("r", 0)
        };
        refused(
            Code::AlreadyExists,
            content.write(vec![wrong.clone()]).await,
        );
        content.delete(&digest).await.expect("delete");
        stock::collect(peer).await;
        refused(Code::FailedPrecondition, content.write(vec![wrong]).await);
        content.abort("r").await.expect("abort");
    }
}

async fn another_hash_than_that_of_the_ingest_may_be_committed(peer: &Peer) {
    let mut content = Content::of(peer);
    for (number, mut hasher) in longer().into_iter().enumerate() {
        let reference = format!("r{number}");
        hasher.update(b"hello");
        let digest = hasher.finish().expect("a digest").to_string();
        let mut writing = hello(&mut content, &reference).await;
        let last = WriteContentRequest {
            expected: digest.clone(),
            ..commit(&reference, 5)
        };
        assert_eq!(writing.ask(last).await.expect("commit").digest, digest);
        let read = content.read(&digest, 0, 0).await.expect("read");
        assert_eq!(read, b"hello");
    }
}

/// Go tells since 2.1.
async fn an_event_tells_of_a_new_blob(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut watch = Heard::matching(peer, &["topic==\"/content/create\""]).await;
    let blob = content.put(b"hello").await;
    let again = vec![commit("r", 0), stat("r")];
    content.write(again).await.expect("write nothing");
    let answer = content.write(vec![WriteContentRequest {
        data: b"hello".to_vec().into(),
        ..commit("s", 0)
    }]);
    refused(Code::AlreadyExists, answer.await);
    let told = watch.told(peer).await;
    let events: Vec<_> = told.iter().map(event::<ContentCreate>).collect();
    let facts: Vec<_> = events.iter().map(|e| (e.digest.as_str(), e.size)).collect();
    assert_eq!(facts, [(blob.as_str(), 5), (EMPTY, 0)]);
    assert!(told.iter().all(|envelope| envelope.namespace == NAMESPACE));
}

async fn a_label_without_a_value_is_none(peer: &Peer) {
    let mut content = Content::of(peer);
    let pairs = [(stock::ROOT, "yes"), ("k", "")];
    let blob = content.put_with(b"hello", &pairs).await;
    let info = content.info(&blob).await.expect("info");
    assert_eq!(info.labels, labels(&[(stock::ROOT, "yes")]));
}
