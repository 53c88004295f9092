//! Everything that goes to stdout and stderr.
//!
//! Invariant: output is written whole or the command ends. A reader that went away ends it without
//! a word, as SIGPIPE ends other programs. What others have named does not steer a terminal: it is
//! written by way of [`plain`], as tables and complaints do.

use std::fmt::{self, Display};
use std::io::{ErrorKind, Write as _};

use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use types::{Error, Result};

/// Exit code when the reader of stdout is gone: what a shell reports for SIGPIPE.
pub(crate) const CLOSED: u8 = 128 + 13;

/// Marks the error of a stdout that nobody reads any more.
#[derive(Debug)]
struct Closed;

impl Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of stdout is gone")
    }
}

impl std::error::Error for Closed {}

/// True for the error of a stdout that nobody reads any more.
pub(crate) fn is_closed(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<Closed>())
}

/// Writes bytes to stdout.
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let done = stdout.write_all(bytes).and_then(|()| stdout.flush());
    done.map_err(|error| {
        if error.kind() == ErrorKind::BrokenPipe {
            Error::unknown("write stdout").with_source(Closed)
        } else {
            Error::os("write stdout", error)
        }
    })
}

/// Writes text to stdout.
pub(crate) fn text(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes a line to stdout.
pub(crate) fn line(line: &(impl Display + ?Sized)) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Writes lines to stdout, all at once.
pub(crate) fn lines(lines: impl IntoIterator<Item = impl Display>) -> Result<()> {
    let all: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
    text(&all)
}

/// A text of one line as people may safely see it: what would move the cursor, hide or turn text around
/// is written as an escape.
pub(crate) fn plain(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut made = String::with_capacity(text.len());
    for c in text.chars() {
        match steers(c) {
            true => made.extend(c.escape_unicode()),
            false => made.push(c),
        }
    }
    made
}

/// Writes a value to stdout as JSON for people.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&pretty(value)?)
}

/// Tells a failure on stderr, in one line.
pub(crate) fn complain(what: impl Display) {
    let text = format!("ctr: {}\n", one_line(&what.to_string()));
    // There is no third place to tell that stderr is gone.
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// Tells something on stderr that is no failure.
pub(crate) fn note(what: impl Display) {
    let what = what.to_string();
    let lines: String = what.lines().map(|line| plain(line) + "\n").collect();
    drop(std::io::stderr().lock().write_all(lines.as_bytes()));
}

/// JSON as Go's `MarshalIndent` with four spaces writes it: safe to put into HTML.
fn pretty(value: &impl Serialize) -> Result<String> {
    indented(value, b"    ")
}

/// The same with another indentation.
pub(crate) fn indented(value: &impl Serialize, indent: &[u8]) -> Result<String> {
    let mut made = Vec::new();
    let form = PrettyFormatter::with_indent(indent);
    let mut writer = serde_json::Serializer::with_formatter(&mut made, form);
    let fail = |e: &dyn Display| Error::internal(format_args!("write JSON: {e}"));
    value.serialize(&mut writer).map_err(|e| fail(&e))?;
    String::from_utf8(made)
        .map(go_escapes)
        .map_err(|e| fail(&e))
}

/// The characters that Go's JSON never writes as they are; they occur inside strings only.
pub(crate) fn go_escapes(json: String) -> String {
    const ESCAPED: [char; 5] = ['<', '>', '&', '\u{2028}', '\u{2029}'];
    if !json.contains(ESCAPED) {
        return json;
    }
    let mut made = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if ESCAPED.contains(&c) {
            made.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            made.push(c);
        }
    }
    made
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(plain)
        .collect::<Vec<_>>()
        .join(" ")
}

/// How a table's columns are set apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pad {
    /// At least this many spaces, which is the least width of a column as well.
    Spaces(usize),
    /// Tabs to the next stop after at least one column.
    Tabs,
}

/// Distance of tab stops.
const TAB: usize = 8;

impl Pad {
    /// Most tables.
    pub(crate) const NARROW: Self = Self::Spaces(1);
    /// Plugins, metrics.
    pub(crate) const WIDE: Self = Self::Spaces(4);

    /// Width of a column whose widest cell has `widest` characters.
    fn column(self, widest: usize) -> usize {
        let padding = match self {
            Self::Spaces(count) => count,
            Self::Tabs => 1,
        };
        widest + padding
    }

    /// What follows a cell of `cell` characters in a column of `column`.
    fn fill(self, made: &mut String, cell: usize, column: usize) {
        match self {
            Self::Spaces(_) => made.extend(std::iter::repeat_n(' ', column.saturating_sub(cell))),
            Self::Tabs => {
                let stop = column.next_multiple_of(TAB);
                let tabs = (stop - cell).div_ceil(TAB);
                made.extend(std::iter::repeat_n('\t', tabs));
            }
        }
    }
}

/// A table, laid out as Go's `text/tabwriter` does: a column is a run of lines that have a further
/// cell after it, so the last cell of a line never widens anything.
#[derive(Debug)]
pub(crate) struct Table {
    pad: Pad,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(pad: Pad) -> Self {
        let rows = Vec::new();
        Self { pad, rows }
    }

    /// Adds a line. An empty last cell stands for a line that ends with a tab in Go.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Display>) {
        let cell = |cell: &dyn Display| plain(&cell.to_string().replace(['\t', '\n', '\r'], " "));
        self.rows
            .push(cells.into_iter().map(|c| cell(&c)).collect());
    }

    /// Writes it to stdout.
    pub(crate) fn print(self) -> Result<()> {
        text(&self.render())
    }

    /// The table as text.
    pub(crate) fn render(&self) -> String {
        let mut made = String::new();
        self.block(&mut made, &self.rows, &mut Vec::new());
        made
    }

    /// Lays out `rows`, whose first columns have `widths`: every run of rows with a further column
    /// gets its width and is laid out by itself.
    fn block(&self, made: &mut String, rows: &[Vec<String>], widths: &mut Vec<usize>) {
        let column = widths.len();
        let has_column = |row: &Vec<String>| column + 1 < row.len();
        for run in rows.chunk_by(|a, b| has_column(a) == has_column(b)) {
            if !has_column(&run[0]) {
                run.iter().for_each(|row| self.line(made, row, widths));
                continue;
            }
            let widest = run.iter().map(|row| row[column].chars().count()).max();
            widths.push(self.pad.column(widest.unwrap_or(0)));
            self.block(made, run, widths);
            widths.pop();
        }
    }

    fn line(&self, made: &mut String, row: &[String], widths: &[usize]) {
        for (at, cell) in row.iter().enumerate() {
            made.push_str(cell);
            if let Some(width) = widths.get(at) {
                self.pad.fill(made, cell.chars().count(), *width);
            }
        }
        made.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pad: Pad, rows: &[&[&str]]) -> String {
        let mut table = Table::new(pad);
        rows.iter().for_each(|row| table.row(*row));
        table.render()
    }

    #[test]
    fn narrow_tables_are_those_of_go() {
        let made = table(
            Pad::NARROW,
            &[
                &["NAME", "LABELS", ""],
                &["default", "", ""],
                &["o", "a=b,c=d", ""],
            ],
        );
        assert_eq!(
            made,
            "NAME    LABELS  \ndefault         \no       a=b,c=d \n"
        );
    }

    #[test]
    fn wide_tables_are_those_of_go() {
        let made = table(
            Pad::WIDE,
            &[
                &["TYPE", "ID", "PLATFORMS", "STATUS", ""],
                &["io.containerd.content.v1", "content", "-", "ok", ""],
            ],
        );
        assert_eq!(
            made,
            "TYPE                        ID         PLATFORMS    STATUS    \n\
             io.containerd.content.v1    content    -            ok        \n"
        );
    }

    #[test]
    fn tabs_go_to_the_next_stop() {
        let made = table(
            Pad::Tabs,
            &[
                &["DIGEST", "SIZE", "AGE"],
                &["12345678", "1.5kB", "2 hours"],
            ],
        );
        assert_eq!(made, "DIGEST\t\tSIZE\tAGE\n12345678\t1.5kB\t2 hours\n");
    }

    #[test]
    fn a_line_without_a_column_parts_it() {
        let made = table(
            Pad::NARROW,
            &[&["long cell", "x"], &["alone"], &["a", "x"], &["bb", "x"]],
        );
        assert_eq!(made, "long cell x\nalone\na  x\nbb x\n");
    }

    #[test]
    fn cells_cannot_break_the_table() {
        assert_eq!(table(Pad::NARROW, &[&["a\tb\nc", "ü", "x"]]), "a b c ü x\n");
        let made = table(Pad::NARROW, &[&["\x1b[2J", "\u{202e}x\u{9b}"]]);
        assert_eq!(made, "\\u{1b}[2J \\u{202e}x\\u{9b}\n");
        assert_eq!(one_line("a\n\x1b]0;b"), "a \\u{1b}]0;b");
    }

    #[test]
    fn json_is_indented_and_escaped_as_in_go() {
        let value = serde_json::json!({"a": ["<&>"], "b": {}, "c": []});
        assert_eq!(
            pretty(&value).unwrap(),
            "{\n    \"a\": [\n        \"\\u003c\\u0026\\u003e\"\n    ],\n    \"b\": {},\n    \"c\": []\n}"
        );
    }

    #[test]
    fn complaints_are_one_line() {
        assert_eq!(one_line("a\n\n  b\r\nc"), "a b c");
    }
}
