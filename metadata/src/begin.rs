//! How the records begin: as they were, restored and completed, or rebuilt.
//!
//! Invariant: never empty over old data: to the first collection all of that would be garbage. A store
//! whose last changes may be lost says so until all were asked for what they named.
//!
//! ```text
//! whole -----------------------------.
//! restored, or torn: it has its mark -+-> schema -> redo -> mark? complete, by those who answer
//! neither file nor journal ----------------> rebuild, by all
//! ```

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::SystemTime;

use types::{Code, Context as _, Error, Result};

use crate::kv::{Kv, Opened, Restored, Source};
use crate::rebuild::complete::{self, Spared};
use crate::rebuild::{Found, Rebuilt};
use crate::{OpenOpts, migrate, snapshots};

/// A store that was opened.
pub(crate) struct Begun {
    pub(crate) kv: Kv,
    /// What was wrong with it.
    pub(crate) damage: Option<String>,
    /// Snapshotters that lack commits which cannot be made again now.
    pub(crate) unsettled: HashSet<String>,
    /// Snapshotters that could not be asked for what a lost end of the journal named.
    pub(crate) incomplete: BTreeSet<String>,
    /// What has no record for want of room, and is kept all the same.
    pub(crate) spared: Spared,
}

impl Begun {
    fn anew(kv: Kv, damage: Option<String>) -> Self {
        Self {
            kv,
            damage,
            unsettled: HashSet::new(),
            incomplete: BTreeSet::new(),
            spared: Spared::default(),
        }
    }
}

/// Opens the store at `path`, or makes one.
pub(crate) async fn open_or_rebuild(path: &Path, opts: &OpenOpts) -> Result<Begun> {
    match Kv::open(path) {
        Ok((kv, Opened::Whole)) => go_on(kv, path, None, opts).await,
        Ok((kv, Opened::Restored(restored))) => {
            restored.tell();
            go_on(kv, path, Some(restored), opts).await
        }
        Err(error) if error.is(Code::DataLoss) || error.is_not_found() => {
            rebuild(path, &error, opts).await
        }
        Err(error) => Err(error),
    }
}

/// With a store that is there. It may lack its last changes, of this start or of one that was cut off.
async fn go_on(kv: Kv, path: &Path, restored: Option<Restored>, opts: &OpenOpts) -> Result<Begun> {
    migrate::bring(&kv, path, &opts.snapshotters).await?;
    // Before anybody looks at what they have.
    let unsettled = snapshots::redo_noted(&kv, &opts.snapshotters).await?;
    let done = complete::at_start(&kv, opts).await?;
    Ok(Begun {
        damage: told(restored.as_ref(), done.rebuilt.as_ref()),
        kv,
        unsettled,
        incomplete: done.left,
        spared: done.spared,
    })
}

/// What was wrong, and what was made of it.
fn told(restored: Option<&Restored>, rebuilt: Option<&Rebuilt>) -> Option<String> {
    let restored = restored.map(|restored| {
        let whole = match restored.from {
            Source::File => "the store's file",
            Source::Journal => "its journal",
        };
        format!("{}; {whole} has them", restored.cause)
    });
    match (restored, rebuilt) {
        (Some(restored), Some(rebuilt)) => Some(format!("{restored} but for {rebuilt}")),
        (None, Some(rebuilt)) => Some(format!(
            "the last changes were lost; there are {rebuilt} again"
        )),
        (restored, None) => restored,
    }
}

async fn rebuild(path: &Path, cause: &Error, opts: &OpenOpts) -> Result<Begun> {
    let found = Found::look(opts, &BTreeSet::new())
        .await
        .ctx("rebuild metadata")?;
    if cause.is_not_found() && found.is_nothing() {
        return Kv::make(path, &migrate::schema()).map(|(kv, _)| Begun::anew(kv, None));
    }
    all_asked(cause, opts.absent.iter().chain(found.silent()))?;
    let (records, rebuilt) = found.rebuild(opts.policy, SystemTime::now())?;
    let (kv, aside) = Kv::make(path, &records)?;
    rebuilt.tell(cause, aside.as_deref());
    let damage = format!("{cause}; without a journal there are {rebuilt} again, and no more");
    Ok(Begun::anew(kv, Some(damage)))
}

/// What nobody has told of would be garbage.
fn all_asked<'a>(cause: &Error, missing: impl Iterator<Item = &'a String>) -> Result<()> {
    let missing: Vec<_> = missing.map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::failed_precondition(format_args!(
        "{cause}, and cannot be rebuilt while nobody can ask the snapshotters {}: make them work first",
        missing.join(", ")
    )))
}
