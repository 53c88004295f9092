//! From publishing an event to receiving it.

use std::time::Instant;

use protos::MessageField;
use protos::services::events as wire;
use protos::well_known::Any;
use tonic::transport::Channel;

use crate::bars::Table;
use crate::peer::Peer;
use crate::records::alternate;
use crate::{Bench, calls, median};

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

type Received = tonic::Streaming<protos::types::Envelope>;

/// A subscription that is known to hear: Go tells nothing before the first event.
async fn subscribed(channel: &Channel) -> Received {
    let mut stub = grpc::events::EventsClient::new(channel.clone());
    let request = wire::SubscribeRequest {
        filters: vec![format!("namespace=={NAMESPACE}")],
        ..Default::default()
    };
    let subscribe = tokio::spawn(async move { stub.subscribe(request).await });
    let mut stub = grpc::events::EventsClient::new(channel.clone());
    while !subscribe.is_finished() {
        let publish = calls::within(NAMESPACE, event(0));
        stub.publish(publish).await.expect("publish");
        tokio::task::yield_now().await;
    }
    let answer = subscribe.await.expect("a task");
    let mut received = answer.expect("subscribe").into_inner();
    // What was published until then is read, up to a last one of another topic.
    let mut last = event(0);
    last.topic = "/last".into();
    stub.publish(calls::within(NAMESPACE, last))
        .await
        .expect("publish");
    while received.message().await.expect("event").expect("one").topic != "/last" {}
    received
}

fn latency(bench: &Bench, peer: &Peer) -> f64 {
    bench.runtime.block_on(async {
        let mut received = subscribed(&peer.calls.channel).await;
        let mut all = Vec::new();
        for n in 0..500 {
            let mut stub = grpc::events::EventsClient::new(peer.calls.channel.clone());
            let begin = Instant::now();
            let publish =
                tokio::spawn(async move { stub.publish(calls::within(NAMESPACE, event(n))).await });
            received.message().await.expect("event").expect("one");
            all.push(begin.elapsed().as_secs_f64() * 1e6);
            publish.await.expect("a task").expect("publish");
        }
        median(all)
    })
}

fn rate(bench: &Bench, peer: &Peer) -> f64 {
    const EACH: usize = 500;
    bench.runtime.block_on(async {
        let mut received = subscribed(&peer.calls.channel).await;
        let begin = Instant::now();
        let publishers = (0..WIDTH).map(|_| {
            let mut stub = grpc::events::EventsClient::new(peer.calls.channel.clone());
            tokio::spawn(async move {
                for n in 0..EACH {
                    let publish = calls::within(NAMESPACE, event(n));
                    stub.publish(publish).await.expect("publish");
                }
            })
        });
        let publishers: Vec<_> = publishers.collect();
        for _ in 0..WIDTH * EACH {
            received.message().await.expect("event").expect("one");
        }
        let took = begin.elapsed().as_secs_f64();
        for publisher in publishers {
            publisher.await.expect("a publisher");
        }
        (WIDTH * EACH) as f64 / took
    })
}
