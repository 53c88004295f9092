//! Erofs: the suite, what images keep, and what becomes of mounts and files.

use super::*;
use crate::Snapshotter;
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use sys::mount::TempMount;
use types::{Labels, SnapshotKey};

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

fn open(root: &Path) -> Local {
    Erofs::open(root, ErofsConfig::default()).unwrap()
}

async fn prepare(sn: &Local, name: &str, parent: Option<&str>) -> Vec<Mount> {
    let parent = parent.map(key);
    let made = sn.prepare(&key(name), parent.as_ref(), Labels::new()).await;
    made.unwrap()
}

/// Where what is written into an active snapshot goes.
fn upper(mounts: &[Mount]) -> PathBuf {
    mounts[0]
        .option("upperdir")
        .unwrap_or(&mounts[0].source)
        .into()
}

async fn commit(sn: &Local, name: &str, from: &str) {
    sn.commit(&key(name), &key(from), Labels::new())
        .await
        .unwrap();
}

/// Removes everything: an image that stays mounted would outlive the test.
async fn clear(sn: &Local, names: &[&str]) {
    for name in names {
        sn.remove(&key(name)).await.unwrap();
    }
    sn.cleanup().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    for set_immutable in [false, true] {
        let temp = tempfile::tempdir().unwrap();
        let config = ErofsConfig {
            set_immutable,
            ..ErofsConfig::default()
        };
        let sn: Arc<dyn Snapshotter> = Arc::new(Erofs::open(temp.path(), config).unwrap());
        crate::testsuite::all(&sn).await;
        sn.cleanup().await.unwrap();
        assert!(crate::testing::directories(temp.path()).is_empty());
    }
}

#[tokio::test]
async fn an_image_keeps_what_its_directory_had() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    let file = layer.join("file");
    std::fs::write(&file, "text").unwrap();
    std::fs::hard_link(&file, layer.join("link")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::symlink("/nowhere", layer.join("sym")).unwrap();
    rustix::fs::mknodat(CWD, layer.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let device = rustix::fs::makedev(1, 3);
    let kind = FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, layer.join("null"), kind, Mode::RUSR, device).unwrap();
    let flags = XattrFlags::empty();
    rustix::fs::lsetxattr(&file, "user.k", b"v", flags).unwrap();
    std::os::unix::fs::chown(&layer, Some(70_000), Some(80_000)).unwrap();
    let before = std::fs::symlink_metadata(&file).unwrap();
    commit(&sn, "A", "a").await;
    assert_eq!(
        std::fs::read_dir(&layer).unwrap().count(),
        0,
        "files stay beside the image"
    );

    let mounts = sn
        .view(&key("v"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    let shown = PathBuf::from(&mounts[0].source);
    let facts = |name: &str| std::fs::symlink_metadata(shown.join(name)).unwrap();
    let after = facts("file");
    let of = |f: &std::fs::Metadata| {
        (
            f.mode(),
            f.uid(),
            f.size(),
            f.nlink(),
            f.mtime(),
            f.mtime_nsec(),
        )
    };
    assert_eq!(of(&after), of(&before));
    assert_eq!(after.ino(), facts("link").ino());
    assert_eq!(std::fs::read(shown.join("file")).unwrap(), b"text");
    assert_eq!(
        std::fs::read_link(shown.join("sym")).unwrap(),
        Path::new("/nowhere")
    );
    assert_eq!(facts("null").rdev(), device);
    assert_eq!((facts("").uid(), facts("").gid()), (70_000, 80_000));
    let mut value = [0; 4];
    let got = rustix::fs::lgetxattr(shown.join("file"), "user.k", &mut value[..]);
    assert_eq!((got, value[0]), (Ok(1), b'v'));
    // A child's root belongs to whom the parent's belongs.
    let child = upper(&prepare(&sn, "b", Some("A")).await);
    assert_eq!(std::fs::metadata(child).unwrap().uid(), 70_000);
    clear(&sn, &["v", "b", "A"]).await;
}

#[tokio::test]
async fn what_a_layer_hides_stays_hidden() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    for name in ["gone", "kept", "dir/old"] {
        std::fs::create_dir_all(layer.join("dir")).unwrap();
        std::fs::write(layer.join(name), name).unwrap();
    }
    commit(&sn, "A", "a").await;
    let mounts = prepare(&sn, "b", Some("A")).await;
    {
        let point = tempfile::tempdir().unwrap();
        let mounted = TempMount::new(&mounts, point.path()).unwrap();
        std::fs::remove_file(mounted.path().join("gone")).unwrap();
        std::fs::remove_dir_all(mounted.path().join("dir")).unwrap();
        std::fs::create_dir(mounted.path().join("dir")).unwrap();
        std::fs::write(mounted.path().join("dir/new"), "").unwrap();
    }
    commit(&sn, "B", "b").await;
    let mounts = sn
        .view(&key("v"), Some(&key("B")), Labels::new())
        .await
        .unwrap();
    let point = tempfile::tempdir().unwrap();
    let mounted = TempMount::new(&mounts, point.path()).unwrap();
    let names = |path: PathBuf| -> BTreeSet<String> {
        let entries = std::fs::read_dir(path).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let want = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names(mounted.path().to_owned()), want(&["dir", "kept"]));
    assert_eq!(names(mounted.path().join("dir")), want(&["new"]));
    drop(mounted);
    clear(&sn, &["v", "B", "A"]).await;
}

#[tokio::test]
async fn images_are_mounted_again_after_a_reboot_and_go_when_they_are_removed() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    std::fs::write(upper(&prepare(&sn, "a", None).await).join("f"), "x").unwrap();
    commit(&sn, "A", "a").await;
    let mounts = prepare(&sn, "b", Some("A")).await;
    let lower = PathBuf::from(mounts[0].option("lowerdir").unwrap());
    assert!(lower.join("f").exists());
    // A reboot has no mounts; and a crash has kept the files of the layer.
    sys::mount::detach_all(&lower).unwrap();
    std::fs::write(lower.join("left"), "").unwrap();
    assert_eq!(sn.mounts(&key("b")).await.unwrap(), mounts);
    assert!(lower.join("f").exists());
    clear(&sn, &["b", "A"]).await;
    assert!(!lower.exists());
}

#[tokio::test]
async fn a_layer_that_has_lost_its_image_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    prepare(&sn, "a", None).await;
    commit(&sn, "A", "a").await;
    let id = sn.store().row(&key("A")).unwrap().id;
    std::fs::remove_file(sn.store().directory(id).join(IMAGE)).unwrap();
    let error = sn.prepare(&key("b"), Some(&key("A")), Labels::new()).await;
    let error = error.unwrap_err();
    assert!(error.is(Code::DataLoss), "{error}");
    assert!(sn.stat(&key("b")).await.unwrap_err().is_not_found());
    let broken = sn.verify(None).await.unwrap();
    assert!(
        broken.len() == 1 && broken[0].why.contains(IMAGE),
        "{broken:?}"
    );
}

#[tokio::test]
async fn an_image_that_cannot_be_made_leaves_the_snapshot_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    std::fs::write(layer.join("f"), "x").unwrap();
    let directory = layer.parent().unwrap().to_owned();
    // In the way of the new image.
    std::fs::create_dir_all(directory.join(IMAGE).join("x")).unwrap();
    let error = sn.commit(&key("A"), &key("a"), Labels::new()).await;
    error.unwrap_err();
    assert!(!directory.join(NEW_IMAGE).exists());
    assert!(layer.join("f").exists());
    std::fs::remove_dir_all(directory.join(IMAGE)).ok();
    commit(&sn, "A", "a").await;
    clear(&sn, &["A"]).await;
}

#[tokio::test]
async fn a_layer_made_alone_is_settled_on_images() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    std::fs::write(upper(&prepare(&sn, "a", None).await).join("f"), "x").unwrap();
    commit(&sn, "A", "a").await;
    let layer = upper(&prepare(&sn, "alone", None).await);
    let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
    for name in ["f", "never"] {
        rustix::fs::mknodat(CWD, layer.join(name), kind, mode, 0).unwrap();
    }
    rustix::fs::setxattr(&layer, types::UNSETTLED_LAYER, b"y", XattrFlags::empty()).unwrap();
    let (name, parent) = (key("B"), key("A"));
    sn.rebase(&name, &key("alone"), &parent, Labels::new())
        .await
        .unwrap();
    let mounts = sn
        .view(&key("v"), Some(&name), Labels::new())
        .await
        .unwrap();
    let point = tempfile::tempdir().unwrap();
    let mounted = TempMount::new(&mounts, point.path()).unwrap();
    assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 0);
    drop(mounted);
    clear(&sn, &["v", "B", "A"]).await;
}

#[tokio::test]
async fn a_layer_of_holes_is_refused_before_its_image_is_begun() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    let file = std::fs::File::create(layer.join("hole")).unwrap();
    file.set_len(65 << 30).unwrap();
    let done = sn.commit(&key("A"), &key("a"), Labels::new()).await;
    let error = done.unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    let left = std::fs::read_dir(layer.parent().unwrap()).unwrap();
    let left: BTreeSet<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    let want = [LAYER, WORK, EROFS_LAYER].map(Into::into);
    assert_eq!(left, BTreeSet::from(want));
    // It is as good as before.
    file.set_len(1 << 20).unwrap();
    commit(&sn, "A", "a").await;
    clear(&sn, &["A"]).await;
}

#[tokio::test]
async fn zeroes_that_unpacking_made_holes_of_take_nothing_in_the_image_and_are_read() {
    use std::os::unix::fs::FileExt as _;
    const END: u64 = 1100 << 20;
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    let file = std::fs::File::create(layer.join("swapfile")).unwrap();
    file.write_all_at(b"end", END).unwrap();
    std::fs::write(layer.join("f"), "text").unwrap();
    commit(&sn, "A", "a").await;
    let usage = sn.usage(&key("A")).await.unwrap();
    assert!(usage.size < 64 << 20, "{usage:?}");
    let mounts = sn
        .view(&key("v"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    let shown = PathBuf::from(&mounts[0].source);
    assert_eq!(std::fs::read(shown.join("f")).unwrap(), b"text");
    let file = std::fs::File::open(shown.join("swapfile")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), END + 3);
    let mut read = [1; 6];
    file.read_exact_at(&mut read, END - 3).unwrap();
    assert_eq!(&read, b"\0\0\0end");
    drop(file);
    clear(&sn, &["v", "A"]).await;
}

#[test]
fn an_image_that_grows_beyond_the_room_that_there_is_ends() {
    let temp = tempfile::tempdir().unwrap();
    let [layer, image] = ["layer", "image"].map(|name| temp.path().join(name));
    std::fs::create_dir(&layer).unwrap();
    std::fs::write(layer.join("f"), vec![b'x'; 8 << 20]).unwrap();
    let error = mkfs(&image, &layer, 4 << 20, &[]).unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    assert!(std::fs::metadata(&image).unwrap().len() <= 4 << 20);
    tree::remove(&image).unwrap();
    mkfs(&image, &layer, 16 << 20, &[]).unwrap();
}

#[tokio::test]
async fn a_layer_made_alone_that_gets_no_parent_hides_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    assert!(sn.rebases());
    // Not the word upon which Go's clients write a layer as if it stood on nothing.
    assert_eq!(sn.capabilities().last(), Some(&crate::SETTLES));
    let layer = upper(&prepare(&sn, "alone", None).await);
    std::fs::write(layer.join("f"), "text").unwrap();
    let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
    rustix::fs::mknodat(CWD, layer.join("gone"), kind, mode, 0).unwrap();
    rustix::fs::setxattr(&layer, types::UNSETTLED_LAYER, b"y", XattrFlags::empty()).unwrap();
    commit(&sn, "A", "alone").await;
    let mounts = sn.view(&key("v"), Some(&key("A")), Labels::new()).await;
    let shown = PathBuf::from(&mounts.unwrap()[0].source);
    let names = std::fs::read_dir(&shown).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["f"]);
    let mark = rustix::fs::lgetxattr(&shown, types::UNSETTLED_LAYER, &mut [0; 4][..]);
    mark.unwrap_err();
    clear(&sn, &["v", "A"]).await;
}

#[tokio::test]
async fn an_image_that_was_cut_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    std::fs::write(layer.join("f"), vec![b'x'; 1 << 20]).unwrap();
    commit(&sn, "A", "a").await;
    assert_eq!(sn.verify(None).await.unwrap(), []);
    let id = sn.store().row(&key("A")).unwrap().id;
    let image = sn.store().directory(id).join(IMAGE);
    let image = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    image.set_len(64 << 10).unwrap();
    let broken = sn.verify(None).await.unwrap();
    assert!(
        broken.len() == 1 && broken[0].key == key("A") && !broken[0].is_gone,
        "{broken:?}"
    );
    clear(&sn, &["A"]).await;
}

#[tokio::test]
async fn a_flipped_bit_is_noticed_and_another_image_takes_the_place_under_what_stands_on_it() {
    use std::os::unix::fs::FileExt as _;
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    for name in ["a", "again"] {
        let layer = upper(&prepare(&sn, name, None).await);
        std::fs::write(layer.join("f"), vec![b'x'; 1 << 20]).unwrap();
    }
    commit(&sn, "A", "a").await;
    let mounts = prepare(&sn, "b", Some("A")).await;
    let id = sn.store().row(&key("A")).unwrap().id;
    let image = sn.store().directory(id).join(IMAGE);
    let image = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    image.write_all_at(b"y", 600_000).unwrap();
    let broken = sn.verify(None).await.unwrap();
    assert!(broken.len() == 1 && broken[0].key == key("A"), "{broken:?}");
    assert!(sn.renews());
    sn.renew(&key("A"), &key("again")).await.unwrap();
    assert_eq!(sn.verify(None).await.unwrap(), []);
    assert!(sn.stat(&key("again")).await.unwrap_err().is_not_found());
    // Who was told of the mount before finds the new image there, without asking again.
    let lower = PathBuf::from(mounts[0].option("lowerdir").unwrap());
    assert!(sys::mount::is_mount_point(&lower).unwrap());
    assert_eq!(std::fs::read(lower.join("f")).unwrap(), vec![b'x'; 1 << 20]);
    sn.cleanup().await.unwrap();
    // Its directory has what a committed one has.
    let names = std::fs::read_dir(sn.store().directory(id)).unwrap();
    let names: BTreeSet<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, BTreeSet::from([LAYER, IMAGE].map(Into::into)));
    assert_eq!(sn.mounts(&key("b")).await.unwrap(), mounts);
    assert_eq!(std::fs::read(lower.join("f")).unwrap(), vec![b'x'; 1 << 20]);
    clear(&sn, &["b", "A"]).await;
}

/// An image of a file `f` with this text.
fn image_of(text: &str, at: &Path) {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("f"), text).unwrap();
    mkfs(at, temp.path(), u64::MAX, &[]).unwrap();
}

#[tokio::test]
async fn a_layer_that_is_given_as_an_image_is_that_image() {
    let temp = tempfile::tempdir().unwrap();
    let sn = Erofs::open(
        temp.path(),
        ErofsConfig {
            set_immutable: true,
            ..ErofsConfig::default()
        },
    )
    .unwrap();
    let layer = upper(&prepare(&sn, "a", None).await);
    let directory = layer.parent().unwrap().to_owned();
    assert!(directory.join(EROFS_LAYER).is_file());
    image_of("given", &directory.join(IMAGE));
    let given = std::fs::read(directory.join(IMAGE)).unwrap();
    assert!(sn.usage(&key("a")).await.unwrap().size >= 4096);
    // A commit that is refused, and a start, leave it as it was.
    prepare(&sn, "other", None).await;
    commit(&sn, "A", "other").await;
    sn.commit(&key("A"), &key("a"), Labels::new())
        .await
        .unwrap_err();
    drop(sn);
    let sn = open(temp.path());
    assert_eq!(std::fs::read(directory.join(IMAGE)).unwrap(), given);
    commit(&sn, "B", "a").await;
    assert_eq!(std::fs::read(directory.join(IMAGE)).unwrap(), given);
    let names = std::fs::read_dir(&directory).unwrap();
    let names: BTreeSet<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, BTreeSet::from([LAYER, IMAGE].map(Into::into)));
    let mounts = sn
        .view(&key("v"), Some(&key("B")), Labels::new())
        .await
        .unwrap();
    let shown = PathBuf::from(&mounts[0].source);
    assert_eq!(std::fs::read(shown.join("f")).unwrap(), b"given");
    assert!(!shown.parent().unwrap().join(EROFS_LAYER).exists());
    clear(&sn, &["v", "B", "A"]).await;
}

#[tokio::test]
async fn an_image_beside_files_is_no_layer_and_one_that_was_made_here_is_made_again() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    let directory = layer.parent().unwrap().to_owned();
    image_of("given", &directory.join(IMAGE));
    std::fs::write(layer.join("g"), "").unwrap();
    let error = sn
        .commit(&key("A"), &key("a"), Labels::new())
        .await
        .unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    // As a crash leaves it between the making and the commit.
    std::fs::rename(directory.join(IMAGE), directory.join(NEW_IMAGE)).unwrap();
    std::fs::hard_link(directory.join(NEW_IMAGE), directory.join(IMAGE)).unwrap();
    std::fs::write(directory.join(EROFS_PART), "half").unwrap();
    drop(sn);
    let sn = open(temp.path());
    for name in [IMAGE, NEW_IMAGE, EROFS_PART] {
        assert!(!directory.join(name).exists(), "{name}");
    }
    commit(&sn, "A", "a").await;
    let mounts = sn
        .view(&key("v"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    assert!(Path::new(&mounts[0].source).join("g").exists());
    clear(&sn, &["v", "A"]).await;
}

#[tokio::test]
async fn a_root_belongs_to_whom_a_given_image_says() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    let from = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(from.path(), Some(1000), Some(1001)).unwrap();
    let image = layer.with_file_name(IMAGE);
    mkfs(&image, from.path(), u64::MAX, &[]).unwrap();
    commit(&sn, "A", "a").await;
    let child = upper(&prepare(&sn, "b", Some("A")).await);
    let facts = std::fs::metadata(child).unwrap();
    assert_eq!((facts.uid(), facts.gid()), (1000, 1001));
    clear(&sn, &["b", "A"]).await;
}

#[tokio::test]
async fn an_image_that_an_earlier_version_left_when_it_died_is_made_again() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    let layer = upper(&prepare(&sn, "a", None).await);
    let directory = layer.parent().unwrap().to_owned();
    std::fs::write(layer.join("g"), "").unwrap();
    std::fs::remove_file(directory.join(EROFS_LAYER)).unwrap();
    image_of("old", &directory.join(IMAGE));
    // Whether it is opened in between or not.
    commit(&sn, "A", "a").await;
    let mounts = sn.view(&key("v"), Some(&key("A")), Labels::new()).await;
    let shown = PathBuf::from(&mounts.unwrap()[0].source);
    assert!(shown.join("g").exists() && !shown.join("f").exists());
    let other = upper(&prepare(&sn, "b", None).await);
    let other = other.parent().unwrap().to_owned();
    std::fs::remove_file(other.join(EROFS_LAYER)).unwrap();
    image_of("old", &other.join(IMAGE));
    drop(sn);
    let sn = open(temp.path());
    assert!(!other.join(IMAGE).exists());
    clear(&sn, &["v", "A", "b"]).await;
}
