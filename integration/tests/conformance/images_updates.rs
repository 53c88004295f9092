//! Images: changing records.

use protos::MessageField;
use protos::services::images::{Image, ImageUpdate};
use tonic::Code;

use crate::heard::Heard;
use crate::images::{Images, image, target};
use crate::peer::{Peer, labels, refused};
use crate::stock::{end, has_blob, lease, put};

rules! {
    both {
        a_mask_says_what_changes
        without_a_mask_the_record_is_replaced
        an_empty_mask_is_none
        a_mask_of_what_cannot_change_is_refused
        a_name_is_needed
        the_change_is_published
        another_target_frees_the_first
        a_mask_lets_the_target_be_left_out
    }
    ours {}
}

fn before(name: &str) -> Image {
    let mut made = Image {
        labels: labels(&[("a", "1"), ("b.c/d", "2"), ("e", "3")]),
        ..image(name, '1')
    };
    made.target.mut_or_insert_default().annotations = labels(&[("n", "1"), ("o.p/q", "2")]);
    made
}

/// Another value for whatever there is.
fn after(name: &str) -> Image {
    let mut made = Image {
        labels: labels(&[("a", "x"), ("b.c/d", "y"), ("f", "z")]),
        ..image(name, '2')
    };
    let target = made.target.mut_or_insert_default();
    target.media_type = "other".into();
    target.size = 8;
    target.annotations = labels(&[("n", "x"), ("o.p/q", "y"), ("r", "z")]);
    made
}

/// The same without the server's stamps.
fn unstamped(image: Image) -> Image {
    Image {
        created_at: MessageField::none(),
        updated_at: MessageField::none(),
        ..image
    }
}

type Change = fn(&mut Image, Image);

async fn a_mask_says_what_changes(peer: &Peer) {
    let mut images = Images::of(peer);
    let cases: [(&[&str], Change); 7] = [
        (&["labels"], |old, new| old.labels = new.labels),
        (&["labels.b.c/d", "labels.f"], |old, _| {
            old.labels = labels(&[("a", "1"), ("b.c/d", "y"), ("e", "3"), ("f", "z")]);
        }),
        (&["labels.e"], |old, _| drop(old.labels.remove("e"))),
        (&["target"], |old, new| old.target = new.target),
        (&["annotations"], |old, new| {
            let target = old.target.mut_or_insert_default();
            target.annotations = new.target.annotations.clone();
        }),
        (&["annotations.o.p/q", "annotations.r"], |old, _| {
            let target = old.target.mut_or_insert_default();
            target.annotations = labels(&[("n", "1"), ("o.p/q", "y"), ("r", "z")]);
        }),
        (&["target", "labels.a"], |old, new| {
            old.target = new.target;
            old.labels.insert("a".into(), "x".into());
        }),
    ];
    for (number, (paths, change)) in cases.into_iter().enumerate() {
        let name = format!("i{number}");
        let made = images.create(before(&name)).await.expect("create");
        let made = made.into_inner();
        let mut want = before(&name);
        change(&mut want, after(&name));
        let answer = images.update(after(&name), Some(paths)).await;
        let answer = answer.expect("update").into_inner();
        assert_eq!(answer, images.found(&name).await, "{paths:?}");
        assert_eq!(answer.created_at, made.created_at, "{paths:?}");
        assert_ne!(answer.updated_at, made.updated_at, "{paths:?}");
        assert_eq!(unstamped(answer), want, "{paths:?}");
    }
}

async fn without_a_mask_the_record_is_replaced(peer: &Peer) {
    let mut images = Images::of(peer);
    let made = images.create(before("i")).await.expect("create");
    for new in [after("i"), image("i", '3')] {
        let answer = images.update(new.clone(), None).await.expect("update");
        let answer = answer.into_inner();
        assert_eq!(answer, images.found("i").await);
        assert_eq!(answer.created_at, made.get_ref().created_at);
        assert_eq!(unstamped(answer), new);
    }
}

async fn an_empty_mask_is_none(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(before("i")).await.expect("create");
    let answer = images.update(image("i", '3'), Some(&[])).await;
    let answer = answer.expect("update").into_inner();
    assert_eq!(unstamped(answer), image("i", '3'));
}

async fn a_mask_of_what_cannot_change_is_refused(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(before("i")).await.expect("create");
    for path in [
        "name",
        "target.digest",
        "target.annotations",
        "created_at",
        "updated_at",
        "nothing",
        "",
        "Labels",
    ] {
        let answer = images.update(after("i"), Some(&["labels", path])).await;
        let text = refused(Code::InvalidArgument, answer);
        assert!(text.contains(&format!("{path:?}")), "{text}");
    }
    assert_eq!(unstamped(images.found("i").await), before("i"));
}

async fn a_name_is_needed(peer: &Peer) {
    let mut images = Images::of(peer);
    for paths in [None, Some(&["labels"][..])] {
        let answer = images.update(before(""), paths).await;
        refused(Code::InvalidArgument, answer);
    }
}

async fn the_change_is_published(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(before("i")).await.expect("create");
    let mut heard = Heard::all(peer).await;
    let new = Image {
        labels: labels(&[("a", ""), ("f", "z")]),
        ..after("i")
    };
    images.update(new, Some(&["labels"])).await.expect("update");
    let event: ImageUpdate = heard.event("/images/update").await;
    assert_eq!(event.name, "i");
    assert_eq!(event.labels, labels(&[("f", "z")]));
    let answer = images.update(after("i"), Some(&["nothing"])).await;
    refused(Code::InvalidArgument, answer);
    heard.nothing(peer).await;
}

async fn another_target_frees_the_first(peer: &Peer) {
    let mut images = Images::of(peer);
    lease(peer, "l", &[]).await;
    let first = put(peer, "l", "first", &[]).await;
    let second = put(peer, "l", "second", &[]).await;
    for digest in [&first, &second] {
        let made = Image {
            target: target(digest),
            ..image("i", '0')
        };
        if digest == &first {
            images.create(made).await.expect("create");
        } else {
            images
                .update(made, Some(&["target"]))
                .await
                .expect("update");
        }
    }
    end(peer, "l").await;
    assert!(!has_blob(peer, &first).await);
    assert!(has_blob(peer, &second).await);
}

async fn a_mask_lets_the_target_be_left_out(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(before("i")).await.expect("create");
    let sparse = Image {
        name: "i".into(),
        labels: labels(&[("a", "x")]),
        ..Image::default()
    };
    let answer = images.update(sparse, Some(&["labels.a"])).await;
    let mut want = before("i");
    want.labels.insert("a".into(), "x".into());
    assert_eq!(unstamped(answer.expect("update").into_inner()), want);
}
