//! Containers that run out of memory: told each time, before the end of the victim, and recorded.

use crate::driver::{Driver, Task, block_on};

/// Eats memory until somebody stops it.
const EAT: &str = "busybox tail /dev/zero";

/// A container that may have little memory.
async fn create(driver: &mut Driver, script: &str) -> Task {
    driver.make_bundle("c1", script, "c1");
    driver.edit("c1", |config| {
        let limit = 16 << 20;
        config["linux"]["resources"] = serde_json::json!({
            "memory": { "limit": limit, "swap": limit },
        });
    });
    let task = Task::connect(&driver.start("c1").await, "c1").await;
    task.create(&driver.bundle("c1"), "").await.unwrap();
    task.start("").await.unwrap();
    assert_eq!(driver.topics(2).await, ["/tasks/create", "/tasks/start"]);
    task
}

fn record(driver: &Driver) -> serde_json::Value {
    let text = std::fs::read_to_string(driver.bundle("c1").join("exit")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// An exec ran out of memory: once, before its end. Its start may be told later than that.
fn victim(topics: &[String]) {
    let at = |name: &str| topics.iter().position(|topic| topic == name).unwrap();
    assert_eq!(
        (at("/tasks/exec-added"), at("/tasks/exit")),
        (0, 3),
        "{topics:?}"
    );
    assert!(
        at("/tasks/oom") < 3 && at("/tasks/exec-started") < 3,
        "{topics:?}"
    );
}

async fn end(task: &Task) {
    task.delete("").await.unwrap();
    task.shutdown().await;
    task.shim_ends().await;
}

#[test]
fn an_init_that_is_the_victim_is_told_as_such_first() {
    block_on(async {
        let mut driver = Driver::new().await;
        let task = create(&mut driver, &format!("exec {EAT}")).await;
        assert_eq!(task.wait("").await, 137);
        assert_eq!(driver.topics(2).await, ["/tasks/oom", "/tasks/exit"]);
        assert_eq!(record(&driver)["oom"], true);
        end(&task).await;
        assert_eq!(driver.topics(1).await, ["/tasks/delete"]);
    });
}

#[test]
fn every_victim_is_told_while_the_init_lives_and_none_twice() {
    block_on(async {
        let mut driver = Driver::new().await;
        let task = create(&mut driver, "while :; do sleep 1; done").await;
        for exec in ["e1", "e2", "e3"] {
            task.exec(exec, &format!("exec {EAT}"), "").await.unwrap();
            task.start(exec).await.unwrap();
            assert_eq!(task.wait(exec).await, 137);
            victim(&driver.topics(4).await);
        }
        // A child whose parent tells its end in words of its own.
        task.exec("e4", &format!("{EAT} & wait $!; exit 3"), "")
            .await
            .unwrap();
        task.start("e4").await.unwrap();
        assert_eq!(task.wait("e4").await, 3);
        victim(&driver.topics(4).await);
        task.kill("", 15).await.unwrap();
        task.kill("", 9).await.unwrap();
        assert_eq!(task.wait("").await, 137);
        assert_eq!(driver.topics(1).await, ["/tasks/exit"]);
        assert_eq!(record(&driver)["oom"], true);
        end(&task).await;
        assert_eq!(driver.topics(1).await, ["/tasks/delete"]);
    });
}
