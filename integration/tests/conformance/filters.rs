//! The language of filters, asked of one service for all.

use protos::services::images::Image;
use tonic::Code;

use crate::images::{Images, image};
use crate::peer::{Peer, labels, refused};

rules! {
    both {
        the_language_selects
        a_list_of_filters_is_an_or
        bad_syntax_is_refused
        bad_syntax_of_any_filter_is_refused
    }
    ours {
        a_pattern_that_cannot_be_compiled_is_refused
        more_than_a_request_may_hold_is_refused
    }
}

/// Images to choose from.
async fn choice(peer: &Peer) -> Images {
    let mut images = Images::of(peer);
    for (name, pairs) in [
        ("alpine", &[("a.b/c", "x,y"), ("k", "v")][..]),
        ("busybox", &[("k", "w"), ("quoted", "say \"hi\"")]),
        ("x/tasks/a.b", &[("space", "a b")]),
    ] {
        let made = Image {
            labels: labels(pairs),
            ..image(name, '1')
        };
        images.create(made).await.expect("create");
    }
    images
}

/// Numbers of the images that a filter selects.
const SELECTIONS: &[(&str, &[usize])] = &[
    ("", &[0, 1, 2]),
    ("name", &[0, 1, 2]),
    ("nothing", &[]),
    ("name==alpine", &[0]),
    ("name==\"alpine\"", &[0]),
    ("name==Alpine", &[]),
    ("name==debian", &[]),
    ("name!=alpine", &[1, 2]),
    ("nothing==\"\"", &[]),
    ("nothing!=\"\"", &[]),
    ("nothing!=x", &[0, 1, 2]),
    ("nothing~=^$", &[0, 1, 2]),
    ("nothing~=[a-z]", &[]),
    ("labels.k", &[0, 1]),
    ("labels.k==v", &[0]),
    ("labels.k!=v", &[1, 2]),
    ("labels.\"a.b/c\"", &[0]),
    ("labels.\"a.b/c\"==\"x,y\"", &[0]),
    ("labels.\"a\".\"b/c\"==\"x,y\"", &[0]),
    ("labels.a.\"b/c\"==\"x,y\"", &[0]),
    ("\"labels\".\"k\"==w", &[1]),
    ("labels.quoted==\"say \\\"hi\\\"\"", &[1]),
    ("labels.space==\"a b\"", &[2]),
    ("name~=pin", &[0]),
    ("name~=^al.*", &[0]),
    ("name~=\"^b\"", &[1]),
    ("name~=/^b/", &[1]),
    ("name~=|^x/tasks/|", &[2]),
    ("name~=x/tasks", &[2]),
    ("name~=/x\\/tasks/", &[2]),
    ("name~=|z\\|al|", &[0]),
    ("name~=a\\.b", &[2]),
    ("name~=/a\\\\.b$/", &[2]),
    ("name~=(?i)^AL", &[0]),
    ("name~=^\\pL+$", &[0, 1]),
    ("name~=^\\p{Latin}+$", &[0, 1]),
    ("name~=^\\p{Greek}", &[]),
    ("name~=\\bb$", &[2]),
    ("name~=^[[:alpha:]]+$", &[0, 1]),
    ("name~=^(alp|busy)", &[0, 1]),
    ("name~=^.*?x$", &[1]),
    ("name==\"\\x61\\154\\u0070\\U00000069ne\"", &[0]),
    ("name==alpine,labels.k==v", &[0]),
    ("name==alpine,labels.k==w", &[]),
    ("labels.k,name!=alpine", &[1]),
    (" name  ==\talpine, labels.k == v", &[0]),
    ("name==x/tasks/a.b", &[2]),
    ("name!=x\"y", &[0, 1, 2]),
];

async fn the_language_selects(peer: &Peer) {
    let mut images = choice(peer).await;
    let all = images.names(&[]).await;
    for (filter, numbers) in SELECTIONS {
        let want: Vec<_> = numbers.iter().map(|number| all[*number].clone()).collect();
        assert_eq!(images.names(&[filter]).await, want, "{filter}");
    }
}

async fn a_list_of_filters_is_an_or(peer: &Peer) {
    let mut images = choice(peer).await;
    for (filters, want) in [
        (
            &["name==busybox", "name==alpine"][..],
            &["alpine", "busybox"][..],
        ),
        (&["name==busybox", "name~=b"], &["busybox", "x/tasks/a.b"]),
        (&["nothing", "name==alpine"], &["alpine"]),
        (&["nothing", "none"], &[]),
        (&["name==alpine", ""], &["alpine", "busybox", "x/tasks/a.b"]),
    ] {
        assert_eq!(images.names(filters).await, want, "{filters:?}");
    }
}

const BAD: &[&str] = &[
    "name=x",
    "=x",
    "==",
    "name==\"x",
    "name,",
    ",",
    "a..b",
    ".a",
    "name!x",
    "name~x",
    "name==",
    "name===x",
    "name==x y",
    "name==x ,tasks",
    "name ",
    "name .x",
    "name==/x/",
    "name==.x",
    "n\u{e4}me",
    "name==\"\\777\"",
    "name~=/\\d/",
    "a b",
    "name~=/x",
    "\"\\q\"",
    "(((",
];

async fn bad_syntax_is_refused(peer: &Peer) {
    let mut images = choice(peer).await;
    for filter in BAD {
        let text = refused(Code::InvalidArgument, images.list(&[filter]).await);
        assert!(text.ends_with(": invalid argument"), "{filter}: {text}");
    }
}

async fn bad_syntax_of_any_filter_is_refused(peer: &Peer) {
    let mut images = choice(peer).await;
    let answer = images.list(&["name==alpine", "name=="]).await;
    refused(Code::InvalidArgument, answer);
}

/// Go writes to its log and selects nothing.
async fn a_pattern_that_cannot_be_compiled_is_refused(peer: &Peer) {
    let mut images = choice(peer).await;
    for filter in ["name~=[", "name~=(", "name~=\"a{2,1}\""] {
        refused(Code::InvalidArgument, images.list(&[filter]).await);
    }
}

/// Go parses as many as fit into a message.
async fn more_than_a_request_may_hold_is_refused(peer: &Peer) {
    let mut images = choice(peer).await;
    let long = format!("name=={}", "x".repeat(128 << 10));
    let joined = vec!["name"; 4001].join(",");
    for (filters, limit) in [
        (vec!["name"; 1001], "filters, the limit is 1000"),
        (vec![&*long; 2], "bytes of filters, the limit is 262144"),
        (vec![&*joined], "conditions in filters, the limit is 4000"),
        (
            vec!["name~=a"; 257],
            "regular expressions in filters, the limit is 256",
        ),
    ] {
        let text = refused(Code::InvalidArgument, images.list(&filters).await);
        assert!(text.contains(limit), "{text}");
    }
    assert_eq!(images.names(&vec!["name==alpine"; 1000]).await, ["alpine"]);
}
