//! From publishing an event to receiving it.

use std::time::Instant;

use bytes::Bytes;
use protos::MessageField;
use protos::services::events as wire;
use protos::well_known::Any;

use crate::bars::Table;
use crate::lean::{Lean, Messages};
use crate::peer::Peer;
use crate::records::alternate;
use crate::{Bench, median};

const NAMESPACE: &str = "ctd-bench-events";
/// Publishers at a time.
const WIDTH: usize = 8;

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let peers = [&bench.ours, &bench.debian];
    let [ours, debian] = alternate(bench, peers, &latency);
    let line = table.add("event, published to received, p50, µs", ours);
    line.debian(debian).of_debian_at_most(0.7);
    let [ours, debian] = alternate(bench, peers, &rate);
    let line = table.add("events, 8 publishers, received per s", ours);
    line.debian(debian).of_debian_at_least(1.3);
}

fn event(n: usize) -> wire::PublishRequest {
    wire::PublishRequest {
        topic: "/tasks/exit".into(),
        event: MessageField::some(Any {
            type_url: "containerd.events.TaskExit".into(),
            value: format!("some container {n}").into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

const PUBLISH: &str = "containerd.services.events.v1.Events/Publish";
const SUBSCRIBE: &str = "containerd.services.events.v1.Events/Subscribe";

/// A subscription that is known to hear: Go tells nothing before the first event.
async fn subscribed(client: &Lean) -> Messages {
    let request = wire::SubscribeRequest {
        filters: vec![format!("namespace=={NAMESPACE}")],
        ..Default::default()
    };
    let mut subscriber = client.clone();
    let subscribe = tokio::spawn(async move {
        let stream = subscriber.stream(SUBSCRIBE, NAMESPACE, &request);
        stream.await
    });
    let mut publisher = client.clone();
    while !subscribe.is_finished() {
        publisher.call(PUBLISH, NAMESPACE, &event(0)).await;
        tokio::task::yield_now().await;
    }
    let mut received = subscribe.await.expect("a task");
    // What was published until then is read, up to a last one of another topic.
    let mut last = event(0);
    last.topic = "/last".into();
    publisher.call(PUBLISH, NAMESPACE, &last).await;
    let is_last = |message: Bytes| message.windows(5).any(|part| part == b"/last");
    while !is_last(received.next().await) {}
    received
}

/// On one thread: the way between a client's own threads is as long as all that is measured.
fn latency(_: &Bench, peer: &Peer) -> f64 {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Lean::connect(&peer.socket()).await;
        let mut received = subscribed(&client).await;
        let mut all = Vec::new();
        for n in 0..500 {
            let mut publisher = client.clone();
            let begin = Instant::now();
            let publish = async { publisher.call(PUBLISH, NAMESPACE, &event(n)).await };
            let receive = async {
                received.next().await;
                begin.elapsed().as_secs_f64() * 1e6
            };
            all.push(tokio::join!(publish, receive).1);
        }
        median(all)
    })
}

fn rate(bench: &Bench, peer: &Peer) -> f64 {
    const EACH: usize = 500;
    bench.runtime.block_on(async {
        let client = Lean::connect(&peer.socket()).await;
        let mut received = subscribed(&client).await;
        let begin = Instant::now();
        let publishers = (0..WIDTH).map(|_| {
            let mut publisher = client.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    publisher.call(PUBLISH, NAMESPACE, &event(n)).await;
                }
            })
        });
        let publishers: Vec<_> = publishers.collect();
        for _ in 0..WIDTH * EACH {
            received.next().await;
        }
        let took = begin.elapsed().as_secs_f64();
        for publisher in publishers {
            publisher.await.expect("a publisher");
        }
        (WIDTH * EACH) as f64 / took
    })
}
