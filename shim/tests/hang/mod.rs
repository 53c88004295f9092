//! Runtimes that hang or are killed: the caller learns what it was, and nothing is left or stuck.

use std::time::Duration;

use protos::task::Status;

use crate::driver::{Driver, Script, Task, block_on, code};

/// A container whose runtime has only so long for a call.
async fn prepare(driver: &mut Driver, seconds: &'static str) -> (Task, Script) {
    driver.env = vec![("CONTAINERD_SHIM_RUNTIME_TIMEOUT", seconds)];
    driver.make_bundle("c1", "while :; do sleep 1; done", "c1");
    let script = Script::new(driver.dir.path(), "runc");
    let task = Task::connect(&driver.start("c1").await, "c1").await;
    (task, script)
}

fn is_alive(pid: u32) -> bool {
    sys::pidfd::open(pid).is_ok_and(|fd| sys::pidfd::is_alive(fd).unwrap())
}

/// Blocks until none of them is alive.
async fn gone(pids: impl Fn() -> Vec<u32>) {
    let watch = async {
        while pids().into_iter().any(is_alive) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let watch = tokio::time::timeout(Duration::from_secs(30), watch).await;
    watch.unwrap_or_else(|_| panic!("left: {:?}", pids()));
}

fn children(task: &Task) -> Vec<u32> {
    sys::process::children(task.shim).unwrap()
}

/// Nothing of the shim's is left but itself.
async fn end(driver: &Driver, task: &Task) {
    task.delete("").await.unwrap();
    gone(|| children(task)).await;
    assert!(!driver.dir.path().join("state/runc/ns/c1").exists());
    task.shutdown().await;
    task.shim_ends().await;
}

#[test]
fn a_create_that_hangs_is_killed_and_undone() {
    block_on(async {
        let mut driver = Driver::new().await;
        let (task, script) = prepare(&mut driver, "2").await;
        let bundle = driver.bundle("c1");
        for how in ["hang", "hang after"] {
            script.on("create", how);
            let error = task
                .create_with(&bundle, "", script.options())
                .await
                .unwrap_err();
            assert_eq!(code(&error), ttrpc::Code::DEADLINE_EXCEEDED, "{how}");
            let text = error.to_string();
            assert!(text.contains("OCI runtime create failed"), "{text}");
            assert!(text.contains("create hung for 2s and was killed"), "{text}");
            gone(|| vec![script.left()]).await;
            let undone = script.calls().pop().unwrap();
            assert!(undone.ends_with("delete --force c1"), "{undone}");
            assert!(!bundle.join("init.pid").exists());
            gone(|| children(&task)).await;
        }
        script.off("create");
        task.create_with(&bundle, "", script.options())
            .await
            .unwrap();
        end(&driver, &task).await;
    });
}

#[test]
fn an_exec_that_hangs_is_not_started_and_keeps_no_end_back() {
    block_on(async {
        let mut driver = Driver::new().await;
        let (task, script) = prepare(&mut driver, "2").await;
        let bundle = driver.bundle("c1");
        task.create_with(&bundle, "", script.options())
            .await
            .unwrap();
        task.start("").await.unwrap();
        script.on("exec", "hang after");
        task.exec("e1", "sleep 1000", "").await.unwrap();
        let error = task.start("e1").await.unwrap_err();
        assert_eq!(code(&error), ttrpc::Code::DEADLINE_EXCEEDED, "{error}");
        script.on("exec", "die after");
        let error = task.start("e1").await.unwrap_err();
        assert!(
            error.to_string().contains("exec was killed by SIGKILL"),
            "{error}"
        );
        // What the runtime had made in the container is gone: its init is the only child.
        let init = task.state().await.unwrap().pid;
        gone(|| {
            children(&task)
                .into_iter()
                .filter(|pid| *pid != init)
                .collect()
        })
        .await;
        script.off("exec");
        task.start("e1").await.unwrap();
        task.kill("", 9).await.unwrap();
        assert_eq!((task.wait("e1").await, task.wait("").await), (137, 137));
        end(&driver, &task).await;
    });
}

#[test]
fn a_start_or_deletion_that_hangs_can_be_asked_for_again() {
    block_on(async {
        let mut driver = Driver::new().await;
        let (task, script) = prepare(&mut driver, "2").await;
        let bundle = driver.bundle("c1");
        task.create_with(&bundle, "", script.options())
            .await
            .unwrap();
        script.on("start", "hang");
        let error = task.start("").await.unwrap_err();
        assert_eq!(code(&error), ttrpc::Code::DEADLINE_EXCEEDED, "{error}");
        gone(|| vec![script.left()]).await;
        script.off("start");
        task.start("").await.unwrap();
        task.kill("", 9).await.unwrap();
        task.wait("").await;
        script.on("delete", "hang");
        let error = task.delete("").await.unwrap_err();
        assert_eq!(code(&error), ttrpc::Code::DEADLINE_EXCEEDED, "{error}");
        script.off("delete");
        end(&driver, &task).await;
    });
}

#[test]
fn a_pause_that_hangs_does_not_leave_the_container_frozen() {
    block_on(async {
        let mut driver = Driver::new().await;
        let (task, script) = prepare(&mut driver, "2").await;
        let bundle = driver.bundle("c1");
        task.create_with(&bundle, "", script.options())
            .await
            .unwrap();
        task.start("").await.unwrap();
        script.on("pause", "hang after");
        let error = task.pause().await.unwrap_err();
        assert_eq!(code(&error), ttrpc::Code::DEADLINE_EXCEEDED, "{error}");
        let state = task.state().await.unwrap();
        assert_eq!(state.status.enum_value(), Ok(Status::RUNNING));
        // It would not end if it were frozen.
        task.exec("e1", "exit 3", "").await.unwrap();
        task.start("e1").await.unwrap();
        assert_eq!(task.wait("e1").await, 3);
        script.off("pause");
        task.pause().await.unwrap();
        task.kill("", 9).await.unwrap();
        assert_eq!(task.wait("").await, 137);
        end(&driver, &task).await;
    });
}

#[test]
fn a_create_whose_runtime_is_killed_names_the_signal_and_leaves_nothing() {
    block_on(async {
        let mut driver = Driver::new().await;
        driver.plain_cgroups = true;
        let (task, script) = prepare(&mut driver, "60").await;
        let bundle = driver.bundle("c1");
        script.on("create", "die after");
        let error = task
            .create_with(&bundle, "", script.options())
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("create was killed by SIGKILL"), "{text}");
        gone(|| children(&task)).await;
        script.off("create");
        // In the middle of it: by a hook, whose parent the runtime is.
        let config = std::fs::read_to_string(bundle.join("config.json")).unwrap();
        let hook = r#"{"path": "/bin/sh", "args": ["sh", "-c", "kill -KILL $PPID"]}"#;
        let hook: serde_json::Value = serde_json::from_str(hook).unwrap();
        for stage in ["prestart", "createRuntime"] {
            driver.edit("c1", |config| {
                config["hooks"] = serde_json::json!({ stage: [hook] });
            });
            for runtime in ["runc", "crun"] {
                let options = protos::runc::Options {
                    binary_name: runtime.to_owned(),
                    ..Default::default()
                };
                let error = task.create_with(&bundle, "", options).await.unwrap_err();
                let text = error.to_string();
                assert!(
                    text.contains("create was killed by SIGKILL"),
                    "{runtime} {text}"
                );
                gone(|| children(&task)).await;
            }
        }
        std::fs::write(bundle.join("config.json"), config).unwrap();
        task.create_with(&bundle, "", script.options())
            .await
            .unwrap();
        end(&driver, &task).await;
    });
}

#[test]
fn a_shim_that_is_told_to_end_finishes_what_it_makes_and_lets_containers_live() {
    block_on(async {
        let mut driver = Driver::new().await;
        let (task, script) = prepare(&mut driver, "60").await;
        let bundle = driver.bundle("c1");
        script.on("create", "slow");
        let term = async {
            script.begun().await;
            let shim = sys::pidfd::open(task.shim).unwrap();
            sys::pidfd::send_signal(shim, 15).unwrap();
        };
        let create = task.create_with(&bundle, "", script.options());
        let (pid, ()) = tokio::join!(create, term);
        let pid = pid.unwrap();
        task.shim_ends().await;
        assert!(is_alive(pid));
        assert_eq!(driver.topics(1).await, ["/tasks/create"]);
        assert!(
            !driver
                .dir
                .path()
                .join("s")
                .read_dir()
                .unwrap()
                .any(|_| true)
        );
        // What is left is for the daemon, as after any other end of a shim.
        let output = driver.action("c1", "delete", Vec::new()).await;
        assert!(output.status.is_success(), "{output:?}");
        gone(|| vec![pid]).await;
    });
}
