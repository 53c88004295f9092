//! A daemon killed when nine tenths of a layer of a GiB have come, and started again: what the next pull
//! fetches a second time. Nobody is beside us: Debian's daemon begins anew.

use crate::bars::Table;
use crate::cut::resumed;

/// Length of the layer, in MiB.
const LAYER: usize = 1024;

pub(crate) fn measure(table: &mut Table) {
    for (name, flags) in [("resume", &[][..]), ("resume-local", &["--local"])] {
        let found = resumed(&format!("bench-{name}"), flags, LAYER);
        let part = found.again as f64 * 100.0 / found.size as f64;
        let line = table.add(
            format!("{name}: a GiB killed at 90 %, % fetched twice"),
            part,
        );
        line.at_most(2.0);
        let most = found.memory.into_iter().max().unwrap_or_default();
        let line = table.add(
            format!("{name}: the daemon's peak, MiB"),
            most as f64 / 1024.0,
        );
        line.at_most(64.0);
    }
}
