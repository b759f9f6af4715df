//! AF_XDP ports and the steering program: where packets enter and leave.
//!
//! This room moves frames between devices and the datapath and decides nothing about them. It is the only one
//! with unsafe code; every block says who owns the frame at that moment.

#![allow(unsafe_code)]

mod address;
mod frame;
mod kick;
mod open;
mod port;
mod umem;

pub use frame::Frame;
pub use kick::KickCounters;
pub use open::{Mode, PortError, PortSet, PortSpec, RingOptions, Want, open_ports};
pub use port::{XskPort, XskStatistics};
pub use umem::{Ledger, Memory};
