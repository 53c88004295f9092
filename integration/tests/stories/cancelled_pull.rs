//! A client that goes away in the middle of a pull that the daemon does for it: the pull ends, only what
//! the next one resumes stays, and that one fetches the rest.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration::{Host, Proxy, Registry, bin_dir, until, until_told};
use rustix::process::{Pid, Signal, kill_process};
use tonic::body::Body;
use tonic::codegen::http;

use crate::cut::UNSENT;
use crate::layout;

/// The only layer.
const LAYER: usize = 16 << 20;
/// A registry whose large image stops coming at `cut` of `size` bytes.
struct Stuck {
    host: Host,
    _registry: Registry,
    proxy: Proxy,
    reference: String,
    size: u64,
    cut: u64,
}

impl Stuck {
    fn new(name: &str) -> Self {
        let host = Host::new(name);
        let layout = host.path("layout");
        let size = layout::make(&layout, &[&[("large", layout::noise(LAYER, 1))]]);
        let registry = Registry::start();
        drop(registry.add(&format!("oci:{}:latest", layout.display()), "large"));
        std::fs::remove_dir_all(&layout).expect("remove the layout");
        let proxy = Proxy::to(registry.port());
        let cut = size / 2;
        proxy.stop_at(cut);
        Self {
            reference: format!("127.0.0.1:{}/large:1", proxy.port()),
            host,
            _registry: registry,
            proxy,
            size,
            cut,
        }
    }

    /// Begins to pull, and waits until nothing more comes.
    fn pull(&self) -> Child {
        let client = Command::new(bin_dir().join("ctr"))
            .arg("--address")
            .arg(self.host.address())
            .args(["-n", self.host.namespace(), "images", "pull"])
            .args(["--plain-http", &self.reference])
            .env("DOCKER_CONFIG", self.host.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start ctr");
        self.is_stuck();
        client
    }

    /// Waits until nothing more comes, and what came is in the store.
    fn is_stuck(&self) {
        self.proxy.stopped(integration::PATIENCE);
        let arrived = || self.arrived() + UNSENT > self.cut;
        until_told("what was sent is there", arrived, || {
            let doing = self.host.ctr(["inflight", "-a"]).ok();
            let (arrived, passed) = (self.arrived(), self.proxy.passed());
            format!("({arrived} bytes arrived, {passed} passed)\n{doing}")
        });
    }

    /// Bytes that `ctr content active` tells of the layer, as far as the store has them.
    fn arrived(&self) -> u64 {
        let ingests = self.host.root();
        let ingests = ingests.join("io.containerd.content.v1.content/ingest");
        let entries = std::fs::read_dir(ingests).into_iter().flatten().flatten();
        let data = entries.filter_map(|entry| std::fs::metadata(entry.path().join("data")).ok());
        data.map(|facts| facts.len()).max().unwrap_or(0)
    }

    fn leases(&self) -> Vec<String> {
        let leases = self.host.ctr(["leases", "ls", "-q"]).ok();
        leases.lines().map(str::to_owned).collect()
    }

    /// What stays: one ingest, `leases` leases, and no connection to the registry.
    fn is_left(&self, descriptors: usize, leases: usize) {
        until("the pull ends", || {
            self.host.descriptors() <= descriptors && self.leases().len() == leases
        });
        let active = self.host.ctr(["content", "active"]).ok();
        assert_eq!(active.lines().count(), 2, "{active}");
        assert!(active.contains("layer-sha256:"), "{active}");
        assert_eq!(self.host.ctr(["images", "ls", "-q"]).ok(), "");
        let snapshots = self.host.ctr(["snapshots", "ls"]).ok();
        assert_eq!(snapshots.lines().count(), 1, "{snapshots}");
    }

    /// The next pull goes on where the first one was.
    fn goes_on(self) {
        self.proxy.go_on();
        let before = self.proxy.passed();
        let pull = ["images", "pull", "--plain-http", &self.reference];
        drop(self.host.ctr(pull).ok());
        let again = (self.proxy.passed() - before).saturating_sub(self.size - self.cut);
        assert!(again < UNSENT, "{again} bytes were fetched twice");
        let active = self.host.ctr(["content", "active"]).ok();
        assert_eq!(active.lines().count(), 1, "{active}");
        drop(
            self.host
                .ctr(["images", "rm", "--sync", &self.reference])
                .ok(),
        );
        for lease in self.leases() {
            drop(self.host.ctr(["leases", "delete", &lease]).ok());
        }
        self.host.finish();
    }
}

#[test]
fn a_client_that_is_killed_leaves_an_ingest_and_its_own_lease() {
    let stuck = Stuck::new("cancel-kill");
    let descriptors = stuck.host.descriptors();
    let mut client = stuck.pull();
    assert!(stuck.host.descriptors() > descriptors, "it is connected");
    client.kill().expect("kill");
    assert!(!client.wait().expect("wait").success());
    // It made a lease for itself, which nobody but the clock can take back.
    stuck.is_left(descriptors, 1);
    stuck.goes_on();
}

#[test]
fn a_client_that_is_interrupted_leaves_an_ingest() {
    let stuck = Stuck::new("cancel-int");
    let descriptors = stuck.host.descriptors();
    let mut client = stuck.pull();
    kill_process(Pid::from_child(&client), Signal::INT).expect("interrupt");
    assert!(!client.wait().expect("wait").success());
    stuck.is_left(descriptors, 0);
    stuck.goes_on();
}

#[test]
fn a_client_without_a_lease_leaves_an_ingest_and_no_lease() {
    use types::transfer::{Endpoint, Remote, Store};
    let stuck = Stuck::new("cancel-call");
    let descriptors = stuck.host.descriptors();
    let address = stuck.host.address().display().to_string();
    let namespace = stuck.host.namespace().parse().expect("namespace");
    let remote = Endpoint::Registry(Remote {
        reference: stuck.reference.clone(),
        default_scheme: "http".into(),
        ..Remote::default()
    });
    let store = Endpoint::Store(Store {
        name: stuck.reference.clone(),
        ..Store::default()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let limit = std::time::Duration::from_secs(10);
    let client = runtime.block_on(client::Client::connect(&address, namespace, limit));
    let client = client.expect("connect");
    let calling = runtime.spawn(async move { client.transfer(&remote, &store, drop).await });
    stuck.is_stuck();
    assert_eq!(stuck.leases().len(), 1, "the transfer has one of its own");
    // The connection goes with the call.
    calling.abort();
    drop(runtime);
    stuck.is_left(descriptors, 0);
    stuck.goes_on();
}

/// A registry that gives everything of a small image but its layer, of which not one byte comes until it
/// `speaks`.
fn mute(
    runtime: &tokio::runtime::Runtime,
    speaks: &Arc<AtomicBool>,
) -> registry::testsuite::Server {
    let speaks = Arc::clone(speaks);
    use registry::testsuite::{Content, Reply, Server};
    let mut content = Content::default();
    let layer = content.add(types::media_type::OCI_LAYER, vec![0; 10_240], &[]);
    crate::pull_faults::tagged(&mut content, std::slice::from_ref(&layer), "latest");
    runtime.block_on(Server::start(move |request| {
        let is_layer = request.path.ends_with(layer.digest.as_str());
        match is_layer && !speaks.load(Ordering::SeqCst) {
            true => Reply::status(0),
            false => content.reply(request),
        }
    }))
}

/// Whether the layer was asked for.
fn is_at_the_layer(server: &registry::testsuite::Server) -> bool {
    let asked = server.requests();
    // The name, the manifest, the config.
    asked.len() > 3
}

fn pulling(host: &Host, server: &registry::testsuite::Server) -> Child {
    let client = Command::new(bin_dir().join("ctr"))
        .arg("--address")
        .arg(host.address())
        .args(["-n", host.namespace(), "images", "pull", "--plain-http"])
        .arg(format!("{}/r:latest", server.host()))
        .env("DOCKER_CONFIG", host.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    client.expect("start ctr")
}

fn few_threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
}

/// Nothing is there that a transfer made, and nobody is asked any more.
fn nothing_is_left(host: &Host, descriptors: usize) {
    until("all of it is gone", || {
        let active = host.ctr(["content", "active"]).ok();
        let leases = host.ctr(["leases", "ls", "-q"]).ok();
        host.descriptors() <= descriptors && active.lines().count() == 1 && leases.is_empty()
    });
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok(), "");
    let snapshots = host.ctr(["snapshots", "ls"]).ok();
    assert_eq!(snapshots.lines().count(), 1, "{snapshots}");
}

#[test]
fn a_client_that_is_interrupted_before_the_first_byte_leaves_nothing() {
    let runtime = few_threads();
    let (server, host) = (mute(&runtime, &Arc::default()), Host::new("cancel-mute"));
    let descriptors = host.descriptors();
    let mut client = pulling(&host, &server);
    until("the layer is asked for", || is_at_the_layer(&server));
    kill_process(Pid::from_child(&client), Signal::INT).expect("interrupt");
    assert!(!client.wait().expect("wait").success());
    nothing_is_left(&host, descriptors);
    host.finish();
}

/// What it leaves is for the next pull of the blob, or the collector's after a day.
#[test]
fn a_daemon_that_is_killed_before_the_first_byte_leaves_nothing_in_the_way() {
    let (runtime, speaks) = (few_threads(), Arc::<AtomicBool>::default());
    let (server, mut host) = (mute(&runtime, &speaks), Host::new("kill-mute"));
    let mut client = pulling(&host, &server);
    until("the layer is asked for", || is_at_the_layer(&server));
    host.kill();
    assert!(!client.wait().expect("wait").success());
    host.start();
    speaks.store(true, Ordering::SeqCst);
    let reference = format!("{}/r:latest", server.host());
    let pull = ["images", "pull", "--plain-http", &reference];
    drop(host.ctr(pull).ok());
    let active = host.ctr(["content", "active"]).ok();
    assert_eq!(active.lines().count(), 1, "{active}");
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    for lease in host.ctr(["leases", "ls", "-q"]).ok().lines() {
        drop(host.ctr(["leases", "delete", lease]).ok());
    }
    host.finish();
}

/// A connection that says what time a request has, and does not look at it: only the daemon's clock ends it.
async fn without_clock(
    host: &Host,
) -> impl tower::Service<
    http::Request<Body>,
    Response = http::Response<Incoming>,
    Error = hyper::Error,
    Future = impl Future<Output = hyper::Result<http::Response<Incoming>>> + Send,
> {
    let stream = tokio::net::UnixStream::connect(host.address()).await;
    let io = TokioIo::new(stream.expect("connect"));
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (sender, connection) = made.expect("a connection");
    drop(tokio::spawn(connection));
    tower::service_fn(move |request| sender.clone().send_request(request))
}

#[test]
fn a_deadline_of_the_call_ends_what_the_registry_is_asked() {
    use grpc::transfer::TransferClient;
    use protos::MessageField;
    use protos::services::transfer::TransferRequest;
    use protos::wire::Wire as _;
    use protos::wire::transfer::endpoint_to_any;
    use types::transfer::{Endpoint, Remote, Store};
    /// Shorter than a registry that says nothing is waited for.
    const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);
    let runtime = few_threads();
    let (server, host) = (
        mute(&runtime, &Arc::default()),
        Host::new("cancel-deadline"),
    );
    let descriptors = host.descriptors();
    let reference = format!("{}/r:latest", server.host());
    let remote = Endpoint::Registry(Remote {
        reference: reference.clone(),
        default_scheme: "http".into(),
        ..Remote::default()
    });
    let store = Endpoint::Store(Store {
        name: reference,
        ..Store::default()
    });
    let any = |endpoint: &Endpoint| {
        let any = endpoint_to_any(endpoint).expect("an endpoint");
        MessageField::some(any.to_wire())
    };
    let message = TransferRequest {
        source: any(&remote),
        destination: any(&store),
        ..TransferRequest::default()
    };
    let began = std::time::Instant::now();
    let status = runtime.block_on(async {
        let mut client = TransferClient::with_origin(
            without_clock(&host).await,
            http::Uri::from_static("http://localhost"),
        );
        let mut request = crate::many_streams::scoped(&host, message);
        request.set_timeout(DEADLINE);
        client.transfer(request).await
    });
    let (status, took) = (status.expect_err("nobody gives the layer"), began.elapsed());
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
    assert!(took >= DEADLINE / 2 && took < 2 * DEADLINE, "{took:?}");
    assert!(is_at_the_layer(&server), "{:?}", server.requests());
    nothing_is_left(&host, descriptors);
    host.finish();
}
