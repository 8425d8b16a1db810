//! Rescind: a Redis-protocol invalidation proxy.

pub mod resp;
pub mod rules;
