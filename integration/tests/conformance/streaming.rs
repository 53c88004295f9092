//! Streaming: streams by name. Debian's daemon is of a generation that has none.

use futures::StreamExt as _;
use grpc::leases::LeasesClient;
use grpc::streaming::StreamingClient;
use protos::services::leases::{CreateRequest, DeleteRequest};
use protos::well_known::Any;
use protos::wire::Wire as _;
use protos::wire::transfer::stream_init_to_any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::peer::{Peer, SOON, leased, refused, scoped, within};

rules! {
    both {}
    ours {
        a_stream_is_answered_when_it_is_known
        a_name_is_taken_once_in_a_namespace
        a_name_is_free_when_its_connection_is_gone
        a_stream_begins_with_its_name
        a_stream_needs_a_namespace
        a_leased_stream_ends_with_its_lease
    }
}

/// An open stream: what it says, and where to say something.
pub(crate) struct Open {
    pub(crate) frames: Streaming<Any>,
    pub(crate) sender: mpsc::Sender<Any>,
}

impl Open {
    /// The next frame, in time; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Any>, Status> {
        let next = tokio::time::timeout(SOON, self.frames.message()).await;
        next.expect("a frame in time")
    }

    /// All frames until the end.
    pub(crate) async fn rest(mut self) -> Vec<Any> {
        let mut all = Vec::new();
        while let Some(frame) = self.next().await.expect("a frame") {
            all.push(frame);
        }
        all
    }
}

/// Opens a stream whose first frame is this one.
async fn begin(
    peer: &Peer,
    wrap: impl FnOnce(
        futures::stream::BoxStream<'static, Any>,
    ) -> Request<futures::stream::BoxStream<'static, Any>>,
    first: Any,
) -> Result<Open, Status> {
    let (sender, receiver) = mpsc::channel(4);
    let frames = futures::stream::iter([first]).chain(ReceiverStream::new(receiver));
    let mut client = StreamingClient::new(peer.channel());
    let frames = client.stream(wrap(frames.boxed())).await?.into_inner();
    let mut open = Open { frames, sender };
    let answer = open.next().await?;
    let answer = answer.ok_or_else(|| Status::unknown("ended at once"))?;
    assert_eq!(answer.type_url, "google.protobuf.Empty");
    assert!(answer.value.is_empty());
    Ok(open)
}

fn named(id: &str) -> Any {
    stream_init_to_any(id).expect("a frame").to_wire()
}

/// Opens the stream `id`.
pub(crate) async fn open(peer: &Peer, id: &str) -> Result<Open, Status> {
    begin(peer, scoped, named(id)).await
}

async fn a_stream_is_answered_when_it_is_known(peer: &Peer) {
    let first = open(peer, "a").await.expect("open");
    drop(open(peer, "b").await.expect("open"));
    drop(first);
}

async fn a_name_is_taken_once_in_a_namespace(peer: &Peer) {
    let _first = open(peer, "a").await.expect("open");
    let text = refused(Code::AlreadyExists, open(peer, "a").await.map(|_| ()));
    assert!(text.contains("already exists"), "{text}");
    let elsewhere = begin(peer, |frames| within("other", frames), named("a")).await;
    drop(elsewhere.expect("the name in another namespace"));
}

async fn a_name_is_free_when_its_connection_is_gone(peer: &Peer) {
    drop(open(peer, "a").await.expect("open"));
    let again = async {
        while let Err(status) = open(peer, "a").await {
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, again)
        .await
        .expect("free in time");
}

async fn a_stream_begins_with_its_name(peer: &Peer) {
    let mut other = named("a");
    other.type_url = "containerd.types.transfer.Data".into();
    let answer = begin(peer, scoped, other).await.map(|_| ());
    refused(Code::InvalidArgument, answer);
    let mut damaged = named("a");
    damaged.value = vec![0xff];
    let answer = begin(peer, scoped, damaged).await.map(|_| ());
    refused(Code::InvalidArgument, answer);
    let answer = open(peer, &"x".repeat(5000)).await.map(|_| ());
    refused(Code::InvalidArgument, answer);
    let nothing = futures::stream::empty::<Any>();
    let mut client = StreamingClient::new(peer.channel());
    let answer = client.stream(scoped(nothing)).await;
    refused(Code::InvalidArgument, crate::peer::all(answer).await);
}

async fn a_stream_needs_a_namespace(peer: &Peer) {
    let answer = begin(peer, Request::new, named("a")).await.map(|_| ());
    let text = refused(Code::FailedPrecondition, answer);
    assert!(text.contains("namespace is required"), "{text}");
}

async fn a_leased_stream_ends_with_its_lease(peer: &Peer) {
    let mut leases = LeasesClient::new(peer.channel());
    let create = CreateRequest {
        id: "l".into(),
        ..CreateRequest::default()
    };
    drop(leases.create(scoped(create)).await.expect("lease"));
    let mut free = open(peer, "free").await.expect("open");
    let held = begin(peer, |frames| leased("l", frames), named("held")).await;
    let held = held.expect("open");
    let delete = DeleteRequest {
        id: "l".into(),
        sync: true,
        ..DeleteRequest::default()
    };
    drop(leases.delete(scoped(delete)).await.expect("delete"));
    assert!(held.rest().await.is_empty());
    // The one without a lease is still there, and still its name.
    let taken = open(peer, "free").await.map(|_| ());
    refused(Code::AlreadyExists, taken);
    drop(free.sender);
    assert!(futures::FutureExt::now_or_never(free.frames.message()).is_none());
}
