//! The same layers give the same trees here and under Debian's containerd, file by file; and what one
//! of them makes of a change, the other unpacks to the same tree again.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use integration::{Host, Program, Whose};
use protos::services::content::{WriteAction, WriteContentRequest};
use protos::types::Descriptor;
use protos::wire::Wire as _;
use sys::mount::TempMount;

use super::{Differ, GZIP, PLAIN, comparison, layer};
use crate::content::{Content, digest, message};
use crate::peer::{Peer, labels};
use crate::snapshots::Snapshots;
use crate::stock;

/// The OCI layout of an image that is compared instead of the corpus: `make same-layers`, with which `make
/// bench` begins, gives the realistic one.
const LAYERS: &str = "SAME_LAYERS";

/// Bytes in one message.
const PIECE: usize = 4 << 20;

/// What makes the corpus, layer by layer, in an empty directory: trees as GNU tar packs them, in all of
/// its formats. No file with capabilities has two names: Go's chown for the second takes them away.
const CORPUS: [(&str, &str); 10] = [
    (
        "everything in PAX",
        "umask 022; mkdir -p d/e opaque/inner old; echo text >d/f; ln d/f d/hard; ln d/f hard
         ln -s d/f soft; ln -s ../../../../etc/passwd out; ln -s nowhere dangling
         mkfifo fifo; mknod char c 1 3; mknod block b 7 200; mknod large c 300 70000
         echo a >opaque/a; echo b >opaque/inner/b; echo 1 >gone; echo 2 >old/one; echo 3 >old/two
         echo x >file-to-dir; mkdir -p dir-to-file/in; echo y >dir-to-file/in/y; mkdir keep; echo k >keep/k
         echo s >suid; echo g >sgid; mkdir sticky; chmod 1777 sticky; echo no >none; chmod 000 none
         chown 1234:5678 suid sgid d; chmod 4755 suid; chmod 2755 sgid; mkdir sgid-dir; chmod 2775 sgid-dir
         chown 4000000000:4000000001 none
         setfattr -n user.one -v value d/f; setfattr -n user.empty -v '' keep
         echo c >able; setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= able
         long=$(printf 'n%.0s' $(seq 200)); mkdir -p $long/$long; echo l >$long/$long/$long
         ln -s $long/$long/$long/$long to-long; printf 'x' >\"$(printf 'lat\\351in')\"; echo >'sp ace
line'
         touch -d '2001-02-03 04:05:06.123456789' d/f keep; touch -d '1969-12-31 23:59:00' none
         touch -d '2199-01-01' suid; touch -h -d '2002-03-04 05:06:07.5' soft
         tar --format=pax --xattrs --xattrs-include='*' --numeric-owner -cf $OUT .",
    ),
    (
        "whiteouts and other kinds",
        "mkdir -p opaque old keep file-to-dir/in; echo >opaque/.wh..wh..opq; echo new >opaque/new
         echo >.wh.gone; echo >old/.wh.one; echo >.wh.hard; echo f >dir-to-file; echo z >file-to-dir/in/z
         echo 2 >keep/k2; chmod 0700 keep; chown 7:8 keep; touch -d '2010-01-01' keep; rm -f old/x
         tar --format=pax --numeric-owner -cf $OUT .",
    ),
    (
        "what is deleted comes again in the same layer",
        // Of a directory that is, Go's daemon shows what was in it before, and ours does not.
        "mkdir again; echo 1 >again/a; ln -s again link; echo >.wh.soft; echo n >soft
         tar --format=pax --numeric-owner -cf $OUT again link .wh.soft soft",
    ),
    (
        "the GNU format, and large numbers in it",
        "long=$(printf 'g%.0s' $(seq 150)); mkdir -p gnu/$long; echo l >gnu/$long/$long; ln -s $long/$long gnu/l
         ln gnu/$long/$long gnu/h; chown 3000000:3000001 gnu/h; touch -d '1900-01-01' gnu/l
         touch -d '2200-01-01' gnu/h; tar --format=gnu --numeric-owner -cf $OUT gnu",
    ),
    (
        // The old GNU format is one that Go's daemon refuses.
        "sparse files in the formats of PAX",
        "mkdir -p s; for f in 0.0 0.1 1.0; do truncate -s 3M s/$f; echo head >s/tail-$f
         printf data | dd of=s/$f bs=1 seek=1000000 conv=notrunc 2>/dev/null
         for n in $(seq 30); do printf $n | dd of=s/$f bs=1 seek=$((n*90000)) conv=notrunc 2>/dev/null; done; done
         truncate -s 1M s/hole; : >s/empty
         tar -S --format=pax --numeric-owner -cf $OUT s/hole s/empty
         for v in 0.0 0.1 1.0; do tar -S --format=pax --sparse-version=$v --numeric-owner -cf $OUT.$v s/$v s/tail-$v
         tar --concatenate -f $OUT $OUT.$v; rm $OUT.$v; done",
    ),
    (
        "ustar and the oldest format",
        "mkdir -p u v; long=$(printf 'u%.0s' $(seq 90)); mkdir -p u/$long; echo >u/$long/$long; ln u/$long/$long u/h
         echo v >v/v; ln -s v v/s; tar --format=ustar --numeric-owner -cf $OUT u
         tar --format=v7 --numeric-owner -cf $OUT.v7 v; tar --concatenate -f $OUT $OUT.v7; rm $OUT.v7",
    ),
    (
        // Not a directory that is something else later: Go's daemon sets the times of that in the end.
        "entries that come twice, and parents that do not come",
        "mkdir -p t/p; echo 1 >t/f; tar --format=pax --numeric-owner -cf $OUT t/f
         echo second, longer >t/f; chmod 600 t/f; tar --format=pax --numeric-owner -rf $OUT t/f
         rm t/f; mkdir t/f; echo in >t/f/in; tar --format=pax --numeric-owner -rf $OUT t/f
         ln -s p t/l; tar --format=pax --numeric-owner -rf $OUT t/l; rm t/l; echo file >t/l
         tar --format=pax --numeric-owner -rf $OUT t/l
         mkdir -p deep/er/st; echo d >deep/er/st/d; tar --format=pax --numeric-owner -rf $OUT deep/er/st/d",
    ),
    (
        "through links that are there",
        "mkdir -p real; echo r >real/r; ln -s real via; tar --format=pax --numeric-owner -cf $OUT real via
         rm via; mkdir via; echo w >via/w; tar --format=pax --numeric-owner -rf $OUT via/w",
    ),
    (
        "thousands of files that people have",
        // A list may change while it is packed; what is packed is the same for both.
        "cd /; tar --warning=none --ignore-failed-read --format=pax --xattrs --xattrs-include='*' --numeric-owner \
         -cf $OUT etc usr/share/zoneinfo usr/share/perl5 usr/lib/tmpfiles.d usr/bin/perl usr/bin/passwd || [ $? = 1 ]",
    ),
    (
        "access lists as their attributes",
        "mkdir acl; echo a >acl/f; setfacl -m u:5:rw,g:6:r acl/f; setfacl -m d:u:7:rwx acl; echo b >acl/later
         tar --format=pax --xattrs --xattrs-include='*' --numeric-owner -cf $OUT acl",
    ),
];

/// One file of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    time: (i64, i64),
    attributes: Vec<(OsString, Vec<u8>)>,
    /// The first path of the same file.
    first: PathBuf,
    /// Of the data, or of where a link leads.
    content: u64,
}

/// All files of a tree.
fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let (mut found, mut firsts) = (BTreeMap::new(), HashMap::new());
    let mut todo = vec![PathBuf::new()];
    while let Some(at) = todo.pop() {
        let mut names: Vec<_> = fs::read_dir(root.join(&at)).expect("list").collect();
        names.sort_by_key(|entry| entry.as_ref().expect("entry").file_name());
        for entry in names {
            let path = at.join(entry.expect("entry").file_name());
            let full = root.join(&path);
            let stat = fs::symlink_metadata(&full).expect("stat");
            let first = firsts.entry(stat.ino()).or_insert_with(|| path.clone());
            let first = if stat.is_dir() {
                path.clone()
            } else {
                first.clone()
            };
            let mut hash = DefaultHasher::new();
            if stat.is_symlink() {
                fs::read_link(&full).expect("read link").hash(&mut hash);
            } else if stat.is_file() {
                fs::read(&full).expect("read").hash(&mut hash);
            } else if stat.is_dir() {
                todo.push(path.clone());
            }
            let facts = Facts {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                links: if stat.is_dir() { 0 } else { stat.nlink() },
                device: stat.rdev(),
                time: (stat.mtime(), stat.mtime_nsec()),
                attributes: attributes(&full),
                first,
                content: hash.finish(),
            };
            found.insert(path, facts);
        }
    }
    // The first path of a file in the order of paths, not of the walk.
    let mut least: HashMap<PathBuf, PathBuf> = HashMap::new();
    for (path, facts) in &found {
        least
            .entry(facts.first.clone())
            .or_insert_with(|| path.clone());
    }
    for facts in found.values_mut() {
        facts.first.clone_from(&least[&facts.first]);
    }
    found
}

fn attributes(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("list attributes");
    let names = names[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .filter(|name| !name.starts_with(b"trusted.overlay."))
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute");
            (OsString::from_vec(name.to_vec()), value[..len].to_vec())
        })
        .collect();
    all.sort();
    all
}

/// The archive that a script packs.
fn packed(host: &Host, number: usize, script: &str) -> Vec<u8> {
    let tree = host.path(&format!("corpus-{number}"));
    fs::create_dir_all(&tree).expect("mkdir");
    let out = host.path(&format!("corpus-{number}.tar"));
    let script = format!("set -e; cd {}; {script}", tree.display());
    let program = Program::new("bash").args(["-c", &script]).env("OUT", &out);
    drop(program.run().ok());
    let data = fs::read(&out).expect("read");
    drop(
        Program::new("rm")
            .args(["-rf"])
            .args([&tree, &out])
            .run()
            .ok(),
    );
    data
}

/// The layers to compare, with their media types.
fn layers(host: &Host) -> Vec<(String, &'static str, Vec<u8>)> {
    if let Some(layout) = std::env::var_os(LAYERS) {
        return layers_of(Path::new(&layout));
    }
    let pack = |(number, (name, script)): (usize, &(&str, &str))| {
        ((*name).to_owned(), PLAIN, packed(host, number, script))
    };
    CORPUS.iter().enumerate().map(pack).collect()
}

/// Those of the first image of a layout.
fn layers_of(layout: &Path) -> Vec<(String, &'static str, Vec<u8>)> {
    let json = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
    };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        layout.join("blobs").join(digest.replace(':', "/"))
    };
    let index = json(&layout.join("index.json"));
    let manifest = json(&blob(&index["manifests"][0]));
    let layers = manifest["layers"].as_array().expect("layers").iter();
    let read = |layer: &serde_json::Value| {
        let kind = match layer["mediaType"].as_str() {
            Some(GZIP) => GZIP,
            Some(PLAIN) => PLAIN,
            other => panic!("{other:?} is not compared"),
        };
        let path = blob(layer);
        let data = fs::read(&path).expect("read");
        (path.display().to_string(), kind, data)
    };
    layers.map(read).collect()
}

/// Unpacks a layer onto the snapshot `parent` and commits it as `name`.
async fn unpack(peer: &Peer, layer: &Descriptor, parent: &str, name: &str) {
    let mut snapshots = Snapshots::of(peer);
    let mounts = snapshots
        .prepare("unpacked", parent)
        .await
        .expect("prepare");
    let applied = Differ::of(peer).apply(layer.clone(), mounts).await;
    applied.unwrap_or_else(|error| panic!("apply {name}: {error}"));
    snapshots.commit(name, "unpacked").await.expect("commit");
}

/// Puts a layer of any length into the store, unless it is there.
async fn put(peer: &Peer, kind: &str, data: &[u8]) -> Descriptor {
    let (mut content, digest) = (Content::of(peer), digest(data));
    if !content.has(&digest).await {
        let mut offset = 0;
        let mut messages = Vec::new();
        for chunk in data.chunks(PIECE) {
            messages.push(message(WriteAction::WRITE, &digest, offset, chunk));
            offset += i64::try_from(chunk.len()).expect("small");
        }
        messages.push(WriteContentRequest {
            labels: labels(&[(stock::ROOT, "yes")]),
            ..message(WriteAction::COMMIT, &digest, offset, b"")
        });
        content.write(messages).await.expect("write");
    }
    layer(kind, &digest, data.len())
}

/// The files of a committed snapshot.
async fn tree(peer: &Peer, name: &str) -> BTreeMap<PathBuf, Facts> {
    let mut snapshots = Snapshots::of(peer);
    let mounts = snapshots.view("looked-at", name).await.expect("view");
    let mounts = Vec::<types::Mount>::from_wire(mounts).expect("mounts");
    let mounted = TempMount::new(&mounts, peer.host.dir()).expect("mount");
    let found = facts(mounted.path());
    mounted.unmount().expect("unmount");
    snapshots.remove("looked-at").await.expect("remove");
    found
}

/// What one has and the other has not, or has otherwise. A directory that no entry describes is as old as
/// its unpacking under Debian's: here it keeps the time of the one that it covers.
fn differences(
    ours: &BTreeMap<PathBuf, Facts>,
    theirs: &BTreeMap<PathBuf, Facts>,
    made_since: i64,
) -> Vec<String> {
    let is_made = |facts: &Facts| facts.mode & 0o170_000 == 0o040_000 && facts.time.0 >= made_since;
    let alike = |path: &PathBuf| match (ours.get(path), theirs.get(path)) {
        (Some(ours), Some(theirs)) if is_made(theirs) => {
            *ours
                == Facts {
                    time: ours.time,
                    ..theirs.clone()
                }
        }
        (ours, theirs) => ours == theirs,
    };
    let paths = ours
        .keys()
        .chain(theirs.keys().filter(|path| !ours.contains_key(*path)));
    let text = |path: &PathBuf| {
        format!(
            "{path:?}:\n ours   {:?}\n theirs {:?}",
            ours.get(path),
            theirs.get(path)
        )
    };
    paths.filter(|path| !alike(path)).map(text).collect()
}

/// The tree with the times of `below` for the directories that have these in `made`.
fn dated(
    mut tree: BTreeMap<PathBuf, Facts>,
    below: &BTreeMap<PathBuf, Facts>,
    made: &BTreeMap<PathBuf, Facts>,
) -> BTreeMap<PathBuf, Facts> {
    for (path, facts) in &mut tree {
        let time = |tree: &BTreeMap<PathBuf, Facts>| tree.get(path).map(|facts| facts.time);
        if facts.mode & 0o170_000 == 0o040_000
            && let (Some(old), Some(new)) = (time(below), time(made))
            && old == new
        {
            facts.time = old;
        }
    }
    tree
}

#[test]
fn all_layers_come_out_as_under_debian() {
    let hosts = [Whose::Ours, Whose::Debian].map(|whose| Host::configured("same", whose, ""));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let hosts = runtime.block_on(async {
        let [ours, theirs] = hosts;
        let (ours, theirs) = (Peer::of(ours).await, Peer::of(theirs).await);
        compare(&ours, &theirs).await;
        [ours.host, theirs.host]
    });
    drop(runtime);
    for host in hosts {
        host.finish();
    }
}

async fn compare(ours: &Peer, theirs: &Peer) {
    let layers = layers(&ours.host);
    assert!(!layers.is_empty(), "nothing to compare");
    let begin = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let begin = i64::try_from(begin.expect("a clock").as_secs()).expect("a time");
    let mut parent = String::new();
    for (number, (what, kind, data)) in layers.iter().enumerate() {
        let name = format!("layer-{number}");
        for peer in [ours, theirs] {
            let layer = put(peer, kind, data).await;
            unpack(peer, &layer, &parent, &name).await;
        }
        let (our_tree, their_tree) = (tree(ours, &name).await, tree(theirs, &name).await);
        assert!(!our_tree.is_empty());
        let found = differences(&our_tree, &their_tree, begin);
        assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
        // Once more, by way of a comparison with the layer below. Debian's leaves some attributes and parts
        // of seconds out: what it makes comes out alike, but not as it was.
        for (maker, is_whole) in [(ours, true), (theirs, false)] {
            let made = compared(maker, &parent, &name).await;
            let data = Content::of(maker)
                .read(&made.digest, 0, 0)
                .await
                .expect("read");
            let again = format!("again-{is_whole}-{number}");
            for user in [ours, theirs] {
                let layer = put(user, GZIP, &data).await;
                unpack(user, &layer, &parent, &again).await;
            }
            let (one, other) = (tree(ours, &again).await, tree(theirs, &again).await);
            let found = differences(&one, &other, begin);
            assert!(found.is_empty(), "{what}, compared:\n{}", found.join("\n"));
            let paths = |tree: &BTreeMap<PathBuf, Facts>| tree.keys().cloned().collect::<Vec<_>>();
            assert_eq!(paths(&one), paths(&our_tree), "{what}, compared");
            if is_whole {
                // A directory in which nothing has changed is not in a comparison for its time alone,
                // neither here nor there: it keeps that of the layer below.
                let below = match parent.as_str() {
                    "" => BTreeMap::new(),
                    parent => tree(ours, parent).await,
                };
                let found = differences(&one, &dated(our_tree.clone(), &below, &one), begin);
                assert!(found.is_empty(), "{what}, compared:\n{}", found.join("\n"));
            }
        }
        parent = name;
    }
}

/// The layer that leads from `parent` to `name`.
async fn compared(peer: &Peer, parent: &str, name: &str) -> Descriptor {
    let mut snapshots = Snapshots::of(peer);
    let lower = if parent.is_empty() {
        Vec::new()
    } else {
        snapshots.view("lower", parent).await.expect("view")
    };
    let upper = snapshots.view("upper", name).await.expect("view");
    let made = Differ::of(peer)
        .diff(comparison(lower, upper))
        .await
        .expect("diff");
    snapshots.remove("upper").await.expect("remove");
    if !parent.is_empty() {
        snapshots.remove("lower").await.expect("remove");
    }
    made
}
