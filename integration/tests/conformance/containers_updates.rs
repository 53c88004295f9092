//! Containers: changing records.

use protos::MessageField;
use protos::events::ContainerUpdate;
use protos::services::containers::Container;
use tonic::Code;

use crate::containers::{Containers, any, container, runtime};
use crate::heard::Heard;
use crate::peer::{Peer, labels, refused};
use crate::stock::{SNAPSHOTTER, collect, end, has_snapshot, lease, prepare};

rules! {
    both {
        a_mask_says_what_changes
        a_mask_lets_what_it_does_not_name_be_left_out
        without_a_mask_all_that_can_change_is_replaced
        an_empty_mask_is_none
        without_a_mask_snapshotter_and_runtime_must_be_the_same
        a_mask_of_what_cannot_change_is_refused
        one_that_could_not_run_any_more_is_refused
        an_id_is_needed
        the_change_is_published
        another_snapshot_frees_the_first
    }
    ours {
        an_extension_that_is_masked_and_not_given_is_removed
        a_mask_has_10000_paths_at_most
    }
}

fn before(id: &str) -> Container {
    Container {
        labels: labels(&[("a", "1"), ("b.c/d", "2"), ("e", "3")]),
        image: "i".into(),
        snapshotter: SNAPSHOTTER.into(),
        snapshot_key: "k".into(),
        extensions: [
            ("x".to_owned(), any("t", "1")),
            ("y.z".to_owned(), any("t", "2")),
        ]
        .into(),
        ..container(id)
    }
}

/// Another value for whatever there is.
fn after(id: &str) -> Container {
    Container {
        id: id.into(),
        labels: labels(&[("a", "x"), ("b.c/d", "y"), ("f", "z")]),
        image: "j".into(),
        runtime: runtime("s"),
        spec: MessageField::some(any("spec", "2")),
        snapshotter: "other".into(),
        snapshot_key: "l".into(),
        extensions: [
            ("x".to_owned(), any("u", "3")),
            ("y.z".to_owned(), any("u", "4")),
            ("w".to_owned(), any("u", "5")),
        ]
        .into(),
        ..Container::default()
    }
}

/// The same without the server's stamps.
fn unstamped(container: Container) -> Container {
    Container {
        created_at: MessageField::none(),
        updated_at: MessageField::none(),
        ..container
    }
}

type Change = fn(&mut Container, Container);

async fn a_mask_says_what_changes(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let cases: [(&[&str], Change); 9] = [
        (&["labels"], |old, new| old.labels = new.labels),
        (&["labels.a"], |old, new| {
            old.labels.insert("a".into(), new.labels["a"].clone());
        }),
        (&["labels.b.c/d", "labels.f"], |old, _| {
            old.labels = labels(&[("a", "1"), ("b.c/d", "y"), ("e", "3"), ("f", "z")]);
        }),
        (&["labels.e"], |old, _| drop(old.labels.remove("e"))),
        (&["spec"], |old, new| old.spec = new.spec),
        (&["extensions"], |old, new| old.extensions = new.extensions),
        (&["extensions.y.z", "extensions.w"], |old, new| {
            old.extensions = new.extensions;
            old.extensions.insert("x".into(), any("t", "1"));
        }),
        (&["image"], |old, new| old.image = new.image),
        (&["snapshotkey"], |old, new| {
            old.snapshot_key = new.snapshot_key;
        }),
    ];
    for (number, (paths, change)) in cases.into_iter().enumerate() {
        let id = format!("c{number}");
        let made = containers.create(before(&id)).await.expect("create");
        let made = made.into_inner();
        let mut want = before(&id);
        change(&mut want, after(&id));
        let answer = containers.update(after(&id), Some(paths)).await;
        let answer = answer.expect("update").into_inner();
        assert_eq!(answer, containers.found(&id).await, "{paths:?}");
        assert_eq!(answer.created_at, made.created_at, "{paths:?}");
        assert_ne!(answer.updated_at, made.updated_at, "{paths:?}");
        assert_eq!(unstamped(answer), want, "{paths:?}");
    }
}

async fn a_mask_lets_what_it_does_not_name_be_left_out(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(before("c")).await.expect("create");
    let sparse = Container {
        id: "c".into(),
        image: "j".into(),
        ..Container::default()
    };
    let answer = containers.update(sparse, Some(&["image"])).await;
    let want = Container {
        image: "j".into(),
        ..before("c")
    };
    assert_eq!(unstamped(answer.expect("update").into_inner()), want);
}

async fn without_a_mask_all_that_can_change_is_replaced(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let made = containers.create(before("c")).await.expect("create");
    let new = Container {
        snapshotter: SNAPSHOTTER.into(),
        runtime: runtime("r"),
        ..after("c")
    };
    let answer = containers.update(new.clone(), None).await;
    let answer = answer.expect("update").into_inner();
    assert_eq!(answer, containers.found("c").await);
    assert_eq!(answer.created_at, made.into_inner().created_at);
    assert_eq!(unstamped(answer), new);
    // What is not given is removed; the options of the runtime stay.
    let bare = Container {
        snapshotter: SNAPSHOTTER.into(),
        ..container("c")
    };
    let mut given = bare.clone();
    given.runtime.mut_or_insert_default().options = MessageField::none();
    let answer = containers.update(given, None).await.expect("update");
    assert_eq!(unstamped(answer.into_inner()), bare);
}

async fn an_empty_mask_is_none(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(before("c")).await.expect("create");
    let bare = Container {
        snapshotter: SNAPSHOTTER.into(),
        ..container("c")
    };
    let answer = containers.update(bare.clone(), Some(&[])).await;
    assert_eq!(unstamped(answer.expect("update").into_inner()), bare);
}

async fn a_mask_has_10000_paths_at_most(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(before("c")).await.expect("create");
    let mut paths = vec!["labels"; 10_000];
    let answer = containers.update(before("c"), Some(&paths)).await;
    drop(answer.expect("update"));
    paths.push("labels");
    let answer = containers.update(before("c"), Some(&paths)).await;
    let text = refused(Code::InvalidArgument, answer);
    assert!(text.contains("10001 paths"), "{text}");
}

async fn without_a_mask_snapshotter_and_runtime_must_be_the_same(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(before("c")).await.expect("create");
    let changed: [fn(&mut Container); 4] = [
        |c| c.snapshotter = "other".into(),
        |c| c.snapshotter = String::new(),
        |c| c.runtime = runtime("other"),
        |c| c.runtime = MessageField::none(),
    ];
    for change in changed {
        let mut other = before("c");
        change(&mut other);
        let text = refused(Code::InvalidArgument, containers.update(other, None).await);
        assert!(text.contains("immutable"), "{text}");
    }
    assert_eq!(unstamped(containers.found("c").await), before("c"));
}

async fn a_mask_of_what_cannot_change_is_refused(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(before("c")).await.expect("create");
    for path in [
        "id",
        "runtime",
        "runtime.name",
        "snapshotter",
        "snapshot_key",
        "created_at",
        "updated_at",
        "nothing",
        "",
        "Labels",
    ] {
        let answer = containers.update(after("c"), Some(&["image", path])).await;
        let text = refused(Code::InvalidArgument, answer);
        assert!(text.contains(&format!("{path:?}")), "{text}");
    }
    assert_eq!(unstamped(containers.found("c").await), before("c"));
}

async fn one_that_could_not_run_any_more_is_refused(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(before("c")).await.expect("create");
    let mut bad = before("c");
    bad.spec = MessageField::none();
    for paths in [None, Some(&["spec"][..])] {
        let answer = containers.update(bad.clone(), paths).await;
        refused(Code::InvalidArgument, answer);
    }
    let mut bad = before("c");
    bad.extensions.insert(String::new(), any("t", "v"));
    for paths in [None, Some(&["extensions"][..])] {
        let answer = containers.update(bad.clone(), paths).await;
        refused(Code::InvalidArgument, answer);
    }
    containers.create(container("bare")).await.expect("create");
    let answer = containers
        .update(before("bare"), Some(&["snapshotkey"]))
        .await;
    refused(Code::InvalidArgument, answer);
    assert_eq!(unstamped(containers.found("c").await), before("c"));
    assert_eq!(unstamped(containers.found("bare").await), container("bare"));
}

async fn an_id_is_needed(peer: &Peer) {
    let mut containers = Containers::of(peer);
    for paths in [None, Some(&["image"][..])] {
        let answer = containers.update(before(""), paths).await;
        refused(Code::InvalidArgument, answer);
    }
}

async fn the_change_is_published(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(before("c")).await.expect("create");
    let mut heard = Heard::all(peer).await;
    let new = Container {
        labels: labels(&[("a", ""), ("f", "z")]),
        ..after("c")
    };
    let paths = ["labels", "image", "snapshotkey"];
    containers.update(new, Some(&paths)).await.expect("update");
    let event: ContainerUpdate = heard.event("/containers/update").await;
    assert_eq!((event.id.as_str(), event.image.as_str()), ("c", "j"));
    assert_eq!(event.snapshot_key, "l");
    assert_eq!(event.labels, labels(&[("f", "z")]));
    let answer = containers.update(after("c"), Some(&["nothing"])).await;
    refused(Code::InvalidArgument, answer);
    heard.nothing(peer).await;
}

async fn another_snapshot_frees_the_first(peer: &Peer) {
    let mut containers = Containers::of(peer);
    lease(peer, "l", &[]).await;
    for key in ["k", "l"] {
        prepare(peer, "l", (key, ""), &[]).await.expect("prepare");
    }
    containers.create(before("c")).await.expect("create");
    let answer = containers.update(after("c"), Some(&["snapshotkey"])).await;
    answer.expect("update");
    end(peer, "l").await;
    collect(peer).await;
    assert!(!has_snapshot(peer, "k").await);
    assert!(has_snapshot(peer, "l").await);
}

/// Go leaves an empty value in its place.
async fn an_extension_that_is_masked_and_not_given_is_removed(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(before("c")).await.expect("create");
    let without = Container {
        extensions: [].into(),
        ..before("c")
    };
    let paths = ["extensions.y.z"];
    let answer = containers.update(without, Some(&paths)).await;
    let left = answer.expect("update").into_inner().extensions;
    assert_eq!(left, [("x".to_owned(), any("t", "1"))].into());
}
