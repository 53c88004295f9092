//! Daemons that are killed in the middle of a recovery: the next one comes to an end all the same.

use sha2::{Digest as _, Sha256};
use sys::process::Spawn;
use tokio::runtime::{Builder, Runtime};

use super::*;

const ANSWER: &str = "cat {home}/answer";

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// What `delete` does: it takes the socket away as ours does, and more.
fn script(home: &Home, name: &str, more: &str) {
    let dir = home.dir.path().display().to_string();
    let text = format!("#!/bin/sh\necho \"$*\" >> {{home}}/calls\nrm -f {{home}}/{name}\n{more}\n");
    let (text, binary) = (text.replace("{home}", &dir), home.dir.path().join("shim"));
    // Another file: one that runs cannot be written to.
    let fresh = home.dir.path().join("fresh");
    program(&fresh, &text);
    std::fs::rename(fresh, binary).unwrap();
}

/// A daemon that recovers until then, and is killed.
fn killed_when(home: &Home, then: impl Fn() -> bool) {
    let runtime = runtime();
    runtime.block_on(async {
        let tasks = Tasks::open(home.config.clone()).unwrap();
        let recovering = tokio::spawn(async move { tasks.recover().await });
        let happens = async {
            while !then() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within(happens).await;
        drop(recovering);
    });
}

/// The next daemon ends what was left; what is told of it.
fn ends_with_the_next(home: &Home, name: &str) -> Vec<String> {
    runtime().block_on(async {
        let tasks = home.recover().await;
        let over = async {
            while let Ok(task) = tasks.get(&ns(), &id(name)).await {
                let known = task.known(None).unwrap();
                if known.status == Status::Stopped {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within(over).await;
    });
    assert!(!home.bundle(name).exists());
    let topics = home
        .events()
        .into_iter()
        .map(|event| event.topic().to_owned());
    topics.collect()
}

#[test]
fn a_burial_that_has_taken_the_socket_is_gone_on_with() {
    let home = Home::new();
    home.leave("c1", 3);
    home.dead_socket("c1");
    script(&home, "c1", "exec sleep 600");
    killed_when(&home, || !home.socket("c1").exists());
    assert!(home.bundle("c1").exists() && home.events().is_empty());
    script(&home, "c1", ANSWER);
    let topics = ends_with_the_next(&home, "c1");
    assert_eq!(topics, ["/tasks/exit", "/tasks/delete"]);
}

#[test]
fn who_cleans_up_is_told_which_bundle_is_meant() {
    use std::os::unix::fs::MetadataExt as _;
    let home = Home::new();
    home.leave("c1", 3);
    home.age("c1");
    home.dead_socket("c1");
    script(
        &home,
        "c1",
        &format!("echo $BUNDLE_IDENTITY >{{home}}/meant\n{ANSWER}"),
    );
    let bundle = std::fs::metadata(home.bundle("c1")).unwrap();
    ends_with_the_next(&home, "c1");
    let meant = std::fs::read_to_string(home.dir.path().join("meant")).unwrap();
    // The spec is as old as time.
    let want = format!("{}:{}:0.000000000", bundle.dev(), bundle.ino());
    assert_eq!(meant.trim_end(), want);
}

/// Containers of one shim that is dead.
fn dead_group(home: &Home, names: &[impl AsRef<str>]) {
    let first = names[0].as_ref();
    for name in names {
        home.leave(name.as_ref(), 3);
    }
    let of_first = home.bundle(first).join("bootstrap.json");
    for name in &names[1..] {
        let here = home.bundle(name.as_ref()).join("bootstrap.json");
        std::fs::copy(&of_first, here).unwrap();
    }
    home.dead_socket(first);
}

/// A daemon is killed when it has taken the socket of the first of them; the next finds all of them killed.
fn end_although_cut_off(home: &Home, names: &[impl AsRef<str>]) {
    let first = names[0].as_ref();
    script(home, first, "exec sleep 600");
    killed_when(home, || !home.socket(first).exists());
    script(home, first, ANSWER);
    runtime().block_on(async {
        let tasks = home.recover().await;
        for name in names {
            let name = name.as_ref();
            let task = tasks.get(&ns(), &id(name)).await.unwrap();
            assert_eq!(within(task.wait(None)).await.unwrap().status, 137, "{name}");
        }
    });
}

#[test]
fn the_others_of_a_dead_group_go_although_the_first_took_the_socket() {
    let home = Home::new();
    let names = ["c1", "c2"];
    dead_group(&home, &names);
    end_although_cut_off(&home, &names);
}

#[test]
fn all_of_a_dead_group_go_although_there_are_more_than_are_recovered_at_once() {
    /// More than have their turn when the first of them is buried.
    const ALL: usize = 80;
    let home = Home::new();
    let names: Vec<_> = (0..ALL).map(|n| format!("c{n}")).collect();
    dead_group(&home, &names);
    end_although_cut_off(&home, &names);
}

#[test]
fn containers_that_outlive_a_dead_group_are_ended_by_the_next() {
    let home = Home::new();
    let names = ["c1", "c2"];
    dead_group(&home, &names);
    let inits = names.map(|name| {
        let init = Spawn::new("sleep").arg("600").spawn().unwrap();
        let pid = init.pid().to_string();
        std::fs::write(home.bundle(name).join("init.pid"), pid).unwrap();
        init
    });
    end_although_cut_off(&home, &names);
    for init in inits {
        init.kill(9).unwrap();
        init.wait().unwrap();
    }
}

#[test]
fn a_delete_that_was_cut_off_is_gone_on_with_when_the_shim_left_no_trace() {
    let home = Home::new();
    home.leave("c1", 3);
    runtime().block_on(async {
        // No process: nobody kills one for not ending.
        let fake = Fake {
            shim: 0,
            ..Fake::new(true)
        };
        let service = task_v3_ttrpc::create_task(Arc::new(fake));
        let server = serve(&home.socket("c1"), vec![service]).await;
        let tasks = home.recover().await;
        tokio::spawn(async move { tasks.delete(&ns(), &id("c1")).await });
        let ending = async {
            while !home.bundle("c1").join("ending").exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within(ending).await;
        drop(server);
    });
    // The shim has ended, and took it away.
    std::fs::remove_file(home.socket("c1")).unwrap();
    ends_with_the_next(&home, "c1");
}

#[test]
fn a_shim_that_was_told_to_end_is_not_waited_for_by_the_next() {
    let home = Home::new();
    home.leave("c1", 3);
    script(&home, "c1", "exec sleep 600");
    // It ends with the daemon that has told it, and its socket before.
    let serving = runtime();
    let server = serving.block_on(serve(&home.socket("c1"), vec![v3(false)]));
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || serving.block_on(async { drop(ended.await) }));
        killed_when(&home, || !home.socket("c1").exists());
        drop(end);
    });
    drop(server);
    script(&home, "c1", ANSWER);
    ends_with_the_next(&home, "c1");
}

#[test]
fn a_shim_that_lives_is_no_less_found_for_a_removal_that_was_begun() {
    let home = Home::new();
    home.leave("c1", 3);
    std::fs::write(home.bundle("c1").join("ending"), "").unwrap();
    runtime().block_on(async {
        let server = serve(&home.socket("c1"), vec![v3(true)]).await;
        let tasks = home.recover().await;
        let task = tasks.get(&ns(), &id("c1")).await.unwrap();
        let state = within(task.state(None)).await.unwrap();
        assert_eq!((state.status, state.stale), (Status::Running, false));
        assert_eq!(home.calls(), "");
        drop(server);
    });
}

/// Where a shim of this task's own would listen.
fn own_socket(home: &Home, name: &str) -> PathBuf {
    let digest = Sha256::digest(format!("/grpc/ns/{name}").as_bytes());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    home.config.state.join("s").join(digest)
}

#[test]
fn a_socket_that_no_bundle_names_yet_goes_with_its_bundle() {
    let home = Home::new();
    home.leave("c1", 3);
    std::fs::remove_file(home.bundle("c1").join("bootstrap.json")).unwrap();
    let socket = own_socket(&home, "c1");
    std::fs::create_dir(socket.parent().unwrap()).unwrap();
    dead_socket(&socket);
    ends_with_the_next(&home, "c1");
    assert!(!socket.exists());
}

#[test]
fn whenever_a_recovery_is_cut_off_and_again_the_next_comes_to_an_end() {
    /// As many moments as a recovery here has, and some of after it.
    const MOMENTS: u32 = 24;
    for moment in 0..MOMENTS {
        let home = Home::new();
        // That of the bundle in which it runs.
        script(&home, "$(basename \"$(cat address 2>/dev/null)\")", ANSWER);
        let names = ["dead", "unnamed", "recorded"];
        for name in names {
            home.leave(name, 3);
            let bundle = home.bundle(name);
            let socket = home.socket(&format!("{name}-socket"));
            dead_socket(&socket);
            let address = format!("unix://{}", socket.display());
            std::fs::write(bundle.join("address"), address).unwrap();
            std::fs::remove_file(bundle.join("bootstrap.json")).unwrap();
        }
        std::fs::remove_file(home.bundle("unnamed").join("address")).unwrap();
        let exit = r#"{"pid":77,"status":3,"exited_at":1700000000000000000}"#;
        std::fs::write(home.bundle("recorded").join("exit"), exit).unwrap();
        for after in [moment, MOMENTS - moment] {
            runtime().block_on(async {
                let tasks = Tasks::open(home.config.clone()).unwrap();
                let life = Duration::from_millis(1) * after;
                drop(tokio::time::timeout(life, tasks.recover()).await);
            });
        }
        for name in names {
            ends_with_the_next(&home, name);
        }
    }
}
