//! A daemon that is asked, ours or Debian's, and how rules become tests.

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use grpc::version::VersionClient;
use integration::{Host, Whose};
use protos::MessageField;
use protos::well_known::{Empty, FieldMask};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use types::Scope;

/// The namespace of a rule: every rule has a daemon of its own.
pub(crate) const NAMESPACE: &str = "test";
/// Longest wait for what must come.
pub(crate) const SOON: Duration = integration::PATIENCE;

/// A daemon of a rule's own.
pub(crate) struct Peer {
    pub(crate) host: Host,
    channel: Channel,
}

impl Peer {
    pub(crate) async fn of(host: Host) -> Self {
        let channel = connect(&host).await;
        Self { host, channel }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// It answers.
    pub(crate) async fn lives(&self) {
        let mut version = VersionClient::new(self.channel());
        let answer = version.version(Empty::new()).await;
        let answer = answer.expect("it lives").into_inner();
        assert!(!answer.version.is_empty());
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Channel {
        connect(&self.host).await
    }
}

async fn connect(host: &Host) -> Channel {
    let address = host.address().display().to_string();
    client::connect(&address, SOON).await.expect("connect")
}

/// Checks one rule with one daemon, whose configuration has these sections, too.
pub(crate) fn check(whose: Whose, sections: &str, rule: impl AsyncFnOnce(&Peer)) {
    check_with(Host::configured("conformance", whose, sections), rule);
}

/// Checks one rule with this daemon.
pub(crate) fn check_with(host: Host, rule: impl AsyncFnOnce(&Peer)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let host = runtime.block_on(async {
        let peer = Peer::of(host).await;
        rule(&peer).await;
        peer.host
    });
    drop(runtime);
    host.finish();
}

/// Tests of rules, `async fn name(peer: &Peer)`: those of both are asked of Debian's daemon, too. They
/// can be those of a daemon that is configured in a certain way.
macro_rules! rules {
    (both { $($both:ident)* } ours { $($ours:ident)* }) => {
        rules! { configured "" both { $($both)* } ours { $($ours)* } }
    };
    (configured $sections:literal both { $($both:ident)* } ours { $($ours:ident)* }) => {
        mod ours {
            use $crate::peer::check;
            $(#[test] fn $both() { check(integration::Whose::Ours, $sections, super::$both); })*
            $(#[test] fn $ours() { check(integration::Whose::Ours, $sections, super::$ours); })*
        }
        mod debian {
            $(#[test] fn $both() {
                $crate::peer::check(integration::Whose::Debian, $sections, super::$both);
            })*
        }
    };
}

/// A request in the namespace of rules.
pub(crate) fn scoped<T>(message: T) -> Request<T> {
    within(NAMESPACE, message)
}

/// A request in a namespace.
pub(crate) fn within<T>(namespace: &str, message: T) -> Request<T> {
    let scope = Scope::new(namespace.parse().expect("a namespace"));
    grpc::request(&scope, message).expect("a request")
}

/// A request in the namespace of rules, under a lease.
pub(crate) fn leased<T>(lease: &str, message: T) -> Request<T> {
    let scope = Scope {
        namespace: NAMESPACE.parse().expect("a namespace"),
        lease: Some(lease.parse().expect("a lease")),
    };
    grpc::request(&scope, message).expect("a request")
}

/// Labels.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(own).collect()
}

/// Texts that a message owns.
pub(crate) fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A field mask.
pub(crate) fn mask(paths: &[&str]) -> MessageField<FieldMask> {
    MessageField::some(FieldMask {
        paths: texts(paths),
        ..FieldMask::default()
    })
}

/// All messages of a stream.
pub(crate) async fn all<T>(
    answer: Result<Response<Streaming<T>>, Status>,
) -> Result<Vec<T>, Status> {
    let mut stream = answer?.into_inner();
    let mut found = Vec::new();
    while let Some(message) = stream.message().await? {
        found.push(message);
    }
    Ok(found)
}

/// The text of a refusal with this code.
#[track_caller]
pub(crate) fn refused<T: Debug>(code: Code, answer: Result<T, Status>) -> String {
    let status = answer.expect_err("a refusal");
    assert_eq!(status.code(), code, "{status}");
    status.message().to_owned()
}

/// The text of a refusal of what is wrong in itself; Go gives some of its own no class on the wire, but says
/// it.
#[track_caller]
pub(crate) fn called_invalid<T: Debug>(answer: Result<T, Status>) -> String {
    let status = answer.expect_err("a refusal");
    let known = [Code::InvalidArgument, Code::Unknown];
    assert!(known.contains(&status.code()), "{status}");
    assert!(status.message().ends_with(": invalid argument"), "{status}");
    status.message().to_owned()
}
