//! The change of the index by which a committed snapshot gets other files of the same layer.
//!
//! Invariant: the row keeps its id and its directory's name; only what its directory holds is another.

use std::time::SystemTime;

use types::{Error, Result, SnapshotKey, SnapshotKind};

use super::row::{Change, not_active};
use super::{Index, Row, Sealed, State};

impl State {
    /// The rows of `name` and `key`, when the files of active `key` can be those of committed `name`.
    fn renewable(&self, (name, key): (&SnapshotKey, &SnapshotKey)) -> Result<(&Row, &Row)> {
        let (old, new) = (self.row(name)?, self.row(key)?);
        not_active(key, new)?;
        if old.kind != SnapshotKind::Committed {
            return Err(Error::failed_precondition(format_args!(
                "snapshot {name} is not committed"
            )));
        }
        if old.parent != new.parent {
            return Err(Error::failed_precondition(format_args!(
                "snapshots {name} and {key} have not the same parent"
            )));
        }
        Ok((old, new))
    }
}

impl Index {
    /// The ids of `name` and `key`, when the files of active `key` can be those of committed `name`.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition`.
    pub(crate) fn look_renew(&self, names: (&SnapshotKey, &SnapshotKey)) -> Result<(u64, u64)> {
        let state = self.state();
        let (old, new) = state.renewable(names)?;
        Ok((old.id, new.id))
    }

    /// Notes, durably, that committed `name` has the files of active `key`, which is gone.
    ///
    /// # Errors
    /// As [`Index::look_renew`]; I/O.
    pub(crate) fn renew(
        &self,
        (name, key): (&SnapshotKey, &SnapshotKey),
        sealed: Sealed,
    ) -> Result<()> {
        let ((), sequence) = self.change(|state| {
            let (old, _) = state.renewable((name, key))?;
            let row = Row {
                usage: sealed.usage,
                print: sealed.print,
                bare: sealed.bare,
                updated_at: SystemTime::now(),
                ..old.clone()
            };
            Ok((Change::to_name(key, name, row), ()))
        })?;
        self.flush(sequence)
    }
}
