//! Our daemon and client with Debian's Go shim, named by its path: the same list as the other way
//! round, with our daemon's death in the middle.

use integration::{Host, Oci, Whose};

use crate::our_shim_under_debian_containerd::whole_list;

#[test]
fn the_whole_list_with_runc() {
    let host = Host::mixed("go-shim", Oci::Runc, Whose::Ours, Whose::Debian);
    whole_list(host, Whose::Debian);
}
