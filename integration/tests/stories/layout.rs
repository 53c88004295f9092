//! OCI layouts made by a test: an image of plain layers, to be pushed with skopeo.

use std::path::{Path, PathBuf};

use content::Hasher;
use integration::{Host, Program};

/// An image of one layer for each list of files, in `to`; its size in bytes.
pub(crate) fn make(to: &Path, layers: &[&[(&str, Vec<u8>)]]) -> u64 {
    make_with(to, "{}", layers)
}

/// The same with what its config says of its processes.
pub(crate) fn make_with(to: &Path, process: &str, layers: &[&[(&str, Vec<u8>)]]) -> u64 {
    std::fs::create_dir_all(to).expect("make the layout");
    let archives = layers.iter().map(|files| archive(to, files)).collect();
    of(to, process, &types::Platform::host().architecture, archives)
}

/// An image of these layers, in `to`; its size in bytes.
pub(crate) fn of(to: &Path, process: &str, architecture: &str, layers: Vec<Vec<u8>>) -> u64 {
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let layers = layers.into_iter().map(|data| (kind, data)).collect();
    of_kinds(to, process, architecture, layers)
}

/// The same with the media type of each layer; none is compressed.
pub(crate) fn of_kinds(
    to: &Path,
    process: &str,
    architecture: &str,
    layers: Vec<(&str, Vec<u8>)>,
) -> u64 {
    std::fs::create_dir_all(to.join("blobs/sha256")).expect("make the layout");
    let mut size = 0;
    let mut put = |data: &[u8]| -> String {
        let digest = Hasher::digest(data).expect("digest");
        let path = to.join("blobs/sha256").join(digest.hex());
        std::fs::write(path, data).expect("write a blob");
        size += data.len() as u64;
        format!(r#""digest":"{digest}","size":{}"#, data.len())
    };
    let (mut ids, mut described) = (Vec::new(), Vec::new());
    for (kind, data) in layers {
        let digest = Hasher::digest(&data).expect("digest");
        ids.push(format!("{:?}", digest.as_str()));
        described.push(format!(r#"{{"mediaType":"{kind}",{}}}"#, put(&data)));
    }
    let config = format!(
        r#"{{"os":"linux","architecture":"{architecture}","config":{process},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let kind = "application/vnd.oci.image.config.v1+json";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"{kind}",{}}},"layers":[{}]}}"#,
        put(config.as_bytes()),
        described.join(",")
    );
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}",{},"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#,
        put(manifest.as_bytes())
    );
    std::fs::write(to.join("index.json"), index).expect("write the index");
    std::fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
    size
}

/// What makes the layers of [`layered`], each in an empty directory. None has an entry for the root; times
/// are all the same, so that two unpackings can be compared.
const LAYERS: [&str; 4] = [
    "for d in 1 2 3 4 5 6 7 8; do mkdir -p d$d/deep/er; for f in $(seq 40); do
     head -c $((f * 700)) /dev/urandom >d$d/deep/$f; done; echo $d >d$d/deep/er/f; done; mkdir old; echo 1 >old/f
     chmod 0711 d1 d1/deep; chown 5:6 d1/deep d2; chmod 2750 d2/deep; ln d3/deep/1 hard; ln -s d3 soft
     pack d? old hard soft",
    // Parents that only the names of others imply, whiteouts of what is there and of what never was.
    "mkdir -p d1/deep/er d2/deep/er d3/deep d9/new; echo 2 >d1/deep/er/g; echo 2 >d2/deep/er/g
     for f in 3 4 5 never gone; do : >d3/deep/.wh.$f; done; : >.wh.hard; : >.wh.none; head -c 90000 /dev/urandom >d9/new/f
     pack d1/deep/er/g d2/deep/er/g d3/deep/.wh.* .wh.hard .wh.none d9",
    "mkdir -p old d4/deep d5; : >old/.wh..wh..opq; echo 3 >old/g; : >d4/deep/.wh.er; : >d5/.wh.deep
     for f in $(seq 60); do head -c 3000 /dev/urandom >d4/deep/n$f; done
     pack old d4/deep/.wh.er d4/deep/n* d5/.wh.deep",
    "mkdir -p d1/deep d6/deep d9/new; for f in $(seq 10); do : >d6/deep/.wh.$f; echo 4 >d1/deep/$f; done
     : >d9/new/.wh.f; : >d9/new/.wh.never; pack d1/deep/? d6/deep/.wh.* d9/new/.wh.*",
];

/// Name and archive of an image of four layers that need each other's directories.
pub(crate) fn layered(host: &Host) -> (&'static str, PathBuf) {
    let work = host.path("layered");
    let pack = |(number, script): (usize, &&str)| {
        let (tree, out) = (work.join("tree"), work.join(format!("{number}.tar")));
        std::fs::create_dir_all(&tree).expect("make the tree");
        let script = format!(
            "set -e; umask 022; pack() {{ tar --numeric-owner --mtime=@1000000000.25 --format=pax -cf {} \"$@\"; }}
             cd {}; {script}",
            out.display(),
            tree.display()
        );
        drop(Program::new("bash").args(["-c", &script]).run().ok());
        std::fs::remove_dir_all(&tree).expect("remove the tree");
        std::fs::read(&out).expect("read the layer")
    };
    let layers = LAYERS.iter().enumerate().map(pack).collect();
    let (layout, archive) = (work.join("layout"), work.join("image.tar"));
    of(&layout, "{}", &types::Platform::host().architecture, layers);
    let made = Program::new("tar").args(["-C"]).args([&layout]);
    drop(made.args(["-cf"]).args([&archive]).args(["."]).run().ok());
    ("example.test/layers:latest", archive)
}

pub(crate) fn archive(to: &Path, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let tree = to.join("tree");
    std::fs::create_dir(&tree).expect("make the tree");
    for (name, data) in files {
        std::fs::write(tree.join(name), data).expect("write a file");
    }
    let (tar, from) = (to.join("layer.tar"), tree.display().to_string());
    let made = Program::new("tar").args(["-C", &from, "-cf"]).args([&tar]);
    drop(made.args(["."]).run().ok());
    std::fs::remove_dir_all(&tree).expect("remove the tree");
    let data = std::fs::read(&tar).expect("read the archive");
    std::fs::remove_file(&tar).expect("remove the archive");
    data
}

/// Bytes that nothing compresses, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut data: Vec<u8> = std::iter::repeat_with(&mut step)
        .take(len.div_ceil(8))
        .flatten()
        .collect();
    data.truncate(len);
    data
}
