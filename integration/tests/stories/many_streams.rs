//! Ten thousand open streams, and messages that are too large: the daemon's memory stays within bounds
//! that are stated here, others are answered meanwhile, and all of it comes back.

use std::future::Future;
use std::time::{Duration, Instant};

use grpc::content::ContentClient;
use grpc::events::EventsClient;
use grpc::version::VersionClient;
use integration::{Host, figure, forget_peak, peak, resident, until};
use protos::services::content::{
    AbortRequest, ListStatusesRequest, WriteAction, WriteContentRequest,
};
use protos::services::events::{PublishRequest, SubscribeRequest};
use protos::types::Envelope;
use protos::well_known::{Any, Empty};
use protos::{Message as _, MessageField};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};
use types::Scope;

/// Streams that are open at once.
pub(crate) const STREAMS: usize = 10_000;
/// What one of them may cost the daemon, in bytes, in a build without optimisation.
const SUBSCRIBER: u64 = 13 << 10;
const WRITER: u64 = 26 << 10;
/// What stays after they have gone, in KiB, however often they come: each thread's slots of the log for
/// calls are used again by later ones, and each of them holds on to a page of the heap.
const KEPT: u64 = 80 << 10;
/// Longest wait of others for an answer.
const QUICK: Duration = Duration::from_secs(20);
/// Longest wait for what must come.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Runs clients; at its end all of them are gone at once, in the middle of what they do.
pub(crate) fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("start a runtime");
    runtime.block_on(work);
}

/// Processor time that the daemon has used, in ticks.
fn used(host: &Host) -> u64 {
    let path = format!("/proc/{}/stat", host.daemon_pid());
    let text = std::fs::read_to_string(path).expect("stat");
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .collect();
    let ticks = |n: usize| fields[n].parse::<u64>().expect("ticks");
    ticks(11) + ticks(12)
}

/// Waits until the daemon has done what it was given: a tick in a tenth of a second is none of that.
pub(crate) fn settle(host: &Host) {
    until("the daemon has nothing to do", || {
        let before = used(host);
        std::thread::sleep(Duration::from_millis(100));
        used(host) <= before + 1
    });
}

pub(crate) async fn connect(host: &Host) -> Channel {
    let address = host.address().to_string_lossy().into_owned();
    client::connect(&address, SOON).await.expect("connect")
}

fn scope(host: &Host) -> Scope {
    Scope::new(host.namespace().parse().expect("a namespace"))
}

pub(crate) fn scoped<T>(host: &Host, message: T) -> Request<T> {
    grpc::request(&scope(host), message).expect("a request")
}

/// Others do not notice.
pub(crate) async fn is_quick(host: &Host) {
    let mut version = VersionClient::new(connect(host).await);
    for _ in 0..20 {
        let begin = Instant::now();
        drop(version.version(Empty::new()).await.expect("version"));
        assert!(begin.elapsed() < QUICK, "{:?}", begin.elapsed());
    }
    let begin = Instant::now();
    assert_eq!(host.ctr(["containers", "ls", "-q"]).ok(), "");
    assert!(begin.elapsed() < QUICK, "{:?}", begin.elapsed());
}

/// What the daemon had before there were streams.
pub(crate) struct Cost {
    before: u64,
    descriptors: usize,
}

impl Cost {
    pub(crate) fn new(host: &Host) -> Self {
        settle(host);
        Self {
            before: resident(host.daemon_pid()),
            descriptors: host.descriptors(),
        }
    }

    pub(crate) fn is_within(&self, host: &Host, streams: usize, each: u64) {
        settle(host);
        self.check(resident(host.daemon_pid()), streams, each);
    }

    /// The same of the most that it had since its peak was forgotten.
    pub(crate) fn peak_is_within(&self, host: &Host, streams: usize, each: u64) {
        self.check(peak(host.daemon_pid()), streams, each);
    }

    fn check(&self, now: u64, streams: usize, each: u64) {
        let grown = now.saturating_sub(self.before);
        let bound = streams as u64 * each / 1024;
        figure(format_args!("{grown} KiB for {streams} streams"));
        assert!(grown <= bound, "{grown} KiB more, the bound is {bound}");
    }

    pub(crate) fn is_over(&self, host: &Host) {
        until("descriptors are given back", || {
            host.descriptors() <= self.descriptors
        });
        let mut now = 0;
        let bound = self.before + KEPT;
        let begin = Instant::now();
        while begin.elapsed() < SOON {
            now = resident(host.daemon_pid());
            if now <= bound {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(now <= bound, "{now} KiB are left, {bound} may be");
    }
}

async fn subscribe(host: &Host, connections: usize) -> Vec<Streaming<Envelope>> {
    let mut streams = Vec::with_capacity(STREAMS);
    for _ in 0..connections {
        let mut client = EventsClient::new(connect(host).await);
        for _ in 0..STREAMS / connections {
            let request = SubscribeRequest {
                filters: vec!["topic==\"/all\"".into()],
                ..SubscribeRequest::default()
            };
            let opened = client.subscribe(scoped(host, request)).await;
            streams.push(opened.expect("subscribe").into_inner());
        }
    }
    streams
}

fn event(topic: &str, size: usize) -> PublishRequest {
    PublishRequest {
        topic: topic.into(),
        event: MessageField::some(Any {
            type_url: "example".into(),
            value: vec![7; size],
            ..Any::default()
        }),
        ..PublishRequest::default()
    }
}

async fn subscribers(host: &Host, cost: &Cost, connections: usize) {
    let mut streams = subscribe(host, connections).await;
    cost.is_within(host, STREAMS, SUBSCRIBER);
    is_quick(host).await;
    let mut publisher = EventsClient::new(connect(host).await);
    let request = scoped(host, event("/all", 10));
    drop(publisher.publish(request).await.expect("publish"));
    for stream in &mut streams {
        let next = timeout(SOON, stream.message()).await.expect("in time");
        assert_eq!(next.expect("no failure").expect("no end").topic, "/all");
    }
}

#[test]
fn ten_thousand_subscribers_cost_a_bounded_amount_and_all_hear() {
    let host = Host::new("many-subscribers");
    let cost = Cost::new(&host);
    for connections in [1, 100] {
        run(subscribers(&host, &cost, connections));
        cost.is_over(&host);
    }
    host.finish();
}

/// One that sends nothing, and tells what it hears all the same.
async fn write(mut client: ContentClient<Channel>, scope: Scope) -> String {
    let request = grpc::request(&scope, tokio_stream::pending()).expect("a request");
    let heard = match client.write(request).await {
        Ok(answers) => answers.into_inner().message().await,
        Err(status) => Err(status),
    };
    format!("{heard:?}")
}

/// One more stream of a connection is answered: all that were opened before it have arrived.
async fn have_arrived(host: &Host, client: &mut ContentClient<Channel>, reference: String) {
    let (sender, messages) = mpsc::channel(1);
    let first = WriteContentRequest {
        action: WriteAction::STAT.into(),
        ref_: reference,
        ..WriteContentRequest::default()
    };
    sender.send(first).await.expect("send");
    let request = scoped(host, ReceiverStream::new(messages));
    let answer = timeout(SOON, client.write(request)).await.expect("in time");
    let mut answers = answer.expect("write").into_inner();
    let answer = timeout(SOON, answers.message()).await.expect("in time");
    assert_eq!(answer.expect("no failure").expect("no end").offset, 0);
}

async fn writers(host: &Host, cost: &Cost, connections: usize) {
    let mut open = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..connections {
        let client = ContentClient::new(connect(host).await);
        for _ in 0..STREAMS / connections {
            drop(open.spawn(write(client.clone(), scope(host))));
        }
        clients.push(client);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        have_arrived(host, client, format!("ref-{connections}-{n}")).await;
    }
    cost.is_within(host, STREAMS, WRITER);
    is_quick(host).await;
    if let Some(ended) = open.try_join_next() {
        panic!("one of them has ended: {ended:?}");
    }
}

/// All ingests, and how much each of them has.
pub(crate) async fn ingests(host: &Host) -> Vec<(String, i64)> {
    let mut client = ContentClient::new(connect(host).await);
    let list = client.list_statuses(scoped(host, ListStatusesRequest::default()));
    let all = list.await.expect("list").into_inner().statuses;
    all.into_iter().map(|one| (one.ref_, one.offset)).collect()
}

/// Gives up all ingests.
pub(crate) async fn abort(host: &Host) -> Vec<(String, i64)> {
    let mut client = ContentClient::new(connect(host).await);
    let all = ingests(host).await;
    for (reference, _) in &all {
        let request = AbortRequest {
            ref_: reference.clone(),
            ..AbortRequest::default()
        };
        drop(client.abort(scoped(host, request)).await.expect("abort"));
    }
    all
}

#[test]
fn ten_thousand_writers_that_send_nothing_cost_a_bounded_amount() {
    let host = Host::new("many-writers");
    let cost = Cost::new(&host);
    for connections in [1, 100] {
        run(writers(&host, &cost, connections));
        cost.is_over(&host);
    }
    // Each connection has begun an ingest, by its one answer: that can be resumed, or ends in a day.
    let ingests = host.root().join("io.containerd.content.v1.content/ingest");
    assert_eq!(std::fs::read_dir(&ingests).expect("list").count(), 101);
    run(async { assert_eq!(abort(&host).await.len(), 101) });
    host.finish();
}

/// A message of one byte more than there may be.
fn too_large() -> PublishRequest {
    let size = grpc::MAX_MESSAGE + 1;
    let head = event("/x", size).compute_size() - size as u64;
    let made = event("/x", size - usize::try_from(head).expect("a size"));
    assert_eq!(made.compute_size(), size as u64);
    made
}

/// It is refused by its class, and the connection is as good as before.
async fn is_refused(scope: Scope, mut client: EventsClient<Channel>) {
    let refused = client.publish(grpc::request(&scope, too_large()).expect("a request"));
    let refused = refused.await;
    let status = refused.expect_err("a refusal");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let text = "grpc: received message larger than max (16777217 vs. 16777216)";
    assert_eq!(status.message(), text);
    let small = grpc::request(&scope, event("/x", 10)).expect("a request");
    drop(client.publish(small).await.expect("publish"));
}

/// As many at once.
async fn are_refused(host: &Host, clients: Vec<EventsClient<Channel>>) {
    let mut open = JoinSet::new();
    for client in clients {
        drop(open.spawn(is_refused(scope(host), client)));
    }
    drop(open.join_all().await);
}

/// What the daemon may take for them at most, in KiB: it never holds one.
const LARGE: u64 = 8 << 10;

async fn large(host: &Host) {
    let client = async || {
        let client = EventsClient::new(connect(host).await);
        client.max_encoding_message_size(2 * grpc::MAX_MESSAGE)
    };
    let pid = host.daemon_pid();
    let before = resident(pid);
    forget_peak(pid);
    let one = client().await;
    for _ in 0..100 {
        is_refused(scope(host), one.clone()).await;
    }
    let grown = peak(pid).saturating_sub(before);
    assert!(grown <= LARGE, "{grown} KiB more");
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(client().await);
    }
    are_refused(host, clients).await;
    // And all over one connection.
    are_refused(host, vec![one; 16]).await;
    let grown = peak(pid).saturating_sub(before);
    assert!(grown <= LARGE, "{grown} KiB more");
}

#[test]
fn messages_that_are_too_large_are_refused_before_they_take_memory() {
    let host = Host::new("large-messages");
    run(large(&host));
    host.finish();
}
