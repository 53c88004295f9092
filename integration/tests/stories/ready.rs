//! A daemon that is not ready yet: it answers nobody, not even who asks how it is, and refuses nobody. Who
//! can wait is answered when it is ready; who cannot is told that his time is over.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use client::Client;
use grpc::health::HealthClient;
use grpc::namespaces::NamespacesClient;
use integration::{Host, Program, need, until};
use protos::health::HealthCheckRequest;
use protos::health::health_check_response::ServingStatus;
use protos::services::namespaces::ListNamespacesRequest;
use tokio::time::timeout;
use types::Code;

/// How long somebody waits in vain.
const VAIN: Duration = Duration::from_millis(500);
const SOON: Duration = integration::PATIENCE;

/// The mark of a daemon that runs, which is read behind the sockets and before all stores.
const MARK: &str = "running";

#[test]
fn who_asks_before_the_daemon_is_ready_waits_for_it() {
    let mut host = Host::notifying("ready");
    assert_eq!(host.notices(), ["READY=1"]);
    host.kill();
    let (mark, boot) = begun_into_a_wait(&mut host);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let address = host.address().display().to_string();
        let channel = client::connect(&address, SOON).await.expect("a connection");
        let mut health = HealthClient::new(channel.clone());
        let mut check = Box::pin(health.check(HealthCheckRequest::default()));
        let mut namespaces = NamespacesClient::new(channel);
        let mut list = Box::pin(namespaces.list(ListNamespacesRequest::default()));
        let early = timeout(VAIN, async { tokio::join!(&mut check, &mut list) }).await;
        assert!(early.is_err(), "{early:?}");
        // Who says how long he waits is told in time.
        let namespace = host.namespace().parse().expect("a namespace");
        let client = Client::connect(&address, namespace, SOON)
            .await
            .expect("a connection");
        let hasty = client.with_deadline(VAIN).namespaces().list().await;
        let error = hasty.expect_err("nobody answers");
        assert!(error.is(Code::DeadlineExceeded), "{error}");
        assert!(host.notices().is_empty(), "nobody is told that it is ready");
        let given = tokio::task::spawn_blocking(move || fs::write(mark, boot));
        given.await.expect("written").expect("write");
        let both = timeout(SOON, async { tokio::join!(check, list) }).await;
        let (check, list) = both.expect("answers in time");
        let check = check.expect("an answer").into_inner();
        assert_eq!(check.status, ServingStatus::SERVING.into());
        drop(list.expect("an answer"));
    });
    drop(runtime);
    host.serves();
    let mut heard = Vec::new();
    until("the service manager is told", || {
        heard.extend(host.notices());
        !heard.is_empty()
    });
    assert_eq!(heard, ["READY=1"]);
    host.finish();
}

/// Begins a daemon again that was killed, and comes no further than to listen: until somebody writes to the
/// file what is read of it.
fn begun_into_a_wait(host: &mut Host) -> (PathBuf, Vec<u8>) {
    let mark = host.root().join(MARK);
    let boot = fs::read(&mark).expect("the mark of a daemon that was killed");
    fs::remove_file(&mark).expect("remove");
    drop(Program::new(need("mkfifo")).args([&mark]).run().ok());
    host.begin();
    until("it listens", || UnixStream::connect(host.address()).is_ok());
    (mark, boot)
}

#[test]
fn who_is_told_to_stop_before_it_is_ready_goes_at_once() {
    let mut host = Host::new("unready");
    host.image();
    host.sleeper("c1");
    let before = host.task("c1", "RUNNING");
    host.kill();
    let (mark, boot) = begun_into_a_wait(&mut host);
    let stat = format!("/proc/{}/stat", host.daemon_pid());
    host.signal(15);
    until("it has ended", || {
        fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
    });
    host.kill();
    fs::remove_file(&mark).expect("remove");
    fs::write(&mark, boot).expect("write");
    host.start();
    assert_eq!(host.task("c1", "RUNNING"), before);
    host.remove("c1");
    host.finish();
}
