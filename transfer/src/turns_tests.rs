//! Pulls that share places, and those that wait for another writer.

use std::sync::Mutex;

use content::IngestSpec;
use registry::testsuite::{Content, Reply, Server};
use registry::{Health, RegistryOpts};
use tokio::time::timeout;
use types::Code;

use super::*;
use crate::fake::{World, image_of};
use crate::{Progress, PullOpts, pull};

/// Longer than anything takes here that does not wait for ever.
const LONG: Duration = Duration::from_secs(30);

fn opts(places: &Places) -> PullOpts {
    PullOpts {
        places: Some(places.clone()),
        registry: RegistryOpts {
            plain_http: true,
            health: Health::new(),
            ..RegistryOpts::default()
        },
        ..PullOpts::default()
    }
}

#[tokio::test]
async fn a_layer_waits_for_a_place_and_documents_do_not() {
    let mut content = Content::default();
    let layer = image_of(&mut content, vec![1; 1000], "a");
    let server = Server::start(move |request| content.reply(request)).await;
    let (world, places) = (World::new(), Places::new(1));
    let deps = world.deps();
    let reference = format!("{}/r:a", server.host());
    let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let tell = Arc::clone(&told);
    let opts = PullOpts {
        progress: OnProgress::new(move |progress| tell.lock().unwrap().push(progress.clone())),
        ..opts(&places)
    };
    let mut pulling = std::pin::pin!(pull(&reference, &deps, opts));
    let place = places.find().unwrap();
    let waiting = |all: &[Progress]| all.iter().filter(|p| p.status == Status::Waiting).count();
    // Told when the layer's turn has not come, and again when there is no place for it.
    let waits = async {
        while waiting(&told.lock().unwrap()) < 2 {
            sleep(LOOKS[0]).await;
        }
    };
    tokio::select! {
        done = &mut pulling => panic!("it has a place: {done:?}"),
        waits = timeout(LONG, waits) => waits.expect("it waits, and says so"),
    }
    let waited = timeout(Duration::from_millis(300), &mut pulling).await;
    assert!(waited.is_err(), "it has a place");
    let of_layer = |server: &Server| {
        let asked = server.requests();
        let of = |path: &str| path.ends_with(layer.digest.as_str());
        asked.iter().filter(|r| of(&r.path)).count()
    };
    assert_eq!((server.requests().len(), of_layer(&server)), (3, 0));
    // People see what it waits for, and nobody is kept from writing it.
    let last = told.lock().unwrap().last().cloned().unwrap();
    let key = images::ref_key(&layer);
    assert_eq!((last.reference, last.status), (key, Status::Waiting));
    assert!(world.content.ingests().is_empty());
    drop(place);
    pulling.await.unwrap();
    assert_eq!(of_layer(&server), 1);
}

#[tokio::test]
async fn images_of_several_platforms_come_side_by_side() {
    let mut content = Content::default();
    let layers = [1, 2].map(|n| image_of(&mut content, vec![n; 1000], &format!("p{n}")));
    let entry = |n: u8| {
        let text = content.reply(&asked(&format!("/v2/r/manifests/p{n}"))).body;
        let (digest, size) = (images::digest_of(&text).unwrap(), text.len());
        let kind = types::media_type::OCI_MANIFEST;
        let what = format!(r#""mediaType":"{kind}","digest":"{digest}","size":{size}"#);
        let platform = format!(r#""platform":{{"os":"linux","architecture":"a{n}"}}"#);
        format!("{{{what},{platform}}}")
    };
    let text = [1, 2].map(entry).join(",");
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{text}]}}"#);
    content.add(types::media_type::OCI_INDEX, text, &["all"]);
    let of_layers = move |path: &str| layers.iter().any(|l| path.ends_with(l.digest.as_str()));
    let is_layer = of_layers.clone();
    let server = Server::start(move |request| match is_layer(&request.path) {
        true => Reply::status(0),
        false => content.reply(request),
    })
    .await;
    let (world, reference) = (World::new(), format!("{}/r:all", server.host()));
    let (places, deps) = (Places::new(4), world.deps());
    let opts = PullOpts {
        platforms: images::PlatformSet::All,
        ..opts(&places)
    };
    let both = async {
        let count = || {
            let all = server.requests();
            all.iter().filter(|r| of_layers(&r.path)).count()
        };
        while count() < 2 {
            sleep(LOOKS[0]).await;
        }
    };
    // Shorter than a silent registry is waited for.
    let limit = registry::Limits::default().answer / 2;
    tokio::select! {
        done = pull(&reference, &deps, opts) => panic!("nobody gives the layers: {done:?}"),
        both = timeout(limit, both) => both.expect("one after the other"),
    }
}

fn asked(path: &str) -> registry::testsuite::Request {
    registry::testsuite::Request {
        method: "GET".into(),
        path: path.into(),
        query: String::new(),
        headers: std::collections::BTreeMap::new(),
        body: bytes::Bytes::new(),
    }
}

#[tokio::test]
async fn who_waits_for_another_writer_keeps_nobody_from_their_place() {
    let mut content = Content::default();
    let layer = image_of(&mut content, vec![1; 1000], "a");
    image_of(&mut content, vec![2; 1000], "b");
    let server = Server::start(move |request| content.reply(request)).await;
    let (world, places) = (World::new(), Places::new(1));
    let deps = world.deps();
    let mut writer = world.content.ingest(spec(&layer)).await.unwrap();
    let [first, second] = ["a", "b"].map(|tag| format!("{}/r:{tag}", server.host()));
    let first = pull(&first, &deps, opts(&places));
    let second = pull(&second, &deps, opts(&places));
    let mut first = std::pin::pin!(first);
    tokio::select! {
        done = &mut first => panic!("somebody else has the layer: {done:?}"),
        done = second => drop(done.unwrap()),
    }
    // The other one commits it, and it is not fetched.
    writer.write(vec![1; 1000].into()).await.unwrap();
    let committed = writer.commit(None, Some(layer.digest.clone()), types::Labels::new());
    committed.await.unwrap();
    first.await.unwrap();
    let asked = server.requests();
    let of_layer = |path: &str| path.ends_with(layer.digest.as_str());
    assert!(!asked.iter().any(|r| of_layer(&r.path)), "{asked:?}");
}

#[tokio::test]
async fn what_is_there_needs_no_place() {
    let mut content = Content::default();
    let layer = image_of(&mut content, vec![1; 1000], "a");
    let server = Server::start(move |request| content.reply(request)).await;
    let (world, places) = (World::new(), Places::new(1));
    let deps = world.deps();
    let _place = places.find().unwrap();
    let reference = format!("{}/r:a", server.host());
    // Whole but not committed, as a daemon leaves it that was killed; then there.
    let mut writer = world.content.ingest(spec(&layer)).await.unwrap();
    writer.write(vec![1; 1000].into()).await.unwrap();
    drop(writer);
    for _ in 0..2 {
        let pulled = timeout(LONG, pull(&reference, &deps, opts(&places))).await;
        pulled.expect("it waits for a place").unwrap();
    }
    let asked = server.requests();
    let of_layer = |path: &str| path.ends_with(layer.digest.as_str());
    assert!(!asked.iter().any(|r| of_layer(&r.path)), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_place_ends_when_nobody_who_has_one_gets_on() {
    let (places, second) = (Places::new(1), Duration::from_secs(1));
    let place = places.find().unwrap();
    assert!(places.find().is_none());
    let began = Instant::now();
    let feeder = tokio::spawn(async move {
        for _ in 0..3 {
            sleep(6 * second).await;
            place.progress();
        }
        place
    });
    let budget = Budget::new(10 * second, None);
    let error = places.take(&budget).await.unwrap_err();
    assert!(error.is(Code::DeadlineExceeded), "{error}");
    assert!(error.to_string().starts_with("wait for a place"), "{error}");
    assert_eq!(began.elapsed(), 28 * second);
    let budget = Budget::new(10 * second, None);
    let mut waiting = std::pin::pin!(places.take(&budget));
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("there is no place"),
        place = feeder => drop(place.unwrap()),
    }
    waiting.await.unwrap();
}

fn spec(layer: &Descriptor) -> IngestSpec {
    IngestSpec {
        reference: images::ref_key(layer).parse().unwrap(),
        total: Some(layer.size),
        expected: Some(layer.digest.clone()),
    }
}

/// Waits for the writer of `layer` until the budget of ten seconds is spent, and attempts to write when
/// that is worth it: how long, and how many attempts.
async fn waited(store: &dyn ContentStore, layer: &Descriptor) -> (Error, Duration, u32) {
    let reference = spec(layer).reference;
    let (mut wait, on) = (Wait::new(), OnProgress::default());
    let (began, mut attempts) = (Instant::now(), 0);
    let budget = Budget::new(Duration::from_secs(10), None);
    loop {
        let waited = wait.until_free(store, &reference, layer, &on, &budget);
        match waited.await {
            Ok(()) => attempts += 1,
            Err(error) => return (error, began.elapsed(), attempts),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_writer_that_stands_still_is_not_waited_for_for_ever() {
    let mut content = Content::default();
    let layer = image_of(&mut content, vec![1; 1000], "a");
    let dir = tempfile::tempdir().unwrap();
    let local = content::Local::open(dir.path()).unwrap();
    // One store is not told of writers, the other is: there nothing has to be attempted.
    let stores: [(Arc<dyn ContentStore>, _); 2] = [
        (Arc::new(World::new().content), 1..=7),
        (Arc::new(local), 0..=0),
    ];
    for (store, some) in stores {
        let _writer = store.ingest(spec(&layer)).await.unwrap();
        let (error, took, attempts) = waited(store.as_ref(), &layer).await;
        assert!(error.is(Code::DeadlineExceeded), "{error}");
        assert!(error.to_string().contains("makes no progress"), "{error}");
        assert!(took < Duration::from_secs(12), "{took:?}");
        assert!(some.contains(&attempts), "{attempts} attempts");
    }
}

#[tokio::test(start_paused = true)]
async fn another_writer_that_gets_on_is_waited_for() {
    let mut content = Content::default();
    let layer = image_of(&mut content, vec![1; 1000], "a");
    let store = World::new().content;
    let mut writer = store.ingest(spec(&layer)).await.unwrap();
    let slow = tokio::spawn(async move {
        for _ in 0..5 {
            sleep(Duration::from_secs(8)).await;
            writer.write(vec![1].into()).await.unwrap();
        }
        writer
    });
    let (_, took, _) = waited(&store, &layer).await;
    assert!(took > Duration::from_secs(49), "{took:?}");
    drop(slow.await.unwrap());
}

#[tokio::test]
async fn bytes_of_a_slow_line_are_written_as_they_come() {
    let mut content = Content::default();
    // Less than what is written at a time.
    let layer = image_of(&mut content, vec![1; 600_000], "a");
    let server = Server::start(move |request| Reply {
        rate: (request.path.contains("/blobs/")).then_some(200_000),
        ..content.reply(request)
    })
    .await;
    let world = World::new();
    let deps = world.deps();
    let reference = format!("{}/r:a", server.host());
    let key = spec(&layer).reference;
    let grows = async {
        loop {
            let status = world.content.status(&key).await;
            if status.is_ok_and(|status| status.offset > 0) {
                return;
            }
            sleep(LOOKS[0]).await;
        }
    };
    let places = Places::new(1);
    tokio::select! {
        biased;
        () = grows => {}
        done = pull(&reference, &deps, opts(&places)) => panic!("nothing was seen of it: {done:?}"),
    }
}

#[tokio::test]
async fn connections_of_a_large_layer_are_places_too() {
    const RATE: usize = 256 << 10;
    for (many, is_wide) in [(1, false), (4, true)] {
        let mut content = Content::default();
        let layer = image_of(&mut content, vec![1; 6 * RATE], "a");
        let server = Server::start(move |request| Reply {
            rate: Some(RATE),
            ..content.reply(request)
        })
        .await;
        let places = Places::new(many);
        let mut opts = opts(&places);
        opts.registry.limits.wide = registry::Wide {
            lanes: 4,
            from: 1 << 20,
            piece: 64 << 10,
            after: Duration::from_millis(100),
        };
        let world = World::new();
        let reference = format!("{}/r:a", server.host());
        pull(&reference, &world.deps(), opts).await.unwrap();
        let asked = server.requests();
        let of_layer = |path: &str| path.ends_with(layer.digest.as_str());
        let of_layer = asked.iter().filter(|r| of_layer(&r.path)).count();
        assert_eq!(of_layer > 1, is_wide, "{of_layer} requests, {many} places");
    }
}
