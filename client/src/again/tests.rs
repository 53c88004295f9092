//! Tests with servers that refuse in each way that there is.

use std::time::Duration;

use futures::future::poll_fn;
use http_body::Body as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::*;

/// SETTINGS without any.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// GOAWAY: no stream was taken, and nothing is wrong.
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const HEADERS: u8 = 1;

/// RST_STREAM of the first stream.
fn reset(code: u8) -> Vec<u8> {
    vec![0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, code]
}

/// Reads frames until the head of a call has come.
async fn until_called(stream: &mut UnixStream) {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    stream.write_all(&SETTINGS).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut rest = vec![0; length as usize];
        stream.read_exact(&mut rest).await.unwrap();
        if head[3] == HEADERS {
            return;
        }
    }
}

/// Answers each call of a connection with what it has sent.
async fn echo(stream: UnixStream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut heard = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                heard.extend_from_slice(&data);
            }
            let mut sender = respond.send_response(Response::new(()), false).unwrap();
            sender.send_data(Bytes::from(heard), true).unwrap();
        });
    }
}

/// A server whose first `count` connections answer a call with `refusal` and no more.
fn server(dir: &std::path::Path, refusal: Vec<u8>, count: u32) -> Again {
    let path = dir.join("s");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let mut refused = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            if refused == count {
                tokio::spawn(echo(stream));
                continue;
            }
            refused += 1;
            until_called(&mut stream).await;
            stream.write_all(&refusal).await.unwrap();
            // The client closes it, or comes again on it.
            tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
        }
    });
    let channel = crate::connect_lazily(&path.to_string_lossy(), Duration::from_secs(60));
    Again::new(channel.unwrap())
}

async fn call(again: &mut Again, body: Body) -> Result<Vec<u8>, transport::Error> {
    poll_fn(|cx| again.poll_ready(cx)).await?;
    let mut request = Request::new(body);
    *request.method_mut() = http::Method::POST;
    let mut answer = again.call(request).await?.into_body();
    let mut heard = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx)).await {
        heard.extend(frame.unwrap().into_data().unwrap());
    }
    Ok(heard)
}

/// Messages, one a frame.
struct Frames(Vec<Bytes>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = self.0.pop();
        Poll::Ready(next.map(|data| Ok(Frame::data(data))))
    }
}

#[tokio::test]
async fn a_call_that_a_daemon_did_not_take_is_made_again_with_all_that_it_said() {
    const REFUSED_STREAM: u8 = 7;
    for refusal in [
        GOAWAY.to_vec(),
        [&reset(REFUSED_STREAM)[..], &GOAWAY].concat(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut again = server(dir.path(), refusal, 1);
        let said = vec![Bytes::from("two"), Bytes::from("one ")];
        let heard = call(&mut again, Body::new(Frames(said))).await.unwrap();
        assert_eq!(heard, b"one two");
        let heard = call(&mut again, Body::new("next".to_owned())).await;
        assert_eq!(heard.unwrap(), b"next");
    }
}

#[tokio::test]
async fn a_daemon_that_takes_nothing_is_not_asked_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut again = server(dir.path(), GOAWAY.into(), ATTEMPTS);
    let said = Body::new("x".to_owned());
    let error = call(&mut again, said).await.unwrap_err();
    assert!(is_unbegun(&error), "{error:?}");
    let heard = call(&mut again, Body::new("y".to_owned())).await;
    assert_eq!(heard.unwrap(), b"y");
}

#[tokio::test]
async fn a_call_that_may_have_been_begun_is_not_made_again() {
    const INTERNAL_ERROR: u8 = 2;
    const CANCEL: u8 = 8;
    for code in [INTERNAL_ERROR, CANCEL] {
        let dir = tempfile::tempdir().unwrap();
        let mut again = server(dir.path(), reset(code), 1);
        let error = call(&mut again, Body::new("x".to_owned())).await;
        let error = error.unwrap_err();
        assert!(!is_unbegun(&error), "{error:?}");
    }
}

#[test]
fn what_was_refused_was_not_begun() {
    for (reason, want) in [
        (h2::Reason::REFUSED_STREAM, false),
        (h2::Reason::NO_ERROR, false),
    ] {
        // Of this side's own making: no server has said so.
        assert_eq!(is_unbegun(&h2::Error::from(reason)), want, "{reason}");
    }
}

#[test]
fn a_call_that_has_said_too_much_to_say_it_again_is_not() {
    let mut tape = Tape::new(Body::empty());
    tape.keep(&Bytes::from(vec![0; KEPT]));
    assert!(tape.rewind(2));
    tape.keep(&Bytes::from_static(b"x"));
    assert!(!tape.rewind(3) && tape.sent.is_empty());
}
