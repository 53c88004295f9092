//! A registry with an image for each worker, of which no other image has the layer on top.

use std::collections::BTreeSet;
use std::path::Path;

use integration::{Program, Registry, layer};

use crate::layout;
use crate::operations::Ctr;

/// What is on top, so that it takes a moment to fetch.
const SIZE: usize = 1 << 20;

/// An image in the registry.
#[derive(Debug)]
pub(crate) struct Image {
    /// Its name.
    pub(crate) reference: String,
    /// What its file `/who` says.
    pub(crate) who: String,
    /// Digests of the blobs that are its own.
    pub(crate) blobs: BTreeSet<String>,
}

/// Makes them in `dir` and pushes them; pulled once, to see what belongs to which.
pub(crate) fn push(registry: &Registry, dir: &Path, number: usize, ctr: &Ctr) -> Vec<Image> {
    let base = layer(&dir.join("base"));
    let unpacked = Program::new("sh").args(["-c", "gzip -dc <\"$0\" >\"$1\""]);
    let plain = dir.join("base.tar");
    drop(unpacked.args([&base, &plain]).run().ok());
    let base = std::fs::read(&plain).expect("read the layer");
    let architecture = types::Platform::host().architecture;
    let image = |n: usize| {
        let who = format!("image {n}\n");
        let noise = layout::noise(SIZE, n as u64 + 7);
        let to = dir.join(format!("image{n}"));
        std::fs::create_dir(&to).expect("make the layout");
        let files = [("who", who.clone().into_bytes()), ("noise", noise)];
        let own = layout::archive(&to, &files);
        layout::of(&to, "{}", &architecture, vec![base.clone(), own]);
        let from = format!("oci:{}:latest", to.display());
        let reference = registry.add(&from, &format!("soak/image{n}"));
        Image {
            blobs: blobs(ctr, &reference),
            reference,
            who,
        }
    };
    let mut images: Vec<Image> = (0..number).map(image).collect();
    let all: Vec<_> = images.iter().map(|image| image.blobs.clone()).collect();
    for (n, image) in images.iter_mut().enumerate() {
        let others = all.iter().enumerate().filter(|(other, _)| *other != n);
        let others: BTreeSet<_> = others.flat_map(|(_, blobs)| blobs).collect();
        image.blobs.retain(|blob| !others.contains(blob));
        assert!(image.blobs.len() >= 3, "layer, config, manifest: {image:?}");
    }
    images
}

/// What comes with an image that was not there.
fn blobs(ctr: &Ctr, reference: &str) -> BTreeSet<String> {
    let list = || -> BTreeSet<String> {
        let lines = ctr.list(&["content", "ls", "-q"]).expect("a list");
        lines.into_iter().collect()
    };
    let before = list();
    let pull = ["images", "pull", "--plain-http", reference];
    drop(ctr.run(pull).ok());
    let came = list().difference(&before).cloned().collect();
    drop(ctr.run(["images", "rm", "--sync", reference]).ok());
    assert_eq!(list(), before, "what a removal has left");
    came
}
