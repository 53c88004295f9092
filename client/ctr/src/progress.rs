//! What a transfer does, shown while it does it: bars on a terminal's standard error, else a line
//! per step on standard output.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use transfer::OnProgress;
use types::transfer::TransferEvent;

use crate::out;

/// A display of one transfer.
#[derive(Clone, Debug)]
pub(crate) struct Display(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    Bars {
        all: MultiProgress,
        bars: HashMap<String, (ProgressBar, String)>,
        /// When the pause that was told last is over.
        delay: Option<Instant>,
    },
    Lines(HashSet<(String, String)>),
    Silent,
}

/// Names on their way at most: more than an image has.
const MAX_NAMES: usize = 100_000;

impl Display {
    /// Bars when standard error is a terminal.
    pub(crate) fn new() -> Self {
        let state = if std::io::stderr().is_terminal() {
            State::Bars {
                all: MultiProgress::new(),
                bars: HashMap::new(),
                delay: None,
            }
        } else {
            State::Lines(HashSet::new())
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Nothing at all: standard output is for something else.
    pub(crate) fn silent() -> Self {
        Self(Arc::new(Mutex::new(State::Silent)))
    }

    /// Shows what a transfer in this process tells.
    pub(crate) fn listener(&self) -> OnProgress {
        let (display, late) = (self.clone(), self.clone());
        OnProgress::new(move |progress| {
            let word = progress.status.word();
            display.show(&progress.reference, word, progress.offset, progress.total);
        })
        .with_delays(move |text| late.show("", text, 0, 0))
    }

    /// Shows what a transfer in the daemon tells.
    pub(crate) fn event(&self, event: &TransferEvent) {
        self.show(&event.name, &event.event, event.progress, event.total);
    }

    fn show(&self, reference: &str, word: &str, offset: u64, total: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            State::Bars { all, bars, delay } => {
                if bars.len() >= MAX_NAMES && !bars.contains_key(reference) {
                    return;
                }
                if let Some(pause) = pause_of(reference, word) {
                    *delay = Some(Instant::now() + pause);
                } else if delay.is_some_and(|over| over <= Instant::now()) {
                    *delay = None;
                    if let Some((bar, shown)) = bars.get_mut("") {
                        shown.clear();
                        bar.set_message("");
                    }
                }
                let name = out::plain(&short(reference));
                let (bar, shown) = bars.entry(reference.to_owned()).or_insert_with(|| {
                    let bar = all.add(ProgressBar::new(total).with_prefix(name));
                    (bar, String::new())
                });
                if shown != word {
                    word.clone_into(shown);
                    bar.set_style(style(reference, word));
                    bar.set_message(out::plain(word));
                }
                if total > 0 {
                    bar.set_length(total);
                }
                bar.set_position(offset);
                bar.tick();
            }
            State::Lines(told) => {
                // Bytes are for bars: a line tells each step once.
                let step = (reference.to_owned(), word.to_owned());
                // Each delay is another one, and none is kept.
                if pause_of(reference, word).is_some()
                    || (told.len() < 8 * MAX_NAMES && told.insert(step))
                {
                    let line = match short(reference) {
                        name if name.is_empty() => out::plain(word),
                        name => format!("{name}: {word}"),
                    };
                    // A reader that is gone must not end the transfer; the last line tells of it.
                    drop(out::line(&line));
                }
            }
            State::Silent => {}
        }
    }

    /// Leaves the display as it is and lets other output follow.
    pub(crate) fn finish(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Bars { bars, .. } = &mut *state {
            for (bar, _) in bars.values() {
                bar.abandon();
            }
        }
    }
}

/// How long a registry is not asked, when this line tells of that.
fn pause_of(reference: &str, word: &str) -> Option<Duration> {
    let seconds = word.strip_prefix("waiting ")?.split(' ').next()?;
    let pause = Duration::try_from_secs_f64(seconds.parse().ok()?).ok();
    pause.filter(|_| reference.is_empty())
}

/// Bytes count while something moves, and the bar takes the width that is left: a line that does not
/// fit would be drawn again and again. Names are whole where nothing follows that could be cut off.
fn style(reference: &str, word: &str) -> ProgressStyle {
    let template = match word {
        _ if reference.is_empty() => "{msg}",
        "downloading" | "saving" | "uploading" => {
            "{prefix:32!} {msg:<11} [{wide_bar:.green}] {bytes:>10}/{total_bytes}"
        }
        "waiting" | "resolving" | "extracting" => "{prefix:32} {msg:<11} {spinner}",
        _ => "{prefix:32} {msg:<11}",
    };
    ProgressStyle::with_template(template).map_or_else(
        |_| ProgressStyle::default_bar(),
        |style| style.progress_chars("+>-"),
    )
}

/// `layer-sha256:0123…` as people can read it.
fn short(reference: &str) -> String {
    let blob = reference
        .strip_prefix("blobs/sha256/")
        .map(|hex| ("blob", hex));
    match blob.or_else(|| reference.split_once("-sha256:")) {
        Some((kind, hex)) if hex.len() == 64 && hex.is_ascii() => {
            format!("{kind} ({})", &hex[..12])
        }
        _ => reference.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shortened_and_names_are_not() {
        let digest = format!("layer-sha256:{}", "ab".repeat(32));
        assert_eq!(short(&digest), "layer (abababababab)");
        assert_eq!(
            short(&digest.replace("layer-sha256:", "blobs/sha256/")),
            "blob (abababababab)"
        );
        for name in ["docker.io/library/x:1", "layer-sha256:short", "blobs/x"] {
            assert_eq!(short(name), name);
        }
    }

    /// A terminal of this width that keeps what is written.
    #[derive(Clone, Debug)]
    struct Screen(u16, Arc<Mutex<String>>);

    impl indicatif::TermLike for Screen {
        fn width(&self) -> u16 {
            self.0
        }
        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.1.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> std::io::Result<()> {
            self.1.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bars_fit_the_terminal() {
        for width in [72, 80, 200] {
            let screen = Screen(width, Arc::default());
            let target = indicatif::ProgressDrawTarget::term_like(Box::new(screen.clone()));
            let bar = ProgressBar::with_draw_target(Some(10 << 20), target);
            bar.set_style(style("layer", "downloading"));
            bar.set_prefix("layer (abababababab)");
            bar.set_message("downloading");
            bar.set_position(5 << 20);
            bar.force_draw();
            let shown = screen.1.lock().unwrap().trim_end().to_owned();
            assert!(shown.chars().count() <= usize::from(width), "{shown}");
            assert!(shown.contains('[') && shown.ends_with("MiB"), "{shown}");
        }
    }

    #[test]
    fn a_pause_is_shown_until_it_is_over() {
        let target = indicatif::ProgressDrawTarget::hidden();
        let display = Display(Arc::new(Mutex::new(State::Bars {
            all: MultiProgress::with_draw_target(target),
            bars: HashMap::new(),
            delay: None,
        })));
        let shown = || {
            let State::Bars { bars, .. } = &*display.0.lock().unwrap() else {
                panic!("bars")
            };
            bars[""].1.clone()
        };
        for (pause, is_kept) in [
            ("waiting 600.0 s, try 1", true),
            ("waiting 0.0 s, try 2", false),
        ] {
            display.show("", pause, 0, 0);
            assert_eq!(shown(), pause);
            display.show("layer", "downloading", 1, 2);
            assert_eq!(!shown().is_empty(), is_kept);
        }
        // One line for each, and none is kept.
        let lines = Display(Arc::new(Mutex::new(State::Lines(HashSet::new()))));
        for word in ["waiting 1.0 s, try 1", "waiting 2.0 s, try 2", "pulled"] {
            lines.show("", word, 0, 0);
        }
        let State::Lines(told) = &*lines.0.lock().unwrap() else {
            panic!("lines")
        };
        assert_eq!(told.len(), 1);
    }

    #[test]
    fn every_status_has_a_style() {
        for (name, word) in [
            ("", "Pulling"),
            ("a", "uploading"),
            ("a", "waiting"),
            ("a", "done"),
        ] {
            let bar = ProgressBar::hidden();
            bar.set_style(style(name, word));
        }
    }
}
