//! Shims that have no task.

use sys::process::Spawn;

use super::*;

#[tokio::test]
async fn a_shim_without_the_task_is_cleaned_up_silently() {
    let home = Home::new();
    home.answer(0);
    home.leave("c1", 3);
    let server = serve(&home.socket("c1"), vec![v3(false)]).await;
    std::fs::create_dir_all(home.bundle("empty")).unwrap();
    let orphan = home
        .config
        .root
        .join("io.containerd.runtime.v2.task/ns/orphan");
    std::fs::create_dir_all(orphan.join("data")).unwrap();
    let tasks = home.recover().await;
    assert!(tasks.list(None).await.unwrap().is_empty());
    assert!(!home.bundle("c1").exists() && !home.bundle("empty").exists());
    assert!(!orphan.exists());
    assert!(home.events().is_empty());
    drop(server);
}

#[tokio::test]
async fn a_container_that_came_of_a_lost_create_does_not_end_in_silence() {
    let home = Home::new();
    home.leave("c1", 3);
    let server = serve(&home.socket("c1"), vec![v3(false)]).await;
    let tasks = home.recover().await;
    assert!(tasks.list(None).await.unwrap().is_empty());
    let topics: Vec<_> = home.events().iter().map(Event::topic).collect();
    assert_eq!(topics, ["/tasks/exit", "/tasks/delete"]);
    drop(server);
}

#[tokio::test]
async fn a_container_that_the_clean_up_cannot_end_keeps_its_bundle_while_it_lives() {
    let home = Home::new();
    home.leave("c1", 3);
    let init = Spawn::new("sleep").arg("600").spawn().unwrap();
    let pid = init.pid().to_string();
    let server = serve(&home.socket("c1"), vec![v3(false)]).await;
    std::fs::write(home.bundle("c1").join("init.pid"), pid).unwrap();
    // An answer that is none.
    std::fs::write(home.dir.path().join("answer"), "\u{7}junk").unwrap();
    let tasks = Tasks::open(home.config.clone()).unwrap();
    let recovering = tokio::spawn({
        let tasks = Arc::clone(&tasks);
        async move { tasks.recover().await }
    });
    let until = async |calls: usize| {
        let called = async {
            while home.calls().lines().count() < calls && home.bundle("c1").exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within(called).await;
    };
    until(1).await;
    drop(server);
    until(3).await;
    assert!(home.bundle("c1").exists());
    init.kill(9).unwrap();
    init.wait().unwrap();
    within(recovering).await.unwrap();
    let gone = async {
        while home.bundle("c1").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within(gone).await;
    assert!(home.events().is_empty());
}
