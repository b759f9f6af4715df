//! The steering program against tables of frames, its maps against the plan, and VLAN tags against real devices.
//!
//! Needs root. Every test makes its own network namespace and enters it with its own thread only.

// Packet sockets and small BPF programs made by hand are system calls without a safe wrapper.
#![allow(unsafe_code)]

#[path = "steering/bench.rs"]
mod bench;
#[path = "steering/devices.rs"]
mod devices;
#[path = "steering/family.rs"]
mod family;
#[path = "steering/frames.rs"]
mod frames;
#[path = "steering/groups.rs"]
mod groups;
#[path = "steering/host.rs"]
mod host;
#[path = "steering/maps.rs"]
mod maps;
#[path = "steering/pieces.rs"]
mod pieces;
#[path = "steering/raw_socket.rs"]
mod raw_socket;
#[path = "steering/tables.rs"]
mod tables;
#[path = "steering/udp.rs"]
mod udp;
#[path = "steering/vlan.rs"]
mod vlan;
#[path = "steering/wire.rs"]
mod wire;
