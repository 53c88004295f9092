//! What a client can tell from how an attached call ended.

use super::*;

#[test]
fn a_start_that_took_too_long_may_run_on() {
    assert!(Failure::from(Error::deadline_exceeded("")).started);
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
        assert_eq!(io.unstarted(error).started, kept);
        assert_eq!(std::path::Path::new(&stdout).exists(), kept);
    }
}

#[test]
fn a_signal_before_the_start_is_for_us() {
    for (numbers, ends) in [
        (&[][..], false),
        (&[WINDOW_CHANGED, 10], false),
        (&[WINDOW_CHANGED, 2], true),
        (&[15], true),
    ] {
        let (sender, arrived) = mpsc::unbounded_channel();
        numbers.iter().for_each(|n| sender.send(*n).unwrap());
        let mut signals = Signals {
            arrived,
            _listeners: JoinSet::new(),
        };
        let checked = signals.check();
        assert_eq!(checked.is_err_and(|e| e.is(Code::Cancelled)), ends);
    }
}
