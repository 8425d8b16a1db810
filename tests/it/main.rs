//! Integration tests: a real rescind in front of a real redis-server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_input;
mod cli;
mod degraded;
mod dependents;
mod differential;
mod findings;
mod forwarding;
mod identity;
mod interleaving;
mod limits;
mod metrics;
mod races;
mod smoke;
mod streaming;
mod support;
mod tags;
mod triggers;
mod upstream_loss;
