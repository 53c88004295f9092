//! The daemon: configuration, assembly, services.
//!
//! Invariant: everything is put together once, from the ground up (`ground` → `store` → `engine` →
//! `face`), each floor from the one below it; a service holds handles and no state of its own.

mod cli;
mod config;
mod listen;
mod lock;
mod log;
mod notify;
mod point;
mod version;

fn main() {}
