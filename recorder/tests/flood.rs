//! The rings are full: on its own, since all flights of a process share them.

use std::convert::Infallible;

use recorder::{RECENT, Told, finished, fly, subject};

fn of(subject: &'static str) -> impl Fn(&Told) -> bool {
    move |told: &Told| told.subject == subject
}

#[tokio::test]
async fn a_flood_keeps_no_more_than_the_ring_and_what_failed_outlives_it() {
    let failed = fly("/tests/Fails", async {
        subject("ns", "failed");
        Err::<(), _>("no")
    });
    failed.await.unwrap_err();
    for _ in 0..2 * RECENT {
        let flown = fly("/tests/Flood", async {
            subject("ns", "flood");
            Ok::<_, Infallible>(())
        });
        flown.await.unwrap();
    }
    assert!(finished(of("flood")).len() <= RECENT);
    assert_eq!(finished(of("failed")).len(), 1);
}
