//! Layers through temporary mounts.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;

use content::Blob;
use rustix::io::Errno;

use super::*;
use crate::tar::Kind;
use crate::testing::{Bench, archive, dir, entry, file, merge, named, tree};
use crate::{CompareOpts, Comparer as _};

#[tokio::test(flavor = "multi_thread")]
async fn other_mounts_go_through_a_temporary_mount_that_is_gone_after() {
    let bench = Bench::new();
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| bench.dir(name));
    std::fs::create_dir(lower.join("d")).unwrap();
    std::fs::write(lower.join("d/old"), "").unwrap();
    let tar = archive(&[
        (entry(Kind::File, "d/.wh.old"), b""),
        (entry(Kind::File, "d/new"), b"n"),
    ]);
    let layer = bench.stored(media_type::OCI_LAYER, tar).await;
    let mount = |more: &str| {
        let mut options = vec![
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            format!("lowerdir={}", lower.display()),
        ];
        if !more.is_empty() {
            options.push(more.to_owned());
        }
        vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options,
        }]
    };
    bench.apply(&layer, &mount("metacopy=on")).await.unwrap();
    let facts = std::fs::symlink_metadata(upper.join("d/old")).unwrap();
    assert_eq!(facts.rdev(), 0);
    assert!(upper.join("d/new").exists());
    assert_eq!(
        std::fs::read_dir(bench.temp.path().join("mounts"))
            .unwrap()
            .count(),
        0
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(bench.temp.path().to_str().unwrap()));
}

/// A layer that opens what it is applied to when it is read, as somebody may who looks at all mounts.
#[derive(Debug)]
struct Curious {
    layer: Vec<u8>,
    mounts: PathBuf,
    open: Mutex<Vec<std::fs::File>>,
}

#[async_trait]
impl Blob for Curious {
    fn size(&self) -> u64 {
        self.layer.len() as u64
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        for mount in std::fs::read_dir(&self.mounts).unwrap() {
            let root = std::fs::File::open(mount.unwrap().path()).unwrap();
            self.open.lock().unwrap().push(root);
        }
        let from = usize::try_from(offset).unwrap();
        let to = self.layer.len().min(from + len);
        Ok(Bytes::copy_from_slice(&self.layer[from..to]))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_is_still_in_use_is_not_said_to_be_done() {
    let bench = Bench::new();
    let layer = archive(&[(entry(Kind::File, "f"), b"text")]);
    let blob = Arc::new(Curious {
        layer: layer.clone(),
        mounts: bench.dir("mounts"),
        open: Mutex::default(),
    });
    let descriptor = bench.stored(media_type::OCI_LAYER, layer).await;
    let opts = || ApplyOpts {
        blob: Some(Arc::clone(&blob) as Arc<dyn Blob>),
        ..ApplyOpts::default()
    };
    let tmpfs = [Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        ..Mount::default()
    }];
    let apply = |opts| bench.walking.apply(&bench.store, &descriptor, &tmpfs, opts);
    let error = apply(opts()).await.unwrap_err();
    assert_eq!(error.errno(), Some(Errno::BUSY.raw_os_error()), "{error}");
    assert!(!blob.open.lock().unwrap().is_empty());
    // It is gone all the same, and the next one is not concerned.
    assert!(bench.has_no_mounts());
    apply(ApplyOpts::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_are_in_user_attributes_where_the_overlay_has_them_there() {
    let bench = Bench::new();
    let base = bench.dir("base");
    let below = [file("d/old"), file("e/gone"), file("e/kept")];
    merge(&named(&below), &base).unwrap();
    let with_user = |upper: &str, lowers: &[&Path]| {
        let mut mounts = bench.overlay(upper, lowers);
        // The kernel takes no other word for it together with that.
        mounts[0]
            .options
            .retain(|option| option != "redirect_dir=off");
        let with = ["redirect_dir=nofollow".into(), "userxattr".into()];
        mounts[0].options.splice(0..0, with);
        mounts
    };
    let layer = [
        dir("d"),
        file("d/.wh..wh..opq"),
        file("d/new"),
        file("e/.wh.gone"),
    ];
    let layer = bench.stored(media_type::OCI_LAYER, named(&layer)).await;
    let mounts = with_user("upper", &[&base]);
    bench.apply(&layer, &mounts).await.unwrap();
    let upper = bench.temp.path().join("upper");
    let mark = |path: &str, name: &str| {
        let mut value = [0; 8];
        let got = rustix::fs::getxattr(upper.join(path), name, &mut value[..]);
        got.ok().map(|len| value[..len].to_vec())
    };
    assert_eq!(mark("d", "user.overlay.opaque"), Some(b"y".to_vec()));
    assert_eq!(mark("d", "trusted.overlay.opaque"), None);
    let shown = || {
        let mounted = TempMount::new(&mounts, &bench.dir("points")).unwrap();
        let seen: Vec<_> = tree(mounted.path(), false).into_keys().collect();
        mounted.unmount().unwrap();
        seen
    };
    let want = ["d", "d/new", "e", "e/kept"].map(PathBuf::from);
    assert_eq!(shown(), want);
    // What is compared is what such an overlay shows; its marks are in no layer.
    let lower = [Mount {
        kind: "bind".into(),
        source: base.display().to_string(),
        options: vec!["ro".into(), "rbind".into()],
        ..Mount::default()
    }];
    let opts = CompareOpts {
        media_type: media_type::OCI_LAYER.into(),
        ..CompareOpts::default()
    };
    let compare = bench.walking.compare(&bench.store, &lower, &mounts, opts);
    let changes = compare.await.unwrap();
    let again = with_user("again", &[&base]);
    bench.apply(&changes, &again).await.unwrap();
    let mounted = TempMount::new(&again, &bench.dir("points")).unwrap();
    let seen = tree(mounted.path(), false);
    assert_eq!(seen.keys().cloned().collect::<Vec<_>>(), want);
    let marks = seen.values().flat_map(|seen| &seen.xattrs);
    assert_eq!(marks.count(), 0);
}
