//! Options and requests as the runtime gets them, seen in the arguments of its calls.

use protos::runc::Options;
use protos::shim::task as api;

use crate::driver::{Driver, Script, Task, block_on, context};

/// The arguments of the calls with this verb.
fn calls(script: &Script, verb: &str) -> Vec<String> {
    let all = script.calls().into_iter();
    all.filter(|line| line.split(' ').any(|word| word == verb))
        .collect()
}

#[test]
fn options_reach_the_runtime_as_flags() {
    block_on(async {
        let mut driver = Driver::new().await;
        driver.make_bundle("c1", "exit 0", "c1");
        let script = Script::new(driver.dir.path(), "runc");
        // Neither of them works everywhere: their arguments are what counts.
        script.on("create", "fail");
        let task = Task::connect(&driver.start("c1").await, "c1").await;
        let bundle = driver.bundle("c1");
        let root = driver.dir.path().join("elsewhere").display().to_string();
        let options = Options {
            no_pivot_root: true,
            no_new_keyring: true,
            systemd_cgroup: true,
            root: root.clone(),
            ..script.options()
        };
        task.create_with(&bundle, "", options).await.unwrap_err();
        let [create] = calls(&script, "create").try_into().unwrap();
        for part in [
            format!("--root {root}/ns "),
            " --systemd-cgroup create ".to_owned(),
            " --no-pivot ".to_owned(),
            " --no-new-keyring ".to_owned(),
            format!(" --bundle {} ", bundle.display()),
        ] {
            assert!(create.contains(&part), "{part}: {create}");
        }
        task.create_with(&bundle, "", script.options())
            .await
            .unwrap_err();
        let plain = calls(&script, "create").pop().unwrap();
        let own = driver
            .dir
            .path()
            .join("state/runc/ns")
            .display()
            .to_string();
        assert!(plain.contains(&format!("--root {own} ")), "{plain}");
        for flag in ["--systemd-cgroup", "--no-pivot", "--no-new-keyring"] {
            assert!(!plain.contains(flag), "{flag}: {plain}");
        }
        task.shutdown().await;
        task.shim_ends().await;
    });
}

#[test]
fn a_signal_for_all_ends_every_process_of_the_container() {
    block_on(async {
        let mut driver = Driver::new().await;
        driver.make_bundle("c1", "sleep 1000 & sleep 1001 & wait", "c1");
        let script = Script::new(driver.dir.path(), "runc");
        let task = Task::connect(&driver.start("c1").await, "c1").await;
        let bundle = driver.bundle("c1");
        task.create_with(&bundle, "", script.options())
            .await
            .unwrap();
        task.start("").await.unwrap();
        task.exec("e1", "sleep 1000", "").await.unwrap();
        task.start("e1").await.unwrap();
        let request = api::KillRequest {
            id: "c1".into(),
            signal: 9,
            all: true,
            ..Default::default()
        };
        task.client.kill(context(), &request).await.unwrap();
        assert_eq!((task.wait("e1").await, task.wait("").await), (137, 137));
        let [kill] = calls(&script, "kill").try_into().unwrap();
        assert!(kill.ends_with("kill --all c1 9"), "{kill}");
        task.delete("").await.unwrap();
        task.shutdown().await;
        task.shim_ends().await;
    });
}

#[test]
fn the_shim_joins_the_control_group_that_it_is_told() {
    block_on(async {
        let mut driver = Driver::new().await;
        driver.make_bundle("c1", "exit 0", "c1");
        let unique = driver.dir.path().file_name().unwrap().to_string_lossy();
        let group = format!("/shim-test-group-{}", unique.trim_start_matches('.'));
        let address = driver.start_with(
            "c1",
            Options {
                shim_cgroup: group.clone(),
                ..Options::default()
            },
        );
        let task = Task::connect(&address.await, "c1").await;
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", task.shim)).unwrap();
        let joined = groups.lines().filter(|line| line.ends_with(&group)).count();
        assert!(joined > 0, "{groups}");
        let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", task.shim)).unwrap();
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let (score, own): (i32, i32) = (score.trim().parse().unwrap(), own.trim().parse().unwrap());
        assert_eq!(score, (own + 1).min(1000));
        let found = sys::cgroup::Cgroup::of(task.shim).unwrap();
        task.shutdown().await;
        task.shim_ends().await;
        for line in groups.lines().filter(|line| line.ends_with(&group)) {
            let name = line.split(':').nth(1).unwrap().split(',').next().unwrap();
            if let Some(dir) = found.dir(name) {
                // Controllers that are mounted together share it.
                drop(std::fs::remove_dir(dir));
            }
        }
    });
}
