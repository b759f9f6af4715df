//! The forwarding decision and the worker's loop.
//!
//! This room decides what becomes of a packet and moves bursts between ports. It knows [`Port`] as a trait only:
//! AF_XDP and the tests implement it. Per packet there is no allocation, no lock, no log and no system call,
//! and every packet ends in exactly one counted [`Verdict`].

pub mod capture;
mod express;
pub mod filter;
mod forward;
pub mod memory;
mod port;
mod punt;
mod spread;
mod stats;
mod verdict;
mod wire;
mod worker;

pub use forward::{ForwardState, HandoverKind, forward, forward_handover, receiver};
pub use port::Port;
pub use punt::{Handover, PuntBuf, PuntQueue, PuntSource, Punted, Wake, punt_queue};
pub use spread::{Mate, Mates, mates};
pub use stats::{DropCounts, ErrorCounts, PortStats, PuntCounts, TunnelRecord, WorkerStats};
pub use verdict::{DropReason, PuntReason, PuntTo, Verdict};
pub use worker::{BURST, Links, Snapshot, Spent, TAPS, Worker};
