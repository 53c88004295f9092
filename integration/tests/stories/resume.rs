//! A pull that the daemon's death cuts off goes on where it was.

use integration::figure;

use crate::cut::{resumed, unsent};

/// The only layer, in MiB, where `RESUME_MIB` says nothing: as large as may be without coming in pieces
/// side by side, which it would where the machine is slow enough. What is fetched twice does not grow with
/// it: `make bench PARTS=resume` shows that it is less than two in a hundred of a GiB.
const LAYER: usize = 60;
/// Most memory of the daemon, in KiB, whatever the size of the layer.
const MEMORY: u64 = 64 << 10;

fn resumes(name: &str, flags: &[&str]) {
    let given = std::env::var("RESUME_MIB").ok();
    let mib = given.map_or(LAYER, |text| text.parse().expect("RESUME_MIB is a number"));
    let found = resumed(name, flags, mib);
    figure(format_args!("{name}: {found:?}"));
    let (size, again) = (found.size, found.again);
    assert!(
        again < (size / 50).max(unsent(mib)),
        "{again} bytes of {size} were fetched twice"
    );
    for memory in found.memory {
        assert!(memory < MEMORY, "{memory} KiB, {MEMORY} may be");
    }
}

#[test]
fn a_daemon_killed_at_ninety_percent_of_a_layer_fetches_the_rest_only() {
    resumes("resume", &[]);
}

#[test]
fn a_client_that_pulls_itself_fetches_the_rest_only() {
    resumes("resume-local", &["--local"]);
}
