//! Bursts of execs in one container: memory and descriptors are what they were before.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::driver::{Driver, Task, block_on};

/// How much more a shim may have for itself after a burst than after the one before, in KiB.
const TOLERANCE: u64 = 64;

/// Memory that is this process's alone, in KiB.
fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Anonymous:"));
    let size = line.and_then(|line| line.split_whitespace().nth(1));
    size.unwrap().parse().unwrap()
}

/// What its descriptors are.
fn descriptors(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // One that is closed meanwhile is none.
    let links = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// Blocks until the shim has told everything and hung up: it listens, and this test is connected.
/// Returns the number of its descriptors.
async fn settled(pid: u32) -> usize {
    let idle = async {
        loop {
            let all = descriptors(pid);
            if all
                .iter()
                .filter(|link| link.starts_with("socket:"))
                .count()
                == 2
            {
                return all.len();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let idle = tokio::time::timeout(Duration::from_secs(60), idle).await;
    idle.unwrap_or_else(|_| panic!("{:?}", descriptors(pid)))
}

async fn burst(task: &Arc<Task>, name: &str) {
    let mut lanes = JoinSet::new();
    for lane in 0..4 {
        let (task, name) = (Arc::clone(task), name.to_owned());
        lanes.spawn(async move {
            for n in 0..15 {
                let id = format!("{name}-{lane}-{n}");
                task.exec(&id, "exit 3", "").await.unwrap();
                task.start(&id).await.unwrap();
                assert_eq!(task.wait(&id).await, 3);
                task.delete(&id).await.unwrap();
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
}

#[test]
fn a_burst_of_execs_leaves_no_trace_in_the_shim() {
    block_on(async {
        let mut driver = Driver::new().await;
        let task = driver.create("c1", "while :; do sleep 1; done").await;
        task.start("").await.unwrap();
        let task = Arc::new(task);
        driver.topics(2).await;
        let idle = settled(task.shim).await;
        burst(&task, "a").await;
        assert_eq!(settled(task.shim).await, idle);
        let before = memory(task.shim);
        burst(&task, "b").await;
        assert_eq!(settled(task.shim).await, idle);
        let after = memory(task.shim);
        assert!(
            after <= before + TOLERANCE,
            "{before} KiB before, {after} after"
        );
        let files = std::fs::read_dir(driver.bundle("c1")).unwrap();
        let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = files.filter(|name| name.contains("-1-")).collect();
        assert_eq!(left, Vec::<String>::new());
        task.kill("", 9).await.unwrap();
        task.wait("").await;
        task.delete("").await.unwrap();
        task.shutdown().await;
        task.shim_ends().await;
    });
}
