//! Sections of what is seen from outside.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// `[metrics]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Metrics {
    /// Host and port where they are served; empty: nowhere.
    pub(crate) address: String,
    /// Also how long calls took.
    pub(crate) grpc_histogram: bool,
}

/// `io.containerd.monitor.container.v1.restart`: starts again what ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Restart {
    /// How often is looked.
    #[serde(with = "duration")]
    pub(crate) interval: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
        }
    }
}
