//! Layers unpacked without their parents, which get none.

use std::os::unix::fs::PermissionsExt as _;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::*;

fn mark(path: &Path, attribute: &str) {
    rustix::fs::setxattr(path, attribute, b"y", XattrFlags::empty()).unwrap();
}

/// An active snapshot as the unpacker leaves it that does not know what is below; its layer.
async fn unpacked(sn: &Local, name: &str) -> PathBuf {
    sn.prepare(&key(name), None, Labels::new()).await.unwrap();
    let layer = upper(sn.store(), sn.store().row(&key(name)).unwrap().id);
    let dir = layer.join("dir");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o751)).unwrap();
    std::fs::write(dir.join("file"), "text").unwrap();
    let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
    rustix::fs::mknodat(CWD, dir.join("gone"), kind, mode, 0).unwrap();
    mark(&dir, types::IMPLIED_DIRECTORY);
    mark(&layer, types::UNSETTLED_LAYER);
    layer
}

#[tokio::test]
async fn a_layer_made_alone_that_gets_no_parent_is_whole() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    for is_noted in [false, true] {
        let layer = unpacked(&sn, "alone").await;
        // What the unpacker has flushed is not all that there is in the end.
        sn.flushed(&key("alone"));
        let (name, active) = (key("top"), key("alone"));
        if is_noted {
            let done = sn.commit_noted(&name, &active, None, Labels::new()).await;
            done.unwrap();
        } else {
            sn.commit(&name, &active, Labels::new()).await.unwrap();
        }
        assert_eq!(sn.verify(None).await.unwrap(), []);
        assert!(!settle::is_unsettled(&layer));
        let left = std::fs::read_dir(layer.join("dir")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["file"], "there is nothing to be hidden");
        let implied = types::IMPLIED_DIRECTORY;
        let dir = layer.join("dir");
        rustix::fs::lgetxattr(&dir, implied, &mut [0; 4][..]).unwrap_err();
        assert_eq!(std::fs::metadata(dir).unwrap().mode() & 0o7777, 0o751);
        assert!(!crate::note::is_settled(layer.parent().unwrap()));
        sn.remove(&name).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_settled_on_nothing_gets_no_parent_and_the_other_way_round() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    layer(&sn, "base", None, "f").await;
    let base = sn.store().row(&key("base")).unwrap().id;
    let layer = unpacked(&sn, "alone").await;
    let directory = layer.parent().unwrap();
    let (name, active, parent) = (key("top"), key("alone"), key("base"));
    // As a commit leaves it whose row was refused.
    crate::note::settle(directory, None).unwrap();
    let done = sn.rebase(&name, &active, &parent, Labels::new()).await;
    assert!(done.is_err_and(|e| e.is(types::Code::FailedPrecondition)));
    crate::note::settled(directory);
    crate::note::settle(directory, Some(base)).unwrap();
    settle::settle(&layer, &[upper(sn.store(), base)]).unwrap();
    let done = sn.commit(&name, &active, Labels::new()).await;
    assert!(done.is_err_and(|e| e.is(types::Code::FailedPrecondition)));
    sn.rebase(&name, &active, &parent, Labels::new())
        .await
        .unwrap();
}
