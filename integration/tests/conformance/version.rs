//! The version: what every client asks first.

use grpc::version::VersionClient;
use protos::well_known::Empty;
use tonic::Request;

use crate::peer::{Peer, scoped};

rules! {
    both {
        it_is_told_with_and_without_a_namespace
        it_is_that_of_the_program
    }
    ours {}
}

async fn it_is_told_with_and_without_a_namespace(peer: &Peer) {
    let mut client = VersionClient::new(peer.channel());
    let without = client.version(Request::new(Empty::new())).await;
    let without = without.expect("version").into_inner();
    let within = client.version(scoped(Empty::new())).await;
    assert_eq!(within.expect("version").into_inner(), without);
    assert!(!without.version.is_empty());
}

async fn it_is_that_of_the_program(peer: &Peer) {
    let mut client = VersionClient::new(peer.channel());
    let told = client.version(Request::new(Empty::new())).await;
    let told = told.expect("version").into_inner();
    let program = format!("/proc/{}/exe", peer.host.daemon_pid());
    // `containerd NAME VERSION REVISION`, on one line.
    let line = integration::Program::new(program).args(["--version"]).run();
    let line = line.ok();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(words.contains(&told.version.as_str()), "{line}: {told:?}");
    if !told.revision.is_empty() {
        assert!(words.contains(&told.revision.as_str()), "{line}: {told:?}");
    }
}
