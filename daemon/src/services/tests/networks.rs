//! What drivers have on record, as clients see it. What they do is shown by their own tests.

use grpc::network::NetworkClient;
use protos::services::network::{CollectRequest, ListAttachmentsRequest, StatusRequest};
use tonic::Code;

use super::{Daemon, refused, scoped};

fn status(driver: &str) -> StatusRequest {
    StatusRequest {
        driver: driver.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_driver_is_asked_by_its_name() {
    let daemon = Daemon::start_with(|config| {
        config.disabled_plugins = vec!["io.containerd.network.v1.bridge".into()];
    })
    .await;
    let mut client = NetworkClient::new(daemon.channel());
    let (code, text) = refused(client.status(scoped(status("bridge"))).await);
    assert!(
        code == Code::NotFound && text.contains("there are cni"),
        "{text}"
    );
    let collect = |driver: &str| CollectRequest {
        driver: driver.into(),
        network: "no-such".into(),
        ..Default::default()
    };
    let (code, text) = refused(client.collect(scoped(collect("cni"))).await);
    assert!(code == Code::NotFound && text.contains("no-such"), "{text}");
    let answer = client
        .list_attachments(scoped(ListAttachmentsRequest::default()))
        .await;
    assert!(
        answer
            .unwrap()
            .into_inner()
            .message()
            .await
            .unwrap()
            .is_none()
    );
    let filters = ListAttachmentsRequest {
        filters: vec!["==".into()],
        ..Default::default()
    };
    let (code, _) = refused(client.list_attachments(scoped(filters)).await.map(drop));
    assert_eq!(code, Code::InvalidArgument);
}

#[tokio::test]
async fn only_a_driver_that_others_work_for_collects() {
    let daemon = Daemon::start().await;
    let mut client = NetworkClient::new(daemon.channel());
    let request = CollectRequest {
        driver: "bridge".into(),
        network: "br0".into(),
        ..Default::default()
    };
    let (code, _) = refused(client.collect(scoped(request)).await);
    assert_eq!(code, Code::Unimplemented);
}
