//! Bytes that are no message, for every method that there is: an error, and a daemon that lives.

use std::time::Duration;

use bytes::BufMut as _;
use grpc::Outgoing;
use protos::well_known::Empty;
use tonic::codec::EncodeBuf;
use tonic::{Code, Status};

use crate::peer::{Peer, scoped};

rules! {
    both {
        a_body_that_is_no_message_is_refused_by_every_method
    }
    ours {
        a_body_that_is_nested_too_deeply_ends_no_daemon
    }
}

/// Longest answer to one. A stream of those who wait has none when it takes the message.
const SOON: Duration = integration::PATIENCE;
/// Streams that only end when there is something to tell.
const WAIT: Duration = Duration::from_millis(500);

/// What is sent as it is.
struct Raw(Vec<u8>);

impl Outgoing for Raw {
    fn write(self, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        frame.put_slice(&self.0);
        Ok(())
    }
}

/// How a call with one message of these bytes ends; `None` when it does not.
async fn send(peer: &Peer, path: &'static str, bytes: &[u8], limit: Duration) -> Option<Code> {
    let mut client = tonic::client::Grpc::new(peer.channel());
    client.ready().await.expect("a connection");
    let one = tokio_stream::once(Raw(bytes.to_vec()));
    let codec = grpc::Codec::<Raw, Empty>::default();
    let call = async {
        let request = scoped(one);
        let answer = client.streaming(request, path.parse().expect("a path"), codec);
        let mut answers = answer.await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    let ended = tokio::time::timeout(limit, call).await.ok()?;
    Some(ended.map_or_else(|status| status.code(), |()| Code::Ok))
}

fn paths() -> impl Iterator<Item = &'static str> {
    grpc::meter::all().iter().map(|meter| meter.path)
}

async fn a_body_that_is_no_message_is_refused_by_every_method(peer: &Peer) {
    assert!(paths().count() > 60);
    for path in paths() {
        for bytes in [
            // A text of five bytes with one of them, and a number without its end.
            &[0x0a, 0x05, b'a'][..],
            &[0x08, 0xff],
            // A kind of field that there is not, and a field without a number.
            &[0x0f],
            &[0x02, 0x00],
            // A group that does not end.
            &[0x7b; 64],
        ] {
            let told = send(peer, path, bytes, SOON).await;
            let code = told.unwrap_or_else(|| panic!("{path} {bytes:?}: no answer"));
            assert_ne!(code, Code::Ok, "{path} {bytes:?}");
        }
    }
    peer.lives().await;
}

/// Go's ends: it looks at the groups with a stack as deep as they are.
async fn a_body_that_is_nested_too_deeply_ends_no_daemon(peer: &Peer) {
    const DEPTH: usize = 500_000;
    let mut groups = vec![0x7b; DEPTH];
    groups.resize(2 * DEPTH, 0x7c);
    // A message in a message, as far as the length of a field can tell it.
    let mut nested = Vec::new();
    for _ in 0..1000 {
        let mut outer = vec![0x0a];
        let mut length = nested.len();
        while length >= 0x80 {
            outer.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
            length >>= 7;
        }
        outer.push(u8::try_from(length).expect("seven bits"));
        outer.append(&mut nested);
        nested = outer;
    }
    let pid = peer.host.daemon_pid();
    for path in paths() {
        for bytes in [&groups, &nested] {
            // Whatever it is taken for: one that has no such field need not look into it.
            let _told = send(peer, path, bytes, WAIT).await;
        }
    }
    peer.lives().await;
    assert_eq!(peer.host.daemon_pid(), pid);
}
