//! How many layers are extracted at a time.

use tokio::sync::Semaphore;

use crate::Deps;

/// Most layers extracted at a time, however many processors there are: each has buffers and a window.
pub(crate) const MOST: usize = 4;

/// Who may extract layers, of all images of one pull. An image's next layer in order takes no room: so
/// images that wait for each other's layers do not wait for each other's room.
#[derive(Debug)]
pub(crate) struct Rooms {
    /// Extractions at a time.
    pub(crate) here: Semaphore,
    /// The same of layers that come in: those wait for the net, and must not keep others waiting.
    pub(crate) along: Semaphore,
}

impl Rooms {
    pub(crate) fn new(deps: &Deps) -> Self {
        let [here, along] = [width(deps); 2].map(Semaphore::new);
        Self { here, along }
    }
}

/// True when layers can be extracted before those below them are there: who writes them marks what he
/// cannot decide, and who keeps them knows the marks.
pub(crate) fn at_once(deps: &Deps) -> bool {
    deps.snapshotter.settles() && deps.applier.settles()
}

/// How many layers are extracted at a time.
pub(crate) fn width(deps: &Deps) -> usize {
    if !at_once(deps) {
        return 1;
    }
    // Decoder, hash and files of one layer have a thread each, and wait for the disk now and then.
    std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST))
}
