//! Plugins that fail, hang, die and lie, and daemons that die while one runs.

use std::path::Path;

use super::*;
use crate::cni::Left;
use crate::cni::record::{Phase, Record, Records};

/// Fails at `ADD` with what a shell says; works otherwise.
fn failing(what: &str) -> String {
    format!("[ $CNI_COMMAND != ADD ] || {{ {what}; }}")
}

#[tokio::test]
async fn a_failure_is_told_by_plugin_and_network_and_undone() {
    for (script, code, texts) in [
        (
            "echo '{\"code\":7,\"msg\":\"bad\",\"details\":\"key x\"}'; exit 1",
            Code::InvalidArgument,
            "bad: key x (code 7)",
        ),
        (
            "echo '{\"code\":1,\"msg\":\"version\"}'; exit 1",
            Code::FailedPrecondition,
            "version (code 1)",
        ),
        (
            "echo '{\"code\":11,\"msg\":\"later\"}'; exit 1",
            Code::Unavailable,
            "later (code 11)",
        ),
        (
            "echo '{\"code\":120,\"msg\":\"own\"}'; exit 1",
            Code::Unknown,
            "own (code 120)",
        ),
        (
            "echo oops >&2; exit 3",
            Code::Unknown,
            "ended with code 3: oops",
        ),
        ("kill -9 $$", Code::Unknown, "was killed by signal 9"),
        ("echo garbage", Code::Unknown, "answered what is no JSON"),
        (
            "echo '{\"cniVersion\":\"1.0.0\",\"ips\":7}'",
            Code::Unknown,
            "no result of CNI",
        ),
        (":", Code::Unknown, "answered nothing"),
        ("echo '{}'", Code::Unknown, "answered nothing"),
        (
            "echo '{\"code\":11,\"msg\":\"later\"}'",
            Code::Unavailable,
            "later (code 11)",
        ),
        (
            "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done | head -c 1100000",
            Code::ResourceExhausted,
            "more than 1048576 bytes",
        ),
    ] {
        let place = Place::new();
        place.plugin("one", FINE);
        place.plugin("two", &failing(script));
        place.network("n", &["one", "two"]);
        let error = place.setup_fails(&request()).await;
        assert_says(
            &error,
            code,
            &["CNI network \"n\"", "CNI plugin \"two\": ADD", texts],
        );
        assert_eq!(place.calls(), ["ADD one", "ADD two", "DEL two", "DEL one"]);
        // What was made until then is what there is to undo.
        assert_eq!(
            place.told("two", "DEL")["prevResult"]["ips"][0]["address"],
            "10.1.0.2/24"
        );
        assert!(place.is_clean(), "{error}");
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_ended_with_all_that_it_started() {
    // More than its few steps take on a busy machine.
    let place = Place::with(Duration::from_secs(8));
    let pid = place.dir.path().join("pid");
    place.plugin(
        "one",
        &failing(&format!("sleep 1000 & echo $! > {}; wait", pid.display())),
    );
    place.network("n", &["one"]);
    let error = place.setup_fails(&request()).await;
    assert_says(&error, Code::DeadlineExceeded, &["\"n\"", "\"one\": ADD"]);
    let pid: u32 = std::fs::read_to_string(pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    until("the plugin's child ends", || {
        sys::process::look(pid).is_none_or(|look| look.state == 'Z')
    });
    assert_eq!(place.calls(), ["ADD one", "DEL one"]);
    assert!(place.is_clean());
}

#[tokio::test]
async fn a_missing_plugin_is_not_found_and_what_was_made_before_it_is_undone() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one", "none"]);
    let error = place.setup_fails(&request()).await;
    assert_says(&error, Code::NotFound, &["\"n\"", "\"none\""]);
    assert_eq!(place.calls(), ["ADD one", "DEL one"]);
}

#[tokio::test]
async fn a_later_network_that_fails_undoes_the_earlier_ones() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.plugin("two", &failing("exit 1"));
    place.network("a", &["one"]);
    place.network("b", &["two"]);
    let mut both = request();
    both.networks = vec!["a".into(), "b".into()];
    place.setup_fails(&both).await;
    assert_eq!(place.calls(), ["ADD one", "ADD two", "DEL two", "DEL one"]);
    assert!(place.is_clean());
    // One that was there before stays.
    let mut first = request();
    first.networks = vec!["a".into()];
    place.cni.setup(&first).await.unwrap();
    place.setup_fails(&both).await;
    place.cni.check(&first).await.unwrap();
}

#[tokio::test]
async fn del_is_repeated_until_it_works() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.plugin("two", FINE);
    place.network("n", &["one", "two"]);
    place.cni.setup(&request()).await.unwrap();
    place.plugin("two", "echo '{\"code\":5,\"msg\":\"busy\"}'; exit 1");
    let errors = place.cni.teardown(&request()).await.unwrap_err();
    let error = errors.into_result().unwrap_err();
    assert_says(&error, Code::Unknown, &["\"n\"", "\"two\": DEL: busy"]);
    // The others were not kept from theirs.
    assert_eq!(place.calls().last().unwrap(), "DEL one");
    assert_says(
        &place.cni.check(&request()).await.unwrap_err(),
        Code::FailedPrecondition,
        &["a part"],
    );
    let left = place.cni.reconcile(|_| true).await.unwrap();
    assert!(
        matches!(&left[..], [Left { id, .. }] if *id == request().id),
        "{left:?}"
    );
    // Whoever asks for it again gets it whole, or not.
    assert_says(
        &place.setup_fails(&request()).await,
        Code::Unknown,
        &["earlier attempt", "busy"],
    );
    place.plugin("two", FINE);
    assert!(place.cni.reconcile(|_| true).await.unwrap().is_empty());
    assert!(place.is_clean());
}

#[tokio::test]
async fn a_plugin_that_does_not_know_the_container_has_nothing_to_take_away() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    place.cni.setup(&request()).await.unwrap();
    place.plugin("one", "echo '{\"code\":3,\"msg\":\"unknown\"}'; exit 1");
    place.teardown(&request()).await;
    assert!(place.is_clean());
}

#[tokio::test]
async fn a_missing_plugin_keeps_the_record_of_what_it_has_made() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    place.cni.setup(&request()).await.unwrap();
    std::fs::remove_file(place.dir.path().join("bin/one")).unwrap();
    let errors = place.cni.teardown(&request()).await.unwrap_err();
    assert_says(
        &errors.into_result().unwrap_err(),
        Code::NotFound,
        &["\"one\""],
    );
    place.plugin("one", FINE);
    place.teardown(&request()).await;
    assert!(place.is_clean());
}

#[tokio::test]
async fn plugins_get_no_path_of_a_namespace_that_is_gone() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    let mut request = request();
    let net = crate::testing::Net::new();
    request.netns.clone_from(&net.path);
    place.cni.setup(&request).await.unwrap();
    drop(net);
    let error = place.cni.check(&request).await.unwrap_err();
    assert_says(&error, Code::FailedPrecondition, &["is gone"]);
    place.teardown(&request).await;
    let calls = std::fs::read_to_string(place.dir.path().join("bin/calls")).unwrap();
    assert_eq!(
        calls.lines().last().unwrap().trim_end(),
        "DEL one default--c1 eth0"
    );
}

#[tokio::test]
async fn an_attempt_that_a_death_cut_off_is_undone_at_the_next_start() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    let (path, patience) = (place.dir.path(), Duration::from_secs(60));
    for phase in [Phase::Adding, Phase::Deleting] {
        let records = Records::new(path.join("records"));
        let shelf = records.create(&request().id).unwrap();
        let network = super::super::find(&path.join("net.d"), "n").unwrap();
        let mut record = Record::new(&network, "eth0".into(), netns());
        record.phase = phase;
        shelf.write(&record).unwrap();
        // A write that was cut off, too.
        std::fs::write(path.join("records/default/c1/.n:eth0.json.1.1"), "{").unwrap();
        drop(shelf);
        let next = Cni::new(Place::opts(path, patience));
        assert!(next.reconcile(|_| true).await.unwrap().is_empty());
        assert_eq!(place.calls().last().unwrap(), "DEL one");
        assert!(place.is_clean());
    }
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_taken_away() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    let mut other = request();
    other.id.container = "c2".parse().unwrap();
    for request in [&request(), &other] {
        place.cni.setup(request).await.unwrap();
    }
    let wanted = other.id.clone();
    assert!(
        place
            .cni
            .reconcile(|id| *id == wanted)
            .await
            .unwrap()
            .is_empty()
    );
    place.cni.check(&other).await.unwrap();
    assert!(
        place
            .cni
            .check(&request())
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn a_damaged_record_is_undone_as_far_as_can_be_and_put_aside() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    let file = place.dir.path().join("records/default/c1/n:eth0.json");
    let aside = place
        .dir
        .path()
        .join("records/.damaged/default--c1--n:eth0.json");
    let damage = async || {
        place.cni.setup(&request()).await.unwrap();
        std::fs::write(&file, "{").unwrap();
    };
    let undone = || {
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), "{");
        std::fs::remove_file(&aside).unwrap();
        assert!(!file.exists() && place.calls().last().unwrap() == "DEL one");
    };
    // A container that is wanted may be at work with what it is about.
    damage().await;
    assert!(place.cni.reconcile(|_| true).await.unwrap().is_empty());
    let error = place.cni.check(&request()).await.unwrap_err();
    assert_says(&error, Code::DataLoss, &["n:eth0.json"]);
    assert!(place.cni.reconcile(|_| false).await.unwrap().is_empty());
    undone();
    damage().await;
    place.teardown(&request()).await;
    undone();
    // From before a reboot, there is nothing of it any more.
    damage().await;
    let old = std::fs::File::options().write(true).open(&file).unwrap();
    old.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(place.cni.reconcile(|_| true).await.unwrap().is_empty());
    undone();
    // Whoever asks for it again gets it.
    damage().await;
    place.cni.setup(&request()).await.unwrap();
    place.cni.check(&request()).await.unwrap();
    assert!(aside.exists());
    assert_eq!(place.calls().last().unwrap(), "CHECK one");
}

#[tokio::test]
async fn a_plugin_holds_the_lock_of_its_container() {
    let place = Place::new();
    let seen = place.dir.path().join("seen");
    place.plugin(
        "one",
        &format!("readlink /proc/$$/fd/3 >> {}\n{FINE}", seen.display()),
    );
    place.network("n", &["one"]);
    place.cni.setup(&request()).await.unwrap();
    let lock = place.dir.path().join("records/default/c1");
    let seen = std::fs::read_to_string(seen).unwrap();
    assert_eq!(Path::new(seen.trim_end()), lock.canonicalize().unwrap());
}

#[tokio::test]
async fn nothing_is_done_while_a_plugin_of_a_dead_daemon_is_at_work() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    let dir = place.dir.path().join("records/default/c1");
    std::fs::create_dir_all(&dir).unwrap();
    // As the plugin has it, which nobody here knows of.
    let lock = std::fs::File::open(&dir).unwrap();
    lock.lock().unwrap();
    let request = request();
    let early = place.cni.setup(&request);
    let early = tokio::time::timeout(Duration::from_millis(300), early).await;
    assert!(early.is_err() && place.calls().is_empty());
    drop(lock);
    place.cni.setup(&request).await.unwrap();
    // The caller who went away was served nevertheless, and this one got what was made for it.
    assert_eq!(place.calls(), ["ADD one"]);
}
