//! Stories: what users do, against real daemons, shims, runtimes and clients.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a story fails by panicking, and is not under the shim's reaper"
)]

mod adopt_debian_shims;
mod attach_by_descriptor;
mod bad_frames;
mod bad_input;
mod bad_programs;
mod bad_requests;
mod budget;
mod cancelled_pull;
mod checkpoint;
mod checkpoint_trust;
mod config;
mod container_networks;
mod crash_start;
mod crash_sweep;
mod cut;
mod damaged_layers;
mod damaged_records;
mod deaf_daemon;
mod debian_shim_under_our_daemon;
mod dockerd;
mod erofs_layers;
mod event_streams;
mod exec;
mod exec_storm;
mod foreign_ctr;
mod image_care;
mod images;
mod import_export;
mod kill_sweep;
mod layout;
mod lost_creates;
mod many_streams;
mod metrics;
mod network_crash;
mod network_drivers;
mod networks;
mod no_safe_start;
mod notify;
mod oom;
mod our_shim_under_debian_containerd;
mod package;
mod parallel;
mod plugins;
mod power_cut;
mod power_off;
mod proxied_content;
mod proxy;
mod proxy_plugins;
mod pull;
mod pull_faults;
mod push;
mod ready;
mod records;
mod registry_auth;
mod registry_push;
mod registry_secured;
mod reload;
mod restart;
mod restart_monitor;
mod resume;
mod round_trip;
mod run;
mod runtime_hangs;
mod same_image_ten_times;
mod shim_alone;
mod shim_info;
mod shim_options;
mod shim_restores;
mod shim_streams;
mod silent_shims;
mod slow_connections;
mod snapshotters;
mod sockets;
mod stdio;
mod task_mounts;
mod true_exits;
mod unread_streams;
mod upgrade;
mod verifier;
mod why;
