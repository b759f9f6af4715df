//! (stub)
pub mod mirror;
pub mod netlink;
