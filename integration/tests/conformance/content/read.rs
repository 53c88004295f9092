//! Reading blobs.

use tonic::Code;

use super::{Content, EMPTY};
use protos::services::content::ReadContentRequest;

use crate::peer::{Peer, refused};
use crate::stock;

rules! {
    both {
        a_section_is_cut_to_the_blob
        an_offset_past_the_end_is_out_of_range
        an_empty_blob_has_no_bytes
        a_long_blob_comes_in_order_and_in_small_messages
        offsets_of_answers_count_from_the_start_of_the_section
        what_is_being_read_can_be_deleted
    }
    ours {
        blobs_of_longer_hashes_are_read
    }
}

/// More than three messages hold, not a multiple of anything.
fn long() -> Vec<u8> {
    (0..251).cycle().take(3_500_001).collect()
}

async fn a_section_is_cut_to_the_blob(peer: &Peer) {
    let mut content = Content::of(peer);
    let blob = content.put(b"hello").await;
    for (offset, size, want) in [
        (0, 0, "hello"),
        (0, 5, "hello"),
        (0, 2, "he"),
        (2, 2, "ll"),
        (2, 0, "llo"),
        (2, -1, "llo"),
        (2, 99, "llo"),
        (0, i64::MAX, "hello"),
        (-3, 2, "he"),
        (-3, 0, "hello"),
        (5, 0, ""),
        (5, 1, ""),
    ] {
        let read = content.read(&blob, offset, size).await.expect("read");
        assert_eq!(read, want.as_bytes(), "{offset} {size}");
    }
}

async fn an_offset_past_the_end_is_out_of_range(peer: &Peer) {
    let mut content = Content::of(peer);
    let blob = content.put(b"hello").await;
    for (offset, size) in [(6, 0), (6, 1), (1 << 40, 5), (i64::MAX, 1)] {
        let text = refused(Code::OutOfRange, content.read(&blob, offset, size).await);
        assert!(text.contains("read past object length 5 bytes"), "{text}");
    }
}

async fn an_empty_blob_has_no_bytes(peer: &Peer) {
    let mut content = Content::of(peer);
    assert_eq!(content.put(b"").await, EMPTY);
    assert_eq!(content.info(EMPTY).await.expect("info").size, 0);
    assert_eq!(content.read(EMPTY, 0, 0).await.expect("read"), b"");
    refused(Code::OutOfRange, content.read(EMPTY, 1, 0).await);
}

async fn a_long_blob_comes_in_order_and_in_small_messages(peer: &Peer) {
    let mut content = Content::of(peer);
    let data = long();
    let blob = content.put(&data).await;
    let pieces = content.pieces(&blob, 0, 0).await.expect("read");
    assert!(pieces.iter().all(|piece| piece.data.len() <= 1 << 20));
    assert!(pieces.iter().all(|piece| !piece.data.is_empty()));
    let read = content.read(&blob, 0, 0).await.expect("read");
    assert!(read == data);
}

async fn offsets_of_answers_count_from_the_start_of_the_section(peer: &Peer) {
    let mut content = Content::of(peer);
    let data = long();
    let blob = content.put(&data).await;
    let (start, size) = (1000, 2_500_000);
    let pieces = content.pieces(&blob, start, size).await.expect("read");
    assert!(pieces.len() > 1);
    let mut read: Vec<u8> = Vec::new();
    for piece in pieces {
        assert_eq!(usize::try_from(piece.offset), Ok(read.len()));
        read.extend_from_slice(&piece.data);
    }
    assert!(read == data[1000..2_501_000]);
}

/// Go 1.6 knows sha256 alone.
async fn blobs_of_longer_hashes_are_read(peer: &Peer) {
    let mut content = Content::of(peer);
    for hasher in super::write::longer() {
        let digest = super::write::put_as(&mut content, hasher, b"hello").await;
        let info = content.info(&digest).await.expect("info");
        assert_eq!((info.digest.as_str(), info.size), (digest.as_str(), 5));
        assert_eq!(content.read(&digest, 1, 3).await.expect("read"), b"ell");
        content.delete(&digest).await.expect("delete");
        assert!(!content.has(&digest).await);
    }
}

async fn what_is_being_read_can_be_deleted(peer: &Peer) {
    let mut content = Content::of(peer);
    // More than what waits on the way.
    let data = long().repeat(4);
    let blob = content.put(&data).await;
    let request = content.request(ReadContentRequest {
        digest: blob.clone(),
        ..ReadContentRequest::default()
    });
    let mut reader = Content::of(peer);
    reader.client = grpc::content::ContentClient::new(peer.connect().await);
    let mut stream = reader
        .client
        .read(request)
        .await
        .expect("read")
        .into_inner();
    let first = stream.message().await.expect("no error").expect("a piece");
    content.delete(&blob).await.expect("delete");
    stock::collect(peer).await;
    let mut read = first.data.to_vec();
    while let Some(piece) = stream.message().await.expect("no error") {
        read.extend_from_slice(&piece.data);
    }
    assert!(read == data);
}
