//! A registry that limits what each connection may carry: a large layer comes over several.

use std::time::{Duration, Instant};

use integration::{Host, figure, forget_peak, peak};
use registry::testsuite::{Content, Reply, Server};
use types::media_type as mt;

use crate::layout::noise;

/// The only layer: the smallest that may come over several connections.
const LAYER: usize = 64 << 20;
/// What a connection carries in a second.
const RATE: usize = 1 << 20;
/// What one connection would take.
const ALONE: Duration = Duration::from_secs((LAYER / RATE) as u64);
/// Most memory of the daemon, in KiB.
const MEMORY: u64 = 64 << 10;

/// A layer that is one archive of one file, which nothing compresses.
fn archive() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("large"), noise(LAYER, 2)).expect("write");
    let tar = integration::Program::new("tar").args(["-C", &dir.path().display().to_string()]);
    let out = dir.path().join("layer.tar");
    drop(
        tar.args(["-cf", &out.display().to_string(), "large"])
            .run()
            .ok(),
    );
    std::fs::read(out).expect("read the archive")
}

#[test]
fn a_large_layer_comes_over_several_slow_connections() {
    let mut content = Content::default();
    let layer = content.add(mt::OCI_LAYER, archive(), &[]);
    let arch = types::Platform::host().architecture;
    let config = format!(
        r#"{{"architecture":"{arch}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        layer.digest
    );
    let config = content.add(mt::OCI_CONFIG, config, &[]);
    let json = |d: &types::Descriptor| {
        let (kind, digest, size) = (&d.media_type, &d.digest, d.size);
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        json(&config),
        json(&layer)
    );
    content.add(mt::OCI_MANIFEST, manifest, &["latest"]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let server = runtime.block_on(Server::start(move |request| Reply {
        rate: Some(RATE),
        ..content.reply(request)
    }));
    let host = Host::new("slow");
    forget_peak(host.daemon_pid());
    let reference = format!("{}/r:latest", server.host());
    let began = Instant::now();
    let pull = ["images", "pull", "--plain-http", &reference];
    drop(host.ctr_program().args(pull).limit(4 * ALONE).run().ok());
    let took = began.elapsed();
    let memory = peak(host.daemon_pid());
    figure(format_args!(
        "{took:?}, {ALONE:?} over one connection; memory {memory} KiB"
    ));
    assert!(memory < MEMORY, "{memory} KiB, {MEMORY} may be");
    let asked = server.requests();
    let ranges = asked.iter().map(|r| r.header("range"));
    let pieces = ranges.filter(|range| !range.is_empty() && !range.ends_with('-'));
    // To the end: several connections were found to be faster.
    assert!(pieces.count() > 50, "{} requests", asked.len());
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    host.finish();
}
