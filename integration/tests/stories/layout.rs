//! OCI layouts made by a test: an image of plain layers, to be pushed with skopeo.

use std::path::Path;

use content::Hasher;
use integration::Program;

/// An image of one layer for each list of files, in `to`; its size in bytes.
pub(crate) fn make(to: &Path, layers: &[&[(&str, Vec<u8>)]]) -> u64 {
    make_with(to, "{}", layers)
}

/// The same with what its config says of its processes.
pub(crate) fn make_with(to: &Path, process: &str, layers: &[&[(&str, Vec<u8>)]]) -> u64 {
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
    for files in layers {
        let data = archive(to, files);
        let digest = Hasher::digest(&data).expect("digest");
        ids.push(format!("{:?}", digest.as_str()));
        let kind = "application/vnd.oci.image.layer.v1.tar";
        described.push(format!(r#"{{"mediaType":"{kind}",{}}}"#, put(&data)));
    }
    let config = format!(
        r#"{{"os":"linux","architecture":"{}","config":{process},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        types::Platform::host().architecture,
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

fn archive(to: &Path, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
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
