//! Transfer: images between registries, archives and the store. Debian's daemon is of a generation
//! that has none.

use std::collections::BTreeSet;
use std::io::Read as _;

use client::stream::Duplex;
use client::{ByteReader, Client};
use grpc::images::ImagesClient;
use grpc::leases::LeasesClient;
use grpc::transfer::TransferClient;
use protos::MessageField;
use protos::services::images::GetImageRequest;
use protos::services::leases::ListRequest;
use protos::services::transfer::{TransferOptions, TransferRequest};
use protos::well_known::{Any, Empty};
use protos::wire::Wire as _;
use protos::wire::transfer::endpoint_to_any;
use tonic::{Code, Response, Status};
use types::transfer::{
    Endpoint, ExportStream, ImportStream, NameRule, Remote, Store, TransferEvent, Unpack,
};
use types::{Filter, Platform};

use crate::peer::{NAMESPACE, Peer, refused, scoped};
use crate::streaming;

rules! {
    both {}
    ours {
        a_pair_that_makes_no_transfer_is_unimplemented_by_both_names
        a_stream_that_nobody_opened_is_not_found
        an_archive_goes_in_and_comes_out_the_same
        an_import_tells_what_it_saved
        an_import_that_unpacks_tells_of_each_blob_to_its_end
        what_cannot_be_unpacked_here_is_skipped
        a_tag_names_the_same_target_and_replaces
        an_echo_returns_the_bytes
        a_cut_archive_saves_nothing
        progress_that_nobody_reads_holds_up_nothing
        a_cancelled_import_leaves_nothing
        options_that_cannot_be_followed_are_refused
    }
}

fn client(peer: &Peer) -> Client {
    Client::new(peer.channel(), NAMESPACE.parse().expect("a namespace"))
}

async fn transfer(
    peer: &Peer,
    source: Any,
    destination: Any,
    progress: &str,
) -> Result<Response<Empty>, Status> {
    let options = TransferOptions {
        progress_stream: progress.into(),
        ..TransferOptions::default()
    };
    let request = TransferRequest {
        source: MessageField::some(source),
        destination: MessageField::some(destination),
        options: MessageField::some(options),
        ..TransferRequest::default()
    };
    let mut client = TransferClient::new(peer.channel());
    client.transfer(scoped(request)).await
}

fn any(endpoint: &Endpoint) -> Any {
    endpoint_to_any(endpoint).expect("an end").to_wire()
}

fn store(name: &str) -> Store {
    Store {
        name: name.into(),
        ..Store::default()
    }
}

/// A destination that names what an archive holds.
fn named(unpack: Option<&str>) -> Store {
    let unpack = unpack.map(|snapshotter| Unpack {
        platform: Platform::host(),
        snapshotter: snapshotter.into(),
    });
    Store {
        platforms: vec![Platform::host()],
        references: vec![NameRule {
            name: "import".into(),
            is_prefix: true,
            allow_overwrite: true,
            ..NameRule::default()
        }],
        unpacks: unpack.into_iter().collect(),
        ..Store::default()
    }
}

/// Imports the test image.
async fn import(peer: &Peer, to: Store) -> Vec<TransferEvent> {
    let client = client(peer);
    let archive = std::fs::File::open(integration::archive()).expect("the archive");
    let (stream, _sent) = client.send_bytes(Box::new(archive)).await.expect("stream");
    let from = Endpoint::Import(ImportStream {
        stream,
        ..ImportStream::default()
    });
    let mut told = Vec::new();
    let done = client
        .transfer(&from, &Endpoint::Store(to), |event| told.push(event))
        .await;
    done.expect("import");
    told
}

/// Exports an image and returns the bytes.
async fn export(peer: &Peer, name: &str) -> Vec<u8> {
    let client = client(peer);
    let stream = client.stream("out").await.expect("stream");
    let reader = read(stream);
    let to = Endpoint::Export(ExportStream {
        stream: "out".into(),
        ..ExportStream::default()
    });
    let from = Endpoint::Store(store(name));
    client.transfer(&from, &to, drop).await.expect("export");
    reader.await.expect("thread").expect("bytes")
}

/// Reads a stream beside what goes on; whoever waits for it must let the connection work.
fn read(stream: Duplex) -> tokio::task::JoinHandle<std::io::Result<Vec<u8>>> {
    tokio::task::spawn_blocking(move || {
        let mut data = Vec::new();
        ByteReader::new(stream).read_to_end(&mut data).map(|_| data)
    })
}

async fn no_leases_are_left(peer: &Peer) {
    let mut leases = LeasesClient::new(peer.channel());
    let answer = leases.list(scoped(ListRequest::default())).await;
    assert!(answer.expect("list").into_inner().leases.is_empty());
}

async fn a_pair_that_makes_no_transfer_is_unimplemented_by_both_names(peer: &Peer) {
    let import = || Endpoint::Import(ImportStream::default());
    for (source, destination) in [
        (import(), Endpoint::Registry(Remote::default())),
        (
            Endpoint::Registry(Remote::default()),
            Endpoint::Registry(Remote::default()),
        ),
        (
            Endpoint::Other("containerd.types.transfer.ReadStream".into()),
            Endpoint::Store(Store::default()),
        ),
        (
            Endpoint::Other(String::new()),
            Endpoint::Other(String::new()),
        ),
    ] {
        let (source, destination) = (any(&source), any(&destination));
        let (from, to) = (source.type_url.clone(), destination.type_url.clone());
        let answer = transfer(peer, source, destination, "").await;
        let text = refused(Code::Unimplemented, answer);
        let want = format!("method Transfer not implemented for {from} to {to}");
        assert!(text.starts_with(&want), "{text}");
    }
    let mut damaged = any(&import());
    damaged.value = vec![0xff];
    let answer = transfer(peer, damaged, any(&Endpoint::Store(store("a"))), "").await;
    refused(Code::InvalidArgument, answer);
    no_leases_are_left(peer).await;
}

async fn a_stream_that_nobody_opened_is_not_found(peer: &Peer) {
    let import = any(&Endpoint::Import(ImportStream {
        stream: "none".into(),
        ..ImportStream::default()
    }));
    let to = any(&Endpoint::Store(named(None)));
    let text = refused(Code::NotFound, transfer(peer, import, to.clone(), "").await);
    assert!(text.contains("none"), "{text}");
    let from = any(&Endpoint::Store(store("a")));
    refused(Code::NotFound, transfer(peer, from, to, "none").await);
    no_leases_are_left(peer).await;
}

async fn an_archive_goes_in_and_comes_out_the_same(peer: &Peer) {
    import(peer, named(Some(""))).await;
    let name = integration::IMAGE;
    let client = client(peer);
    let first = client.images().get(name).await.expect("image");
    let snapshots = client
        .snapshotter("overlayfs")
        .list(&Filter::default())
        .await;
    assert_eq!(snapshots.expect("list").len(), 1);
    let data = export(peer, name).await;
    assert_eq!(export(peer, name).await, data);
    client.images().delete(name, true).await.expect("delete");
    let blobs = client.content().list(&Filter::default()).await;
    assert!(blobs.expect("list").is_empty());
    let (stream, _sent) = client
        .send_bytes(Box::new(std::io::Cursor::new(data)))
        .await
        .expect("stream");
    let from = Endpoint::Import(ImportStream {
        stream,
        ..ImportStream::default()
    });
    let to = Endpoint::Store(named(None));
    client.transfer(&from, &to, drop).await.expect("import");
    let again = client.images().get(name).await.expect("image");
    assert_eq!(again.target.digest, first.target.digest);
    no_leases_are_left(peer).await;
}

async fn an_import_tells_what_it_saved(peer: &Peer) {
    let told = import(peer, named(None)).await;
    let events: Vec<_> = told.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(events.first(), Some(&"Importing"));
    assert_eq!(events.last(), Some(&"Completed import"));
    let saved = told.iter().find(|event| event.event == "saved");
    let saved = saved.expect("a saved image");
    assert_eq!(saved.name, integration::IMAGE);
    assert!(saved.descriptor.is_some());
}

async fn an_import_that_unpacks_tells_of_each_blob_to_its_end(peer: &Peer) {
    let told = import(peer, named(Some("native"))).await;
    let names = |word: &str| -> BTreeSet<&str> {
        let of_word = told.iter().filter(|event| event.event == word);
        of_word.map(|event| event.name.as_str()).collect()
    };
    let saving = names("saving");
    assert!(
        !saving.is_empty() && saving.is_subset(&names("complete")),
        "{told:?}"
    );
    let extracted = names("extracted");
    let are_layers = extracted
        .iter()
        .all(|name| name.starts_with("layer-sha256:"));
    assert!(!extracted.is_empty() && are_layers, "{told:?}");
    assert_eq!(names("extracting"), extracted);
    for event in told.iter().filter(|event| event.event == "extracted") {
        assert!(event.descriptor.is_some(), "{event:?}");
        assert!(
            event.parents[0].starts_with("manifest-sha256:"),
            "{event:?}"
        );
    }
    let client = client(peer);
    let image = client.images().get(integration::IMAGE).await;
    assert_eq!(image.expect("image").name, integration::IMAGE);
}

async fn what_cannot_be_unpacked_here_is_skipped(peer: &Peer) {
    import(peer, named(Some("nobody's"))).await;
    let client = client(peer);
    client
        .images()
        .get(integration::IMAGE)
        .await
        .expect("image");
    for snapshotter in ["overlayfs", "native"] {
        let all = client
            .snapshotter(snapshotter)
            .list(&Filter::default())
            .await;
        assert!(all.expect("list").is_empty());
    }
}

async fn a_tag_names_the_same_target_and_replaces(peer: &Peer) {
    import(peer, named(None)).await;
    let from = any(&Endpoint::Store(store(integration::IMAGE)));
    let mut to = store("other.test/a:1");
    to.labels.insert("mine".into(), "1".into());
    for _ in 0..2 {
        let to = any(&Endpoint::Store(to.clone()));
        drop(transfer(peer, from.clone(), to, "").await.expect("tag"));
    }
    let mut images = ImagesClient::new(peer.channel());
    let mut get = async |name: &str| {
        let request = GetImageRequest {
            name: name.into(),
            ..GetImageRequest::default()
        };
        let answer = images.get(scoped(request)).await.expect("image");
        answer.into_inner().image.unwrap_or_default()
    };
    let (first, second) = (get(integration::IMAGE).await, get("other.test/a:1").await);
    assert_eq!(first.target.digest, second.target.digest);
    assert_eq!(second.labels["mine"], "1");
    let missing = any(&Endpoint::Store(store("nobody")));
    let answer = transfer(peer, missing, any(&Endpoint::Store(to)), "").await;
    refused(Code::NotFound, answer);
    let nameless = any(&Endpoint::Store(Store::default()));
    let answer = transfer(peer, from, nameless, "").await;
    refused(Code::NotFound, answer);
}

async fn an_echo_returns_the_bytes(peer: &Peer) {
    let client = client(peer);
    for length in [0_u32, 1, 65_536, 1_000_001] {
        let data: Vec<u8> = (0..length)
            .map(|n| u8::try_from(n % 251).expect("a byte"))
            .collect();
        let reader = Box::new(std::io::Cursor::new(data.clone()));
        let (from, _sent) = client.send_bytes(reader).await.expect("stream");
        let stream = client.stream("back").await.expect("stream");
        let back = read(stream);
        let from = Endpoint::Import(ImportStream {
            stream: from,
            ..ImportStream::default()
        });
        let to = Endpoint::Export(ExportStream {
            stream: "back".into(),
            ..ExportStream::default()
        });
        client.transfer(&from, &to, drop).await.expect("echo");
        let back = back.await.expect("thread").expect("bytes");
        assert!(back == data, "{length} bytes");
    }
}

async fn a_cut_archive_saves_nothing(peer: &Peer) {
    let client = client(peer);
    let whole = std::fs::read(integration::archive()).expect("the archive");
    let half = whole[..whole.len() / 2].to_vec();
    let reader = Box::new(std::io::Cursor::new(half));
    let (stream, _sent) = client.send_bytes(reader).await.expect("stream");
    let from = Endpoint::Import(ImportStream {
        stream,
        ..ImportStream::default()
    });
    let to = Endpoint::Store(named(Some("")));
    let error = client.transfer(&from, &to, drop).await.expect_err("cut");
    assert!(error.is(types::Code::InvalidArgument), "{error}");
    let images = client.images().list(&Filter::default()).await;
    assert!(images.expect("list").is_empty());
    no_leases_are_left(peer).await;
}

async fn progress_that_nobody_reads_holds_up_nothing(peer: &Peer) {
    let _unread = streaming::open(peer, "p").await.expect("stream");
    import(peer, named(None)).await;
    let from = any(&Endpoint::Store(store(integration::IMAGE)));
    let to = any(&Endpoint::Store(store("b")));
    drop(transfer(peer, from, to, "p").await.expect("tag"));
}

async fn a_cancelled_import_leaves_nothing(peer: &Peer) {
    let client = client(peer);
    let mut open = streaming::open(peer, "in").await.expect("stream");
    let from = Endpoint::Import(ImportStream {
        stream: "in".into(),
        ..ImportStream::default()
    });
    let to = Endpoint::Store(named(None));
    let mut work = Box::pin(client.transfer(&from, &to, drop));
    // It has begun when it grants its first window.
    let granted = tokio::select! {
        done = &mut work => panic!("ended by itself: {done:?}"),
        frame = open.next() => frame.expect("a frame"),
    };
    let granted = granted.expect("a window");
    assert_eq!(granted.type_url, "containerd.types.transfer.WindowUpdate");
    drop(work);
    // The daemon lets go of the stream, too.
    assert!(open.rest().await.len() < 3);
    let gone = async {
        let mut leases = LeasesClient::new(peer.channel());
        loop {
            let answer = leases.list(scoped(ListRequest::default())).await;
            if answer.expect("list").into_inner().leases.is_empty() {
                return;
            }
        }
    };
    tokio::time::timeout(crate::peer::SOON, gone)
        .await
        .expect("no lease in time");
    let ingests = client.content().statuses(&Filter::default()).await;
    assert!(ingests.expect("list").is_empty());
}

async fn options_that_cannot_be_followed_are_refused(peer: &Peer) {
    let _open = streaming::open(peer, "in").await.expect("stream");
    let from = any(&Endpoint::Registry(Remote {
        reference: "127.0.0.1:1/a:1".into(),
        default_scheme: "ftp".into(),
        ..Remote::default()
    }));
    let answer = transfer(peer, from, any(&Endpoint::Store(store("a"))), "").await;
    refused(Code::InvalidArgument, answer);
    let to = Endpoint::Export(ExportStream {
        stream: "in".into(),
        ..ExportStream::default()
    });
    let mut prefix = Store::default();
    prefix.references.push(NameRule {
        name: "a".into(),
        is_prefix: true,
        ..NameRule::default()
    });
    let answer = transfer(peer, any(&Endpoint::Store(prefix)), any(&to), "").await;
    refused(Code::Unimplemented, answer);
}

mod without_unpacking {
    use super::*;

    rules! {
        configured "[plugins.\"io.containerd.transfer.v1.local\"]\nunpack_config = []\n"
        both {}
        ours { an_import_is_only_kept }
    }

    async fn an_import_is_only_kept(peer: &Peer) {
        import(peer, named(Some(""))).await;
        let client = client(peer);
        client
            .images()
            .get(integration::IMAGE)
            .await
            .expect("image");
        let all = client
            .snapshotter("overlayfs")
            .list(&Filter::default())
            .await;
        assert!(all.expect("list").is_empty());
    }
}
