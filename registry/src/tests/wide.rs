//! Large blobs over several connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use types::{Descriptor, media_type as mt};

use super::{opts, with_hosts};
use crate::testsuite::{Content, Reply, Request, Server};
use crate::{RegistryOpts, Repository, Wide};

/// What one connection carries in a second: so little that a busy machine does not matter.
const RATE: usize = 128 << 10;
/// Sixteen seconds of one connection.
const SIZE: usize = 16 * RATE;

fn wide() -> RegistryOpts {
    let mut opts = opts();
    opts.limits.wide = Wide {
        lanes: 4,
        from: 1 << 20,
        piece: 64 << 10,
        after: Duration::from_millis(100),
    };
    opts
}

fn blob() -> (Content, Descriptor, Vec<u8>) {
    let mut content = Content::default();
    let data: Vec<u8> = (0..SIZE / 4)
        .flat_map(|n| n.to_le_bytes()[..4].to_vec())
        .collect();
    let layer = content.add(mt::OCI_LAYER, data.clone(), &[]);
    (content, layer, data)
}

/// Reads the blob from `from` on, of a server whose answers `change` makes.
async fn read(
    from: u64,
    opts: RegistryOpts,
    change: impl Fn(&Content, &Request) -> Reply + Send + Sync + 'static,
) -> (Server, Duration) {
    let (content, layer, data) = blob();
    let server = Server::start(move |request| change(&content, request)).await;
    let reference = format!("{}/r", server.host()).parse().unwrap();
    let repository = Repository::new(&reference, opts).unwrap();
    let began = std::time::Instant::now();
    let mut reader = repository.open_wide(&layer, from).unwrap();
    let mut all = data[..usize::try_from(from).unwrap()].to_vec();
    while let Some(chunk) = reader.chunk().await.unwrap() {
        all.extend_from_slice(&chunk);
        assert_eq!(reader.offset(), all.len() as u64);
    }
    assert!(all == data, "the blob came changed");
    let root = format!("http://{}/v2", server.host());
    assert_eq!(reader.hosts().collect::<Vec<_>>(), [root.as_str()]);
    assert!(!reader.distrust(), "there is nobody else");
    (server, began.elapsed())
}

fn slow(content: &Content, request: &Request) -> Reply {
    Reply {
        rate: Some(RATE),
        ..content.reply(request)
    }
}

/// The first byte of a piece: of a range with an end.
fn piece(request: &Request) -> Option<usize> {
    let (first, last) = request
        .header("range")
        .strip_prefix("bytes=")?
        .split_once('-')?;
    first.parse().ok().filter(|_| !last.is_empty())
}

fn ranges(server: &Server) -> Vec<String> {
    let requests = server.requests();
    let range = |r: &Request| r.header("range").to_owned();
    requests.iter().map(range).collect()
}

#[tokio::test]
async fn where_one_connection_is_slow_several_are_faster() {
    let (server, took) = read(100_000, wide(), slow).await;
    assert!(took < Duration::from_secs(12), "{took:?}");
    let pieces = ranges(&server);
    assert!(pieces.len() > 25, "{pieces:?}");
    let mut alone = wide();
    alone.limits.wide.lanes = 1;
    let last = SIZE - RATE;
    let (server, took) = read(last as u64, alone, slow).await;
    assert!(took > Duration::from_millis(900), "{took:?}");
    assert_eq!(ranges(&server), [format!("bytes={last}-")]);
}

#[tokio::test]
async fn a_line_that_is_full_gets_one_connection_back() {
    let mut opts = wide();
    opts.limits.wide.after = Duration::from_millis(400);
    // Four get less than one got: so much less that a moment's pause of the machine is no matter.
    let (server, _) = read(0, opts, |content, request| Reply {
        rate: Some(match request.header("range") {
            range if range.is_empty() || range.ends_with('-') => 8 * RATE,
            _ => RATE / 2,
        }),
        ..content.reply(request)
    })
    .await;
    let asked = ranges(&server);
    let last = asked.last().unwrap();
    assert!(last.ends_with('-'), "{asked:?}");
    assert!(asked.len() <= 2 + 3 * 4, "{asked:?}");
}

#[tokio::test]
async fn a_server_without_ranges_is_read_on_where_it_was() {
    let (server, _) = read(0, wide(), |content, request| {
        let mut request = request.clone();
        request.headers.remove("range");
        Reply {
            rate: Some(8 * RATE),
            ..content.reply(&request)
        }
    })
    .await;
    let asked = ranges(&server);
    assert!(asked.len() > 1 && asked.len() <= 5, "{asked:?}");
    assert_eq!(asked[0], "");
    assert!(asked[1..].iter().all(|r| !r.ends_with('-')), "{asked:?}");
}

#[tokio::test]
async fn pieces_that_do_not_come_are_fetched_by_one_connection() {
    let (server, _) = read(0, wide(), |content, request| {
        let mut reply = Reply {
            rate: Some(4 * RATE),
            ..content.reply(request)
        };
        // In the second round.
        if piece(request).is_some_and(|first| first > 700_000) {
            reply.cut = Some(10);
        }
        reply
    })
    .await;
    let asked = ranges(&server);
    assert!(asked.last().unwrap().ends_with('-'), "{asked:?}");
}

/// As a host does that serves one connection of a client at a time.
#[tokio::test]
async fn pieces_that_nobody_serves_are_not_waited_for() {
    let (server, took) = read(0, wide(), |content, request| match piece(request) {
        Some(_) => Reply::status(0),
        None => Reply {
            rate: Some(8 * RATE),
            ..content.reply(request)
        },
    })
    .await;
    // Two seconds of one connection; a request may wait for its answer for half a minute.
    assert!(took < Duration::from_secs(10), "{took:?}");
    let asked = ranges(&server);
    assert!((2..=5).contains(&asked.len()), "{asked:?}");
    assert_eq!(asked[0], "");
    assert!(asked[1..].iter().all(|r| !r.ends_with('-')), "{asked:?}");
}

#[tokio::test]
async fn a_piece_that_fails_does_not_end_the_others() {
    let failed = AtomicUsize::new(0);
    let (server, took) = read(0, wide(), move |content, request| {
        let reply = slow(content, request);
        match piece(request) {
            Some(first) if first > 400_000 && failed.fetch_add(1, Ordering::Relaxed) == 0 => {
                Reply::status(503)
            }
            _ => reply,
        }
    })
    .await;
    assert!(took < Duration::from_secs(13), "{took:?}");
    let server = server.requests();
    let alone = server.iter().position(|r| r.header("range").ends_with('-'));
    let after = server[alone.unwrap()..].iter().filter_map(piece).count();
    assert!(after > 10, "{after} pieces after the one that failed");
}

#[tokio::test]
async fn wrong_bytes_are_the_fault_of_all_that_sent_some() {
    let (content, layer, data) = blob();
    let copy = content.clone();
    let mirror = Server::start(move |request| match piece(request) {
        Some(_) => Reply::status(404),
        None => slow(&copy, request),
    })
    .await;
    let server = Server::start(move |request| slow(&content, request)).await;
    let dir = tempfile::tempdir().unwrap();
    let name = "registry.example.test";
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    );
    let mut options = with_hosts(&text, dir.path(), name);
    options.limits.wide = wide().limits.wide;
    let repository = Repository::new(&format!("{name}/r").parse().unwrap(), options).unwrap();
    let mut reader = repository.open_wide(&layer, 0).unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = reader.chunk().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    assert!(all == data, "the blob came changed");
    for host in [&mirror, &server] {
        let root = format!("http://{}/v2", host.host());
        assert!(reader.hosts().any(|host| host == root), "{reader:?}");
    }
    assert!(reader.distrust());
    for host in [&mirror, &server] {
        let url = format!("http://{}/", host.host()).parse().unwrap();
        let origin = crate::url::Origin::of(&url).unwrap();
        assert!(repository.shared.health.is_ill(&origin));
    }
    let asked = mirror.requests().len() + server.requests().len();
    let mut alone = repository.open_wide(&layer, 0).unwrap().alone();
    let enough = 4 * RATE as u64;
    while alone.offset() < enough {
        alone.chunk().await.unwrap();
    }
    assert_eq!(mirror.requests().len() + server.requests().len(), asked + 1);
}

#[tokio::test]
async fn more_connections_are_those_that_the_room_has() {
    let room = Arc::new(Semaphore::new(2));
    let least = Arc::new(AtomicUsize::new(2));
    let (seen, there) = (Arc::clone(&least), Arc::clone(&room));
    let mut opts = wide();
    opts.room = Some(Arc::clone(&room));
    let (server, _) = read(0, opts, move |content, request| {
        seen.fetch_min(there.available_permits(), Ordering::Relaxed);
        slow(content, request)
    })
    .await;
    assert!(ranges(&server).len() > 1, "{:?}", ranges(&server));
    assert_eq!(least.load(Ordering::Relaxed), 0);
    // The tasks that were given up end when their time comes.
    let all = room.acquire_many(2);
    drop(
        tokio::time::timeout(Duration::from_secs(10), all)
            .await
            .unwrap()
            .unwrap(),
    );
}

#[tokio::test]
async fn without_room_a_blob_has_one_connection_until_there_is_some() {
    let room = Arc::new(Semaphore::new(1));
    let other = Arc::clone(&room).try_acquire_owned().unwrap();
    let mut opts = wide();
    opts.room = Some(Arc::clone(&room));
    let (content, layer, data) = blob();
    let server = Server::start(move |request| slow(&content, request)).await;
    let reference = format!("{}/r", server.host()).parse().unwrap();
    let repository = Repository::new(&reference, opts).unwrap();
    let mut reader = repository.open_wide(&layer, 0).unwrap();
    while reader.offset() < 4 * RATE as u64 {
        reader.chunk().await.unwrap();
    }
    assert_eq!(ranges(&server), [""]);
    drop(other);
    while reader.offset() < data.len() as u64 {
        reader.chunk().await.unwrap();
    }
    let pieces = ranges(&server);
    assert!(pieces.len() > 1, "{pieces:?}");
}

#[tokio::test]
async fn pieces_that_came_one_by_one_tell_nothing_of_several() {
    let room = Arc::new(Semaphore::new(1));
    let more = Arc::clone(&room);
    let mut opts = wide();
    opts.room = Some(room);
    let asked = AtomicUsize::new(0);
    let (server, _) = read(0, opts, move |content, request| {
        // When all of them would have been judged already.
        if asked.fetch_add(1, Ordering::Relaxed) == 8 {
            more.add_permits(3);
        }
        Reply {
            rate: Some(4 * RATE),
            ..content.reply(request)
        }
    })
    .await;
    let asked = ranges(&server);
    assert!(asked.len() > 20, "{asked:?}");
}

#[tokio::test]
async fn without_a_place_of_the_process_a_blob_keeps_its_chance() {
    let (content, layer, data) = blob();
    let server = Server::start(move |request| slow(&content, request)).await;
    let reference = format!("{}/r", server.host()).parse().unwrap();
    let mut repository = Repository::new(&reference, wide()).unwrap();
    // Its own: other tests have blobs, too.
    let places = Arc::new(Semaphore::new(1));
    let shared = Arc::get_mut(&mut repository.shared).unwrap();
    shared.places = Arc::clone(&places);
    let other = Arc::clone(&places).try_acquire_owned().unwrap();
    let mut reader = repository.open_wide(&layer, 0).unwrap();
    while reader.offset() < 4 * RATE as u64 {
        reader.chunk().await.unwrap();
    }
    assert_eq!(ranges(&server), [""]);
    drop(other);
    while reader.offset() < data.len() as u64 {
        reader.chunk().await.unwrap();
    }
    let pieces = ranges(&server);
    assert!(pieces.len() > 1, "{pieces:?}");
}
