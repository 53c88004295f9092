//! Bytes that are no message, for every method that there is: an error, and a daemon that lives.

use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use grpc::Outgoing;
use integration::{forget_peak, peak, resident, shim};
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
        a_body_that_is_too_large_is_refused_by_every_method
        a_body_of_nothing_is_answered_by_every_method
        the_socket_of_shims_refuses_what_is_too_large_or_nothing
    }
}

/// Longest answer to one. A stream of those who wait has none when it takes the message.
const SOON: Duration = integration::PATIENCE;
/// Streams that only end when there is something to tell.
const WAIT: Duration = Duration::from_millis(500);

/// Services that there are not yet.
const UNSERVED: &str = "/containerd.services.sandbox.";

/// What is sent as it is.
struct Raw(Bytes);

impl Outgoing for Raw {
    fn write(self, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        frame.put(self.0);
        Ok(())
    }
}

/// How a call with one message of these bytes ends; `None` when it does not.
async fn send(peer: &Peer, path: &'static str, bytes: &[u8], limit: Duration) -> Option<Code> {
    send_all(peer, path, Bytes::copy_from_slice(bytes), limit).await
}

async fn send_all(peer: &Peer, path: &'static str, bytes: Bytes, limit: Duration) -> Option<Code> {
    let mut client = tonic::client::Grpc::new(peer.channel());
    client.ready().await.expect("a connection");
    let one = tokio_stream::once(Raw(bytes));
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

/// One byte more than a message may have, and no memory for any of them.
async fn a_body_that_is_too_large_is_refused_by_every_method(peer: &Peer) {
    const LIMIT: usize = 16 << 20;
    /// KiB that all of them together may take for a moment: less than two messages would.
    const MEMORY: u64 = 24 << 10;
    let pid = peer.host.daemon_pid();
    let bytes = Bytes::from(vec![0; LIMIT + 1]);
    forget_peak(pid);
    let before = resident(pid);
    for path in paths() {
        let told = send_all(peer, path, bytes.clone(), SOON).await;
        let want = match path.starts_with(UNSERVED) {
            true => Code::Unimplemented,
            false => Code::ResourceExhausted,
        };
        assert_eq!(told, Some(want), "{path}");
    }
    let grown = peak(pid).saturating_sub(before);
    assert!(grown < MEMORY, "{grown} KiB for what was refused");
    peer.lives().await;
    assert_eq!(peer.host.daemon_pid(), pid);
}

/// A message in which nothing is said is one: what is missing is named by its class, and nothing fails.
async fn a_body_of_nothing_is_answered_by_every_method(peer: &Peer) {
    let mut wrong = Vec::new();
    for meter in grpc::meter::all() {
        let limit = match meter.kind {
            "unary" => SOON,
            _ => WAIT,
        };
        let told = send(peer, meter.path, &[], limit).await;
        let fits = match told {
            None => meter.kind != "unary",
            Some(code) => matches!(
                code,
                Code::Ok
                    | Code::InvalidArgument
                    | Code::NotFound
                    | Code::AlreadyExists
                    | Code::FailedPrecondition
                    | Code::Unimplemented
            ),
        };
        if !fits {
            wrong.push(format!("{}: {told:?}", meter.path));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    peer.lives().await;
}

async fn the_socket_of_shims_refuses_what_is_too_large_or_nothing(peer: &Peer) {
    const EVENTS: &str = "containerd.services.events.ttrpc.v1.Events";
    /// Longest message that the protocol allows.
    const LONGEST: u32 = 4 << 20;
    let pid = peer.host.daemon_pid();
    let address = format!("{}.ttrpc", peer.host.address().display());
    let code = |raw: &mut shim::Raw, stream: u32, request: &[u8]| {
        assert!(raw.send(request), "the connection is open");
        let frame = raw.receive().expect("an answer");
        assert_eq!(frame.stream, stream);
        frame.code()
    };
    let mut raw = shim::Raw::connect(&address);
    let nothing = shim::Raw::request(1, EVENTS, "Forward", &[]);
    assert_eq!(code(&mut raw, 1, &nothing), ttrpc::Code::INVALID_ARGUMENT);
    let unknown = shim::Raw::request(3, EVENTS, "Backward", &[]);
    assert_eq!(code(&mut raw, 3, &unknown), ttrpc::Code::UNIMPLEMENTED);
    let garbage = shim::Raw::request(5, EVENTS, "Forward", &[0x0f, 0xff]);
    // The library of the daemon's ttrpc has one class for what it cannot read.
    let classes = [ttrpc::Code::UNKNOWN, ttrpc::Code::INVALID_ARGUMENT];
    let refused = code(&mut raw, 5, &garbage);
    assert!(classes.contains(&refused), "{refused:?}");
    let part = vec![7; 1 << 16];
    forget_peak(pid);
    let before = resident(pid);
    for _ in 0..8 {
        let mut raw = shim::Raw::connect(&address);
        assert!(raw.send(&shim::Raw::head(LONGEST + 1, 1, 1, 0)));
        let mut left = usize::try_from(LONGEST + 1).expect("small");
        while left > part.len() {
            assert!(raw.send(&part));
            left -= part.len();
        }
        // It is answered when it is there.
        let refused = code(&mut raw, 1, &part[..left]);
        let classes = [
            ttrpc::Code::RESOURCE_EXHAUSTED,
            ttrpc::Code::INVALID_ARGUMENT,
        ];
        assert!(classes.contains(&refused), "{refused:?}");
    }
    let grown = peak(pid).saturating_sub(before);
    assert!(grown < u64::from(LONGEST >> 10), "{grown} KiB");
    // A connection that was there before is as good as ever.
    let nothing = shim::Raw::request(7, EVENTS, "Forward", &[]);
    assert_eq!(code(&mut raw, 7, &nothing), ttrpc::Code::INVALID_ARGUMENT);
    peer.lives().await;
}
