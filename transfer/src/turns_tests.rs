//! Pulls that share places, and those that wait for another writer.

use content::IngestSpec;
use registry::testsuite::{Content, Server};
use registry::{Health, RegistryOpts};
use tokio::time::timeout;

use super::*;
use crate::fake::{World, image_of};
use crate::{PullOpts, pull};

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
    let mut pulling = std::pin::pin!(pull(&reference, &deps, opts(&places)));
    let place = places.take().await.unwrap();
    let waited = timeout(Duration::from_millis(300), &mut pulling).await;
    assert!(waited.is_err(), "it has a place");
    let of_layer = |server: &Server| {
        let asked = server.requests();
        let of = |path: &str| path.ends_with(layer.digest.as_str());
        asked.iter().filter(|r| of(&r.path)).count()
    };
    assert_eq!((server.requests().len(), of_layer(&server)), (3, 0));
    drop(place);
    pulling.await.unwrap();
    assert_eq!(of_layer(&server), 1);
}

#[tokio::test]
async fn who_waits_for_another_writer_keeps_nobody_from_their_place() {
    let mut content = Content::default();
    let layer = image_of(&mut content, vec![1; 1000], "a");
    image_of(&mut content, vec![2; 1000], "b");
    let server = Server::start(move |request| content.reply(request)).await;
    let (world, places) = (World::new(), Places::new(1));
    let deps = world.deps();
    let spec = IngestSpec {
        reference: images::ref_key(&layer).parse().unwrap(),
        total: Some(layer.size),
        expected: Some(layer.digest.clone()),
    };
    let mut writer = world.content.ingest(spec).await.unwrap();
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

#[tokio::test(start_paused = true)]
async fn another_writer_that_stands_still_is_not_waited_for_for_ever() {
    let mut content = Content::default();
    let layer = image_of(&mut content, vec![1; 1000], "a");
    let world = World::new();
    let reference: IngestRef = images::ref_key(&layer).parse().unwrap();
    let spec = IngestSpec {
        reference: reference.clone(),
        total: None,
        expected: None,
    };
    let _writer = world.content.ingest(spec).await.unwrap();
    let (mut wait, on) = (Wait::new(), OnProgress::default());
    let began = Instant::now();
    let mut attempts = 0;
    let error = loop {
        let error = Error::unavailable("locked");
        let waited = wait.until_free(&world.content, &reference, &layer, &on, error);
        match waited.await {
            Ok(()) => attempts += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("makes no progress"), "{error}");
    assert!(began.elapsed() < 2 * PATIENCE, "{:?}", began.elapsed());
    assert!(attempts < 150, "{attempts} attempts");
}
