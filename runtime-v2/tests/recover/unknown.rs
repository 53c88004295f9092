//! What is not known of a task is no reason to end it.

use std::os::unix::fs::symlink;

use sys::process::{Child, Spawn};
use types::Error;

use super::*;

/// Longer than the longest pause between two attempts.
const NEXT: Duration = Duration::from_secs(6);

/// A container's process, by its bundle.
fn init(home: &Home, name: &str) -> Child {
    let child = Spawn::new("sleep").arg("600").spawn().unwrap();
    let pid = child.pid().to_string();
    std::fs::write(home.bundle(name).join("init.pid"), pid).unwrap();
    child
}

fn end(child: &Child) {
    child.kill(9).unwrap();
    child.wait().unwrap();
}

/// What somebody is told who wants something of a task that cannot be reached.
async fn refusal(tasks: &Tasks, name: &str) -> Error {
    let task = tasks.get(&ns(), &id(name)).await.unwrap();
    let error = task.kill(None, 9, false).await.unwrap_err();
    assert!(error.is(types::Code::Unavailable), "{error}");
    error
}

#[tokio::test(start_paused = true)]
async fn a_missing_socket_ends_no_container_that_lives() {
    let home = Home::new();
    home.leave("c1", 3);
    // Of this one not even the name of the socket is known.
    home.leave("c2", 3);
    std::fs::remove_file(home.bundle("c2").join("bootstrap.json")).unwrap();
    let inits = ["c1", "c2"].map(|name| init(&home, name));
    let tasks = home.recover().await;
    for (name, child) in ["c1", "c2"].into_iter().zip(&inits) {
        let told = refusal(&tasks, name).await.to_string();
        let why = format!("but the container's process {} lives", child.pid());
        assert!(told.contains(&why), "{told}");
        let task = tasks.get(&ns(), &id(name)).await.unwrap();
        let known = task.known(None).unwrap();
        assert_eq!((known.status, known.stale), (Status::Running, true));
    }
    assert_eq!(home.calls(), "");
    assert!(home.events().is_empty());
    tokio::time::resume();
    for (name, child) in ["c1", "c2"].into_iter().zip(&inits) {
        end(child);
        let task = tasks.get(&ns(), &id(name)).await.unwrap();
        assert_eq!(within(task.wait(None)).await.unwrap().status, 137);
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_nobody_told_of_is_not_taken_for_dead() {
    let home = Home::new();
    let cases = [
        ("none", None),
        ("empty", Some("")),
        ("junk", Some("no pid")),
        ("zero", Some("0")),
    ];
    for (name, told) in cases {
        home.leave(name, 3);
        if let Some(told) = told {
            std::fs::write(home.bundle(name).join("init.pid"), told).unwrap();
        }
    }
    // Of this one, at least something was started.
    home.leave("lost", 3);
    std::fs::remove_file(home.bundle("lost").join("bootstrap.json")).unwrap();
    std::fs::write(home.bundle("lost").join("init.pid"), "").unwrap();
    let tasks = home.recover().await;
    for name in cases.map(|(name, _)| name).into_iter().chain(["lost"]) {
        let told = refusal(&tasks, name).await.to_string();
        let is_told = told.contains("nobody knows whether") || told.contains("says no pid");
        assert!(is_told, "{name}: {told}");
    }
    tokio::time::sleep(NEXT).await;
    assert_eq!(home.calls(), "");
    assert!(home.events().is_empty());
    assert_eq!(tasks.list(None).await.unwrap().len(), cases.len() + 1);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_nobody_can_delete_keeps_its_task_while_it_lives() {
    let home = Home::new();
    home.leave("c1", 3);
    home.dead_socket("c1");
    std::fs::remove_file(home.bundle("c1").join("shim-binary-path")).unwrap();
    let child = init(&home, "c1");
    let tasks = home.recover().await;
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    // Many attempts.
    let ended = tokio::time::timeout(NEXT * 10, task.wait(None)).await;
    assert!(ended.is_err(), "{ended:?}");
    assert!(home.bundle("c1").exists());
    assert!(home.events().is_empty());
    tokio::time::resume();
    end(&child);
    within(task.wait(None)).await.unwrap();
    assert!(!home.bundle("c1").exists());
    assert_eq!(home.calls(), "");
}

#[tokio::test]
async fn a_container_that_has_ended_ends_its_task_whatever_cannot_be_read() {
    let home = Home::new();
    let exit = r#"{"pid":77,"status":3,"exited_at":1700000000000000000}"#;
    let cases = ["address", "generation", "init.pid", "shim-binary-path"];
    for name in cases {
        home.leave(name, if name == "generation" { 9 } else { 3 });
        home.dead_socket(name);
        let bundle = home.bundle(name);
        std::fs::write(bundle.join("exit"), exit).unwrap();
        let damaged = match name {
            "generation" => continue,
            "address" => bundle.join("bootstrap.json"),
            file => bundle.join(file),
        };
        if damaged.exists() {
            std::fs::remove_file(&damaged).unwrap();
        }
        std::fs::create_dir(&damaged).unwrap();
    }
    let tasks = home.recover().await;
    for name in cases {
        let task = tasks.get(&ns(), &id(name)).await.unwrap();
        let exit = within(task.wait(None)).await.unwrap();
        assert_eq!((exit.pid, exit.status), (77, 3), "{name}");
        assert!(!home.bundle(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn a_shim_without_a_socket_goes_with_its_container() {
    let home = Home::new();
    home.leave("c1", 3);
    let [shim, init] = [(); 2].map(|()| Spawn::new("sleep").arg("600").spawn().unwrap());
    let fake = Fake {
        has_task: true,
        shim: shim.pid(),
        init: init.pid(),
    };
    let back = home.socket("back");
    let _server = serve(&back, vec![task_v3_ttrpc::create_task(Arc::new(fake))]).await;
    let cut = Arc::new(Notify::new());
    let front = UnixListener::bind(home.socket("c1")).unwrap();
    let seen = Arc::new(Semaphore::new(0));
    let relay = tokio::spawn(relay(front, back, Arc::clone(&cut), seen));
    let tasks = home.recover().await;
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    assert!(!task.state(None).await.unwrap().stale);
    std::fs::remove_file(home.socket("c1")).unwrap();
    relay.abort();
    assert!(relay.await.unwrap_err().is_cancelled());
    cut.notify_waiters();
    let noticed = async { while !task.state(None).await.unwrap().stale {} };
    within(noticed).await;
    let told = refusal(&tasks, "c1").await.to_string();
    let why = format!("but the container's process {} lives", init.pid());
    assert!(told.contains(&why), "{told}");
    assert_eq!(home.calls(), "");
    end(&init);
    assert_eq!(within(task.wait(None)).await.unwrap().status, 137);
    let killed = tokio::task::spawn_blocking(move || shim.wait().unwrap());
    let killed = within(killed).await.unwrap();
    assert_eq!(killed, sys::process::Status::Signaled(9));
}

#[tokio::test]
async fn a_process_that_began_later_is_not_the_container() {
    let home = Home::new();
    home.leave("c1", 3);
    let other = init(&home, "c1");
    let before = format!("{} 1", other.pid());
    std::fs::write(home.bundle("c1").join("init.started"), before).unwrap();
    let tasks = home.recover().await;
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    assert_eq!(within(task.wait(None)).await.unwrap().status, 137);
    end(&other);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_cannot_be_read_now_is_read_later() {
    let home = Home::new();
    home.leave("c1", 3);
    home.dead_socket("c1");
    let exit = r#"{"pid":77,"status":3,"exited_at":1700000000000000000}"#;
    let bundle = home.bundle("c1");
    std::fs::write(bundle.join("exit"), exit).unwrap();
    // A name that leads in a circle stands for a kernel without memory or descriptors.
    let aside = home.dir.path().join("aside");
    std::fs::rename(&bundle, &aside).unwrap();
    symlink(&bundle, &bundle).unwrap();
    let tasks = home.recover().await;
    let told = refusal(&tasks, "c1").await.to_string();
    assert!(told.contains("read "), "{told}");
    tokio::time::sleep(NEXT).await;
    assert_eq!(home.calls(), "");
    std::fs::remove_file(&bundle).unwrap();
    std::fs::rename(&aside, &bundle).unwrap();
    tokio::time::resume();
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    let exit = within(task.wait(None)).await.unwrap();
    assert_eq!((exit.pid, exit.status), (77, 3));
}

#[tokio::test(start_paused = true)]
async fn a_shim_of_a_generation_to_come_is_left_alone() {
    let home = Home::new();
    home.leave("c1", 9);
    home.dead_socket("c1");
    let tasks = home.recover().await;
    let told = refusal(&tasks, "c1").await.to_string();
    assert!(told.contains("unsupported shim version (9)"), "{told}");
    tokio::time::sleep(NEXT).await;
    assert!(home.bundle("c1").join("bootstrap.json").exists());
    assert_eq!(home.calls(), "");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_answered_has_an_end_and_the_task_stays() {
    let home = Home::new();
    home.leave("c1", 3);
    let _server = serve(&home.socket("c1"), vec![v3(true)]).await;
    let tasks = home.recover().await;
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    let killed = tokio::time::timeout(Duration::from_secs(3600), task.kill(None, 9, false));
    let error = killed.await.expect("it has an end").unwrap_err();
    assert!(error.is(types::Code::DeadlineExceeded), "{error}");
    let state = task.state(None).await.unwrap();
    assert_eq!((state.status, state.stale), (Status::Running, false));
}

#[tokio::test(start_paused = true)]
async fn only_a_start_that_restores_is_given_the_time_of_one() {
    let home = Home::new();
    let mut servers = Vec::new();
    for (name, init) in [("made", PID), ("image", 0)] {
        home.leave(name, 3);
        let fake = Fake {
            init,
            ..Fake::new(true)
        };
        let service = task_v3_ttrpc::create_task(Arc::new(fake));
        servers.push(serve(&home.socket(name), vec![service]).await);
    }
    let tasks = home.recover().await;
    for (name, restores) in [("made", false), ("image", true)] {
        let task = tasks.get(&ns(), &id(name)).await.unwrap();
        let started = tokio::time::timeout(Duration::from_secs(300), task.start(None)).await;
        let is_given_up = started.is_ok_and(|started| {
            started.is_err_and(|error| error.is(types::Code::DeadlineExceeded))
        });
        assert_eq!(is_given_up, !restores, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_silent_shims_hold_up_nobody() {
    const SILENT: usize = 150;
    let home = Home::new();
    let mut held = Vec::new();
    for n in 0..SILENT {
        let name = format!("silent{n}");
        home.leave(&name, 3);
        held.push(UnixListener::bind(home.socket(&name)).unwrap());
    }
    let mut servers = Vec::new();
    for name in ["a", "b", "c", "d"] {
        home.leave(name, 3);
        servers.push(serve(&home.socket(name), vec![v3(true)]).await);
    }
    let begun = tokio::time::Instant::now();
    let tasks = Tasks::open(home.config.clone()).unwrap();
    let (recovering, recovered) = (Arc::clone(&tasks), Arc::new(Notify::new()));
    let tell = Arc::clone(&recovered);
    tokio::spawn(async move {
        recovering.recover().await;
        tell.notify_one();
    });
    for name in ["a", "b", "c", "d"] {
        let task = tasks.get(&ns(), &id(name)).await.unwrap();
        while task.known(None).unwrap().status != Status::Running {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    recovered.notified().await;
    assert!(
        begun.elapsed() < Duration::from_secs(7),
        "all are waited for together"
    );
    assert_eq!(tasks.list(None).await.unwrap().len(), SILENT + 4);
    drop((held, servers));
}
