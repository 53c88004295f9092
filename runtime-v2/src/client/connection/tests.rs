//! What callers see of a peer that answers in any order, slowly, wrongly, or not at all.

use super::*;
use protos::frame::HEADER;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Connection::new(ours), theirs)
}

fn request(payload: &[u8]) -> Request {
    Request {
        method: "m".into(),
        payload: payload.to_vec(),
        ..Request::default()
    }
}

async fn asked(peer: &mut UnixStream) -> (u32, Vec<u8>) {
    let mut head = [0; HEADER];
    peer.read_exact(&mut head).await.unwrap();
    let header = frame::Header::parse(&head);
    assert_eq!(header.kind, Kind::Request);
    let mut body = vec![0; header.length];
    peer.read_exact(&mut body).await.unwrap();
    let request = Request::parse_from_bytes(&body).unwrap();
    (header.stream, request.payload)
}

fn answer(id: u32, payload: &[u8]) -> Vec<u8> {
    let response = Response {
        payload: payload.to_vec(),
        ..Response::default()
    };
    frame::encode(id, Kind::Response, &response).unwrap()
}

fn calls(connection: &Connection) -> usize {
    match &*connection.shared.waiting() {
        Waiting::For(calls) => calls.len(),
        Waiting::Over => 0,
    }
}

#[tokio::test]
async fn answers_in_any_order_and_in_pieces_reach_their_calls() {
    let (connection, mut peer) = pair();
    let (one, two) = (request(b"one"), request(b"two"));
    let serve = async {
        let (first, second) = (asked(&mut peer).await, asked(&mut peer).await);
        assert_eq!((first.0, second.0), (1, 3));
        let mut bytes = answer(second.0, &second.1);
        // Of nobody, of another kind, and the other one.
        bytes.extend(answer(99, b"stray"));
        bytes.extend(frame::encode(first.0, Kind::Data, &request(b"x")).unwrap());
        bytes.extend(answer(first.0, &first.1));
        for piece in bytes.chunks(7) {
            peer.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (one, two, ()) = tokio::join!(connection.call(&one), connection.call(&two), serve);
    assert_eq!(one.unwrap().payload, b"one");
    assert_eq!(two.unwrap().payload, b"two");
    assert_eq!(calls(&connection), 0);
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_nothing_and_no_half_frame() {
    let (connection, mut peer) = pair();
    // More than the socket takes while nobody reads.
    let long = request(&vec![7; 2 << 20]);
    let given_up = timeout(Duration::from_millis(20), connection.call(&long)).await;
    given_up.unwrap_err();
    assert_eq!(calls(&connection), 0);
    let short = request(b"short");
    let serve = async {
        assert_eq!(asked(&mut peer).await.1.len(), 2 << 20);
        let (id, payload) = asked(&mut peer).await;
        peer.write_all(&answer(1, b"too late")).await.unwrap();
        peer.write_all(&answer(id, &payload)).await.unwrap();
    };
    let (answered, ()) = tokio::join!(connection.call(&short), serve);
    assert_eq!(answered.unwrap().payload, b"short");
}

#[tokio::test]
async fn the_end_of_the_connection_is_the_end_of_its_calls() {
    let (connection, mut peer) = pair();
    let waits = request(b"for ever");
    let serve = async {
        asked(&mut peer).await;
        drop(peer);
    };
    let (lost, (), ()) = tokio::join!(connection.call(&waits), connection.over(), serve);
    assert!(matches!(lost, Err(Failure::Lost)), "{lost:?}");
    let after = connection.call(&waits).await;
    assert!(matches!(after, Err(Failure::Lost)), "{after:?}");
}

#[tokio::test]
async fn a_dropped_connection_ends_also_in_the_middle_of_a_frame() {
    let (connection, mut peer) = pair();
    let long = request(&vec![7; 2 << 20]);
    timeout(Duration::from_millis(20), connection.call(&long))
        .await
        .unwrap_err();
    let shared = Arc::downgrade(&connection.shared);
    drop(connection);
    let mut all = Vec::new();
    peer.read_to_end(&mut all).await.unwrap();
    assert!(all.len() < 2 << 20);
    let gone = async {
        while shared.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_an_error_of_its_call_alone() {
    let (connection, mut peer) = pair();
    let (one, two, three) = (request(b"1"), request(b"2"), request(b"3"));
    let serve = async {
        for _ in 0..3 {
            asked(&mut peer).await;
        }
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0xff];
        let length = frame::LONGEST + 1;
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.extend([0, 0, 0, 3, 2, 0]);
        bytes.extend(vec![0; length]);
        bytes.extend(answer(5, b"fine"));
        peer.write_all(&bytes).await.unwrap();
    };
    let (one, two, three, ()) = tokio::join!(
        connection.call(&one),
        connection.call(&two),
        connection.call(&three),
        serve
    );
    for (failed, code) in [
        (one, types::Code::Internal),
        (two, types::Code::ResourceExhausted),
    ] {
        let Err(Failure::Answer(error)) = failed else {
            panic!("{failed:?}");
        };
        assert!(error.is(code), "{error}");
    }
    assert_eq!(three.unwrap().payload, b"fine");
}

#[tokio::test]
async fn what_nobody_would_take_is_not_sent() {
    let (connection, mut peer) = pair();
    let refused = connection.call(&request(&vec![0; frame::LONGEST])).await;
    let Err(Failure::Answer(error)) = refused else {
        panic!("{refused:?}");
    };
    assert!(error.is(types::Code::ResourceExhausted), "{error}");
    let fine = request(b"fine");
    let serve = async {
        let (id, payload) = asked(&mut peer).await;
        peer.write_all(&answer(id, &payload)).await.unwrap();
    };
    let (answered, ()) = tokio::join!(connection.call(&fine), serve);
    assert_eq!(answered.unwrap().payload, b"fine");
}
