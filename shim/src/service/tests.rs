//! Clients that hang up right after a request.

use super::*;
use crate::testing::block_on;
use crate::wire::converse;
use protos::frame::{self, Kind};
use std::path::Path;
use std::time::Instant;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(60);

/// Serves a client that sent this and closed its connection at once.
async fn ask_and_go(shim: &Arc<Shim>, method: &str, request: &impl Message) {
    let (mut client, served) = UnixStream::pair().unwrap();
    let request = Request {
        service: TASK[0].into(),
        method: method.into(),
        payload: request.write_to_bytes().unwrap(),
        ..Request::default()
    };
    let bytes = frame::encode(1, Kind::Request, &request).unwrap();
    client.write_all(&bytes).await.unwrap();
    drop(client);
    let conversation = converse(served, |request| dispatch(Arc::clone(shim), request));
    timeout(SOON, conversation).await.unwrap();
}

/// A create whose runtime is not there: that it was begun is seen in the bundle.
fn creation(bundle: &Path) -> api::CreateTaskRequest {
    std::fs::write(bundle.join("config.json"), "{}").unwrap();
    let options = protos::runc::Options {
        binary_name: "/no/such/runtime".into(),
        ..Default::default()
    };
    api::CreateTaskRequest {
        id: "c1".into(),
        bundle: bundle.display().to_string(),
        options: Some(pack(&options).unwrap().to_wire()).into(),
        ..api::CreateTaskRequest::default()
    }
}

#[test]
fn a_change_is_made_although_the_client_has_hung_up() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = Arc::new(Shim::new("ns".parse().unwrap()));
        let request = creation(dir.path());
        let changed = || std::fs::metadata(dir.path()).unwrap().modified().unwrap();
        let before = changed();
        // The clock of files ticks slowly.
        sleep(Duration::from_millis(20)).await;
        // The options are written and, as there is no such runtime, removed.
        ask_and_go(&shim, "Create", &request).await;
        let begin = Instant::now();
        while changed() == before {
            assert!(begin.elapsed() < SOON, "nothing was begun");
            sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_container_in_the_making_is_not_said_to_be_absent() {
    block_on(async {
        let shim = Arc::new(Shim::new("ns".parse().unwrap()));
        let asked = || {
            shim.state(&api::StateRequest {
                id: "c1".into(),
                ..api::StateRequest::default()
            })
        };
        assert!(asked().unwrap_err().is_not_found());
        let making = shim.reserve("c1").unwrap();
        let error = asked().unwrap_err();
        assert!(error.is(types::Code::Unavailable), "{error}");
        drop(making);
        assert!(asked().unwrap_err().is_not_found());
    });
}

#[test]
fn a_shim_ends_although_who_told_it_has_hung_up() {
    block_on(async {
        let shim = Arc::new(Shim::new("ns".parse().unwrap()));
        ask_and_go(&shim, "Shutdown", &api::ShutdownRequest::default()).await;
        timeout(SOON, shim.stop.notified()).await.unwrap();
    });
}
