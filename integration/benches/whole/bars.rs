//! The table at the end: every figure beside the peer's, the floor's and the bar that was set.

/// Which side of the bar is good.
#[derive(Clone, Copy, Debug)]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

/// One line.
#[derive(Clone, Debug)]
struct Row {
    what: String,
    ours: f64,
    debian: Option<f64>,
    floor: Option<f64>,
    /// What is compared with the bar, in words and as a number.
    judged: Option<(&'static str, f64, Bar)>,
}

/// All lines so far.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// A line that is being made: the last one of its table.
#[derive(Debug)]
pub(crate) struct Line<'a>(&'a mut Row);

impl Table {
    /// Adds a figure.
    pub(crate) fn add(&mut self, what: impl Into<String>, ours: f64) -> Line<'_> {
        self.rows.push(Row {
            what: what.into(),
            ours,
            debian: None,
            floor: None,
            judged: None,
        });
        let last = self.rows.len() - 1;
        Line(&mut self.rows[last])
    }

    /// Prints all lines; how many bars were missed.
    pub(crate) fn print(&self) -> usize {
        println!(
            "{:46} {:>9} {:>9} {:>9} {:>8}  bar",
            "", "ours", "debian", "floor", "ours/deb"
        );
        for row in &self.rows {
            let ratio = row
                .debian
                .map_or_else(String::new, |d| format!("{:.2}", row.ours / d));
            println!(
                "{:46} {:>9} {:>9} {:>9} {ratio:>8}  {}",
                row.what,
                short(Some(row.ours)),
                short(row.debian),
                short(row.floor),
                row.verdict()
            );
        }
        let judged = self.rows.iter().filter(|row| row.judged.is_some());
        let missed = judged.clone().filter(|row| !row.is_met()).count();
        println!("\n{missed} of {} bars missed", judged.count());
        missed
    }
}

impl Row {
    fn is_met(&self) -> bool {
        match self.judged {
            Some((_, value, Bar::AtMost(limit))) => value <= limit,
            Some((_, value, Bar::AtLeast(limit))) => value >= limit,
            None => true,
        }
    }

    fn verdict(&self) -> String {
        let Some((what, value, bar)) = self.judged else {
            return String::new();
        };
        let (sign, limit) = match bar {
            Bar::AtMost(limit) => ("<=", limit),
            Bar::AtLeast(limit) => (">=", limit),
        };
        let met = if self.is_met() { "met" } else { "MISSED" };
        format!("{what} {} {sign} {limit}: {met}", short(Some(value)))
    }
}

impl Line<'_> {
    pub(crate) fn debian(self, value: f64) -> Self {
        self.0.debian = Some(value);
        self
    }

    pub(crate) fn floor(self, value: f64) -> Self {
        self.0.floor = Some(value);
        self
    }

    /// The figure itself may be so large.
    pub(crate) fn at_most(self, limit: f64) {
        self.0.judged = Some(("", self.0.ours, Bar::AtMost(limit)));
    }

    /// What is above the floor may be so large.
    pub(crate) fn above_floor_at_most(self, limit: f64) {
        let above = self.0.ours - self.0.floor.unwrap_or(0.0);
        self.0.judged = Some(("above floor", above, Bar::AtMost(limit)));
    }

    /// The part of the peer's figure.
    pub(crate) fn of_debian_at_most(self, limit: f64) {
        let ratio = self.0.ours / self.0.debian.unwrap_or(f64::NAN);
        self.0.judged = Some(("ours/debian", ratio, Bar::AtMost(limit)));
    }

    /// The multiple of the peer's figure.
    pub(crate) fn of_debian_at_least(self, limit: f64) {
        let ratio = self.0.ours / self.0.debian.unwrap_or(f64::NAN);
        self.0.judged = Some(("ours/debian", ratio, Bar::AtLeast(limit)));
    }

    /// The multiple of the floor, of which less is better.
    pub(crate) fn of_floor_at_most(self, limit: f64) {
        let ratio = self.0.ours / self.0.floor.unwrap_or(f64::NAN);
        self.0.judged = Some(("ours/floor", ratio, Bar::AtMost(limit)));
    }

    /// The part of the floor.
    pub(crate) fn of_floor_at_least(self, limit: f64) {
        let ratio = self.0.ours / self.0.floor.unwrap_or(f64::NAN);
        self.0.judged = Some(("ours/floor", ratio, Bar::AtLeast(limit)));
    }
}

/// Three figures are enough.
fn short(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(v) if v == 0.0 || v.abs() >= 100.0 => format!("{v:.0}"),
        Some(v) if v.abs() >= 10.0 => format!("{v:.1}"),
        Some(v) if v.abs() >= 0.1 => format!("{v:.2}"),
        Some(v) => format!("{v:.4}"),
    }
}
