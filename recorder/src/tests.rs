//! The recorder as who flies and who asks see it.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;

fn of(subject: &'static str) -> impl Fn(&Told) -> bool {
    move |told: &Told| told.subject == subject
}

async fn done(work: impl Future<Output = ()>) -> Result<(), Infallible> {
    work.await;
    Ok(())
}

#[tokio::test]
async fn what_a_flight_waits_for_is_told_while_it_waits_and_after() {
    let (go, wait) = oneshot::channel::<()>();
    let work = tokio::spawn(fly("/tests/Create", async {
        subject("ns", "waits");
        drop(stage("first", || On::Nothing));
        let waiting = stage("registry", On::default);
        waiting.on(On::named("r.test"));
        let told = wait.await;
        drop(waiting);
        told.map_err(|_| "gone")
    }));
    tokio::task::yield_now().await;
    let air = in_flight(false, of("waits"));
    assert_eq!(air.len(), 1);
    assert_eq!((air[0].name, air[0].over), ("/tests/Create", false));
    assert!(air[0].stages[0].took.is_some());
    let last = &air[0].stages[1];
    assert_eq!((&last.on, last.took), (&On::named("r.test"), None));
    drop(go);
    work.await.unwrap().unwrap_err();
    assert_eq!(in_flight(true, of("waits")), []);
    let told = finished(of("waits"));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].error.as_deref(), Some("gone"));
    assert!(told[0].stages[1].took.is_some() && told[0].over);
}

#[tokio::test]
async fn a_flight_that_never_waits_leaves_no_trace_unless_it_has_a_subject() {
    let quick = done(async {});
    fly("/tests/Quick", quick).await.unwrap();
    assert_eq!(finished(|told| told.name == "/tests/Quick"), []);
    fly("/tests/Kill", done(async { subject("ns", "quick") }))
        .await
        .unwrap();
    assert_eq!(finished(of("quick")).len(), 1);
}

#[tokio::test]
async fn work_on_a_task_of_its_own_tells_of_the_flight_that_began_it() {
    let flown = fly("/tests/Start", async {
        subject("ns", "carried");
        let other = carry(async {
            tokio::task::yield_now().await;
            drop(stage("elsewhere", || On::Process(7)));
        });
        tokio::spawn(other).await
    });
    flown.await.unwrap();
    let told = finished(of("carried"));
    assert_eq!(told[0].stages[0].on, On::Process(7));
    // Nobody flies: nothing to tell, and nothing fails.
    drop(stage("alone", || On::Nothing));
    carry(async {}).await;
}

#[tokio::test]
async fn a_flight_that_is_dropped_is_told_as_such() {
    let flown = fly("/tests/Pull", async {
        subject("ns", "dropped");
        let _stage = stage("for ever", || On::Nothing);
        std::future::pending::<Result<(), Infallible>>().await
    });
    let cut = tokio::time::timeout(Duration::from_millis(1), flown).await;
    cut.unwrap_err();
    assert_eq!(in_flight(true, of("dropped")), []);
    let told = finished(of("dropped"));
    let error = told[0].error.as_deref();
    assert_eq!(error, Some("dropped before its end"));
}

#[tokio::test]
async fn the_stages_that_took_longest_are_kept() {
    let flown = fly(
        "/tests/Many",
        done(async {
            subject("ns", "many");
            let open = stage("open", || On::Nothing);
            let long = stage("long", || On::Nothing);
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(long);
            for _ in 0..100 {
                drop(stage("short", || On::Nothing));
            }
            let last = stage("last", || On::named("x".repeat(10 * MAX_TEXT)));
            drop((open, last));
        }),
    );
    flown.await.unwrap();
    let told = finished(of("many"));
    let names: Vec<_> = told[0].stages.iter().map(|stage| stage.name).collect();
    assert_eq!((names.len(), told[0].more), (MAX_STAGES, 71));
    for name in ["open", "long", "last"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let last = told[0].stages.iter().find(|stage| stage.name == "last");
    assert_eq!(last.unwrap().on, On::named("x".repeat(MAX_TEXT)));
}

#[tokio::test]
async fn who_is_made_to_wait_is_told_only_when_asked_for_and_not_kept() {
    let (go, wait) = oneshot::channel::<()>();
    let work = tokio::spawn(fly("/tests/Wait", async {
        subject("ns", "stands");
        wait.await
    }));
    tokio::task::yield_now().await;
    assert_eq!(in_flight(false, of("stands")), []);
    assert_eq!(in_flight(true, of("stands")).len(), 1);
    go.send(()).unwrap();
    work.await.unwrap().unwrap();
    assert_eq!(finished(of("stands")), []);
}

#[tokio::test]
async fn a_panic_does_not_leave_its_flight_to_others() {
    let work = tokio::spawn(fly("/tests/Panic", async {
        subject("ns", "panics");
        if true {
            panic!("bug");
        }
        Ok::<_, Infallible>(())
    }));
    work.await.unwrap_err();
    assert!(with(|_| ()).is_none());
    assert_eq!(in_flight(true, of("panics")), []);
}
