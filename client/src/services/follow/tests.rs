//! Tests of module `follow`: against a service that answers as told.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::{Stream, stream};
use grpc::events::{Events as Service, EventsServer};
use protos::services::events as wire;
use protos::types::Envelope;
use protos::well_known::Empty;
use protos::wire::Wire as _;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};
use types::{Code, Filter};

use super::{Follow, Heard};
use crate::Client;

type Message = Result<Envelope, Status>;

/// One answer: a stream that ends after its messages and may say where it begins, or a refusal.
enum Answer {
    Stream(Option<&'static str>, Vec<Message>),
    Refusal(Status),
    /// The answer of a daemon that sends no head before the first event, which comes when told.
    Late(Late),
}

/// What a late answer tells and waits for.
struct Late {
    asked: oneshot::Sender<()>,
    happens: oneshot::Receiver<()>,
    messages: Vec<Message>,
}

/// Gives its answers in their order, and is away after them.
#[derive(Clone)]
struct Fake {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl Service for Fake {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Message> + Send>>;

    async fn publish(&self, _: Request<wire::PublishRequest>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("publish"))
    }

    async fn forward(&self, _: Request<wire::ForwardRequest>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("forward"))
    }

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.asked.lock().unwrap().push(request.into_inner().after);
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            Some(Answer::Late(late)) => {
                late.asked.send(()).unwrap();
                late.happens.await.unwrap();
                Ok(Response::new(Box::pin(stream::iter(late.messages))))
            }
            None => Err(Status::unavailable("nothing more to say")),
            Some(Answer::Refusal(status)) => Err(status),
            Some(Answer::Stream(start, messages)) => {
                let messages: Self::SubscribeStream = Box::pin(stream::iter(messages));
                let mut response = Response::new(messages);
                if let Some(start) = start {
                    let start = start.parse().unwrap();
                    response.metadata_mut().insert(grpc::EVENTS_POSITION, start);
                }
                Ok(response)
            }
        }
    }
}

fn event(topic: &str, position: &str) -> Message {
    Ok(Envelope {
        timestamp: Some(SystemTime::now()).to_wire(),
        namespace: "n".into(),
        topic: topic.into(),
        position: position.into(),
        ..Default::default()
    })
}

fn mark(position: &str) -> Message {
    Ok(Envelope {
        position: position.into(),
        ..Default::default()
    })
}

fn refusal(from: &str) -> Answer {
    let mut status = Status::out_of_range("gone: out of range");
    let from = from.parse().unwrap();
    status.metadata_mut().insert(grpc::EVENTS_POSITION, from);
    Answer::Refusal(status)
}

/// Follows a service that gives these answers; also what it was asked. The directory holds its
/// socket.
async fn follow(
    answers: Vec<Answer>,
    patience: Duration,
) -> (Follow, Arc<Mutex<Vec<String>>>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let incoming = stream::unfold(listener, |listener| async {
        let stream = listener.accept().await.map(|(stream, _)| stream);
        Some((stream, listener))
    });
    let fake = Fake {
        answers: Arc::new(Mutex::new(answers.into())),
        asked: Arc::default(),
    };
    let asked = Arc::clone(&fake.asked);
    let routes = grpc::Routes::of(EventsServer::new(fake));
    tokio::spawn(grpc::connections::serve(
        routes,
        incoming,
        std::future::pending(),
    ));
    let address = path.to_str().unwrap();
    let limit = Duration::from_secs(60);
    let client = Client::connect(address, "n".parse().unwrap(), limit).await;
    let events = client.unwrap().events();
    (events.follow(Filter::default(), patience), asked, dir)
}

/// What comes next: a topic, or `gap`.
async fn next(follow: &mut Follow) -> String {
    match follow.next().await.unwrap() {
        Heard::Event(envelope) => envelope.topic,
        Heard::Gap(error) => {
            assert!(error.is(Code::OutOfRange), "{error}");
            "gap".into()
        }
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_broken_stream_is_taken_up_behind_the_last_event_or_mark() {
    let broken = || Err(Status::unavailable("broken"));
    let answers = vec![
        Answer::Stream(Some("r:1"), vec![broken()]),
        Answer::Stream(Some("r:1"), vec![event("/a", "r:2"), mark("r:7"), broken()]),
        Answer::Refusal(Status::unavailable("not yet")),
        Answer::Stream(Some("r:7"), vec![event("/b", "r:8")]),
        Answer::Stream(Some("r:8"), vec![event("/c", "r:9")]),
    ];
    let (mut follow, asked, _dir) = follow(answers, LONG).await;
    for topic in ["/a", "/b", "/c"] {
        assert_eq!(next(&mut follow).await, topic);
    }
    assert_eq!(*asked.lock().unwrap(), ["", "r:1", "r:7", "r:7", "r:8"]);
}

#[tokio::test]
async fn a_gap_is_told_and_what_is_still_held_comes_after_it() {
    let answers = vec![
        Answer::Stream(Some("r:1"), vec![]),
        refusal("s:4"),
        Answer::Stream(Some("s:4"), vec![event("/a", "s:5")]),
    ];
    let (mut follow, asked, _dir) = follow(answers, LONG).await;
    assert_eq!(next(&mut follow).await, "gap");
    assert_eq!(next(&mut follow).await, "/a");
    assert_eq!(*asked.lock().unwrap(), ["", "r:1", "s:4"]);
}

#[tokio::test]
async fn a_daemon_that_does_not_replay_makes_every_break_a_gap() {
    let answers = vec![
        Answer::Stream(None, vec![event("/a", "")]),
        Answer::Stream(None, vec![event("/b", "")]),
    ];
    let (mut follow, _asked, _dir) = follow(answers, LONG).await;
    for want in ["/a", "gap", "/b"] {
        assert_eq!(next(&mut follow).await, want);
    }
}

#[tokio::test]
async fn a_daemon_that_stays_away_ends_it() {
    let answers = vec![Answer::Stream(Some("r:1"), vec![event("/a", "r:2")])];
    let (mut follow, _asked, _dir) = follow(answers, Duration::ZERO).await;
    assert_eq!(next(&mut follow).await, "/a");
    let error = follow.next().await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
}

#[tokio::test]
async fn who_is_refused_for_good_does_not_ask_again() {
    let bad = Status::invalid_argument("bad filter: invalid argument");
    let answers = vec![Answer::Stream(Some("r:1"), vec![Err(bad)])];
    let (mut follow, asked, _dir) = follow(answers, LONG).await;
    let error = follow.next().await.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    assert_eq!(asked.lock().unwrap().len(), 1);
}

/// A late answer with one event; also what tells that it was asked for, and what makes it happen.
fn late(topic: &str) -> (Answer, oneshot::Receiver<()>, oneshot::Sender<()>) {
    let (tell, asked) = oneshot::channel();
    let (happen, happens) = oneshot::channel();
    let late = Late {
        asked: tell,
        happens,
        messages: vec![event(topic, "")],
    };
    (Answer::Late(late), asked, happen)
}

/// Calls `next` and gives it up as soon as the daemon was asked.
async fn give_up(follow: &mut Follow, asked: oneshot::Receiver<()>) {
    tokio::select! {
        heard = follow.next() => panic!("nothing has happened yet: {heard:?}"),
        asked = asked => asked.unwrap(),
    }
}

#[tokio::test]
async fn who_gives_up_a_first_call_and_comes_back_misses_nothing() {
    let (answer, was_asked, happen) = late("/a");
    let (mut follow, asked, _dir) = follow(vec![answer], LONG).await;
    give_up(&mut follow, was_asked).await;
    happen.send(()).unwrap();
    assert_eq!(next(&mut follow).await, "/a");
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn who_gives_up_a_call_between_streams_and_comes_back_is_still_subscribed() {
    let (answer, was_asked, happen) = late("/b");
    let first = Answer::Stream(None, vec![event("/a", "")]);
    let (mut follow, asked, _dir) = follow(vec![first, answer], LONG).await;
    assert_eq!(next(&mut follow).await, "/a");
    give_up(&mut follow, was_asked).await;
    happen.send(()).unwrap();
    for want in ["gap", "/b"] {
        assert_eq!(next(&mut follow).await, want);
    }
    assert_eq!(asked.lock().unwrap().len(), 2);
}
