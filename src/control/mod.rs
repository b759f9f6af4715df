//! (stub)
pub mod slowpath;
