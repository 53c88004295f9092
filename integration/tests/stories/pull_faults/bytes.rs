//! Layers whose bytes are not those that were promised, or come too slowly.

use std::time::Duration;

use registry::testsuite::{Part, Reply, Request, Server};

use super::{
    AFTER_SILENCE, AFTER_TRIES, AT_ONCE, Case, Fault, LAYER, alone, image, known_as, runtime,
    tagged,
};
use integration::Host;
use registry::testsuite::Content;
use types::{Descriptor, media_type as mt};

pub(super) fn faults() -> Vec<Fault> {
    vec![damaged(), longer(), endless(), cut(), slow(), ill()]
}

pub(super) const CASES: [Case; 3] = [damaged_by_a_mirror, silent_mirror, stalling_mirror];

fn damaged() -> Fault {
    Fault::of_layer("digest", AT_ONCE, &["digest"], |reply| {
        reply.body(vec![1; LAYER])
    })
}

fn longer() -> Fault {
    let says = ["20480 bytes", "10240", "read"];
    Fault::of_layer("length", AT_ONCE, &says, |reply| {
        reply.body(vec![0; 2 * LAYER])
    })
}

/// No length is announced.
fn endless() -> Fault {
    let says = ["sends more than the 10240 bytes", "read"];
    Fault::of_layer("endless", AT_ONCE, &says, |reply| Reply {
        endless: Some(Part::Body),
        ..reply
    })
}

/// Each answer breaks off.
fn cut() -> Fault {
    Fault::of_layer("cut", AFTER_TRIES, &["read", "byte 500"], |reply| Reply {
        cut: Some(100),
        ..reply
    })
    .keeping(Some(500))
}

fn slow() -> Fault {
    Fault::of_layer("slow", AFTER_SILENCE, &["only trickles", "read"], |reply| {
        Reply {
            drip: Some(Duration::from_secs(1)),
            ..reply
        }
    })
    .keeping(None)
}

fn ill() -> Fault {
    Fault::of_layer("ill", AFTER_TRIES, &["500", "read"], |_| Reply::status(500))
}

#[test]
fn a_layer_with_a_wrong_digest_is_refused() {
    drop(damaged().happens());
}

#[test]
fn a_layer_with_a_wrong_length_is_refused() {
    drop(longer().happens());
}

#[test]
fn a_layer_without_an_end_is_cut() {
    drop(endless().happens());
}

#[test]
fn a_layer_that_never_comes_whole_is_given_up() {
    drop(cut().happens());
}

#[test]
fn a_layer_of_one_byte_a_second_is_given_up() {
    drop(slow().happens());
}

#[test]
fn a_layer_that_the_registry_fails_to_read_is_given_up() {
    drop(ill().happens());
}

#[test]
fn a_layer_that_a_mirror_damages_comes_from_the_registry() {
    alone("faults-mirror", damaged_by_a_mirror);
}

fn damaged_by_a_mirror(host: &Host) {
    let (content, layer) = image("mirror");
    let path = format!("/v2/r/blobs/{}", layer.digest);
    let runtime = runtime();
    let damaged = content.clone();
    let mirror = runtime.block_on(Server::start(move |request| {
        let reply = damaged.reply(request);
        if request.path == path {
            return reply.body(vec![1; LAYER]);
        }
        reply
    }));
    let server = runtime.block_on(Server::start(move |request| content.reply(request)));
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    );
    let flag = known_as(host, "registry.example.test", &hosts);
    let reference = "registry.example.test/r:latest";
    drop(host.ctr(["images", "pull", &flag, reference]).ok());
    let of_layer = |server: &Server| {
        let asked = server.requests();
        let blob = |path: &str| path.ends_with(layer.digest.as_str());
        asked.iter().filter(|r| blob(&r.path)).count()
    };
    assert_eq!((of_layer(&mirror), of_layer(&server)), (1, 1));
    drop(host.ctr(["images", "rm", "--sync", reference]).ok());
}

/// An empty archive, and one byte after its end.
fn layer(content: &mut Content, mark: u8) -> Descriptor {
    let mut data = vec![0; LAYER];
    data.push(mark);
    content.add(mt::OCI_LAYER, data, &[])
}

/// Longest pull of four small layers with a mirror that says nothing.
const PAST_SILENCE: Duration = Duration::from_secs(3);

#[test]
fn four_layers_do_not_wait_for_a_mirror_that_is_silent() {
    alone("faults-silent", silent_mirror);
}

fn silent_mirror(host: &Host) {
    four_layers(host, |_| Reply::status(0));
}

#[test]
fn four_layers_do_not_wait_for_a_mirror_that_stalls_in_each() {
    alone("faults-stalling", stalling_mirror);
}

fn stalling_mirror(host: &Host) {
    four_layers(host, |good| Reply {
        stall: (good.body.len() == LAYER + 1).then_some(100),
        ..good
    });
}

/// Pulls an image of four layers over a mirror with answers that `change` makes of good ones.
fn four_layers(host: &Host, change: fn(Reply) -> Reply) {
    let mut content = Content::default();
    let layers: Vec<_> = (1..=4).map(|mark| layer(&mut content, mark)).collect();
    tagged(&mut content, &layers, "latest");
    let runtime = runtime();
    let copy = content.clone();
    let server = runtime.block_on(Server::start(move |request| content.reply(request)));
    let name = "registry.example.test/r:latest";
    // The machine may be busy with something else: one of three must show it.
    let mut took = Vec::new();
    for _ in 0..3 {
        // Nobody knows of a new one that it is silent.
        let copy = copy.clone();
        let mirror = Server::start(move |request| change(copy.reply(request)));
        let mirror = runtime.block_on(mirror);
        let before = server.requests().len();
        let hosts = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            server.host(),
            mirror.host()
        );
        let flag = known_as(host, "registry.example.test", &hosts);
        let began = std::time::Instant::now();
        drop(host.ctr(["images", "pull", &flag, name]).ok());
        took.push(began.elapsed());
        assert!(!mirror.requests().is_empty(), "it was asked first");
        let asked = server.requests();
        let of = |layer: &Descriptor| {
            let is_of = |r: &Request| r.path.ends_with(layer.digest.as_str());
            asked[before..].iter().any(is_of)
        };
        assert!(layers.iter().all(of), "{asked:?}");
        drop(host.ctr(["images", "rm", "--sync", name]).ok());
        if took.iter().any(|took| *took < PAST_SILENCE) {
            break;
        }
    }
    assert!(took.iter().any(|t| *t < PAST_SILENCE), "{took:?}");
}
