//! Ingests: who writes them, how they are resumed, how they end.

use protos::services::content::{WriteAction, WriteContentRequest};
use tokio::task::JoinSet;
use tonic::Code;

use super::{Content, digest, message, stat};
use crate::peer::{Peer, labels, refused};
use crate::stock;

rules! {
    both {
        a_status_tells_ref_offset_total_and_times
        one_that_is_not_there_is_not_found
        a_list_knows_the_refs_of_the_namespace
        a_ref_is_a_free_text_of_its_namespace
        it_is_resumed_where_it_was_left
        it_is_resumed_after_its_writer_hung_up
        it_has_one_writer_at_a_time
        many_are_written_at_once
        the_same_blob_may_be_written_twice_at_once
        a_status_is_that_of_the_live_writer
        an_abort_under_a_live_writer_leaves_nothing
        an_aborted_one_is_gone_and_its_ref_is_free
        an_abort_takes_it_out_of_the_lease
        without_a_lease_it_outlives_collections
        with_a_lease_it_lives_as_long_as_the_lease
    }
    ours {
        a_commit_that_is_given_up_leaves_the_blob_or_the_ingest
    }
}

/// A message that appends at this offset.
fn write(reference: &str, offset: i64, data: &[u8]) -> WriteContentRequest {
    message(WriteAction::WRITE, reference, offset, data)
}

/// Begins an ingest and leaves it.
async fn leave(content: &mut Content, reference: &str, data: &[u8]) {
    let answers = content.write(vec![write(reference, 0, data)]).await;
    answers.expect("write");
}

async fn a_status_tells_ref_offset_total_and_times(peer: &Peer) {
    let mut content = Content::of(peer);
    let first = WriteContentRequest {
        total: 7,
        ..write("r", 0, b"hello")
    };
    content.write(vec![first]).await.expect("write");
    let status = content.status("r").await.expect("status");
    assert_eq!(status.ref_, "r");
    assert_eq!((status.offset, status.total), (5, 7));
    assert!(status.started_at.seconds > 0);
    assert!(status.updated_at.seconds >= status.started_at.seconds);
    content.abort("r").await.expect("abort");
}

async fn one_that_is_not_there_is_not_found(peer: &Peer) {
    let mut content = Content::of(peer);
    leave(&mut content, "r", b"hello").await;
    let mut other = Content::within(peer, "other");
    for answer in [
        content.status("none").await.map(drop),
        content.abort("none").await,
        other.status("r").await.map(drop),
        other.abort("r").await,
    ] {
        refused(Code::NotFound, answer);
    }
    content.abort("r").await.expect("abort");
}

async fn a_list_knows_the_refs_of_the_namespace(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut other = Content::within(peer, "other");
    for reference in ["b", "a", "c"] {
        leave(&mut content, reference, b"x").await;
    }
    leave(&mut other, "d", b"x").await;
    for (filters, want) in [
        (&[][..], &["a", "b", "c"][..]),
        (&["ref==b"], &["b"]),
        (&["ref==a", "ref==c"], &["a", "c"]),
        (&["ref~=^[ab]$"], &["a", "b"]),
        (&["offset==1"], &[]),
        (&["ref==d"], &[]),
    ] {
        assert_eq!(content.ingests(filters).await.expect("list"), want);
    }
    assert_eq!(other.ingests(&[]).await.expect("list"), ["d"]);
    for reference in ["a", "b", "c"] {
        content.abort(reference).await.expect("abort");
    }
    other.abort("d").await.expect("abort");
}

async fn a_ref_is_a_free_text_of_its_namespace(peer: &Peer) {
    let (mut one, mut other) = (Content::of(peer), Content::within(peer, "other"));
    for reference in ["../../x", "layer-sha256:ab/c d", "\u{e9}", ".", "/"] {
        leave(&mut one, reference, b"hello").await;
        leave(&mut other, reference, b"bye").await;
        let status = one.status(reference).await.expect("status");
        assert_eq!((status.ref_.as_str(), status.offset), (reference, 5));
        let status = other.status(reference).await.expect("status");
        assert_eq!((status.ref_.as_str(), status.offset), (reference, 3));
        one.abort(reference).await.expect("abort");
        assert_eq!(other.status(reference).await.expect("status").offset, 3);
        other.abort(reference).await.expect("abort");
    }
}

async fn it_is_resumed_where_it_was_left(peer: &Peer) {
    let mut content = Content::of(peer);
    leave(&mut content, "r", b"hel").await;
    let (mut writing, answer) = content.open(stat("r")).await.expect("open");
    assert_eq!((answer.offset, answer.digest), (3, digest(b"hel")));
    writing.ask(write("r", 3, b"l")).await.expect("write");
    writing.close().await.expect("close");
    let last = WriteContentRequest {
        total: 5,
        expected: digest(b"hello"),
        labels: labels(&[(stock::ROOT, "yes")]),
        ..message(WriteAction::COMMIT, "r", 4, b"o")
    };
    let answers = content.write(vec![last]).await.expect("commit");
    assert_eq!(answers[0].digest, digest(b"hello"));
    let read = content.read(&digest(b"hello"), 0, 0).await.expect("read");
    assert_eq!(read, b"hello");
}

async fn it_is_resumed_after_its_writer_hung_up(peer: &Peer) {
    let mut content = Content::of(peer);
    let opened = content.open(write("r", 0, b"hello")).await;
    // The stream is reset.
    drop(opened.expect("open"));
    let (writing, answer) = loop {
        match content.open(stat("r")).await {
            // The daemon has yet to hear of it.
            Err(status) if status.code() == Code::Unavailable => {}
            opened => break opened.expect("open"),
        }
    };
    assert_eq!((answer.offset, answer.digest), (5, digest(b"hello")));
    writing.close().await.expect("close");
    content.abort("r").await.expect("abort");
}

async fn it_has_one_writer_at_a_time(peer: &Peer) {
    let mut content = Content::of(peer);
    let (mut first, _) = content.open(stat("r")).await.expect("open");
    refused(Code::Unavailable, content.open(stat("r")).await);
    // The other one is none the worse.
    let answer = first.ask(write("r", 0, b"hello")).await.expect("write");
    assert_eq!(answer.offset, 5);
    // Another namespace's ingest of that name is another ingest.
    let mut other = Content::within(peer, "other");
    let (second, answer) = other.open(stat("r")).await.expect("open");
    assert_eq!(answer.offset, 0);
    second.close().await.expect("close");
    first.close().await.expect("close");
    let (third, answer) = content.open(stat("r")).await.expect("open");
    assert_eq!(answer.offset, 5);
    third.close().await.expect("close");
    content.abort("r").await.expect("abort");
    other.abort("r").await.expect("abort");
}

async fn many_are_written_at_once(peer: &Peer) {
    let mut writers = JoinSet::new();
    let held: Vec<_> = (0..64).map(|number| format!("r{number}")).collect();
    for reference in held {
        let mut content = Content::of(peer);
        writers.spawn(async move {
            let data = reference.as_bytes().repeat(10_000);
            let (mut writing, _) = content.open(stat(&reference)).await?;
            let mut offset = 0;
            for piece in data.chunks(7000) {
                offset = writing.ask(write(&reference, offset, piece)).await?.offset;
            }
            let last = WriteContentRequest {
                expected: digest(&data),
                labels: labels(&[(stock::ROOT, "yes")]),
                ..message(WriteAction::COMMIT, &reference, offset, b"")
            };
            writing.ask(last).await?;
            let read = content.read(&digest(&data), 0, 0).await?;
            assert!(read == data);
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer").expect("write");
    }
    let mut content = Content::of(peer);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
    assert_eq!(content.list(&[]).await.len(), 64);
}

async fn an_aborted_one_is_gone_and_its_ref_is_free(peer: &Peer) {
    let mut content = Content::of(peer);
    leave(&mut content, "r", b"hello").await;
    content.abort("r").await.expect("abort");
    refused(Code::NotFound, content.status("r").await);
    refused(Code::NotFound, content.abort("r").await);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
    let (writing, answer) = content.open(stat("r")).await.expect("open");
    assert_eq!(answer.offset, 0);
    writing.close().await.expect("close");
    content.abort("r").await.expect("abort");
}

async fn an_abort_takes_it_out_of_the_lease(peer: &Peer) {
    stock::lease(peer, "l", &[]).await;
    let mut content = Content::leased(peer, "l");
    leave(&mut content, "r", b"hello").await;
    let held = [("ingests".to_owned(), "r".to_owned())];
    assert_eq!(stock::held(peer, "l").await, held);
    content.abort("r").await.expect("abort");
    assert_eq!(stock::held(peer, "l").await, []);
}

async fn without_a_lease_it_outlives_collections(peer: &Peer) {
    let mut content = Content::of(peer);
    leave(&mut content, "r", b"hello").await;
    stock::collect(peer).await;
    assert_eq!(content.status("r").await.expect("status").offset, 5);
    content.abort("r").await.expect("abort");
}

async fn with_a_lease_it_lives_as_long_as_the_lease(peer: &Peer) {
    stock::lease(peer, "l", &[]).await;
    let mut content = Content::leased(peer, "l");
    leave(&mut content, "r", b"hello").await;
    stock::collect(peer).await;
    assert_eq!(content.status("r").await.expect("status").offset, 5);
    stock::end(peer, "l").await;
    let mut content = Content::of(peer);
    refused(Code::NotFound, content.status("r").await);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
    // Go 1.6 leaves the data to the next collection of blobs.
    let blob = content.put(b"bye").await;
    content.delete(&blob).await.expect("delete");
    stock::collect(peer).await;
}

/// Nobody knows of Go's.
async fn a_commit_that_is_given_up_leaves_the_blob_or_the_ingest(peer: &Peer) {
    let mut content = Content::of(peer);
    let mut given_up = 0;
    for number in 0..40_u64 {
        let (reference, data) = (format!("r{number}"), number.to_le_bytes());
        let last = WriteContentRequest {
            labels: labels(&[(stock::ROOT, "yes")]),
            ..message(WriteAction::COMMIT, &reference, 0, &data)
        };
        let patience = std::time::Duration::from_micros(number * 100);
        let mut hasty = Content::of(peer);
        let work = tokio::time::timeout(patience, hasty.write(vec![last]));
        given_up += usize::from(work.await.is_err());
    }
    assert!(given_up > 0, "none was given up");
    for number in 0..40_u64 {
        let (reference, data) = (format!("r{number}"), number.to_le_bytes());
        let digest = digest(&data);
        // Whoever comes again gets it done, or hears that it is.
        while !content.has(&digest).await {
            let last = WriteContentRequest {
                expected: digest.clone(),
                labels: labels(&[(stock::ROOT, "yes")]),
                ..message(WriteAction::COMMIT, &reference, 0, &data)
            };
            match content.write(vec![last]).await {
                Ok(_) => {}
                Err(status) => {
                    let known = [Code::AlreadyExists, Code::Unavailable];
                    assert!(known.contains(&status.code()), "{status}");
                }
            }
        }
        assert_eq!(content.read(&digest, 0, 0).await.expect("read"), data);
    }
    let left = content.ingests(&[]).await.expect("list");
    assert_eq!(left, [""; 0]);
}

async fn the_same_blob_may_be_written_twice_at_once(peer: &Peer) {
    let data = b"hello".repeat(100_000);
    let mut writers = JoinSet::new();
    for number in 0..16 {
        let mut content = Content::of(peer);
        let last = WriteContentRequest {
            labels: labels(&[(stock::ROOT, "yes")]),
            ..message(WriteAction::COMMIT, &format!("r{number}"), 0, &data)
        };
        writers.spawn(async move { content.write(vec![last]).await });
    }
    let mut made = 0;
    while let Some(done) = writers.join_next().await {
        match done.expect("a writer") {
            Ok(_) => made += 1,
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
    }
    assert_eq!(made, 1);
    let mut content = Content::of(peer);
    assert!(content.read(&digest(&data), 0, 0).await.expect("read") == data);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
}

async fn a_status_is_that_of_the_live_writer(peer: &Peer) {
    let mut content = Content::of(peer);
    let (mut writing, _) = content.open(stat("r")).await.expect("open");
    let mut offset = 0;
    for piece in [&b"he"[..], b"l", b"lo"] {
        let answer = writing.ask(write("r", offset, piece)).await;
        offset = answer.expect("write").offset;
        assert_eq!(content.status("r").await.expect("status").offset, offset);
    }
    writing.close().await.expect("close");
    content.abort("r").await.expect("abort");
}

async fn an_abort_under_a_live_writer_leaves_nothing(peer: &Peer) {
    let mut content = Content::of(peer);
    let opened = content.open(write("r", 0, b"hello")).await;
    let (mut writing, _) = opened.expect("open");
    content.abort("r").await.expect("abort");
    refused(Code::NotFound, content.status("r").await);
    let last = message(WriteAction::COMMIT, "r", 5, b"");
    writing.ask(last).await.expect_err("nothing to commit");
    assert!(!content.has(&digest(b"hello")).await);
    assert_eq!(content.ingests(&[]).await.expect("list"), [""; 0]);
}
