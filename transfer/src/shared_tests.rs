//! Pulls that want the same layers at the same time: each is fetched once, and what becomes of one pull is
//! told to nobody else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use registry::testsuite::{Content, Reply, Request, Server};
use registry::{Budget, Health};
use tokio::time::{sleep, timeout};
use types::{Code, media_type as mt};

use super::*;
use crate::fake::World;

/// Longer than anything takes here that does not wait for ever.
const LONG: Duration = Duration::from_secs(60);
/// Length of a layer.
const LAYER: usize = 100_000;
/// Where its first answer stops.
const HALF: u64 = 40_000;

/// Adds an image of these layers with a tag.
fn tagged(content: &mut Content, layers: &[Descriptor], ids: &[u8], tag: &str) {
    let fields = images::testsuite::fields_of;
    let all: Vec<String> = layers
        .iter()
        .map(|l| format!("{{{}}}", fields(l)))
        .collect();
    let ids = ids.iter().map(|id| images::digest_of(&data(*id)).unwrap());
    let ids: Vec<String> = ids.map(|id| format!("{:?}", id.as_str())).collect();
    let (ids, arch) = (ids.join(","), types::Platform::host().architecture);
    let text =
        format!(r#"{{"os":"linux","architecture":"{arch}","rootfs":{{"diff_ids":[{ids}]}}}}"#);
    let config = content.add(mt::OCI_CONFIG, text, &[]);
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{{}}},"layers":[{}]}}"#,
        fields(&config),
        all.join(",")
    );
    content.add(mt::OCI_MANIFEST, text, &[tag]);
}

fn data(id: u8) -> Vec<u8> {
    vec![id; LAYER]
}

/// Images `a` and `b`, each of a layer that both have and one of its own; those layers, the shared one
/// first.
fn two() -> (Content, [Descriptor; 3]) {
    let mut content = Content::default();
    let layers = [0, 1, 2].map(|id| content.add(mt::OCI_LAYER, data(id), &[]));
    let [shared, first, second] = layers.clone();
    tagged(&mut content, &[shared.clone(), first], &[0, 1], "a");
    tagged(&mut content, &[shared, second], &[0, 2], "b");
    (content, layers)
}

fn opts(places: &Places, progress: OnProgress) -> PullOpts {
    PullOpts {
        unpack: true,
        places: Some(places.clone()),
        max_concurrent: 4,
        progress,
        registry: RegistryOpts {
            plain_http: true,
            health: Health::new(),
            ..RegistryOpts::default()
        },
        ..PullOpts::default()
    }
}

fn asked(server: &Server, layer: &Descriptor) -> Vec<Request> {
    let mut all = server.requests();
    all.retain(|request| request.path.ends_with(layer.digest.as_str()));
    all
}

/// Nothing is left of anybody: neither writers nor places that are taken.
async fn is_over(world: &World, places: &Places, most: usize) {
    let ended = async {
        while !world.content.ingests().is_empty() || places.free().available_permits() < most {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let left = timeout(LONG, ended).await;
    left.unwrap_or_else(|_| panic!("{:?}", world.content.ingests()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn images_that_share_a_layer_fetch_and_unpack_it_once() {
    let (content, layers) = two();
    let server = Server::start(move |request| content.reply(request)).await;
    let (world, places) = (World::new(), Places::new(4));
    let (deps, [a, b]) = (
        world.deps(),
        ["a", "b"].map(|tag| format!("{}/r:{tag}", server.host())),
    );
    for _ in 0..5 {
        let pulls = (0..10).map(|n| {
            let name = if n % 2 == 0 { &a } else { &b };
            pull(name, &deps, opts(&places, OnProgress::default()))
        });
        let all = futures::future::join_all(pulls);
        for pulled in timeout(LONG, all).await.unwrap() {
            drop(pulled.unwrap());
        }
    }
    for layer in &layers {
        assert_eq!(asked(&server, layer).len(), 1);
    }
    assert_eq!(world.chains().len(), 3);
    is_over(&world, &places, 4).await;
}

/// Two pulls of which the first has half of the shared layer and the second waits for it.
struct Meeting {
    server: Server,
    layers: [Descriptor; 3],
    /// Lets the first one's own layer be refused.
    refuse: mpsc::Sender<()>,
}

impl Meeting {
    async fn new() -> Self {
        let (content, layers) = two();
        let (refuse, refused) = mpsc::channel::<()>();
        let (refused, times) = (Mutex::new(refused), AtomicUsize::new(0));
        let [shared, first] = [0, 1].map(|at: usize| layers[at].digest.to_string());
        let server = Server::start(move |request| {
            let reply = content.reply(request);
            if request.path.ends_with(&shared) && times.fetch_add(1, Ordering::SeqCst) == 0 {
                let stall = Some(usize::try_from(HALF).unwrap());
                return Reply { stall, ..reply };
            }
            if request.path.ends_with(&first) {
                let refused = refused.lock().unwrap();
                // Until the test says so, or is over.
                let _told = tokio::task::block_in_place(|| refused.recv());
                return Reply::status(404);
            }
            reply
        })
        .await;
        Self {
            server,
            layers,
            refuse,
        }
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/r:{tag}", self.server.host())
    }

    /// The second has the image, of which the shared layer came in two parts.
    async fn is_whole(&self, world: &World, places: &Places) {
        let asked = asked(&self.server, &self.layers[0]);
        let ranges: Vec<_> = asked.iter().map(|r| r.header("range")).collect();
        assert_eq!(ranges, ["", &format!("bytes={HALF}-")]);
        assert_eq!(world.names(), [self.name("b")]);
        assert_eq!(world.chains().len(), 2);
        is_over(world, places, 4).await;
    }
}

/// Completes when the shared layer is waited for with so much of it there.
fn waits(layer: &Descriptor) -> (OnProgress, impl Future<Output = ()> + use<>) {
    let (key, (tell, told)) = (images::ref_key(layer), tokio::sync::watch::channel(false));
    let on = OnProgress::new(move |progress| {
        let is_it = progress.reference == key && progress.status == Status::Waiting;
        if is_it && progress.offset == HALF {
            tell.send_replace(true);
        }
    });
    let mut told = told;
    (on, async move {
        drop(told.wait_for(|told| *told).await.unwrap());
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waits_for_a_pull_that_fails_takes_over_and_hears_nothing_of_it() {
    let meeting = Meeting::new().await;
    let (world, places) = (World::new(), Places::new(4));
    let deps = world.deps();
    let [a, b] = ["a", "b"].map(|tag| meeting.name(tag));
    let (on, half) = waits(&meeting.layers[0]);
    let first = pull(&a, &deps, opts(&places, on));
    let (on, waiting) = waits(&meeting.layers[0]);
    let second = async {
        half.await;
        pull(&b, &deps, opts(&places, on)).await
    };
    let refuse = async {
        waiting.await;
        meeting.refuse.send(()).unwrap();
    };
    let all = Box::pin(async { tokio::join!(first, second, refuse) });
    let (first, second, ()) = timeout(LONG, all).await.unwrap();
    let error = first.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let own = meeting.layers[1].digest.as_str();
    assert!(error.to_string().contains(own), "{error}");
    drop(second.unwrap());
    meeting.is_whole(&world, &places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waits_for_a_pull_that_is_given_up_takes_over() {
    let meeting = Meeting::new().await;
    let (world, places) = (World::new(), Places::new(4));
    let deps = world.deps();
    let [a, b] = ["a", "b"].map(|tag| meeting.name(tag));
    let (on, half) = waits(&meeting.layers[0]);
    let mut first = Box::pin(pull(&a, &deps, opts(&places, on)));
    tokio::select! {
        done = &mut first => panic!("nobody gives the rest: {done:?}"),
        half = timeout(LONG, half) => half.unwrap(),
    }
    let (on, waiting) = waits(&meeting.layers[0]);
    let second = pull(&b, &deps, opts(&places, on));
    let give_up = async {
        tokio::select! {
            done = &mut first => panic!("nobody gives the rest: {done:?}"),
            () = waiting => {}
        }
        drop(first);
    };
    let both = Box::pin(async { tokio::join!(second, give_up) });
    let (second, ()) = timeout(LONG, both).await.unwrap();
    drop(second.unwrap());
    meeting.is_whole(&world, &places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_layer_of_which_nothing_came_leaves_nothing_whatever_ends_the_pull() {
    for fails in [true, false] {
        let (content, layers) = two();
        let silent = layers[0].digest.to_string();
        let (tell, mut told) = tokio::sync::watch::channel(());
        let server = Server::start(move |request| {
            if request.path.ends_with(&silent) {
                tell.send_replace(());
                return Reply::status(0);
            }
            content.reply(request)
        })
        .await;
        let (world, places) = (World::new(), Places::new(4));
        let (deps, name) = (world.deps(), format!("{}/r:a", server.host()));
        let mut opts = opts(&places, OnProgress::default());
        let idle = if fails { Duration::from_secs(1) } else { LONG };
        opts.registry.budget = Some(Budget::new(idle, None));
        let mut pulling = Box::pin(pull(&name, &deps, opts));
        if fails {
            let error = pulling.await.unwrap_err();
            assert!(error.is(Code::DeadlineExceeded), "{error}");
        } else {
            tokio::select! {
                done = &mut pulling => panic!("nobody gives the layer: {done:?}"),
                changed = timeout(LONG, told.changed()) => changed.unwrap().unwrap(),
            }
            assert!(!world.content.ingests().is_empty(), "it has not begun");
            drop(pulling);
        }
        is_over(&world, &places, 4).await;
    }
}
