//! Requests in which something is missing or out of every range, streams among them: a refusal of a class,
//! or an answer, and the daemon lives. Beside it, `bad_input` takes each part out of whole messages in turn.

use std::collections::HashMap;

use grpc::content::ContentClient;
use grpc::diff::DiffClient;
use grpc::events::EventsClient;
use grpc::snapshots::SnapshotsClient;
use protos::services::{content, diff, events, snapshots};
use protos::types::{Descriptor, Envelope, Mount};
use protos::well_known::{Any, FieldMask, Timestamp};
use protos::{EnumOrUnknown, MessageField};
use tonic::{Code, Status};

use crate::peer::{Peer, all, mask, scoped};
use crate::snapshots::OVERLAY;

rules! {
    both {}
    ours {
        content_takes_whatever_is_missing
        snapshots_take_whatever_is_missing
        a_differ_takes_whatever_is_missing
        events_take_whatever_is_missing
    }
}

/// What went wrong with the answers to some requests.
struct Answers(Vec<String>);

impl Answers {
    fn note<T>(&mut self, what: &str, answer: Result<T, Status>) {
        let Err(status) = answer else { return };
        let bug = [
            Code::Unknown,
            Code::Internal,
            Code::Cancelled,
            Code::Unavailable,
            Code::DeadlineExceeded,
        ];
        if bug.contains(&status.code()) || status.message().is_empty() {
            self.0.push(format!("{what}: {status}"));
        }
    }

    async fn end(self, peer: &Peer) {
        assert!(self.0.is_empty(), "{:#?}", self.0);
        peer.lives().await;
    }
}

/// Notes the answer to each message.
macro_rules! ask {
    ($answers:ident, $client:ident; $($method:ident($message:expr))*) => {
        $($answers.note(stringify!($method), $client.$method(scoped($message)).await);)*
    };
}

/// The same where the answer is a stream.
macro_rules! ask_for_many {
    ($answers:ident, $client:ident; $($method:ident($message:expr))*) => {
        $($answers.note(stringify!($method), all($client.$method(scoped($message)).await).await);)*
    };
}

/// Out of every range.
fn bad_time() -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: i64::MIN,
        nanos: -1,
        ..Timestamp::default()
    })
}

fn paths(paths: &[&str]) -> MessageField<FieldMask> {
    mask(paths)
}

async fn content_takes_whatever_is_missing(peer: &Peer) {
    let mut answers = Answers(Vec::new());
    let mut client = ContentClient::new(peer.channel());
    let info = || MessageField::some(content::Info::default());
    ask! { answers, client;
        info(content::InfoRequest::default())
        update(content::UpdateRequest::default())
        update(content::UpdateRequest { info: info(), ..Default::default() })
        update(content::UpdateRequest { update_mask: paths(&["labels"]), ..Default::default() })
        update(content::UpdateRequest {
            info: MessageField::some(content::Info {
                created_at: bad_time(),
                ..Default::default()
            }),
            update_mask: paths(&["", ".", "labels."]),
            ..Default::default()
        })
        delete(content::DeleteContentRequest::default())
        status(content::StatusRequest::default())
        list_statuses(content::ListStatusesRequest::default())
        list_statuses(content::ListStatusesRequest {
            filters: vec![String::new()],
            ..Default::default()
        })
        abort(content::AbortRequest::default())
    }
    ask_for_many! { answers, client;
        list(content::ListContentRequest::default())
        list(content::ListContentRequest { filters: vec![String::new()], ..Default::default() })
        read(content::ReadContentRequest::default())
    }
    let nothing: [content::WriteContentRequest; 0] = [];
    let answer = client.write(scoped(tokio_stream::iter(nothing))).await;
    answers.note("write of nothing", all(answer).await);
    for number in [0, 1, 2, 3, -1, i32::MAX] {
        for reference in ["", "r"] {
            let first = content::WriteContentRequest {
                action: EnumOrUnknown::from_i32(number),
                ref_: reference.into(),
                total: -1,
                ..Default::default()
            };
            let answer = client.write(scoped(tokio_stream::iter([first]))).await;
            answers.note(&format!("write {number} {reference:?}"), all(answer).await);
        }
    }
    // Committed in between, or never begun.
    let abort = content::AbortRequest {
        ref_: "r".into(),
        ..Default::default()
    };
    drop(client.abort(scoped(abort)).await);
    answers.end(peer).await;
}

async fn snapshots_take_whatever_is_missing(peer: &Peer) {
    let mut answers = Answers(Vec::new());
    let mut client = SnapshotsClient::new(peer.channel());
    for snapshotter in ["", OVERLAY] {
        let name = || snapshotter.to_owned();
        let info = || MessageField::some(snapshots::Info::default());
        let odd = snapshots::Info {
            name: "k".into(),
            kind: EnumOrUnknown::from_i32(99),
            created_at: bad_time(),
            ..Default::default()
        };
        ask! { answers, client;
            prepare(snapshots::PrepareSnapshotRequest { snapshotter: name(), ..Default::default() })
            view(snapshots::ViewSnapshotRequest { snapshotter: name(), ..Default::default() })
            mounts(snapshots::MountsRequest { snapshotter: name(), ..Default::default() })
            commit(snapshots::CommitSnapshotRequest { snapshotter: name(), ..Default::default() })
            commit(snapshots::CommitSnapshotRequest {
                snapshotter: name(),
                name: "n".into(),
                ..Default::default()
            })
            remove(snapshots::RemoveSnapshotRequest { snapshotter: name(), ..Default::default() })
            stat(snapshots::StatSnapshotRequest { snapshotter: name(), ..Default::default() })
            update(snapshots::UpdateSnapshotRequest { snapshotter: name(), ..Default::default() })
            update(snapshots::UpdateSnapshotRequest {
                snapshotter: name(),
                info: info(),
                ..Default::default()
            })
            update(snapshots::UpdateSnapshotRequest {
                snapshotter: name(),
                update_mask: paths(&["labels"]),
                ..Default::default()
            })
            prepare(snapshots::PrepareSnapshotRequest {
                snapshotter: name(),
                key: "k".into(),
                ..Default::default()
            })
            update(snapshots::UpdateSnapshotRequest {
                snapshotter: name(),
                info: MessageField::some(odd),
                update_mask: paths(&["", ".", "labels."]),
                ..Default::default()
            })
            usage(snapshots::UsageRequest { snapshotter: name(), ..Default::default() })
            cleanup(snapshots::CleanupRequest { snapshotter: name(), ..Default::default() })
        }
        ask_for_many! { answers, client;
            list(snapshots::ListSnapshotsRequest { snapshotter: name(), ..Default::default() })
        }
    }
    answers.end(peer).await;
}

async fn a_differ_takes_whatever_is_missing(peer: &Peer) {
    let mut answers = Answers(Vec::new());
    let mut client = DiffClient::new(peer.channel());
    let tar = vec![0; 1024];
    let digest = crate::content::Content::of(peer).put(&tar).await;
    let layer = || {
        MessageField::some(Descriptor {
            media_type: types::media_type::OCI_LAYER.into(),
            digest: digest.clone(),
            size: 1024,
            ..Default::default()
        })
    };
    let payloads = HashMap::from([(String::new(), Any::default())]);
    let unsized_layer = Descriptor {
        size: -1,
        ..layer().unwrap_or_default()
    };
    let nowhere = Mount {
        type_: "bind".into(),
        ..Mount::default()
    };
    ask! { answers, client;
        apply(diff::ApplyRequest::default())
        apply(diff::ApplyRequest {
            diff: MessageField::some(Descriptor::default()),
            ..Default::default()
        })
        apply(diff::ApplyRequest { diff: MessageField::some(unsized_layer), ..Default::default() })
        apply(diff::ApplyRequest { diff: layer(), ..Default::default() })
        apply(diff::ApplyRequest { diff: layer(), payloads, ..Default::default() })
        apply(diff::ApplyRequest {
            diff: layer(),
            mounts: vec![Mount::default()],
            ..Default::default()
        })
        apply(diff::ApplyRequest {
            diff: layer(),
            mounts: vec![nowhere.clone()],
            ..Default::default()
        })
        apply(diff::ApplyRequest { mounts: vec![nowhere.clone()], ..Default::default() })
        diff(diff::DiffRequest::default())
        diff(diff::DiffRequest { left: vec![Mount::default()], ..Default::default() })
        diff(diff::DiffRequest { right: vec![Mount::default()], ..Default::default() })
        diff(diff::DiffRequest { right: vec![nowhere], ..Default::default() })
        diff(diff::DiffRequest { source_date_epoch: bad_time(), ..Default::default() })
        diff(diff::DiffRequest {
            source_date_epoch: MessageField::some(Timestamp::default()),
            ..Default::default()
        })
    }
    answers.end(peer).await;
}

async fn events_take_whatever_is_missing(peer: &Peer) {
    let mut answers = Answers(Vec::new());
    let mut client = EventsClient::new(peer.channel());
    let envelope = |change: fn(&mut Envelope)| {
        let mut made = Envelope {
            timestamp: MessageField::some(Timestamp {
                seconds: 1,
                ..Default::default()
            }),
            namespace: "n".into(),
            topic: "/a".into(),
            event: MessageField::some(Any::default()),
            ..Default::default()
        };
        change(&mut made);
        events::ForwardRequest {
            envelope: MessageField::some(made),
            ..Default::default()
        }
    };
    // Somebody who looks into each of them.
    let filters = vec![
        "event.id==x,event.labels.y==z".to_owned(),
        "topic==x".to_owned(),
    ];
    let subscription = events::SubscribeRequest {
        filters,
        ..Default::default()
    };
    let open = client
        .subscribe(scoped(subscription))
        .await
        .expect("subscribe");
    ask! { answers, client;
        publish(events::PublishRequest::default())
        publish(events::PublishRequest { topic: "/a".into(), ..Default::default() })
        publish(events::PublishRequest {
            topic: "/tasks/exit".into(),
            event: MessageField::some(Any { value: vec![0xff], ..Default::default() }),
            ..Default::default()
        })
        forward(events::ForwardRequest::default())
        forward(events::ForwardRequest {
            envelope: MessageField::some(Envelope::default()),
            ..Default::default()
        })
        forward(envelope(|_| {}))
        forward(envelope(|e| e.event = MessageField::none()))
        forward(envelope(|e| e.timestamp = MessageField::none()))
        forward(envelope(|e| e.timestamp = bad_time()))
        forward(envelope(|e| e.topic.clear()))
        forward(envelope(|e| e.namespace.clear()))
        forward(envelope(|e| e.topic = "/tasks/exit".into()))
        subscribe(events::SubscribeRequest::default())
        subscribe(events::SubscribeRequest { filters: vec![String::new()], ..Default::default() })
    }
    drop(open);
    answers.end(peer).await;
}
