//! Layers of a media type that a program of the configuration understands.

use std::fs;

use super::{Differ, PLAIN, archive, bind, directory, filtered, stored};
use crate::content::digest;
use crate::peer::Peer;

rules! {
    configured "[stream_processors.\"test.unzip\"]\naccepts = [\"application/x.test.zipped\"]\nreturns = \"application/vnd.oci.image.layer.v1.tar\"\npath = \"gzip\"\nargs = [\"-d\", \"-c\"]\n"
    both {
        a_layer_goes_through_the_program_that_takes_it
    }
    ours {
    }
}

async fn a_layer_goes_through_the_program_that_takes_it(peer: &Peer) {
    let tar = archive(peer, &[("a", "hello")]);
    let data = filtered(peer, "gzip", &tar);
    let layer = stored(peer, "application/x.test.zipped", &data).await;
    let target = directory(peer, "target");
    let applied = Differ::of(peer).apply(layer, vec![bind(&target)]).await;
    let applied = applied.expect("apply");
    assert_eq!(applied.media_type, PLAIN);
    assert_eq!(applied.digest, digest(&tar));
    assert_eq!(fs::read_to_string(target.join("a")).expect("read"), "hello");
    fs::remove_dir_all(&target).expect("remove");
}
