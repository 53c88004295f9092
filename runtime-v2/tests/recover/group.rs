//! Several tasks of one shim.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Passes connections on to a shim and counts those that are there.
async fn counting(front: UnixListener, back: PathBuf, there: Arc<AtomicUsize>) {
    loop {
        let (mut near, _) = front.accept().await.unwrap();
        let mut far = UnixStream::connect(&back).await.unwrap();
        there.fetch_add(1, Ordering::Relaxed);
        let there = Arc::clone(&there);
        tokio::spawn(async move {
            // How a connection ends is of no interest.
            drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
            there.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

#[tokio::test]
async fn what_is_deleted_beside_one_that_stays_leaves_no_connection() {
    const DELETED: usize = 50;
    let home = Home::new();
    let back = home.socket("back");
    let _server = serve(&back, vec![v3(true)]).await;
    let front = UnixListener::bind(home.socket("stays")).unwrap();
    let there = Arc::new(AtomicUsize::new(0));
    tokio::spawn(counting(front, back, Arc::clone(&there)));
    home.leave("stays", 3);
    let of_all = home.bundle("stays").join("bootstrap.json");
    for n in 0..DELETED {
        let name = format!("goes{n}");
        home.leave(&name, 3);
        std::fs::copy(&of_all, home.bundle(&name).join("bootstrap.json")).unwrap();
    }
    let tasks = home.recover().await;
    assert_eq!(there.load(Ordering::Relaxed), DELETED + 1);
    let alive = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    for n in 0..DELETED {
        let (ns, id) = (ns(), id(&format!("goes{n}")));
        let deleted = within(tasks.delete(&ns, &id)).await.unwrap();
        assert_eq!(deleted.pid, PID);
    }
    let left = async {
        while there.load(Ordering::Relaxed) != 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within(left).await;
    // Of each, at least who watched it and who read what its shim said.
    let now = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    assert!(now + 2 * DELETED <= alive, "{now} of {alive}");
    let task = tasks.get(&ns(), &id("stays")).await.unwrap();
    assert!(!within(task.state(None)).await.unwrap().stale);
    assert_eq!(home.calls(), "");
}
