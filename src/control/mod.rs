//! (stub)

pub mod slowpath;
