//! What a peer may send.

use super::*;
use crate::testing::block_on;
use protos::frame::{HEADER, Header};
use protos::well_known::Empty;
use std::io::{Read as _, Write as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn handle(request: Request) -> Result<Reply> {
    match request.method.as_str() {
        "echo" => Ok(Reply {
            payload: request.payload,
            ..Reply::default()
        }),
        "pipe" => {
            let (read, write) = sys::pipe::new()?;
            let mut write = std::fs::File::from(write);
            write.write_all(b"through the pipe").unwrap();
            Ok(Reply {
                payload: Vec::new(),
                fds: vec![read],
                sent: None,
            })
        }
        "many" => {
            let one = || sys::process::null().unwrap();
            Ok(Reply {
                fds: std::iter::repeat_with(one).take(20).collect(),
                ..Reply::default()
            })
        }
        "long" => Ok(Reply {
            payload: vec![0; LONGEST],
            ..Reply::default()
        }),
        "never" => std::future::pending().await,
        "panic" => panic!("as asked"),
        other => Err(Error::not_implemented(format_args!("method {other}"))),
    }
}

fn call(stream: u32, method: &str, timeout_nano: i64) -> Vec<u8> {
    let request = Request {
        method: method.to_owned(),
        payload: b"\x08\x01".to_vec(),
        timeout_nano,
        ..Request::default()
    };
    frame::encode(stream, Kind::Request, &request).unwrap()
}

async fn answer(peer: &mut UnixStream) -> (u32, Response) {
    let mut head = [0; HEADER];
    peer.read_exact(&mut head).await.unwrap();
    let header = Header::parse(&head);
    assert_eq!(header.kind, Kind::Response);
    let mut body = vec![0; header.length];
    peer.read_exact(&mut body).await.unwrap();
    (header.stream, Response::parse_from_bytes(&body).unwrap())
}

fn error(response: &Response) -> String {
    frame::answer::<Empty>(response).unwrap_err().to_string()
}

fn connected() -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(tokio::spawn(converse(ours, handle)));
    theirs
}

#[test]
fn calls_are_answered_side_by_side() {
    block_on(async {
        let mut peer = connected();
        peer.write_all(&call(1, "never", 0)).await.unwrap();
        // Byte by byte it is the same.
        for byte in call(3, "echo", 0) {
            peer.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let (stream, response) = answer(&mut peer).await;
        assert_eq!((stream, response.payload.as_slice()), (3, &b"\x08\x01"[..]));
        peer.write_all(&call(5, "x", 0)).await.unwrap();
        let (stream, response) = answer(&mut peer).await;
        assert_eq!(
            (stream, error(&response)),
            (5, "method x: not implemented".into())
        );
    });
}

#[test]
fn a_bad_call_harms_nobody_else() {
    block_on(async {
        let mut peer = connected();
        peer.write_all(&call(1, "panic", 0)).await.unwrap();
        assert!(error(&answer(&mut peer).await.1).contains("failed in the shim"));
        peer.write_all(&call(3, "never", 1)).await.unwrap();
        assert!(error(&answer(&mut peer).await.1).ends_with("context deadline exceeded"));
        peer.write_all(&call(5, "long", 0)).await.unwrap();
        assert!(error(&answer(&mut peer).await.1).contains("at most 4194304"));
        peer.write_all(&call(8, "echo", 0)).await.unwrap();
        assert!(error(&answer(&mut peer).await.1).contains("must be odd"));
        let garbage = [&[0, 0, 0, 2, 0, 0, 0, 9, 1, 0][..], &[0xff, 0xff]].concat();
        peer.write_all(&garbage).await.unwrap();
        assert!(error(&answer(&mut peer).await.1).starts_with("request: "));
        // Data of a stream that nobody opened, and a kind from the future.
        peer.write_all(&[0, 0, 0, 1, 0, 0, 0, 9, 3, 0, 7])
            .await
            .unwrap();
        peer.write_all(&[0, 0, 0, 0, 0, 0, 0, 9, 77, 0])
            .await
            .unwrap();
        peer.write_all(&call(11, "echo", 0)).await.unwrap();
        assert_eq!(answer(&mut peer).await.0, 11);
    });
}

#[test]
fn what_is_too_long_is_skipped_and_told() {
    block_on(async {
        let mut peer = connected();
        let length = LONGEST + 1;
        let mut head = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        head.extend([0, 0, 0, 1, 1, 0]);
        peer.write_all(&head).await.unwrap();
        let (stream, response) = answer(&mut peer).await;
        assert_eq!(stream, 1);
        assert!(error(&response).contains("4194305 bytes"));
        peer.write_all(&vec![1; length]).await.unwrap();
        peer.write_all(&call(3, "echo", 0)).await.unwrap();
        assert_eq!(answer(&mut peer).await.0, 3);
    });
}

#[test]
fn a_half_sent_frame_takes_no_memory_and_ends() {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let serving = tokio::spawn(converse(ours, handle));
            theirs
                .write_all(&[0, 63, 0, 0, 0, 0, 0, 1, 1, 0, 5])
                .await
                .unwrap();
            // Time stands still until everybody waits: then the stall is over at once.
            serving.await.unwrap();
            assert_eq!(theirs.read(&mut [0; 8]).await.unwrap(), 0);
        });
}

#[test]
fn descriptors_travel_with_an_answer() {
    block_on(async {
        let peer = connected();
        peer.writable().await.unwrap();
        peer.try_write(&call(1, "pipe", 0)).unwrap();
        let mut bytes = [0; 64];
        let (length, fds) = loop {
            peer.readable().await.unwrap();
            let got = peer.try_io(Interest::READABLE, || {
                sys::socket::receive(&peer, &mut bytes)
            });
            if let Ok(got) = got {
                break got;
            }
        };
        assert!(length >= HEADER);
        let [read] = fds.try_into().unwrap();
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the pipe");
    });
}

#[test]
fn an_answer_that_cannot_be_sent_is_an_error_for_who_waits() {
    block_on(async {
        let mut peer = connected();
        peer.write_all(&call(1, "many", 0)).await.unwrap();
        let (stream, response) = answer(&mut peer).await;
        assert_eq!(stream, 1);
        assert!(error(&response).contains("too many descriptors"));
        peer.write_all(&call(3, "echo", 0)).await.unwrap();
        assert_eq!(answer(&mut peer).await.0, 3);
    });
}
