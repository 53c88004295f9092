//! What is kept until a time goes then, though nothing else happens.

use std::time::{Duration, SystemTime};

use ::content::testsuite::spec;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{sleep, timeout};
use types::{Filter, Labels, gc_label};

use super::{FUTURE, PAST};
use crate::content::INGEST_LIFETIME;
use crate::db::LOOK;
use crate::fixture::{House, image, labels, put, scope};
use crate::gc::{Scheduler, SchedulerOpts, run_at};

/// Labels that say so.
fn until(at: SystemTime) -> Labels {
    let text = OffsetDateTime::from(at).format(&Rfc3339).unwrap();
    Labels::new().with(gc_label::EXPIRE, text)
}

fn in_future(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

/// The leases of namespace `a`.
async fn leases(house: &House) -> usize {
    let leases = house.metadata.leases(&scope("a").namespace);
    leases.list(&Filter::default()).await.unwrap().len()
}

#[tokio::test]
async fn an_idle_daemon_collects_what_expires() {
    let house = House::new().await;
    let run = Scheduler::new(house.metadata.clone(), SchedulerOpts::default()).run();
    let run = tokio::spawn(run);
    while house.metadata.gc_totals().runs == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    house
        .leased("a", labels(&[(gc_label::EXPIRE, FUTURE)]))
        .await;
    // Sooner than what is waited for by now.
    house.leased("a", until(in_future(1))).await;
    let gone = async {
        while leases(&house).await > 1 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let gone = timeout(Duration::from_secs(60), gone).await;
    gone.expect("nobody has looked");
    run.abort();
}

/// Time stands still here unless everybody waits for it.
#[tokio::test(start_paused = true)]
async fn an_idle_daemon_with_nothing_that_expires_sleeps() {
    let house = House::new().await;
    house.leased("a", Labels::new()).await;
    let run = Scheduler::new(house.metadata.clone(), SchedulerOpts::default()).run();
    let run = tokio::spawn(run);
    while house.metadata.gc_totals().runs == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    // A year.
    sleep(Duration::from_secs(365 * 24 * 60 * 60)).await;
    assert_eq!(house.metadata.gc_totals().runs, 1);
    run.abort();
}

/// A collection finds the first time in what is there, and each change that names one tells of it.
#[tokio::test]
async fn the_first_time_is_known_to_who_waits_for_it() {
    let house = House::new().await;
    let a = scope("a");
    let outlet = &house.metadata.0.db.outlet;
    let next = || outlet.take().expires;
    let found = async || {
        house.metadata.gc().await.unwrap();
        next()
    };
    assert_eq!(found().await, None);
    house
        .leased("a", labels(&[(gc_label::EXPIRE, "some day")]))
        .await;
    assert_eq!((next(), found().await), (None, None));

    let (early, late) = (in_future(1000), in_future(2000));
    house.leased("a", until(late)).await;
    assert_eq!((next(), found().await), (Some(late), Some(late)));
    let digest = put(house.content(&a).as_ref(), b"blob", Labels::new()).await;
    outlet.take();
    let images = house.metadata.images(&a);
    let mut expiring = image("image", &digest);
    expiring.labels = until(early);
    images.create(expiring.clone(), None).await.unwrap();
    assert_eq!((next(), found().await), (Some(early), Some(early)));
    let stats = run_at(&house.metadata, early + Duration::from_secs(1)).await;
    assert_eq!(stats.unwrap().records.images, 1);
    assert_eq!(next(), Some(late), "it is over");

    images.create(image("image", &digest), None).await.unwrap();
    assert_eq!(next(), None);
    images
        .update(expiring, &crate::fixture::fields(&[]), None)
        .await
        .unwrap();
    assert_eq!(next(), Some(early));
    // What is over already has no time to come.
    house.leased("a", labels(&[(gc_label::EXPIRE, PAST)])).await;
    assert!(next().unwrap() < SystemTime::now());
    assert_eq!(found().await, Some(early));

    images.delete("image", None, false).await.unwrap();
    run_at(&house.metadata, late + Duration::from_secs(1))
        .await
        .unwrap();
    outlet.take();
    drop(house.content(&a).ingest(spec("r")).await.unwrap());
    let kept = |at: Option<SystemTime>| {
        let left = at.unwrap().duration_since(SystemTime::now()).unwrap();
        left > INGEST_LIFETIME - Duration::from_secs(3600) && left <= INGEST_LIFETIME
    };
    assert!(kept(next()) && kept(found().await));
}

/// No collection at the start: then nobody has looked when the first of what is there expires.
#[tokio::test(start_paused = true)]
async fn what_has_expired_before_the_start_goes_though_nothing_happens() {
    let house = House::new().await;
    house.leased("a", labels(&[(gc_label::EXPIRE, PAST)])).await;
    let house = house.restart().await;
    let opts = SchedulerOpts {
        startup_delay: Duration::ZERO,
        ..SchedulerOpts::default()
    };
    let run = tokio::spawn(Scheduler::new(house.metadata.clone(), opts).run());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(leases(&house).await, 1, "not at once");
    sleep(LOOK).await;
    // What it does takes real time.
    tokio::time::resume();
    let gone = async {
        while leases(&house).await > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let gone = timeout(Duration::from_secs(60), gone).await;
    gone.expect("nobody has looked");
    run.abort();
}

/// Only a collection, which sees both ends, finds until when they hold.
#[tokio::test]
async fn both_ends_of_a_condition_are_looked_at_once() {
    let house = House::new().await;
    let a = scope("a");
    let digest = put(house.content(&a).as_ref(), b"blob", Labels::new()).await;
    let snapshots = house.snapshots(&a);
    let key = crate::fixture::name("k");
    snapshots.prepare(&key, None, Labels::new()).await.unwrap();
    let outlet = &house.metadata.0.db.outlet;
    let is_due = || {
        outlet
            .take()
            .expires
            .is_some_and(|at| at <= SystemTime::now())
    };
    assert!(!is_due());
    let condition = format!(
        "{}.{}",
        gc_label::COND_SNAPSHOT,
        crate::fixture::SNAPSHOTTER
    );
    let condition = labels(&[(&condition, "usedat<1h|k")]);
    let all = crate::fixture::fields(&[]);

    let images = house.metadata.images(&a);
    let mut conditional = image("image", &digest);
    conditional.labels = condition.clone();
    images.create(conditional.clone(), None).await.unwrap();
    assert!(is_due());
    images.update(conditional, &all, None).await.unwrap();
    assert!(is_due());
    let content = house.content(&a);
    content.update(&digest, condition, &all).await.unwrap();
    assert!(is_due());
    let used = OffsetDateTime::from(SystemTime::now()).format(&Rfc3339);
    let used = labels(&[(gc_label::COND_USED_AT, &used.unwrap())]);
    let mut info = snapshots.stat(&key).await.unwrap();
    info.labels = used.clone();
    snapshots.update(info, &all).await.unwrap();
    assert!(is_due());
    let next = crate::fixture::name("next");
    snapshots.prepare(&next, None, used.clone()).await.unwrap();
    assert!(is_due());
    let layer = crate::fixture::name("layer");
    snapshots.commit(&layer, &next, used).await.unwrap();
    assert!(is_due());
    house.metadata.gc().await.unwrap();
    let left = outlet
        .take()
        .expires
        .unwrap()
        .duration_since(SystemTime::now());
    assert!(left.unwrap() > Duration::from_secs(1800));
}

#[tokio::test]
async fn a_failed_collection_is_tried_again_for_what_has_expired() {
    let house = House::new().await;
    house.leased("a", until(in_future(0))).await;
    let outlet = &house.metadata.0.db.outlet;
    let marks = outlet.take();
    assert!(marks.expires.is_some());
    outlet.add(marks.clone());
    // The record of a lease that nobody can read.
    let at = crate::key::own(crate::key::Bucket::Lease, &scope("a").namespace, "bad");
    let change = move |tx: &mut crate::db::WriteTx<'_, '_>| {
        tx.put(at, vec![99]);
        Ok(())
    };
    house.metadata.0.db.write(change).await.unwrap();
    house.metadata.gc().await.unwrap_err();
    assert_eq!(outlet.take().expires, marks.expires);
}
