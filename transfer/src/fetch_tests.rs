//! Hosts that send other bytes than they should, and those that send none.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry::testsuite::{Content, Reply, Server};
use registry::{Health, RegistryOpts};
use types::Image;

use super::*;
use crate::fake::{World, image_of};
use crate::{PullOpts, pull};

/// A name that only hosts files know.
const NAME: &str = "registry.example.test";

/// An image of one layer, `r:a`, and the layer.
fn image() -> (Content, Descriptor) {
    let mut content = Content::default();
    let layer = image_of(&mut content, vec![7; 50_000], "a");
    (content, layer)
}

/// Serves the image, its layer changed by `change`.
async fn serve(change: fn(Reply) -> Reply) -> Server {
    let (content, _) = image();
    Server::start(move |request| {
        let reply = content.reply(request);
        let is_layer = reply.body.len() == 50_000;
        if is_layer { change(reply) } else { reply }
    })
    .await
}

fn damaged(mut reply: Reply) -> Reply {
    let mut body = reply.body.to_vec();
    body[10_000] ^= 1;
    reply.body = body.into();
    reply
}

fn longer(reply: Reply) -> Reply {
    reply
        .with("transfer-encoding", "identity")
        .body([7; 60_000].to_vec())
}

/// Pulls by way of `hosts`, the registry last; and the layers that are there then.
async fn by(hosts: &[&Server], budget: Option<Budget>) -> Result<(Image, World)> {
    let dir = tempfile::tempdir().unwrap();
    let (server, mirrors) = hosts.split_last().unwrap();
    let mut text = format!("server = \"http://{}\"\n", server.host());
    for mirror in mirrors {
        text += &format!("[host.\"http://{}\"]\n", mirror.host());
    }
    fs::create_dir(dir.path().join(NAME)).unwrap();
    fs::write(dir.path().join(NAME).join("hosts.toml"), text).unwrap();
    let mut registry = RegistryOpts {
        host_dirs: vec![dir.path().to_owned()],
        health: Health::new(),
        budget,
        ..RegistryOpts::default()
    };
    // No other host is asked because the machine is busy.
    registry.limits.hedge = Duration::from_secs(10);
    let opts = PullOpts {
        unpack: true,
        registry,
        ..PullOpts::default()
    };
    let world = World::new();
    let pulled = pull(&format!("{NAME}/r:a"), &world.deps(), opts).await;
    assert!(world.content.ingests().is_empty());
    pulled.map(|image| (image, world))
}

fn names(error: &Error, server: &Server) {
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert!(error.to_string().contains(server.host()), "{error}");
    assert!(error.to_string().contains("fetch layer-sha256"), "{error}");
}

fn layers(server: &Server) -> usize {
    let layer = image().1.digest;
    let asked = server.requests();
    let of_layer = |path: &str| path.ends_with(layer.as_str());
    asked.iter().filter(|r| of_layer(&r.path)).count()
}

#[tokio::test]
async fn a_layer_that_a_mirror_damages_comes_from_the_next_host() {
    for change in [damaged, longer] {
        let (bad, worse, good) = (
            serve(change).await,
            serve(change).await,
            serve(|reply| reply).await,
        );
        let (_, world) = by(&[&bad, &worse, &good], None).await.unwrap();
        assert_eq!(world.chains().len(), 1);
        assert_eq!((layers(&bad), layers(&worse), layers(&good)), (1, 1, 1));
    }
}

#[tokio::test]
async fn a_registry_that_sends_other_bytes_is_named_and_asked_once() {
    for change in [damaged, longer] {
        let bad = serve(change).await;
        let error = by(&[&bad], None).await.unwrap_err();
        names(&error, &bad);
        assert_eq!(layers(&bad), 1);
    }
}

#[tokio::test]
async fn damaged_bytes_from_everywhere_end_the_pull() {
    let (bad, worse) = (serve(damaged).await, serve(damaged).await);
    let error = by(&[&bad, &worse], None).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert!(layers(&bad) >= 1 && layers(&worse) >= 1);
    assert!(layers(&bad) + layers(&worse) <= 4);
}

#[tokio::test]
async fn what_came_in_is_kept_whatever_ended_the_fetch() {
    for status in [401, 403, 404, 500, 0] {
        let (content, layer) = image();
        let (asked, key) = (AtomicUsize::new(0), images::ref_key(&layer));
        let digest = layer.digest.clone();
        let server = Server::start(move |request| {
            let reply = content.reply(request);
            if !request.path.ends_with(digest.as_str()) {
                return reply;
            }
            match asked.fetch_add(1, Ordering::Relaxed) {
                0 if status == 0 => Reply {
                    stall: Some(20_000),
                    ..reply
                },
                0 => Reply {
                    cut: Some(20_000),
                    ..reply
                },
                _ => Reply::status(status),
            }
        })
        .await;
        let world = World::new();
        let opts = |budget| PullOpts {
            registry: RegistryOpts {
                plain_http: true,
                health: Health::new(),
                budget,
                ..RegistryOpts::default()
            },
            ..PullOpts::default()
        };
        let budget = Budget::new(Duration::from_secs(if status == 0 { 3 } else { 30 }), None);
        let name = format!("{}/r:a", server.host());
        let error = pull(&name, &world.deps(), opts(Some(budget))).await;
        let error = error.unwrap_err();
        assert_eq!(error.is(Code::DeadlineExceeded), status == 0, "{error}");
        let left = world.content.status(&key.parse().unwrap()).await;
        assert_eq!(left.unwrap().offset, 20_000, "{status}: {error}");
        let good = serve(|reply| reply).await;
        let name = format!("{}/r:a", good.host());
        pull(&name, &world.deps(), opts(None)).await.unwrap();
        let asked = good.requests();
        let range = asked
            .iter()
            .find(|r| r.path.ends_with(layer.digest.as_str()));
        assert_eq!(range.unwrap().header("range"), "bytes=20000-");
    }
}

#[tokio::test]
async fn what_came_in_is_written_and_told_while_nothing_more_comes() {
    let (content, layer) = image();
    let digest = layer.digest.clone();
    let server = Server::start(move |request| {
        let stall = request.path.ends_with(digest.as_str()).then_some(20_000);
        Reply {
            stall,
            ..content.reply(request)
        }
    })
    .await;
    let (world, told) = (World::new(), Arc::new(Mutex::new(Vec::new())));
    let (noted, name) = (Arc::clone(&told), images::ref_key(&layer));
    let progress = OnProgress::new(move |progress| {
        if progress.reference == name {
            noted
                .lock()
                .unwrap()
                .push((progress.status, progress.offset));
        }
    });
    let opts = PullOpts {
        registry: RegistryOpts {
            plain_http: true,
            health: Health::new(),
            ..RegistryOpts::default()
        },
        progress,
        ..PullOpts::default()
    };
    let (name, deps) = (format!("{}/r:a", server.host()), world.deps());
    let pulling = pull(&name, &deps, opts);
    let key = images::ref_key(&layer).parse().unwrap();
    let written = async {
        let is_told = || told.lock().unwrap().last() == Some(&(Status::Waiting, 20_000));
        while world.content.status(&key).await.map_or(0, |s| s.offset) < 20_000 || !is_told() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    // Half of the time after which the silence is given up, when the rest is written in any case.
    let limit = registry::Limits::default().read / 2;
    tokio::select! {
        ended = pulling => panic!("the pull has ended: {ended:?}"),
        written = tokio::time::timeout(limit, written) => written.unwrap(),
    }
}

#[tokio::test]
async fn what_a_commit_refused_is_dropped_and_what_others_began_is_not() {
    let (content, layer) = image();
    let world = World::new();
    let reference = images::ref_key(&layer).parse().unwrap();
    let server = Server::start(move |request| content.reply(request)).await;
    let name: Reference = format!("{}/r:a", server.host()).parse().unwrap();
    let store = Arc::clone(&world.deps().content);
    let repository = Repository::new(&name, RegistryOpts::default()).unwrap();
    let budget = Budget::new(Duration::from_secs(9), None);
    let on = OnProgress::default();
    let fetcher = Fetcher::new(&store, repository, &name, budget, Places::new(1), &on);
    for (bytes, is_held, stays) in [
        (50_000, false, false),
        // Somebody began anew.
        (49_999, false, true),
        (50_000, true, true),
    ] {
        let mut writer = store.ingest(spec(&reference, &layer)).await.unwrap();
        writer.truncate(0).await.unwrap();
        writer.write(vec![8; bytes].into()).await.unwrap();
        let held = is_held.then_some(writer);
        fetcher.drop_refused(&reference, &layer).await.unwrap();
        assert_eq!(!world.content.ingests().is_empty(), stays, "{bytes}");
        drop(held);
    }
}

#[tokio::test]
async fn a_pull_ends_with_its_budget() {
    let silent = Server::start(|_| Reply::status(0)).await;
    let budget = Budget::new(Duration::from_millis(50), None);
    let error = by(&[&silent], Some(budget)).await.unwrap_err();
    assert!(error.is(Code::DeadlineExceeded), "{error}");
}

#[tokio::test]
async fn what_a_registry_is_waited_for_is_told_while_it_is() {
    let (content, layer) = image();
    let (asked, digest) = (AtomicUsize::new(0), layer.digest.clone());
    let server = Server::start(move |request| {
        let is_layer = request.path.ends_with(digest.as_str());
        if is_layer && asked.fetch_add(1, Ordering::Relaxed) < 2 {
            return Reply::status(503);
        }
        content.reply(request)
    })
    .await;
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let tell = Arc::clone(&told);
    let progress = OnProgress::default();
    let progress = progress.with_delays(move |text| tell.lock().unwrap().push(text.to_owned()));
    let opts = PullOpts {
        registry: RegistryOpts {
            plain_http: true,
            health: Health::new(),
            ..RegistryOpts::default()
        },
        progress,
        ..PullOpts::default()
    };
    let (world, name) = (World::new(), format!("{}/r:a", server.host()));
    drop(pull(&name, &world.deps(), opts).await.unwrap());
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 2, "{told:?}");
    for (n, line) in told.iter().enumerate() {
        let try_of = format!("try {} of 64: ", n + 1);
        for part in [server.host(), layer.digest.as_str(), "503", &try_of] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[test]
fn a_transfer_without_a_budget_gets_one() {
    let mut opts = RegistryOpts::default();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().unwrap();
    let _inside = runtime.enter();
    drop(crate::budget(&mut opts, &OnProgress::default()));
    assert!(opts.budget.is_some());
}
