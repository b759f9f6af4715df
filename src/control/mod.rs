//! Everything around the packet path: configuration, the mirror of the kernel, tunnel devices, the slow path, statistics,
//! the control socket. It owns the threads.
//!
//! Workers never wait for this room: it publishes immutable snapshots to them and reads their counters. The kernel is the
//! control plane: what routes and neighbours there are is read from it ([`mirror`]), never from configuration, and compiled
//! ([`compile`]) into what the workers and the steering program decide by.

pub mod accelerate;
mod accelerated;
mod apply;
mod books;
mod bulk;
pub mod capture;
pub mod change;
pub mod check;
mod claim;
pub mod compile;
pub mod config;
mod descriptors;
mod fastpath;
mod files;
mod handover;
mod heard;
mod heirs;
mod keepalive;
mod link_stats;
pub mod log;
pub mod metrics;
pub mod mirror;
pub mod netlink;
pub mod path_mtu;
mod placement;
mod ports;
mod privileges;
mod quiet;
mod removal;
pub mod report;
pub mod request;
mod router;
mod rules;
mod run;
mod service;
mod slots;
pub mod slowpath;
pub mod socket;
mod spread;
mod statistics;
mod takeover;
mod trace;
mod tunnels;
mod wake;
mod wires;
mod worker_thread;

pub use run::run;
