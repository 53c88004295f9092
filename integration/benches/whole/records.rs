//! Records: how fast a daemon answers about them, and how fast it makes durable ones.

use std::time::Instant;

use protos::MessageField;
use protos::services::{containers, images};
use protos::types::Descriptor;
use protos::well_known::{Any, Empty};
use tonic::transport::Channel;

use crate::bars::Table;
use crate::lean::Lean;
use crate::peer::{Kind, Peer};
use crate::{Bench, calls, median, spec};

/// Namespace with the records: what the other parts make is not among them.
const NAMESPACE: &str = "ctd-bench-records";
const CONTAINERS: usize = 1000;
const IMAGES: usize = 100;
const PASSES: usize = 7;
/// Callers at a time, each on a connection of its own.
const WIDTH: usize = 16;
const CREATE: &str = "containerd.services.containers.v1.Containers/Create";
const VERSION: &str = "containerd.services.version.v1.Version/Version";

/// What one pass is: its calls on one subject. A figure for each.
type Pass<'a> = &'a dyn Fn(&Bench, &Peer) -> f64;

/// Medians of passes that alternate: ours, Debian's.
fn both(bench: &Bench, pass: Pass<'_>) -> [f64; 2] {
    alternate(bench, [&bench.ours, &bench.debian], pass)
}

pub(crate) fn alternate(bench: &Bench, peers: [&Peer; 2], pass: Pass<'_>) -> [f64; 2] {
    let mut all: [Vec<f64>; 2] = Default::default();
    for n in 0..PASSES {
        for step in 0..2 {
            let which = (n + step) % 2;
            all[which].push(pass(bench, peers[which]));
        }
    }
    all.map(median)
}

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let [ours, debian] = both(bench, &|bench, peer| version(bench, peer, 1000));
    let line = table.add("Version, p50, µs", ours).debian(debian);
    line.of_debian_at_most(0.65);
    let [ours, debian] = both(bench, &|bench, peer| versions(bench, peer, 400));
    let line = table.add("Version, 16 callers, per s", ours);
    line.debian(debian).of_debian_at_least(1.25);

    for peer in [&bench.ours, &bench.debian] {
        bench.runtime.block_on(fill(&peer.calls.channel));
    }
    let [ours, debian] = both(bench, &|bench, peer| listed(bench, peer).0);
    let line = table.add("Containers.List of 1000, per s", ours);
    line.debian(debian).of_debian_at_least(4.0);
    let [ours, debian] = both(bench, &|bench, peer| listed(bench, peer).1);
    let line = table.add("Containers.List of 1000, CPU ms", ours);
    line.debian(debian).of_debian_at_most(0.25);
    let [ours, debian] = both(bench, &image_lists);
    let line = table.add("Images.List of 100, per s", ours);
    line.debian(debian).of_debian_at_least(2.5);
    durable(bench, table);
}

/// Median of one caller's calls, in µs.
fn version(bench: &Bench, peer: &Peer, calls: usize) -> f64 {
    bench.runtime.block_on(async {
        let mut client = Lean::connect(&peer.socket()).await;
        let mut all = Vec::with_capacity(calls);
        for _ in 0..calls {
            let begin = Instant::now();
            client.call(VERSION, NAMESPACE, &Empty::new()).await;
            all.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        median(all)
    })
}

/// Calls per second of many callers.
fn versions(bench: &Bench, peer: &Peer, calls: usize) -> f64 {
    bench.runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..WIDTH {
            clients.push(Lean::connect(&peer.socket()).await);
        }
        let begin = Instant::now();
        let callers = clients.into_iter().map(|mut client| async move {
            for _ in 0..calls {
                client.call(VERSION, NAMESPACE, &Empty::new()).await;
            }
        });
        let callers: Vec<_> = callers.map(tokio::spawn).collect();
        for caller in callers {
            caller.await.expect("a caller");
        }
        (WIDTH * calls) as f64 / begin.elapsed().as_secs_f64()
    })
}

fn container(id: &str) -> containers::CreateContainerRequest {
    let spec = spec::container(&["/bin/sleep", "1000"], "rootfs", &format!("/x/{id}"));
    containers::CreateContainerRequest {
        container: MessageField::some(containers::Container {
            id: id.into(),
            image: "example.test/image:1".into(),
            labels: [("a.b/c".to_owned(), "value".to_owned())].into(),
            runtime: MessageField::some(containers::container::Runtime {
                name: "io.containerd.runc.v2".into(),
                ..Default::default()
            }),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: spec.to_string().into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn fill(channel: &Channel) {
    let mut stub = grpc::containers::ContainersClient::new(channel.clone());
    for n in 0..CONTAINERS {
        let request = calls::within(NAMESPACE, container(&format!("c{n}")));
        stub.create(request).await.expect("create");
    }
    let mut stub = grpc::images::ImagesClient::new(channel.clone());
    for n in 0..IMAGES {
        let request = images::CreateImageRequest {
            image: MessageField::some(images::Image {
                name: format!("example.test/image:{n}"),
                target: MessageField::some(Descriptor {
                    media_type: "application/vnd.oci.image.index.v1+json".into(),
                    digest: format!("sha256:{n:064x}"),
                    size: 1000,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = calls::within(NAMESPACE, request);
        stub.create(request).await.expect("create image");
    }
}

/// Lists what there is, once; makes it before, when it is not there.
pub(crate) fn list_all(bench: &Bench, peer: &Peer) {
    bench.runtime.block_on(async {
        let channel = &peer.calls.channel;
        let mut stub = grpc::containers::ContainersClient::new(channel.clone());
        stub = stub.max_decoding_message_size(64 << 20);
        let list = containers::ListContainersRequest::default();
        let answer = stub.list(calls::within(NAMESPACE, list)).await;
        if answer.expect("list").into_inner().containers.is_empty() {
            fill(channel).await;
        }
    });
}

/// Lists per second, and the daemon's CPU for one.
fn listed(bench: &Bench, peer: &Peer) -> (f64, f64) {
    const CALLS: usize = 20;
    let method = "containerd.services.containers.v1.Containers/List";
    let list = containers::ListContainersRequest::default();
    // No container's record is smaller than its spec.
    let least = CONTAINERS * container("x").container.spec.value.len();
    let cpu = peer.group.leaf_cpu_ms("daemon");
    let rate = lean_calls(bench, peer, CALLS, method, &list, least);
    let cpu = (peer.group.leaf_cpu_ms("daemon") - cpu) / CALLS as f64;
    (rate, cpu)
}

/// Calls per second of a client that does not decode; each answer has so many bytes at least.
fn lean_calls(
    bench: &Bench,
    peer: &Peer,
    calls: usize,
    method: &str,
    message: &impl protos::Message,
    least: usize,
) -> f64 {
    bench.runtime.block_on(async {
        let mut client = Lean::connect(&peer.socket()).await;
        let begin = Instant::now();
        for _ in 0..calls {
            let len = client.call(method, NAMESPACE, message).await;
            assert!(len >= least, "{method}: {len} bytes");
        }
        calls as f64 / begin.elapsed().as_secs_f64()
    })
}

fn image_lists(bench: &Bench, peer: &Peer) -> f64 {
    const CALLS: usize = 150;
    let method = "containerd.services.images.v1.Images/List";
    let list = images::ListImagesRequest::default();
    // A digest and a name each.
    lean_calls(bench, peer, CALLS, method, &list, IMAGES * 90)
}

/// Creating on a disk, not on tmpfs: what counts are the flushes.
fn durable(bench: &Bench, table: &mut Table) {
    let disk = tempfile::Builder::new().prefix("ctd-bench-").tempdir();
    let disk = disk.expect("a directory on disk");
    let start = |kind, name: &str| Peer::start_bare(&bench.runtime, kind, &disk.path().join(name));
    let (ours, debian) = (start(Kind::Ours, "ours"), start(Kind::Debian, "debian"));
    let one = |bench: &Bench, peer: &Peer| creates(bench, peer, 1, 40);
    let [a, b] = alternate(bench, [&ours, &debian], &one);
    let line = table.add("Containers.Create on disk, ms", a).debian(b);
    line.of_debian_at_most(0.5);
    let many = |bench: &Bench, peer: &Peer| creates(bench, peer, WIDTH, 10);
    let [a, b] = alternate(bench, [&ours, &debian], &many);
    table
        .add("Containers.Create on disk, 16 at a time, ms each", a)
        .debian(b);
    ours.stop();
    debian.stop();
}

/// Time of one create while `width` callers create, in ms.
fn creates(bench: &Bench, peer: &Peer, width: usize, each: usize) -> f64 {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let begin = Instant::now();
    bench.runtime.block_on(async {
        let callers = (0..width).map(|_| {
            let socket = peer.socket();
            tokio::spawn(async move {
                let mut client = Lean::connect(&socket).await;
                for _ in 0..each {
                    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    client
                        .call(CREATE, NAMESPACE, &container(&format!("d{n}")))
                        .await;
                }
            })
        });
        let callers: Vec<_> = callers.collect();
        for caller in callers {
            caller.await.expect("a caller");
        }
    });
    begin.elapsed().as_secs_f64() * 1e3 / (width * each) as f64
}
