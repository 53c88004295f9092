//! Pulls from registries that are broken or mean harm: an error that says what and where, within its
//! time, and nothing left that looks like an image.
//!
//! Each fault is a value: one test of its own shows how it ends, and `memory` sets all of them on one
//! daemon at once.

mod answers;
mod bytes;
mod documents;
mod elsewhere;
mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use integration::Host;
use registry::testsuite::{Content, Reply, Request, Server};
use tokio::runtime::Runtime;
use types::{Descriptor, media_type as mt};

use crate::many_streams::{abort, ingests};

/// For a fault that no retry can help: not as long as an answer is waited for, 30 seconds.
const AT_ONCE: Duration = Duration::from_secs(20);
/// For one that is tried again a few times, which takes seconds: not until all patience is over, which has
/// 45 and is not begun when a pause is longer.
const AFTER_TRIES: Duration = Duration::from_secs(30);
/// For silence, which is listened to for 30 seconds, twice: not at each of five tries.
const AFTER_SILENCE: Duration = Duration::from_secs(130);
/// Length of the layer.
const LAYER: usize = 10_240;

type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// A registry that is not as it should be, and how a pull from it ends.
#[derive(Clone)]
struct Fault {
    /// An identifier.
    name: &'static str,
    limit: Duration,
    handler: Handler,
    /// What the error says besides the registry's address: digest or tag, and the stage.
    says: Vec<String>,
    /// What came of a layer and is good for the next pull. Nothing else stays.
    stays: Option<Stays>,
}

/// An ingest that stays.
#[derive(Clone)]
struct Stays {
    reference: String,
    /// How much it has; where that is not certain, something.
    bytes: Option<i64>,
}

impl Fault {
    fn new(
        name: &'static str,
        limit: Duration,
        says: &[&str],
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            limit,
            handler: Arc::new(handler),
            says: says.iter().map(ToString::to_string).collect(),
            stays: None,
        }
    }

    /// Of the last digest that is named, a layer's, so many bytes stay.
    fn keeping(mut self, bytes: Option<i64>) -> Self {
        let digest = self.says.last().expect("a digest");
        let reference = format!("layer-{digest}");
        self.stays = Some(Stays { reference, bytes });
        self
    }

    /// A good image, but for its layer.
    fn of_layer(
        name: &'static str,
        limit: Duration,
        says: &[&str],
        change: impl Fn(Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (content, layer) = image(name);
        let path = format!("/v2/r/blobs/{}", layer.digest);
        let mut fault = Self::new(name, limit, says, move |request| {
            let reply = content.reply(request);
            if request.path == path {
                change(reply)
            } else {
                reply
            }
        });
        fault.says.push(layer.digest.to_string());
        fault
    }

    fn serve(&self, runtime: &Runtime) -> Server {
        let handler = Arc::clone(&self.handler);
        runtime.block_on(Server::start(move |request| handler(request)))
    }

    /// Pulls from `server`: what the client was told, after how long.
    fn pull(&self, host: &Host, server: &Server) -> (String, Duration) {
        let began = Instant::now();
        let pull = ["images", "pull", "--plain-http", "--user=me:secret"];
        let reference = format!("{}/r:latest", server.host());
        let ctr = host.ctr_program().args(pull).args([&reference]);
        let said = ctr.limit(2 * AFTER_SILENCE).run().err();
        (said, began.elapsed())
    }

    /// Its error is one that helps.
    fn is_told(&self, server: &Server, said: &str) {
        names(said, &[server.host()]);
        for part in &self.says {
            assert!(
                said.contains(part),
                "{}: {part} is not in: {said}",
                self.name
            );
        }
    }

    /// A pull ends as it should. Returns what the registry was asked.
    fn happens(&self) -> Vec<Request> {
        let runtime = runtime();
        let server = self.serve(&runtime);
        let host = Host::new(&format!("faults-{}", self.name));
        let (said, took) = self.pull(&host, &server);
        self.is_told(&server, &said);
        assert!(took < self.limit, "{took:?}: {said}");
        let images = host.ctr(["images", "ls", "-q"]).ok();
        assert_eq!(images, "", "{said}");
        let asked = server.requests();
        drop(server);
        finish(host, self.stays.as_slice());
        asked
    }
}

/// Ends the test: what can be resumed, and nothing else, is kept for a day, and given up here.
fn finish(host: Host, stay: &[Stays]) {
    let runtime = runtime();
    // A layer that was begun, and given up for another one's fault before anything came, goes at once.
    integration::until("what brought nothing is gone", || {
        let all = runtime.block_on(ingests(&host));
        all.iter().all(|(_, bytes)| *bytes > 0)
    });
    let mut left = runtime.block_on(abort(&host));
    // With the connections that it has to the daemon.
    drop(runtime);
    for Stays { reference, bytes } in stay {
        let at = left.iter().position(|(left, _)| left.ends_with(reference));
        let at = at.unwrap_or_else(|| panic!("{reference} is not in {left:?}"));
        let (_, there) = left.remove(at);
        assert!(
            there > 0 && bytes.is_none_or(|bytes| bytes == there),
            "{there} of {reference}"
        );
    }
    assert!(left.is_empty(), "{left:?}");
    host.finish();
}

/// A fault that is more than a pull that fails: what is to be seen of it, on a daemon that may have been
/// through others.
type Case = fn(&Host);

/// A case on a daemon of its own.
fn alone(name: &str, case: Case) {
    let host = Host::new(name);
    case(&host);
    finish(host, &[]);
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
}

fn names(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

fn json(descriptor: &Descriptor) -> String {
    format!(
        r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#,
        descriptor.media_type, descriptor.digest, descriptor.size
    )
}

fn manifest(config: &Descriptor, layers: &[Descriptor]) -> String {
    let layers: Vec<String> = layers.iter().map(json).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
        mt::OCI_MANIFEST,
        json(config),
        layers.join(",")
    )
}

fn config(layers: &[Descriptor]) -> String {
    let arch = types::Platform::host().architecture;
    let ids: Vec<String> = layers.iter().map(|l| format!("\"{}\"", l.digest)).collect();
    format!(
        r#"{{"architecture":"{arch}","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
}

/// Adds an image of these layers, which are not compressed, with a tag.
pub(crate) fn tagged(content: &mut Content, layers: &[Descriptor], tag: &str) -> Descriptor {
    let config = content.add(mt::OCI_CONFIG, config(layers), &[]);
    content.add(mt::OCI_MANIFEST, manifest(&config, layers), &[tag])
}

/// An image of one layer, tagged `latest`. No other `mark` makes the same.
fn image(mark: &str) -> (Content, Descriptor) {
    let mut content = Content::default();
    // What comes after an archive's end is passed over.
    let mut data = vec![0; LAYER - mark.len()];
    data.extend_from_slice(mark.as_bytes());
    let layer = content.add(mt::OCI_LAYER, data, &[]);
    tagged(&mut content, std::slice::from_ref(&layer), "latest");
    (content, layer)
}

/// A name for the registry at `server`, of whom its hosts file below `host`'s directory says this.
pub(crate) fn known_as(host: &Host, name: &str, hosts: &str) -> String {
    let of_name = host.path("certs.d").join(name);
    std::fs::create_dir_all(&of_name).expect("directory");
    std::fs::write(of_name.join("hosts.toml"), hosts).expect("write hosts.toml");
    format!("--hosts-dir={}", host.path("certs.d").display())
}

#[test]
fn the_image_that_the_faults_are_made_of_is_a_good_one() {
    let (content, _) = image("");
    let runtime = runtime();
    let server = runtime.block_on(Server::start(move |request| content.reply(request)));
    let host = Host::new("faults-none");
    let reference = format!("{}/r:latest", server.host());
    drop(
        host.ctr(["images", "pull", "--plain-http", &reference])
            .ok(),
    );
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok().trim(), reference);
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    host.finish();
}
