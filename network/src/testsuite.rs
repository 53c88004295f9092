//! Conformance: what every [`NetworkDriver`] must do, whatever is behind it.
//!
//! Each function takes a place whose driver has nothing yet, and panics at the first broken rule. [`all`]
//! runs them one after the other; after each of them the host is as before.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a broken rule is reported by a panic, as in any test"
)]

use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::task::Poll;

use types::Code;
use types::network::NetRequest;

use crate::NetworkDriver;

/// Where a driver is tried.
pub trait Place: Sync {
    /// The driver.
    fn driver(&self) -> &dyn NetworkDriver;
    /// Has a container of this number join a network namespace of its own, which is there until
    /// [`Place::end`].
    fn request(&self, number: u8) -> NetRequest;
    /// Takes the network namespace of a container away.
    fn end(&self, number: u8);
    /// All that a driver may change outside of network namespaces.
    fn state(&self) -> String;
}

/// Runs everything.
pub async fn all(place: &dyn Place) {
    the_same_again_is_the_same(place).await;
    containers_are_independent(place).await;
    what_was_never_set_up(place).await;
    namespaces_that_are_none(place).await;
    a_namespace_that_is_gone(place).await;
    another_wish_for_what_is_there(place).await;
    a_caller_who_goes_away(place).await;
}

async fn teardown(place: &dyn Place, request: &NetRequest) {
    if let Err(errors) = place.driver().teardown(request).await {
        panic!("{errors:?}");
    }
}

/// Set-up and tear-down can be repeated; a check knows both.
pub async fn the_same_again_is_the_same(place: &dyn Place) {
    let (before, request, driver) = (place.state(), place.request(2), place.driver());
    driver.status().await.unwrap();
    let made = driver.setup(&request).await.unwrap();
    assert!(
        !made.addresses.is_empty() && !made.interfaces.is_empty(),
        "{made:?}"
    );
    let inside = made
        .interfaces
        .iter()
        .find(|one| one.netns.as_ref() == Some(&request.netns));
    assert_eq!(
        inside.map(|one| one.name.as_str()),
        Some(request.interface.as_str())
    );
    let there = place.state();
    assert_eq!(driver.setup(&request).await.unwrap(), made);
    assert_eq!(place.state(), there);
    driver.check(&request).await.unwrap();
    for _ in 0..2 {
        teardown(place, &request).await;
        assert_eq!(
            driver.check(&request).await.unwrap_err().code(),
            Code::NotFound
        );
        assert_eq!(place.state(), before);
    }
    // And from the beginning.
    driver.setup(&request).await.unwrap();
    teardown(place, &request).await;
    assert_eq!(place.state(), before);
    place.end(2);
}

/// What is done for one does nothing to another.
pub async fn containers_are_independent(place: &dyn Place) {
    let (before, driver) = (place.state(), place.driver());
    let (one, other) = (place.request(2), place.request(3));
    let first = driver.setup(&one).await.unwrap();
    let second = driver.setup(&other).await.unwrap();
    for address in &first.addresses {
        assert!(
            second
                .addresses
                .iter()
                .all(|two| two.address != address.address)
        );
    }
    teardown(place, &one).await;
    driver.check(&other).await.unwrap();
    assert_eq!(driver.setup(&other).await.unwrap(), second);
    teardown(place, &other).await;
    assert_eq!(place.state(), before);
    place.end(2);
    place.end(3);
}

/// Nothing is not found, and taken away without an error.
pub async fn what_was_never_set_up(place: &dyn Place) {
    let (before, request) = (place.state(), place.request(2));
    let error = place.driver().check(&request).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    teardown(place, &request).await;
    assert_eq!(place.state(), before);
    place.end(2);
}

/// A network namespace that is missing, and a file that is none.
pub async fn namespaces_that_are_none(place: &dyn Place) {
    let before = place.state();
    for (path, code) in [
        ("/no/such/namespace", Code::NotFound),
        ("/proc/self/status", Code::InvalidArgument),
        ("/proc/self/ns/mnt", Code::InvalidArgument),
    ] {
        let mut request = place.request(2);
        request.netns = Path::new(path).to_owned();
        let error = place.driver().setup(&request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(path), "{error}");
        assert_eq!(place.state(), before);
        teardown(place, &request).await;
        place.end(2);
    }
}

/// A network namespace that went before its networks did.
pub async fn a_namespace_that_is_gone(place: &dyn Place) {
    let (before, request) = (place.state(), place.request(2));
    place.driver().setup(&request).await.unwrap();
    place.end(2);
    place.driver().check(&request).await.unwrap_err();
    teardown(place, &request).await;
    assert_eq!(place.state(), before);
}

/// An attachment is not made over by another request.
pub async fn another_wish_for_what_is_there(place: &dyn Place) {
    let (before, request) = (place.state(), place.request(2));
    place.driver().setup(&request).await.unwrap();
    let mut other = request.clone();
    other.mac = Some("02:00:00:00:07:07".parse().unwrap());
    let error = place.driver().setup(&other).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    place.driver().check(&request).await.unwrap();
    teardown(place, &other).await;
    assert_eq!(place.state(), before);
    place.end(2);
}

/// A set-up whose caller does not wait for it leaves nothing that a tear-down does not find.
pub async fn a_caller_who_goes_away(place: &dyn Place) {
    let (before, request) = (place.state(), place.request(2));
    for polls in 0..5 {
        {
            let mut setup = pin!(place.driver().setup(&request));
            let mut left = polls;
            poll_fn(|context| {
                if left == 0 {
                    return Poll::Ready(());
                }
                left -= 1;
                context.waker().wake_by_ref();
                setup.as_mut().poll(context).map(|done| drop(done.unwrap()))
            })
            .await;
        }
        teardown(place, &request).await;
        assert_eq!(place.state(), before);
    }
    place.end(2);
}
