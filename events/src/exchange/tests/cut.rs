//! What clients without positions are owed after a hand-over.

use std::time::SystemTime;

use types::{Filter, Topic};

use super::{codec, event, namespace, subscribe};
use crate::{Envelope, Exchange, Subscription};

const PROCESS: u32 = 4711;

fn of_process(exchange: &Exchange) -> Subscription {
    subscribe(exchange, &["namespace==a"]).of_process(PROCESS)
}

fn publish(exchange: &Exchange, names: &[&str]) {
    for name in names {
        exchange.publish(&namespace("a"), &event(name));
    }
}

async fn hears(subscription: &mut Subscription, names: &[&str]) {
    for name in names {
        let seen = subscription.recv().await.unwrap();
        assert_eq!(seen.event, (codec().encode)(&event(name)), "{name}");
    }
}

fn back(exchange: &Exchange, process: u32) -> Subscription {
    let filter = Filter::parse(&["namespace==a"]).unwrap();
    exchange.rejoin(filter, Some(process), false)
}

#[tokio::test]
async fn who_was_cut_is_told_all_until_it_is_back_and_nobody_else_is() {
    let old = Exchange::new(codec());
    let mut cut = of_process(&old);
    publish(&old, &["heard"]);
    hears(&mut cut, &["heard"]).await;
    assert!(is_idle(&mut cut).await);
    old.part();
    drop(cut);
    publish(&old, &["told by a shim meanwhile"]);
    let new = Exchange::after(codec(), old.history());
    publish(&new, &["before it is back"]);
    let mut other = back(&new, PROCESS + 1);
    let mut back_again = back(&new, PROCESS);
    let mut second = back(&new, PROCESS);
    publish(&new, &["now"]);
    let missed = ["told by a shim meanwhile", "before it is back", "now"];
    hears(&mut back_again, &missed).await;
    hears(&mut other, &["now"]).await;
    hears(&mut second, &["now"]).await;
}

#[tokio::test]
async fn who_goes_again_before_all_is_told_is_owed_the_rest() {
    let old = Exchange::new(codec());
    let cut = of_process(&old);
    old.part();
    drop(cut);
    publish(&old, &["1", "2"]);
    let new = Exchange::after(codec(), old.history());
    // Nothing of it was taken; then the first, and the second was in hand.
    drop(back(&new, PROCESS));
    let mut broken = back(&new, PROCESS).of_process(PROCESS);
    hears(&mut broken, &["1", "2"]).await;
    drop(broken);
    publish(&new, &["3"]);
    let mut whole = back(&new, PROCESS);
    hears(&mut whole, &["2", "3"]).await;
    assert!(is_idle(&mut whole).await);
    drop(whole);
    let mut paid = back(&new, PROCESS);
    publish(&new, &["4"]);
    hears(&mut paid, &["4"]).await;
}

#[tokio::test]
async fn what_nobody_could_be_told_in_the_gap_is_told_to_who_was_there_before() {
    let old = Exchange::new(codec());
    publish(&old, &["told before"]);
    let at = SystemTime::now();
    let new = Exchange::after(codec(), old.history());
    let late = Envelope {
        timestamp: at,
        namespace: namespace("a"),
        topic: Topic::from(&event("exit")),
        event: (codec().encode)(&event("exit")),
    };
    new.forward(late).unwrap();
    let join = |is_older| {
        let filter = Filter::parse(&["namespace==a"]).unwrap();
        new.rejoin(filter, Some(PROCESS), is_older)
    };
    let (mut older, mut younger) = (join(true), join(false));
    publish(&new, &["now"]);
    hears(&mut older, &["exit", "now"]).await;
    hears(&mut younger, &["now"]).await;
}

/// True when nothing is there for it.
async fn is_idle(subscription: &mut Subscription) -> bool {
    let none = std::time::Duration::ZERO;
    tokio::time::timeout(none, subscription.recv())
        .await
        .is_err()
}

#[tokio::test]
async fn what_was_not_read_when_it_was_cut_is_owed_too() {
    let old = Exchange::new(codec());
    let mut cut = of_process(&old);
    publish(&old, &["read", "in hand", "queued"]);
    hears(&mut cut, &["read", "in hand"]).await;
    old.part();
    drop(cut);
    let new = Exchange::after(codec(), old.history());
    hears(&mut back(&new, PROCESS), &["in hand", "queued"]).await;
}

#[tokio::test]
async fn a_client_that_is_away_over_two_hand_overs_misses_nothing() {
    let old = Exchange::new(codec());
    let cut = of_process(&old);
    old.part();
    drop(cut);
    publish(&old, &["1"]);
    let between = Exchange::after(codec(), old.history());
    publish(&between, &["2"]);
    between.part();
    let new = Exchange::after(codec(), between.history());
    hears(&mut back(&new, PROCESS), &["1", "2"]).await;
}

#[tokio::test]
async fn who_went_before_the_hand_over_is_owed_nothing() {
    let old = Exchange::new(codec());
    drop(of_process(&old));
    let follower = old.follow(Filter::default()).of_process(PROCESS);
    old.part();
    publish(&old, &["1"]);
    assert_eq!(old.history().cut, []);
    drop(follower);
    assert_eq!(old.history().cut, []);
    let new = Exchange::after(codec(), old.history());
    let mut plain = back(&new, PROCESS);
    publish(&new, &["2"]);
    hears(&mut plain, &["2"]).await;
}
