//! Ten clients that want the same image cost as much as one.

use integration::{Host, Proxy, Registry, Watch, bin_dir};

use crate::layout;

const CLIENTS: usize = 10;
const LAYERS: u64 = 4;
const LAYER: usize = 12 << 20;

#[test]
fn ten_pulls_at_once_fetch_and_unpack_each_layer_once() {
    at_once("ten-times", None);
}

#[test]
fn ten_clients_that_pull_themselves_fetch_and_unpack_each_layer_once() {
    at_once("ten-times-local", Some("--local"));
}

fn at_once(name: &str, local: Option<&str>) {
    let host = Host::new(name);
    let layout = host.path("layout");
    let files: Vec<_> = (1..=LAYERS)
        .map(|n| [("data", layout::noise(LAYER, n))])
        .collect();
    let layers: Vec<&[_]> = files.iter().map(<[_; 1]>::as_slice).collect();
    let size = layout::make(&layout, &layers);
    let registry = Registry::start();
    drop(registry.add(&format!("oci:{}:latest", layout.display()), "shared"));
    let proxy = Proxy::to(registry.port());
    let reference = format!("127.0.0.1:{}/shared:1", proxy.port());
    let mut watch = Watch::start(&host, &bin_dir().join("ctr"));
    let pull = || {
        let pull = host.ctr_program().args(["images", "pull", "--plain-http"]);
        drop(pull.args(local).args([&reference]).run().ok());
    };
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(pull);
        }
    });
    let passed = proxy.passed();
    assert!(
        passed < size + size / 20,
        "{passed} bytes were fetched for an image of {size}"
    );
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    let topics = watch.topics_until("/images/delete");
    let prepared = topics.iter().filter(|topic| *topic == "/snapshot/prepare");
    assert_eq!(prepared.count() as u64, LAYERS, "{topics:?}");
    drop(watch);
    host.finish();
}
