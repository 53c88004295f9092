//! Plugins of other programs beside ours.

use std::collections::BTreeMap;

use types::Code;

use super::*;
use crate::config::ProxyPlugin;

fn config(root: &Path, plugins: &[(&str, ProxyKind)], disabled: &[&str]) -> Config {
    let plugin = |kind| ProxyPlugin {
        kind,
        address: root.join("nobody.sock").display().to_string(),
        platform: "linux/arm64".into(),
        exports: BTreeMap::from([("root".into(), "/far".into())]),
        capabilities: vec!["rebase".into(), "remap-ids".into()],
    };
    let named = plugins
        .iter()
        .map(|(id, kind)| ((*id).to_owned(), plugin(*kind)));
    Config {
        root: root.to_owned(),
        proxy_plugins: named.collect(),
        disabled_plugins: disabled.iter().map(|&uri| uri.to_owned()).collect(),
        ..Config::default()
    }
}

#[tokio::test]
async fn a_proxied_snapshotter_is_there_before_its_program_is() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path(), &[("far", ProxyKind::Snapshot)], &[]);
    let ground = Ground::open(&config).unwrap();
    let far = &ground.snapshotters.ready()["far"];
    assert!(far.rebases() && far.is_remote());
    assert!(!far.settles(), "it may be anybody's");
    let row = ground.rows.iter().find(|row| row.id == "far").unwrap();
    assert_eq!(row.kind, SNAPSHOTTER);
    assert_eq!(row.facts.capabilities, ["rebase", "remap-ids"]);
    assert_eq!(row.facts.exports["root"], "/far");
    assert_eq!(row.facts.platforms[0].to_string(), "linux/arm64");
    let error = far.list(&types::Filter::default()).await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error:?}");
    // One of ours behind a socket says so, by the one word or by both.
    for words in [&["settle"][..], &["rebase", "settle"]] {
        let root = tempfile::tempdir().unwrap();
        let mut config = self::config(root.path(), &[("ours", ProxyKind::Snapshot)], &[]);
        let plugin = config.proxy_plugins.get_mut("ours").unwrap();
        plugin.capabilities = words.iter().map(|&word| word.to_owned()).collect();
        let ground = Ground::open(&config).unwrap();
        let ours = &ground.snapshotters.ready()["ours"];
        assert!(ours.rebases() && ours.settles(), "{words:?}");
    }
    // Ours tell what they can do.
    let row = ground.rows.iter().find(|row| row.id == "native").unwrap();
    assert_eq!(row.facts.capabilities, ["remap-ids"]);
}

#[tokio::test]
async fn there_is_one_content_store_and_it_may_be_anothers() {
    let root = tempfile::tempdir().unwrap();
    let far = [("far", ProxyKind::Content)];
    let error = Ground::open(&config(root.path(), &far, &[])).unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert!(error.to_string().contains("content and far"), "{error}");
    let ours = "io.containerd.content.v1.content";
    let ground = Ground::open(&config(root.path(), &far, &[ours])).unwrap();
    let asked = ground.content.list(&types::Filter::default()).await;
    assert!(asked.unwrap_err().is(Code::Unavailable));
    let error = Ground::open(&config(root.path(), &[], &[ours])).unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
}

#[tokio::test]
async fn a_program_cannot_take_the_name_of_ours() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path(), &[("native", ProxyKind::Snapshot)], &[]);
    let error = Ground::open(&config).unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    assert!(error.to_string().contains("native"), "{error}");
}

#[tokio::test]
async fn a_plugin_of_a_kind_that_is_not_used_is_skipped() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path(), &[("far", ProxyKind::Sandbox)], &[]);
    let ground = Ground::open(&config).unwrap();
    let row = ground.rows.iter().find(|row| row.id == "far").unwrap();
    let uri = row.uri();
    assert_eq!(uri, "io.containerd.sandbox.controller.v1.far");
    let (code, why) = row.failure.clone().unwrap();
    assert_eq!(code, Code::NotImplemented);
    assert!(why.ends_with("skip plugin"), "{why}");
    drop(ground);
    config.required_plugins = vec![uri];
    assert!(Ground::open(&config).unwrap_err().is(Code::NotImplemented));
}
