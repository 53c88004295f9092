//! The room that the images of one pull share.

use super::*;
use crate::rooms::width;

/// An image of that many layers, which no other one has.
fn many(content: &mut Content, arch: &str) -> Descriptor {
    let layers: Vec<String> = (0..6).map(|n| format!("{arch} {n}")).collect();
    let layers: Vec<&[u8]> = layers.iter().map(String::as_bytes).collect();
    manifest(content, arch, &layers, &[])
}

#[tokio::test]
async fn images_of_one_pull_share_the_room_to_extract_layers() {
    let mut content = Content::default();
    let all = ["amd64", "arm64", "s390x"].map(|arch| (many(&mut content, arch), arch));
    let entries: Vec<_> = all.iter().map(|(image, arch)| (image, *arch)).collect();
    index(&mut content, &entries, &["a"]);
    let server = serve(content).await;
    let name = format!("{}/r:a", server.host());
    let world = World::new();
    let mut opts = PullOpts {
        platforms: PlatformSet::All,
        unpack: false,
        max_concurrent: 6,
        ..opts()
    };
    let target = pull(&name, &world.deps(), opts.clone())
        .await
        .unwrap()
        .target;
    opts.unpack = true;
    let early = &world.snapshots.3;
    early.is_on.store(true, Ordering::Relaxed);
    let deps = world.deps();
    let parsed: Reference = name.parse().unwrap();
    let budget = crate::budget(&mut opts.registry, &OnProgress::default());
    let repository = Repository::new(&parsed, opts.registry.clone()).unwrap();
    let (places, on) = (Places::new(opts.max_concurrent), &opts.progress);
    let fetcher = Fetcher::new(&deps.content, repository, &parsed, budget, places, on);
    let pull = Pull {
        deps: &deps,
        fetcher: Arc::new(fetcher),
        opts: &opts,
        rooms: Rooms::new(&deps),
    };
    // All has come in: a second is over when everybody waits for something, but not for the net.
    tokio::time::pause();
    pull.all(&target).await.unwrap();
    assert_eq!(world.chains().len(), 18);
    let (most, width) = (early.most.load(Ordering::Relaxed), width(&deps));
    assert!(most <= width, "{most} layers at a time");
    assert!(most > 0 || width == 1);
}
