//! What a configuration changes, and what outlives a restart.

use std::fs::OpenOptions;
use std::io::Write as _;

use grpc::containers::ContainersClient;
use integration::{Host, Oci, Whose};
use protos::services::containers::ListContainersRequest;
use protos::well_known::Any;
use tonic::Code;

use crate::introspection::{SNAPSHOTTER, info, plugins, server};
use crate::peer::{Peer, check_with, refused, scoped};
use crate::stock::prepare;
use crate::transport::{create, large, of_size};

const RECEIVED: usize = 1 << 20;
const SENT: usize = 2 << 20;
/// A directory that cannot be made.
const BROKEN: &str = "[plugins.\"io.containerd.snapshotter.v1.native\"]\n\
                      root_path = \"/dev/null/native\"\n";

/// A daemon with more in its configuration than the others have.
fn configured(whose: Whose, more: &str) -> Host {
    let mut host = Host::mixed("conformance", Oci::Runc, whose, whose);
    host.stop();
    let mut file = OpenOptions::new()
        .append(true)
        .open(host.path("config.toml"))
        .expect("open");
    file.write_all(more.as_bytes()).expect("write");
    host.start();
    host
}

fn sizes() -> String {
    format!("[grpc]\nmax_recv_message_size = {RECEIVED}\nmax_send_message_size = {SENT}\n")
}

async fn messages_have_the_configured_sizes(peer: &Peer) {
    let mut client = ContainersClient::new(peer.channel());
    let answer = client.update(scoped(of_size(RECEIVED))).await;
    refused(Code::NotFound, answer);
    let answer = client.update(scoped(of_size(RECEIVED + 1))).await;
    let text = refused(Code::ResourceExhausted, answer);
    assert!(text.contains(&format!("vs. {RECEIVED}")), "{text}");
    for id in ["a", "b", "c"] {
        let request = scoped(create(large(id, RECEIVED - 1000)));
        drop(client.create(request).await.expect("create"));
        let request = scoped(ListContainersRequest::default());
        let answer = client.list(request).await;
        if id == "c" {
            let text = refused(Code::ResourceExhausted, answer);
            assert!(text.contains(&format!("vs. {SENT}")), "{text}");
        } else {
            drop(answer.expect("list"));
        }
    }
}

async fn a_plugin_that_fails_says_why_and_the_rest_works(peer: &Peer) {
    let rows = plugins(peer, &[&format!("type=={SNAPSHOTTER},id==native")]).await;
    assert_eq!(rows.len(), 1);
    let failure = rows[0].init_err.as_ref().expect("a failure");
    assert_ne!(failure.code, 0);
    assert!(failure.message.contains("/dev/null"), "{failure:?}");
    let answer = prepare(peer, "", ("k", ""), &[]).await;
    let text = refused(Code::InvalidArgument, answer);
    assert!(text.contains("native"), "{text}");
    let rows = plugins(peer, &[&format!("type=={SNAPSHOTTER},id==overlayfs")]).await;
    assert!(rows[0].init_err.is_none());
}

async fn a_plugin_that_fails_is_not_asked(peer: &Peer) {
    let native = (SNAPSHOTTER, "native");
    let told = info(peer, native, None).await.expect("told").into_inner();
    assert!(told.plugin.init_err.is_some());
    let answer = info(peer, native, Some(Any::new())).await;
    refused(Code::FailedPrecondition, answer);
}

fn the_uuid_outlives_a_restart(whose: Whose) {
    let mut first = String::new();
    let mut host = Host::mixed("conformance", Oci::Runc, whose, whose);
    let told = host.ctr(["version"]).ok();
    if let Some(line) = told.lines().find(|line| line.contains("UUID:")) {
        first.extend(line.split_whitespace().nth(1));
    }
    host.stop();
    host.start();
    check_with(host, async |peer| {
        assert_eq!(server(peer).await.uuid, first);
    });
}

macro_rules! of {
    ($($name:ident $whose:expr;)*) => {
        $(mod $name {
            use super::Whose;

            #[test]
            fn the_uuid_outlives_a_restart() {
                super::the_uuid_outlives_a_restart($whose);
            }

            #[test]
            fn messages_have_the_configured_sizes() {
                let host = super::configured($whose, &super::sizes());
                super::check_with(host, super::messages_have_the_configured_sizes);
            }

            #[test]
            fn a_plugin_that_fails_says_why_and_the_rest_works() {
                let host = super::configured($whose, super::BROKEN);
                super::check_with(host, super::a_plugin_that_fails_says_why_and_the_rest_works);
            }
        })*
    };
}

of! {
    ours Whose::Ours;
    debian Whose::Debian;
}

#[test]
fn a_plugin_of_ours_that_fails_is_not_asked() {
    let host = configured(Whose::Ours, BROKEN);
    check_with(host, a_plugin_that_fails_is_not_asked);
}
