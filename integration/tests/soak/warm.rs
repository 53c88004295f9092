//! A daemon that has filled what it fills up to a bound: only then growth means something.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use client::Client;
use integration::{Host, until};
use types::Any;

/// More events than a daemon keeps for who comes back, and more of their bytes.
const EVENTS: usize = 4200;
const LENGTH: usize = 600;
const PATIENCE: Duration = Duration::from_secs(20);

/// Fills the events and the calls that a daemon remembers, and waits until it tells about itself.
pub(crate) fn up(host: &Host, debug: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let (address, namespace) = (host.address(), host.namespace().parse());
    runtime.expect("a runtime").block_on(async {
        let address = address.to_string_lossy();
        let client = Client::connect(&address, namespace.expect("a namespace"), PATIENCE).await;
        let events = client.expect("connect").events();
        let topic = "/soak/warm".to_owned().try_into().expect("a topic");
        let event = Any {
            type_url: "soak".into(),
            value: vec![b'x'; LENGTH],
        };
        for _ in 0..EVENTS {
            let published = events.publish(&topic, event.clone()).await;
            published.expect("publish");
        }
    });
    until("it tells about itself", || heap(debug).is_some());
}

/// Bytes of the daemon's heap that are in use.
pub(crate) fn heap(debug: &Path) -> Option<u64> {
    let mut stream = UnixStream::connect(debug).ok()?;
    stream.write_all(b"GET /memory HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let line = answer.lines().find_map(|line| line.strip_prefix("heap "));
    line?.trim().parse().ok()
}
