//! The shim's binary with the real runc, driven over ttrpc without a daemon.

#[cfg(test)]
mod driver;
#[cfg(test)]
mod hang;
#[cfg(test)]
mod oom;
#[cfg(test)]
mod options;
#[cfg(test)]
mod restore;
#[cfg(test)]
mod storm;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protos::Message as _;
    use protos::shim::task as api;
    use protos::task::Status;

    use crate::driver::{Driver, Task, block_on, code, context};

    #[test]
    fn a_task_lives_and_ends_with_its_events_in_order() {
        block_on(async {
            let mut driver = Driver::new().await;
            let task = driver.create("c1", "echo hello; exit 7").await;
            assert_eq!(
                task.state().await.unwrap().status.enum_value(),
                Ok(Status::CREATED)
            );
            let pid = task.start("").await.unwrap();
            assert_eq!(task.wait("").await, 7);
            // Any number of callers, also long after the end.
            assert_eq!(task.wait("").await, 7);
            let state = task.state().await.unwrap();
            assert_eq!(
                (state.status.enum_value(), state.exit_status),
                (Ok(Status::STOPPED), 7)
            );
            assert_eq!(
                code(&task.kill("", 9).await.unwrap_err()),
                ttrpc::Code::NOT_FOUND
            );
            let gone = task.delete("").await.unwrap();
            assert_eq!((gone.pid, gone.exit_status), (pid, 7));
            let want = [
                "/tasks/create",
                "/tasks/start",
                "/tasks/exit",
                "/tasks/delete",
            ];
            assert_eq!(driver.topics(4).await, want);
            assert_eq!(driver.output("c1"), "hello\n");
            let error = task.state().await.unwrap_err();
            assert_eq!(code(&error), ttrpc::Code::NOT_FOUND);
            assert!(
                error
                    .to_string()
                    .contains("container not created: not found"),
                "{error}"
            );
            task.shutdown().await;
            task.shim_ends().await;
            assert_eq!(
                std::fs::read_dir(driver.dir.path().join("s"))
                    .unwrap()
                    .count(),
                0
            );
        });
    }

    #[test]
    fn execs_have_their_own_ends_and_the_inits_is_the_last() {
        block_on(async {
            let mut driver = Driver::new().await;
            let task = driver.create("c1", "while :; do sleep 1; done").await;
            let early = task.exec("e0", "exit 0", "").await;
            early.unwrap();
            task.start("").await.unwrap();
            let log = driver.log("e1");
            // Any id is free, also one that sounds like the shim's own files.
            task.exec("init", "echo from exec; exit 5", &log)
                .await
                .unwrap();
            let taken = task.exec("init", "exit 0", "").await.unwrap_err();
            assert_eq!(code(&taken), ttrpc::Code::ALREADY_EXISTS);
            let bad = task.exec("a/b", "exit 0", "").await.unwrap_err();
            assert_eq!(code(&bad), ttrpc::Code::INVALID_ARGUMENT);
            task.start("init").await.unwrap();
            assert_eq!(task.wait("init").await, 5);
            assert_eq!(task.delete("init").await.unwrap().exit_status, 5);
            assert_eq!(driver.output("e1"), "from exec\n");
            assert!(driver.bundle("c1").join("init.pid").exists());
            task.exec("e2", "sleep 1000", "").await.unwrap();
            let pid = task.start("e2").await.unwrap();
            let request = api::PidsRequest {
                id: "c1".into(),
                ..Default::default()
            };
            let pids = task
                .client
                .pids(context(), &request)
                .await
                .unwrap()
                .processes;
            let exec = pids.iter().find(|p| p.pid == pid).unwrap();
            assert_eq!(exec.info.type_url, "containerd.runc.v1.ProcessDetails");
            assert_eq!(
                code(&task.delete("").await.unwrap_err()),
                ttrpc::Code::FAILED_PRECONDITION
            );
            task.kill("", 9).await.unwrap();
            assert_eq!((task.wait("").await, task.wait("e2").await), (137, 137));
            let late = task.start("e0").await.unwrap_err();
            assert_eq!(code(&late), ttrpc::Code::FAILED_PRECONDITION);
            task.delete("").await.unwrap();
            let topics = driver.topics(10).await;
            let want = [
                "exec-added",
                "start",
                "exec-added",
                "exec-started",
                "exit",
                "exec-added",
            ];
            assert_eq!(topics[1..7], want.map(|topic| format!("/tasks/{topic}")));
            assert_eq!(
                topics[7..],
                ["/tasks/exec-started", "/tasks/exit", "/tasks/exit"]
            );
            assert_eq!(driver.topics(1).await, ["/tasks/delete"]);
            task.shutdown().await;
            task.shim_ends().await;
        });
    }

    #[test]
    fn pausing_metrics_and_updates_reach_the_container() {
        block_on(async {
            let mut driver = Driver::new().await;
            let task = driver.create("c1", "sleep 1000").await;
            task.start("").await.unwrap();
            task.pause().await.unwrap();
            assert_eq!(
                task.state().await.unwrap().status.enum_value(),
                Ok(Status::PAUSED)
            );
            let again = task.pause().await.unwrap_err();
            assert_eq!(code(&again), ttrpc::Code::FAILED_PRECONDITION);
            task.resume().await.unwrap();
            let resources = protos::well_known::Any {
                value: br#"{"pids":{"limit":77}}"#.to_vec(),
                ..Default::default()
            };
            let update = api::UpdateTaskRequest {
                id: "c1".into(),
                resources: Some(resources).into(),
                ..Default::default()
            };
            task.client.update(context(), &update).await.unwrap();
            let stats = api::StatsRequest {
                id: "c1".into(),
                ..Default::default()
            };
            let stats = task
                .client
                .stats(context(), &stats)
                .await
                .unwrap()
                .stats
                .unwrap();
            let limit = if stats.type_url == "io.containerd.cgroups.v1.Metrics" {
                protos::cgroups::v1::Metrics::parse_from_bytes(&stats.value)
                    .unwrap()
                    .pids
                    .limit
            } else {
                protos::cgroups::v2::Metrics::parse_from_bytes(&stats.value)
                    .unwrap()
                    .pids
                    .limit
            };
            assert_eq!(limit, 77);
            task.pause().await.unwrap();
            task.kill("", 9).await.unwrap();
            assert_eq!(task.wait("").await, 137);
            task.delete("").await.unwrap();
            task.shutdown().await;
            task.shim_ends().await;
        });
    }

    #[test]
    fn a_group_shares_one_shim_that_stays_until_its_last_container_is_gone() {
        block_on(async {
            let mut driver = Driver::new().await;
            let mut tasks = Vec::new();
            for id in ["pod", "c1"] {
                let bundle = driver.make_bundle(id, "sleep 1000", "pod");
                let address = driver.start(id).await;
                let kept = std::fs::read_to_string(bundle.join("address")).unwrap();
                assert_eq!(kept, address);
                let task = Task::connect(&address, id).await;
                task.create(&bundle, "").await.unwrap();
                let twice = task.create(&bundle, "").await.unwrap_err();
                assert_eq!(code(&twice), ttrpc::Code::ALREADY_EXISTS);
                tasks.push(task);
            }
            assert_eq!(tasks[0].shim, tasks[1].shim);
            // Never started: the deletion ends it.
            tasks[0].delete("").await.unwrap();
            tasks[0].shutdown().await;
            assert_eq!(
                tasks[1].state().await.unwrap().status.enum_value(),
                Ok(Status::CREATED)
            );
            tasks[1].delete("").await.unwrap();
            tasks[1].shutdown().await;
            tasks[1].shim_ends().await;
        });
    }

    #[test]
    fn a_killed_shims_container_is_cleaned_up_with_its_true_end() {
        block_on(async {
            let mut driver = Driver::new().await;
            let task = driver.create("c1", "exit 42").await;
            let running = driver.create("c2", "sleep 1000").await;
            task.start("").await.unwrap();
            let pid = running.start("").await.unwrap();
            assert_eq!(task.wait("").await, 42);
            for shim in [task.shim, running.shim] {
                sys::pidfd::send_signal(sys::pidfd::open(shim).unwrap(), 9).unwrap();
            }
            task.shim_ends().await;
            running.shim_ends().await;
            for (id, status) in [("c1", 42), ("c2", 137)] {
                let output = driver.action(id, "delete", Vec::new()).await;
                assert!(output.status.is_success(), "{output:?}");
                let answer = api::DeleteResponse::parse_from_bytes(&output.text).unwrap();
                assert_eq!(answer.exit_status, status, "{id}");
            }
            let gone = sys::pidfd::open(pid)
                .map_or(Ok(false), sys::pidfd::is_alive)
                .unwrap();
            assert!(!gone, "the container outlived its deletion");
            assert_eq!(
                std::fs::read_dir(driver.dir.path().join("s"))
                    .unwrap()
                    .count(),
                0
            );
        });
    }

    #[test]
    fn a_failed_create_says_why_and_leaves_nothing() {
        block_on(async {
            let mut driver = Driver::new().await;
            let bundle = driver.make_bundle("c1", "", "c1");
            let config = std::fs::read_to_string(bundle.join("config.json")).unwrap();
            let broken = config.replace("\"/bin/sh\"", "\"/no/such\"");
            std::fs::write(bundle.join("config.json"), broken).unwrap();
            let task = Task::connect(&driver.start("c1").await, "c1").await;
            let error = task.create(&bundle, "").await.unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("OCI runtime create failed: runc create failed"),
                "{text}"
            );
            assert!(text.contains("/no/such"), "{text}");
            assert!(!driver.dir.path().join("state/runc/ns/c1").exists());
            assert!(!bundle.join("init.pid").exists());
            let absent = task.create(&bundle, "/no/such/fifo").await.unwrap_err();
            assert!(absent.to_string().contains("/no/such/fifo"), "{absent}");
            // The shim is unharmed: the same id works when the bundle does.
            std::fs::write(bundle.join("config.json"), config).unwrap();
            task.create(&bundle, "").await.unwrap();
            task.delete("").await.unwrap();
            task.shutdown().await;
            task.shim_ends().await;
        });
    }

    #[test]
    fn both_versions_answer_and_unknown_methods_are_unimplemented() {
        block_on(async {
            let mut driver = Driver::new().await;
            driver.make_bundle("c1", "exit 0", "c1");
            let task = Task::connect(&driver.start("c1").await, "c1").await;
            let request = api::PidsRequest {
                id: "c1".into(),
                ..Default::default()
            };
            let calls = [
                ("containerd.task.v2.Task", "Pids", ttrpc::Code::NOT_FOUND),
                ("containerd.task.v3.Task", "Pids", ttrpc::Code::NOT_FOUND),
                (
                    "containerd.task.v3.Task",
                    "Dance",
                    ttrpc::Code::UNIMPLEMENTED,
                ),
                (
                    "containerd.runtime.sandbox.v1.Sandbox",
                    "Platform",
                    ttrpc::Code::UNIMPLEMENTED,
                ),
                (
                    "containerd.services.streaming.v1.Streaming",
                    "Stream",
                    ttrpc::Code::UNIMPLEMENTED,
                ),
            ];
            for (service, method, want) in calls {
                let call = ttrpc::Request {
                    service: service.into(),
                    method: method.into(),
                    payload: request.write_to_bytes().unwrap(),
                    timeout_nano: i64::try_from(Duration::from_secs(20).as_nanos()).unwrap(),
                    ..Default::default()
                };
                let error = task.raw.request(call).await.unwrap_err();
                assert_eq!(code(&error), want, "{service} {method}: {error}");
            }
            task.shutdown().await;
            task.shim_ends().await;
        });
    }
}
