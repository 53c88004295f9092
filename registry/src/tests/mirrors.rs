//! Several hosts for one registry: who is asked, when, and what is told to whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use types::{Code, Descriptor, media_type as mt};

use super::{image, opts, read, with_hosts};
use crate::testsuite::{Content, Reply, Request, Server};
use crate::{Budget, Credentials, RegistryOpts, Repository};

/// The registry that is meant: nobody of this name exists.
const NAME: &str = "registry.example.test";

async fn serving(content: &Content) -> Server {
    let content = content.clone();
    Server::start(move |request| content.reply(request)).await
}

/// Options of hosts, as `text` says, of which one is silent: waited for for longer than a busy machine keeps
/// the others from answering.
fn with_silent(text: &str, dir: &std::path::Path) -> RegistryOpts {
    let mut options = with_hosts(text, dir, NAME);
    options.limits.hedge = Duration::from_secs(2);
    options
}

/// Less than it takes to wait for a silent host again and again, or until a request has no more patience.
const ONE_MOMENT: Duration = Duration::from_secs(10);

async fn silent() -> Server {
    Server::start(|_| Reply::status(0)).await
}

fn mirrors(hosts: &[&Server], server: Option<&Server>) -> String {
    let mut text = match server {
        Some(server) => format!("server = \"http://{}\"\n", server.host()),
        None => String::new(),
    };
    for host in hosts {
        text += &format!("[host.\"http://{}\"]\n", host.host());
    }
    text
}

fn repository(opts: RegistryOpts) -> Repository {
    let reference = format!("{NAME}/r:latest").parse().unwrap();
    Repository::new(&reference, opts).unwrap()
}

#[tokio::test]
async fn mirrors_are_asked_first_and_told_which_registry_is_meant() {
    let (content, manifest, layer, data) = image();
    let (mirror, server) = (serving(&content).await, serving(&content).await);
    let dir = tempfile::tempdir().unwrap();
    let options = with_hosts(&mirrors(&[&mirror], Some(&server)), dir.path(), NAME);
    let repository = repository(options);
    assert_eq!(repository.resolve().await.unwrap(), manifest);
    assert_eq!(read(&repository, &layer, 5).await.unwrap(), data[5..]);
    assert!(server.requests().is_empty());
    for request in mirror.requests() {
        assert_eq!(request.query, format!("ns={NAME}"));
    }
}

#[tokio::test]
async fn what_a_mirror_lacks_or_spoils_the_registry_gives() {
    let (content, manifest, layer, data) = image();
    type Handler = fn(&Request) -> Reply;
    let bad: [Handler; 5] = [
        |_| Reply::status(404),
        |_| Reply::status(500),
        |_| Reply::status(401).with("www-authenticate", "Basic realm=x"),
        |_| {
            Reply::status(200)
                .with("content-type", "text/html")
                .body("<html>")
        },
        |_| Reply::status(200).with("content-length", "junk"),
    ];
    for handler in bad {
        let (mirror, server) = (Server::start(handler).await, serving(&content).await);
        let dir = tempfile::tempdir().unwrap();
        let text = mirrors(&[&mirror], Some(&server));
        let repository = repository(with_hosts(&text, dir.path(), NAME));
        assert_eq!(repository.resolve().await.unwrap(), manifest);
        assert_eq!(read(&repository, &layer, 0).await.unwrap(), data);
        assert!(!mirror.requests().is_empty());
    }
    // What nobody has is not there, whatever the mirrors say.
    let (mirror, server) = (Server::start(bad[1]).await, Server::start(bad[0]).await);
    let dir = tempfile::tempdir().unwrap();
    let text = mirrors(&[&mirror], Some(&server));
    let error = repository(with_hosts(&text, dir.path(), NAME))
        .resolve()
        .await;
    let error = error.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains(server.host()), "{error}");
    assert_eq!(mirror.requests().len(), 1);
}

#[tokio::test]
async fn capabilities_say_who_is_asked_for_what() {
    let (content, manifest, layer, _) = image();
    let (pulls, resolves, pushes) = (
        serving(&content).await,
        serving(&content).await,
        serving(&content).await,
    );
    let text = format!(
        "server = \"http://{}\"\ncapabilities = [\"push\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"resolve\"]\n",
        pushes.host(),
        pulls.host(),
        resolves.host()
    );
    let dir = tempfile::tempdir().unwrap();
    let repository = repository(with_hosts(&text, dir.path(), NAME));
    repository.resolve().await.unwrap();
    assert_eq!((pulls.requests().len(), resolves.requests().len()), (0, 1));
    read(&repository, &layer, 0).await.unwrap();
    assert_eq!((pulls.requests().len(), resolves.requests().len()), (1, 1));
    assert!(pushes.requests().is_empty());
    assert!(repository.exists(&manifest).await.unwrap());
    assert_eq!(pushes.requests().len(), 1);
    // Nobody may do it.
    let text = format!(
        "server = \"http://{}\"\ncapabilities = [\"push\"]",
        pushes.host()
    );
    let repository = Repository::new(
        &format!("{NAME}/r:latest").parse().unwrap(),
        with_hosts(&text, dir.path(), NAME),
    );
    let error = repository.unwrap().resolve().await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

/// An image with four small layers.
fn four_layers() -> (Content, Descriptor, Vec<Descriptor>) {
    let mut content = Content::default();
    let layers = (0..4u8).map(|n| content.add(mt::OCI_LAYER, vec![n; 1000], &[]));
    let layers = layers.collect();
    let manifest = content.add(mt::OCI_MANIFEST, "{}", &["latest"]);
    (content, manifest, layers)
}

#[tokio::test]
async fn a_stalled_mirror_costs_one_moment_not_one_for_each_layer() {
    let (content, manifest, layers) = four_layers();
    let (mirror, server) = (silent().await, serving(&content).await);
    let dir = tempfile::tempdir().unwrap();
    let text = mirrors(&[&mirror], Some(&server));
    let options = with_silent(&text, dir.path());
    let began = Instant::now();
    for _ in 0..2 {
        let repository = repository(options.clone());
        assert_eq!(repository.resolve().await.unwrap(), manifest);
        for layer in &layers {
            assert_eq!(read(&repository, layer, 0).await.unwrap().len(), 1000);
        }
    }
    assert!(began.elapsed() < ONE_MOMENT, "{:?}", began.elapsed());
    assert_eq!(mirror.requests().len(), 1);
}

#[tokio::test]
async fn a_stalled_mirror_does_not_keep_the_registry_from_saying_no() {
    let (mirror, server) = (silent().await, Server::start(|_| Reply::status(404)).await);
    let dir = tempfile::tempdir().unwrap();
    let text = mirrors(&[&mirror], Some(&server));
    let repository = repository(with_silent(&text, dir.path()));
    let began = Instant::now();
    let error = repository.resolve().await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(began.elapsed() < ONE_MOMENT, "{:?}", began.elapsed());
    assert_eq!((mirror.requests().len(), server.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_body_that_stalls_goes_on_from_another_host() {
    let (content, _, layer, data) = image();
    let stalling = content.clone();
    let mirror = Server::start(move |request| Reply {
        stall: Some(100_000),
        ..stalling.reply(request)
    })
    .await;
    let server = serving(&content).await;
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_hosts(&mirrors(&[&mirror], Some(&server)), dir.path(), NAME);
    options.limits.stall = Duration::from_millis(200);
    let repository = repository(options);
    let mut reader = repository.open(&layer, 0).unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = reader.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert_eq!(got, data);
    assert_eq!(server.requests()[0].header("range"), "bytes=100000-");
    assert!(reader.host().contains(server.host()));
    // Wrong bytes are the fault of who sent them last.
    assert!(reader.distrust());
    assert!(repository.shared.health.is_ill(
        &crate::url::Origin::of(&format!("http://{}/", server.host()).parse().unwrap()).unwrap()
    ));
}

#[tokio::test]
async fn hosts_that_are_all_slow_are_not_given_up() {
    let (content, _, layer, data) = image();
    let late = |content: &Content| {
        let content = content.clone();
        Server::start(move |request| Reply {
            late: Some(Duration::from_millis(1800)),
            ..content.reply(request)
        })
    };
    let (mirror, server) = (late(&content).await, late(&content).await);
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_hosts(&mirrors(&[&mirror], Some(&server)), dir.path(), NAME);
    options.limits.stall = Duration::from_millis(300);
    options.limits.attempts = 5;
    assert_eq!(read(&repository(options), &layer, 0).await.unwrap(), data);
    // 300, 600, 1200 ms of each, and 2400: each gets its turn.
    assert_eq!((mirror.requests().len(), server.requests().len()), (4, 3));
}

#[tokio::test]
async fn of_hosts_that_all_hang_each_has_its_turns_and_all_have_but_their_time() {
    let (content, _, layer, _) = image();
    let hanging = |content: &Content| {
        let content = content.clone();
        Server::start(move |request| Reply {
            stall: Some(0),
            ..content.reply(request)
        })
    };
    let (one, two) = (hanging(&content).await, hanging(&content).await);
    let server = hanging(&content).await;
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_hosts(&mirrors(&[&one, &two], Some(&server)), dir.path(), NAME);
    let limits = &mut options.limits;
    limits.stall = Duration::from_millis(200);
    limits.backoff = Duration::from_millis(1);
    limits.patience = Duration::from_secs(4);
    limits.attempts = 2;
    let most = 4 * limits.patience;
    let began = Instant::now();
    let error = read(&repository(options), &layer, 0).await.unwrap_err();
    let took = began.elapsed();
    assert!(error.is(Code::Unavailable), "{error}");
    assert!(took < most, "{took:?}");
    // 200 and 400 ms of each, and 800 as far as there is time.
    for host in [&one, &two, &server] {
        let turns = host.requests().len();
        assert!((2..=3).contains(&turns), "{turns}");
    }
}

#[tokio::test]
async fn who_hangs_does_not_keep_a_slow_host_from_its_turn() {
    let (content, _, layer, data) = image();
    let (hanging, slow) = (content.clone(), content);
    let mirror = Server::start(move |request| Reply {
        stall: Some(0),
        ..hanging.reply(request)
    })
    .await;
    let server = Server::start(move |request| Reply {
        late: Some(Duration::from_millis(1800)),
        ..slow.reply(request)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_hosts(&mirrors(&[&mirror], Some(&server)), dir.path(), NAME);
    options.limits.stall = Duration::from_millis(300);
    options.limits.attempts = 5;
    assert_eq!(read(&repository(options), &layer, 0).await.unwrap(), data);
    // 300, 600, 1200, 2400 ms of each.
    assert_eq!((mirror.requests().len(), server.requests().len()), (4, 4));
}

#[tokio::test]
async fn a_host_that_recovers_is_asked_again() {
    let (content, manifest, ..) = image();
    let well = Arc::new(AtomicBool::new(false));
    let (copy, state) = (content.clone(), Arc::clone(&well));
    let mirror = Server::start(move |request| match state.load(Ordering::Relaxed) {
        true => copy.reply(request),
        false => Reply::status(503),
    })
    .await;
    let server = serving(&content).await;
    let dir = tempfile::tempdir().unwrap();
    let options = with_hosts(&mirrors(&[&mirror], Some(&server)), dir.path(), NAME);
    for _ in 0..3 {
        repository(options.clone()).resolve().await.unwrap();
    }
    assert_eq!((mirror.requests().len(), server.requests().len()), (1, 3));
    well.store(true, Ordering::Relaxed);
    let origin = crate::url::parse(&format!("http://{}/", mirror.host())).unwrap();
    options
        .health
        .well(&crate::url::Origin::of(&origin).unwrap());
    assert_eq!(repository(options).resolve().await.unwrap(), manifest);
    assert_eq!((mirror.requests().len(), server.requests().len()), (2, 3));
}

#[tokio::test]
async fn passwords_and_headers_are_for_the_registry_only() {
    let (content, manifest, ..) = image();
    let (copy, asks) = (content.clone(), "Basic realm=x");
    let mirror = Server::start(move |_| Reply::status(401).with("www-authenticate", asks)).await;
    let server = Server::start(move |request| match request.header("authorization") {
        "" => Reply::status(401).with("www-authenticate", asks),
        _ => copy.reply(request),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    // The reference names the registry by the address at which it is.
    let text = format!("[host.\"http://{}\"]\n", mirror.host());
    let host = server.host().to_owned();
    let options = RegistryOpts {
        credentials: Some(Credentials {
            user: "user".into(),
            secret: "pass".into(),
        }),
        default_scheme: "http".into(),
        ..with_hosts(&text, dir.path(), &host)
    };
    let reference = format!("{host}/r:latest").parse().unwrap();
    let got = Repository::new(&reference, options)
        .unwrap()
        .resolve()
        .await;
    assert_eq!(got.unwrap(), manifest);
    assert!(!mirror.requests().is_empty());
    let said = |server: &Server| -> Vec<String> {
        let requests = server.requests();
        requests
            .iter()
            .map(|r| r.header("authorization").to_owned())
            .collect()
    };
    assert!(said(&mirror).iter().all(String::is_empty), "{mirror:?}");
    assert_eq!(said(&server), ["", "Basic dXNlcjpwYXNz"]);
    assert!(server.requests().iter().all(|r| r.query.is_empty()));
    let text = format!("{text}header.x-mirror = \"m\"\n");
    let mut options = with_hosts(&text, dir.path(), &host);
    options.default_scheme = "http".into();
    for (name, value) in [("authorization", "Basic eDp5"), ("private-token", "t")] {
        options.headers.insert(name, value.parse().unwrap());
    }
    Repository::new(&reference, options)
        .unwrap()
        .resolve()
        .await
        .unwrap();
    assert!(said(&mirror).iter().all(String::is_empty), "{mirror:?}");
    assert_eq!(said(&server)[2..], ["Basic eDp5"]);
    let last = |server: &Server| {
        let requests = server.requests();
        let last = requests.last().unwrap();
        ["private-token", "x-mirror"].map(|name| last.header(name).to_owned())
    };
    assert_eq!([last(&mirror), last(&server)], [["", "m"], ["t", ""]]);
}

#[tokio::test]
async fn the_budget_ends_what_single_limits_would_let_go_on() {
    let (_, _, layer, _) = image();
    let server = silent().await;
    let reference = format!("{}/r:latest", server.host()).parse().unwrap();
    let options = RegistryOpts {
        budget: Some(Budget::new(Duration::from_millis(200), None)),
        ..opts()
    };
    let repository = Repository::new(&reference, options).unwrap();
    for error in [
        repository.resolve().await.unwrap_err(),
        read(&repository, &layer, 0).await.unwrap_err(),
        repository.exists(&layer).await.unwrap_err(),
    ] {
        assert!(error.is(Code::DeadlineExceeded), "{error}");
        assert!(
            error.to_string().contains("no progress within 200ms"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn ranges_of_one_blob_come_in_side_by_side() {
    let (content, _, layer, data) = image();
    let server = serving(&content).await;
    let reference = format!("{}/r", server.host()).parse().unwrap();
    let repository = Repository::new(&reference, opts()).unwrap();
    let part = |range: std::ops::Range<u64>| {
        let mut reader = repository.open_range(&layer, range).unwrap();
        async move {
            let mut all = Vec::new();
            while let Some(chunk) = reader.chunk().await.unwrap() {
                all.extend_from_slice(&chunk);
            }
            all
        }
    };
    let half = layer.size / 2;
    let (a, b) = tokio::join!(part(0..half), part(half..layer.size));
    assert_eq!([a, b].concat(), data);
    let mut ranges: Vec<_> = server
        .requests()
        .iter()
        .map(|r| r.header("range").to_owned())
        .collect();
    ranges.sort();
    assert_eq!(
        ranges,
        [format!("bytes=0-{}", half - 1), format!("bytes={half}-")]
    );
    for bad in [1..layer.size + 1, layer.size + 1..layer.size + 1] {
        let error = repository.open_range(&layer, bad).unwrap_err();
        assert!(error.is(Code::OutOfRange), "{error}");
    }
    // A server without ranges sends all; only the part is taken.
    let whole = content.clone();
    let server = Server::start(move |request| {
        let mut request = request.clone();
        request.headers.remove("range");
        whole.reply(&request)
    })
    .await;
    let reference = format!("{}/r", server.host()).parse().unwrap();
    let repository = Repository::new(&reference, opts()).unwrap();
    let mut reader = repository.open_range(&layer, 10..20).unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = reader.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert_eq!(got, data[10..20]);
}

/// A mirror breaks off in the middle, and nobody else has the rest: one lacks it, one says nothing, and the
/// registry refuses it. Then the mirror breaks off again, or fails at once.
#[tokio::test]
async fn a_blob_that_nobody_gives_names_each_host_and_what_it_said() {
    for (breaks_again, code) in [(true, Code::Unavailable), (false, Code::PermissionDenied)] {
        let (content, _, layer, _) = image();
        let breaks = Server::start(move |request| match request.header("range") {
            range if range.is_empty() || breaks_again => Reply {
                stall: Some(1000),
                ..content.reply(request)
            },
            _ => Reply::status(500),
        })
        .await;
        let (lacks, silent) = (Server::start(|_| Reply::status(404)).await, silent().await);
        let server = Server::start(|_| Reply::status(403)).await;
        let dir = tempfile::tempdir().unwrap();
        let text = mirrors(&[&breaks, &lacks, &silent], Some(&server));
        let mut options = with_hosts(&text, dir.path(), NAME);
        options.limits.stall = Duration::from_millis(200);
        options.limits.hedge = Duration::from_secs(1);
        options.limits.patience = Duration::from_secs(6);
        let error = read(&repository(options), &layer, 0).await.unwrap_err();
        let said = error.to_string();
        assert!(error.is(code), "{said}");
        let last = if breaks_again { "in time" } else { "500" };
        let mut want = vec![(&breaks, last), (&lacks, "404"), (&server, "403")];
        if !breaks_again {
            want.push((&silent, "silent for"));
        }
        for (host, why) in want {
            let root = format!("http://{}/v2", host.host());
            let at = said.find(&root).unwrap_or_else(|| panic!("{root}: {said}"));
            assert!(said[at..].contains(why), "{why}: {said}");
        }
        assert!(said.contains(layer.digest.as_str()), "{said}");
        assert!(said.len() < 2500, "{said}");
    }
}
