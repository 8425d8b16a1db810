//! Integration tests: a real rescind in front of a real redis-server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
mod degraded;
mod dependents;
mod metrics;
mod races;
mod smoke;
mod support;
mod tags;
mod triggers;
