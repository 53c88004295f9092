//! Tests of module `images`.

use std::time::{Duration, SystemTime};

use types::{Code, Filter, Image, gc_label};

use crate::fixture::{House, code, fields, image, labels, lost, scope, sha};

#[tokio::test]
async fn create_stamps_and_refuses_a_second_one() {
    let house = House::new().await;
    let store = house.metadata.images(&scope("a"));
    let before = SystemTime::now();
    let made = store.create(image("x", &sha(b"1")), None).await.unwrap();
    assert!(made.created_at >= before && made.created_at == made.updated_at);
    assert_eq!(store.get("x").await.unwrap(), made);
    assert_eq!(
        code(store.create(image("x", &sha(b"2")), None).await),
        Code::AlreadyExists
    );
    assert_eq!(store.get("x").await.unwrap(), made);
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(77);
    let fixed = store
        .create(image("y", &sha(b"1")), Some(epoch))
        .await
        .unwrap();
    assert_eq!((fixed.created_at, fixed.updated_at), (epoch, epoch));
    assert_eq!(
        house.events().await,
        ["a /images/create", "a /images/create"]
    );
    let other = house.metadata.images(&scope("b"));
    assert_eq!(code(other.get("x").await), Code::NotFound);
}

#[tokio::test]
async fn create_validates() {
    let house = House::new().await;
    let store = house.metadata.images(&scope("a"));
    let good = || image("x", &sha(b"1"));
    let bad: [fn(&mut Image); 5] = [
        |i| i.name = String::new(),
        |i| i.name = "a\0b".into(),
        |i| i.target.size = 0,
        |i| i.target.media_type = String::new(),
        |i| i.labels = labels(&[("k", &"v".repeat(4096))]),
    ];
    for spoil in bad {
        let mut image = good();
        spoil(&mut image);
        assert_eq!(code(store.create(image, None).await), Code::InvalidArgument);
    }
    assert_eq!(code(store.get("a\0b").await), Code::NotFound);
    assert!(
        house.metadata.namespaces().list().await.unwrap().is_empty(),
        "nothing was written"
    );
}

#[tokio::test]
async fn update_changes_what_the_mask_names() {
    let house = House::new().await;
    let store = house.metadata.images(&scope("a"));
    let mut first = image("x", &sha(b"1"));
    first.labels = labels(&[("a", "1"), ("b.c/d", "2")]);
    first.target.annotations = labels(&[("e", "1"), ("f.g", "2")]);
    let first = store.create(first, None).await.unwrap();
    let mut new = image("x", &sha(b"2"));
    new.labels = labels(&[("a", "9"), ("b.c/d", "8")]);
    new.target.annotations = labels(&[("f.g", "7")]);
    for (mask, want) in [
        (
            "labels.b.c/d",
            Image {
                labels: labels(&[("a", "1"), ("b.c/d", "8")]),
                ..first.clone()
            },
        ),
        (
            "labels",
            Image {
                labels: new.labels.clone(),
                ..first.clone()
            },
        ),
        ("annotations.e", {
            let mut want = first.clone();
            want.target.annotations = labels(&[("f.g", "2")]);
            want
        }),
        ("annotations", {
            let mut want = first.clone();
            want.target.annotations = new.target.annotations.clone();
            want
        }),
        (
            "target",
            Image {
                target: new.target.clone(),
                ..first.clone()
            },
        ),
    ] {
        let got = store
            .update(new.clone(), &fields(&[mask]), None)
            .await
            .unwrap();
        assert!(got.updated_at > first.updated_at, "{mask}");
        let want = Image {
            updated_at: got.updated_at,
            ..want
        };
        assert_eq!(got, want, "{mask}");
        assert_eq!(store.get("x").await.unwrap(), want, "{mask}");
        store
            .update(first.clone(), &fields(&[]), None)
            .await
            .unwrap();
    }
    assert!(
        house
            .events()
            .await
            .iter()
            .skip(1)
            .all(|e| e == "a /images/update")
    );
}

#[tokio::test]
async fn update_without_a_mask_replaces_all_but_the_creation() {
    let house = House::new().await;
    let store = house.metadata.images(&scope("a"));
    let first = store.create(image("x", &sha(b"1")), None).await.unwrap();
    let mut new = image("x", &sha(b"2"));
    new.labels = labels(&[("a", "9")]);
    new.target.annotations = labels(&[("f.g", "7")]);
    let whole = store.update(new.clone(), &fields(&[]), None).await.unwrap();
    assert_eq!((&whole.labels, &whole.target), (&new.labels, &new.target));
    assert_eq!(whole.created_at, first.created_at, "the creation stays");
    for mask in ["name", "target.digest", "createdat", ""] {
        let result = store.update(new.clone(), &fields(&[mask]), None).await;
        assert_eq!(code(result), Code::InvalidArgument, "{mask:?}");
    }
    let absent = image("absent", &sha(b"1"));
    assert_eq!(
        code(store.update(absent, &fields(&[]), None).await),
        Code::NotFound
    );
    let nameless = image("", &sha(b"1"));
    assert_eq!(
        code(store.update(nameless, &fields(&[]), None).await),
        Code::InvalidArgument
    );
    assert!(
        house
            .events()
            .await
            .iter()
            .skip(1)
            .all(|e| e == "a /images/update")
    );
}

#[tokio::test]
async fn delete_with_a_target_only_deletes_that() {
    let house = House::new().await;
    let store = house.metadata.images(&scope("a"));
    store.create(image("x", &sha(b"1")), None).await.unwrap();
    let other = sha(b"2");
    assert_eq!(
        code(store.delete("x", Some(&other), false).await),
        Code::NotFound
    );
    store.get("x").await.unwrap();
    store.delete("x", Some(&sha(b"1")), false).await.unwrap();
    assert_eq!(code(store.delete("x", None, false).await), Code::NotFound);
    assert_eq!(
        house.events().await,
        ["a /images/create", "a /images/delete"]
    );
}

#[tokio::test]
async fn lists_are_ordered_and_filtered() {
    let house = House::new().await;
    let store = house.metadata.images(&scope("a"));
    for name in ["c", "a", "b"] {
        let mut image = image(name, &sha(name.as_bytes()));
        image.labels = labels(&[("own.er/x", name)]);
        store.create(image, None).await.unwrap();
    }
    for (filters, want) in [
        (vec![], "abc"),
        (vec!["name==b".to_owned()], "b"),
        (vec![format!("target.digest=={}", sha(b"c"))], "c"),
        (vec!["labels.\"own.er/x\"~=[ab]".to_owned()], "ab"),
        (vec!["name==a".to_owned(), "name==c".to_owned()], "ac"),
    ] {
        let mut names = String::new();
        let mut see = |image: &types::ImageRef<'_>| {
            names.push_str(image.name);
            true
        };
        let filter = Filter::parse(&filters).unwrap();
        store.visit(&filter, &mut see).unwrap();
        assert_eq!(names, want);
    }
}

#[tokio::test]
async fn only_an_expiring_image_joins_the_lease() {
    let house = House::new().await;
    let leased = house.leased("a", labels(&[])).await;
    let store = house.metadata.images(&leased);
    store
        .create(image("stays", &sha(b"1")), None)
        .await
        .unwrap();
    assert!(house.held(&leased).await.is_empty());
    let mut expiring = image("expires", &sha(b"1"));
    expiring.labels = labels(&[(gc_label::EXPIRE, "2030-01-01T00:00:00Z")]);
    store.create(expiring.clone(), None).await.unwrap();
    assert_eq!(house.held(&leased).await, ["images expires"]);
    let stays = Image {
        name: "stays".into(),
        ..expiring.clone()
    };
    store
        .update(stays, &fields(&["labels"]), None)
        .await
        .unwrap();
    assert_eq!(
        house.held(&leased).await,
        ["images expires", "images stays"]
    );
    store.delete("expires", None, false).await.unwrap();
    assert_eq!(house.held(&leased).await, ["images stays"]);
    let orphan = house.metadata.images(&lost("a"));
    expiring.name = "orphan".into();
    let error = orphan.create(expiring, None).await.unwrap_err();
    assert_eq!(error.to_string(), "lease does not exist: not found");
    assert_eq!(code(store.get("orphan").await), Code::NotFound);
}
