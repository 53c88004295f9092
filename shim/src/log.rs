//! The shim's log: text lines as logrus writes them, on the daemon's fifo (standard error).
//!
//! Invariant: a log line never blocks and never fails: when nobody reads and the fifo is full, the
//! line is lost.

use std::fmt;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

static DEBUG: AtomicBool = AtomicBool::new(false);

/// Lets debug lines through.
pub(crate) fn enable_debug() {
    DEBUG.store(true, Ordering::Relaxed);
}

pub(crate) fn debug(message: fmt::Arguments<'_>) {
    if DEBUG.load(Ordering::Relaxed) {
        line("debug", message);
    }
}

pub(crate) fn info(message: fmt::Arguments<'_>) {
    line("info", message);
}

pub(crate) fn warn(message: fmt::Arguments<'_>) {
    line("warning", message);
}

pub(crate) fn error(message: fmt::Arguments<'_>) {
    line("error", message);
}

fn line(level: &str, message: fmt::Arguments<'_>) {
    let text = render(SystemTime::now(), level, &message.to_string());
    // One write per line: lines of several writers do not mix. Lost when it would block.
    drop(std::io::stderr().write_all(text.as_bytes()));
}

fn render(at: SystemTime, level: &str, message: &str) -> String {
    format!("time=\"{}\" level={level} msg={message:?}\n", rfc3339(at))
}

/// UTC with nanoseconds, as RFC 3339 writes it.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970 (Hinnant): years start in March, 400-year cycles.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
        since.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_700_000_000, "2023-11-14T22:13:20.000000007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000007Z"),
        ];
        for (seconds, want) in cases {
            let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, 7);
            assert_eq!(rfc3339(at), want);
        }
    }

    #[test]
    fn a_line_stays_one_line() {
        let text = render(SystemTime::UNIX_EPOCH, "error", "a\n\"b\"");
        assert_eq!(
            text,
            "time=\"1970-01-01T00:00:00.000000000Z\" level=error msg=\"a\\n\\\"b\\\"\"\n"
        );
    }
}
