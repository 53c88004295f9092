//! What a client can tell from how an attached call ended.

use super::*;

#[test]
fn a_start_that_took_too_long_may_run_on() {
    assert!(Failure::from(Error::deadline_exceeded("")).started);
    assert!(Failure::from(Error::unknown("transport error")).started);
    assert!(Failure::from(Error::unavailable("")).started);
    assert!(!Failure::from(Error::not_found("shim")).started);
    let base = tempfile::tempdir().unwrap();
    for (error, kept) in [
        (Error::deadline_exceeded(""), true),
        (Error::not_found(""), false),
    ] {
        let fifos = Fifos::create(base.path(), "c", false).unwrap();
        let io = Io {
            paths: fifos.paths().clone(),
            fifos: Some(fifos),
            streams: None,
            held: false,
            terminal: None,
        };
        let stdout = io.paths().stdout;
        assert_eq!(io.unstarted(error.into()).started, kept);
        assert_eq!(std::path::Path::new(&stdout).exists(), kept);
    }
}
