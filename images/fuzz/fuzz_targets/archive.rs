//! Any bytes as an archive with images.
//!
//! Invariant under test: no panic, every refusal has a class that blames the archive or a ceiling, what is
//! refused leaves no ingest, and what is taken has all that its index names.

#![no_main]

use std::io::Cursor;
use std::sync::{Arc, LazyLock};

use content::ContentStore;
use images::archive::{Ceilings, import_within};
use images::testsuite::Store;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use types::Code;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().build().expect("runtime"));

fuzz_target!(|data: &[u8]| {
    let store = Store::default();
    let shared: Arc<dyn ContentStore> = Arc::new(store.clone());
    let ceilings = Ceilings { free: 4 << 20, ..Ceilings::default() };
    let reader = Box::new(Cursor::new(data.to_vec()));
    let imported = import_within(reader, &shared, None, &|_, _, _| {}, ceilings);
    match RUNTIME.block_on(imported) {
        Ok(archive) => assert!(archive.digest().is_ok()),
        Err(error) => {
            let fine = [
                Code::InvalidArgument,
                Code::FailedPrecondition,
                Code::ResourceExhausted,
                Code::NotFound,
            ];
            assert!(fine.contains(&error.code()), "{error}");
        }
    }
    assert!(store.ingests().is_empty(), "{:?}", store.ingests());
});
