//! AF_XDP and the BPF program: the only unsafe code.
//!
//! This room loads and feeds the steering program ([`Steer`], told what to do by a [`Plan`]) and makes a device queue into
//! a [`Port`](crate::datapath::Port). It knows no routes, no configuration and no tunnels beyond the addresses that their
//! packets carry. Every unsafe block says who owns the memory or the frame at that moment.

#![allow(unsafe_code)]

mod abi;
mod attach;
mod error;
mod load;
mod metadata;
mod offload;
mod plan;
mod steer;

pub use error::SteerError;
pub use load::Limits;
pub use offload::TagsInFrame;
pub use plan::{Changes, Plan, PortPlan, PrefixAction, TunnelMatch};
pub use steer::{Attached, Steer};
