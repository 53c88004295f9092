//! One type per service, with values instead of messages.

mod containers;
mod events;
#[cfg(test)]
mod fallback_tests;
mod flights;
mod follow;
mod images;
mod introspection;
mod leases;
mod membership;
mod metrics;
mod mounts;
mod namespaces;
mod network;
mod process;
mod tasks;
mod transfer;

pub use containers::Containers;
pub use events::{Envelope, Events, Subscription};
pub use flights::{Flight, FlightStage, Flights, FlightsOpts, Flown};
pub use follow::{Follow, Heard};
pub use images::Images;
pub use introspection::{Introspection, Plugin, PluginFault, ServerInfo, Version};
pub use leases::{Lease, Leases, default_lease_id};
pub use membership::Membership;
pub use mounts::Mounts;
pub use namespaces::Namespaces;
pub use network::{Joining, Networks};
pub use process::{Exited, Metric, Process, ProcessEntry, Status, StdioPaths};
pub use tasks::{CreateTask, ExecTask, RuncOptions, Tasks};

/// The type of one service: a caller and the stub on its channel.
macro_rules! service {
    ($(#[$doc:meta])* $name:ident, $stub:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            caller: $crate::call::Caller,
        }

        impl $name {
            pub(crate) fn new(caller: &$crate::call::Caller) -> Self {
                Self { caller: caller.clone() }
            }

            fn stub(&self) -> $stub {
                <$stub>::new(self.caller.channel())
            }
        }
    };
}
use service;
