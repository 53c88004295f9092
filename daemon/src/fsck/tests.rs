//! Tests of module `fsck`.

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;
use types::{CheckOpts, Report};

use super::Checker;
use crate::config::Config;
use crate::ground::Ground;
use crate::store::Store;

/// A checker of a root that nobody has used; the directory is that root.
async fn setup() -> (TempDir, Checker) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        root: dir.path().join("root"),
        state: dir.path().join("state"),
        ..Config::default()
    };
    std::fs::create_dir_all(&config.root).unwrap();
    let store = Store::open(Ground::open(&config).unwrap(), &config).await;
    let checker = Checker::new(&store.unwrap().metadata, &config);
    (dir, checker)
}

async fn check(checker: &Checker) -> Report {
    checker.check(CheckOpts::default()).await.unwrap()
}

#[tokio::test]
async fn a_second_check_waits_for_its_turn() {
    let (_dir, checker) = setup().await;
    let second = checker.clone();
    let turn = checker.turn.lock().await;
    // Time moves on its own when nothing else can: no check takes this long.
    tokio::time::pause();
    let waiting = timeout(Duration::from_secs(3600), check(&second));
    waiting.await.unwrap_err();
    tokio::time::resume();
    drop(turn);
    assert!(check(&second).await.is_clean());
}
