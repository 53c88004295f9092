//! Content: the rules of `Write`, sections of `Read`, pages of `List`.

use bytes::Bytes;
use grpc::content::ContentClient;
use grpc::leases::LeasesClient;
use protos::services::content::{
    InfoRequest, ListContentRequest, ListStatusesRequest, ReadContentRequest, StatusRequest,
    WriteAction, WriteContentRequest, WriteContentResponse,
};
use protos::services::leases::{CreateRequest, ListResourcesRequest};
use tonic::{Code, Status};

use super::{Daemon, leased, refused, scoped};

/// sha256 of "hello".
const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn message(action: WriteAction, reference: &str, offset: i64, data: &str) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        ref_: reference.into(),
        offset,
        data: Bytes::copy_from_slice(data.as_bytes()),
        ..Default::default()
    }
}

/// Sends the messages on one stream; all answers, up to the first refusal.
async fn write(
    daemon: &Daemon,
    messages: Vec<WriteContentRequest>,
) -> Result<Vec<WriteContentResponse>, Status> {
    write_as(daemon, scoped(tokio_stream::iter(messages))).await
}

async fn write_as<S>(
    daemon: &Daemon,
    request: tonic::Request<S>,
) -> Result<Vec<WriteContentResponse>, Status>
where
    S: tokio_stream::Stream<Item = WriteContentRequest> + Send + 'static,
{
    let mut client = ContentClient::new(daemon.channel());
    let mut stream = client.write(request).await?.into_inner();
    let mut answers = Vec::new();
    while let Some(answer) = stream.message().await? {
        answers.push(answer);
    }
    Ok(answers)
}

async fn put(daemon: &Daemon, data: &str) -> String {
    let commit = message(WriteAction::COMMIT, data, 0, data);
    write(daemon, vec![commit]).await.unwrap()[0].digest.clone()
}

#[tokio::test]
async fn a_blob_is_written_resumed_and_committed() {
    let daemon = Daemon::start().await;
    let answers = write(&daemon, vec![message(WriteAction::WRITE, "r", 0, "hel")])
        .await
        .unwrap();
    assert_eq!((answers.len(), answers[0].offset), (1, 3));

    let mut client = ContentClient::new(daemon.channel());
    let asked = StatusRequest {
        ref_: "r".into(),
        ..Default::default()
    };
    let status = client
        .status(scoped(asked))
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert_eq!((status.offset, status.ref_.as_str()), (3, "r"));

    let answers = write(
        &daemon,
        vec![
            message(WriteAction::STAT, "r", 0, ""),
            message(WriteAction::WRITE, "r", 3, "l"),
            WriteContentRequest {
                total: 5,
                expected: HELLO.into(),
                labels: [("k".to_owned(), "v".to_owned())].into(),
                ..message(WriteAction::COMMIT, "r", 4, "o")
            },
        ],
    )
    .await
    .unwrap();
    let offsets: Vec<_> = answers.iter().map(|answer| answer.offset).collect();
    assert_eq!(offsets, [3, 4, 5]);
    assert_eq!(answers[2].digest, HELLO);
    assert_eq!(answers[2].total, 5);
    assert!(answers.iter().all(|answer| answer.updated_at.is_some()));

    let asked = InfoRequest {
        digest: HELLO.into(),
        ..Default::default()
    };
    let info = client
        .info(scoped(asked))
        .await
        .unwrap()
        .into_inner()
        .info
        .unwrap();
    assert_eq!((info.size, info.labels["k"].as_str()), (5, "v"));
    let none = client
        .list_statuses(scoped(ListStatusesRequest::default()))
        .await
        .unwrap();
    assert!(none.get_ref().statuses.is_empty());
}

#[tokio::test]
async fn offset_zero_starts_anew() {
    let daemon = Daemon::start().await;
    write(&daemon, vec![message(WriteAction::WRITE, "r", 0, "wrong")])
        .await
        .unwrap();
    let again = vec![message(WriteAction::COMMIT, "r", 0, "hello")];
    assert_eq!(write(&daemon, again).await.unwrap()[0].digest, HELLO);
}

#[tokio::test]
async fn what_breaks_the_rules_is_refused_in_its_class() {
    let daemon = Daemon::start().await;
    let expecting = |expected: &str| WriteContentRequest {
        expected: expected.into(),
        ..message(WriteAction::COMMIT, "r", 0, "hello")
    };
    let other = format!("sha256:{}", "0".repeat(64));
    for (messages, code, part) in [
        (
            vec![],
            Code::InvalidArgument,
            "first message must have a reference",
        ),
        (
            vec![message(WriteAction::STAT, "", 0, "")],
            Code::InvalidArgument,
            "first message must have a reference",
        ),
        (
            vec![message(WriteAction::WRITE, "r", 7, "x")],
            Code::OutOfRange,
            "write @7 must occur at current offset 0: out of range",
        ),
        (
            vec![expecting("sha256:xyz")],
            Code::InvalidArgument,
            "invalid checksum digest length",
        ),
        (
            vec![expecting(&other)],
            Code::FailedPrecondition,
            "failed precondition",
        ),
        (
            vec![WriteContentRequest {
                total: 9,
                ..expecting("")
            }],
            Code::FailedPrecondition,
            "failed precondition",
        ),
    ] {
        let (found, text) = refused(write(&daemon, messages).await);
        assert_eq!(found, code, "{text}");
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_written_again_but_leased() {
    let daemon = Daemon::start().await;
    put(&daemon, "hello").await;
    let mut leases = LeasesClient::new(daemon.channel());
    for (lease, first) in [
        // Known at the start, learnt under way, found at the commit.
        (
            "open",
            WriteContentRequest {
                expected: HELLO.into(),
                ..message(WriteAction::STAT, "r1", 0, "")
            },
        ),
        ("learnt", message(WriteAction::WRITE, "r2", 0, "hel")),
        ("commit", message(WriteAction::COMMIT, "r3", 0, "hello")),
    ] {
        let create = CreateRequest {
            id: lease.into(),
            ..Default::default()
        };
        leases.create(scoped(create)).await.unwrap();
        let reference = first.ref_.clone();
        let second = WriteContentRequest {
            expected: HELLO.into(),
            ..message(WriteAction::WRITE, &reference, 3, "lo")
        };
        let request = leased(lease, tokio_stream::iter(vec![first, second]));
        let (code, text) = refused(write_as(&daemon, request).await);
        assert_eq!(code, Code::AlreadyExists, "{lease}: {text}");
        let asked = ListResourcesRequest {
            id: lease.into(),
            ..Default::default()
        };
        let held = leases
            .list_resources(scoped(asked))
            .await
            .unwrap()
            .into_inner()
            .resources;
        let blobs: Vec<_> = held
            .iter()
            .filter(|r| r.type_ == "content")
            .map(|r| r.id.as_str())
            .collect();
        assert_eq!(blobs, [HELLO], "{lease}");
        let mut client = ContentClient::new(daemon.channel());
        let none = client
            .list_statuses(scoped(ListStatusesRequest::default()))
            .await
            .unwrap();
        assert!(none.get_ref().statuses.is_empty(), "{lease}");
    }
}

#[tokio::test]
async fn a_lease_must_exist() {
    let daemon = Daemon::start().await;
    let commit = message(WriteAction::COMMIT, "r", 0, "hello");
    let request = leased("none", tokio_stream::iter(vec![commit]));
    let (code, text) = refused(write_as(&daemon, request).await);
    assert_eq!(code, Code::NotFound, "{text}");
    assert!(text.contains("lease"), "{text}");
}

#[tokio::test]
async fn an_ingest_has_one_writer() {
    let daemon = Daemon::start().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender
        .send(message(WriteAction::STAT, "r", 0, ""))
        .await
        .unwrap();
    let mut client = ContentClient::new(daemon.channel());
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut held = client.write(scoped(messages)).await.unwrap().into_inner();
    held.message().await.unwrap().unwrap();
    let (code, _) = refused(write(&daemon, vec![message(WriteAction::STAT, "r", 0, "")]).await);
    assert_eq!(code, Code::Unavailable);
    drop(sender);
    assert!(held.message().await.unwrap().is_none());
    write(&daemon, vec![message(WriteAction::STAT, "r", 0, "")])
        .await
        .unwrap();
}

#[tokio::test]
async fn sections_are_read_with_offsets_of_their_own() {
    let daemon = Daemon::start().await;
    put(&daemon, "hello").await;
    let mut client = ContentClient::new(daemon.channel());
    for (offset, size, want) in [
        (0, 0, Ok("hello")),
        (-3, 2, Ok("he")),
        (2, 2, Ok("ll")),
        (2, 99, Ok("llo")),
        (5, 1, Ok("")),
        (6, 0, Err(Code::OutOfRange)),
    ] {
        let request = ReadContentRequest {
            digest: HELLO.into(),
            offset,
            size,
            ..Default::default()
        };
        let mut stream = client.read(scoped(request)).await.unwrap().into_inner();
        let mut got = Ok(String::new());
        loop {
            match (stream.message().await, &mut got) {
                (Ok(Some(chunk)), Ok(text)) => {
                    assert_eq!(chunk.offset, i64::try_from(text.len()).unwrap());
                    text.push_str(std::str::from_utf8(&chunk.data).unwrap());
                }
                (Err(status), _) => {
                    got = Err(status.code());
                    break;
                }
                _ => break,
            }
        }
        assert_eq!(got, want.map(str::to_owned), "{offset} {size}");
    }
}

#[tokio::test]
async fn lists_come_in_pages_of_a_hundred_and_keep_to_the_namespace() {
    let daemon = Daemon::start().await;
    for number in 0..101 {
        put(&daemon, &format!("blob {number}")).await;
    }
    let mut client = ContentClient::new(daemon.channel());
    let mut stream = client
        .list(scoped(ListContentRequest::default()))
        .await
        .unwrap()
        .into_inner();
    let mut sizes = Vec::new();
    while let Some(page) = stream.message().await.unwrap() {
        sizes.push(page.info.len());
    }
    assert_eq!(sizes, [100, 1]);

    let elsewhere = types::Scope::new("other".parse().unwrap());
    let request = grpc::request(&elsewhere, ListContentRequest::default()).unwrap();
    let mut stream = client.list(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_none());
}
