//! AF_XDP and the BPF program: the only unsafe code.
//!
//! This room loads and feeds the steering program ([`Steer`], told what to do by a [`Plan`]) and makes a device queue into
//! a [`Port`](crate::datapath::Port). It moves frames and decides nothing about them; it knows no routes, no configuration
//! and no tunnels beyond the addresses that their packets carry. Every unsafe block says who owns the memory or the frame
//! at that moment.

#![allow(unsafe_code)]

mod abi;
mod address;
mod attach;
mod busy_poll;
mod error;
mod frame;
mod kick;
mod load;
mod memory;
mod metadata;
mod offload;
mod open;
mod pieces;
mod plan;
mod port;
mod promiscuous;
mod runs;
mod said;
mod statistics;
mod steer;
mod umem;
mod wire;

pub use attach::takes_pieces;
pub use busy_poll::BusyPoll;
pub use error::SteerError;
pub use frame::Frame;
pub use kick::KickCounters;
pub use load::Limits;
pub use memory::RingPort;
pub use offload::TagsInFrame;
pub use open::{Mode, PortError, PortSet, PortSpec, RingOptions, Want, locked_bytes, open_ports};
pub use plan::{
    Changes, OnDevice, Plan, PortPlan, PrefixAction, PrefixPlan, TunnelClass, TunnelMatch,
};
pub use port::{XskPort, XskStatistics};
pub use said::listen_to_libbpf;
pub use steer::{Attached, Attachment, Steer};
pub use umem::{HugePages, LARGEST_MTU, Ledger, Memory, SINGLE_BUFFER_MTU};
pub use wire::{Wire, WireEnd, WireError};
