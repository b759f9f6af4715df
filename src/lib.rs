//! Greyhound: a kernel-bypass tunnel router for Linux.
//!
//! An XDP program steers tunnel packets, and packets that route into a tunnel, into AF_XDP sockets;
//! one pinned worker per receive queue encapsulates or decapsulates them in place and sends them out
//! of the other device. Everything unusual stays with the kernel.
//!
//! The rooms, and who may know whom (arrows never point left):
//!
//! ```text
//! control ──► datapath ──► fib ──► tunnel ──► packet
//!    └──────► xdp ───────► datapath::Port              only control names both
//! ```
//!
//! `packet`, `tunnel`, `fib` and `datapath` know no I/O: they are plain functions over byte buffers.
//! All unsafe code lives in `xdp`.

pub mod cli;
pub mod control;
pub mod datapath;
pub mod fib;
pub mod packet;
pub mod tunnel;
pub mod xdp;
