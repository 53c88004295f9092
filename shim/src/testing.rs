//! What unit tests of this crate share.

/// Runs this to its end on a runtime of its own, as the shim does: one thread, with timers and I/O.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// A point in time that nothing which works is late for.
pub(crate) fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + std::time::Duration::from_secs(20)
}
