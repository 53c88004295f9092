//! Lists of many: they come in pieces, and the daemon holds no more than that.

use grpc::containers::ContainersClient;
use integration::{forget_peak, peak};
use protos::MessageField;
use protos::services::containers::{CreateContainerRequest, ListContainersRequest};
use tokio::task::JoinSet;

use crate::containers::{any, container};
use crate::peer::{Peer, within};

rules! {
    both {}
    ours {
        a_stream_of_ten_thousand_containers_takes_the_memory_of_a_few
    }
}

const CONTAINERS: usize = 10_000;
/// Of each, so that all of them are far more than the daemon may take.
const SPEC_BYTES: usize = 4 << 10;
/// Who makes them at once: they share what makes them durable.
const CALLERS: usize = 50;
/// What the daemon may take while it tells all of them, in KiB: a part of their 40 MiB, so that it does not
/// hold them, and a few times the windows of a connection.
const MOST_KIB: u64 = 16 << 10;
/// Not that which has to be empty at the end.
const MANY: &str = "many";

/// Makes every container with a number that leaves this rest.
async fn make(mut client: ContainersClient<tonic::transport::Channel>, rest: usize) {
    for number in (rest..CONTAINERS).step_by(CALLERS) {
        let mut made = container(&format!("c{number:05}"));
        made.spec = MessageField::some(any("spec", &"x".repeat(SPEC_BYTES)));
        let request = CreateContainerRequest {
            container: MessageField::some(made),
            ..CreateContainerRequest::default()
        };
        drop(client.create(within(MANY, request)).await.expect("create"));
    }
}

async fn a_stream_of_ten_thousand_containers_takes_the_memory_of_a_few(peer: &Peer) {
    let client = ContainersClient::new(peer.channel());
    let mut callers = JoinSet::new();
    for rest in 0..CALLERS {
        callers.spawn(make(client.clone(), rest));
    }
    callers.join_all().await;

    let list = || within(MANY, ListContainersRequest::default());
    // Somebody who does not go on reading is there, too.
    let mut idle = ContainersClient::new(peer.connect().await);
    let mut idle = idle.list_stream(list()).await.expect("list").into_inner();
    assert!(idle.message().await.expect("a message").is_some());

    let pid = peer.host.daemon_pid();
    forget_peak(pid);
    let before = peak(pid);
    let mut stream = client
        .clone()
        .list_stream(list())
        .await
        .expect("list")
        .into_inner();
    let mut told = 0;
    while let Some(message) = stream.message().await.expect("a message") {
        assert_eq!(message.container.id, format!("c{told:05}"));
        assert_eq!(message.container.spec.value.len(), SPEC_BYTES);
        told += 1;
    }
    assert_eq!(told, CONTAINERS);
    let grown = peak(pid) - before;
    assert!(grown < MOST_KIB, "{grown} KiB over {before}");
    drop(idle);
}
