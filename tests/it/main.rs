//! Integration tests: a real rescind in front of a real redis-server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_input;
mod big_values;
mod busy;
mod cli;
mod coalesce;
mod crashes;
mod degraded;
mod dependents;
mod differential;
mod fills;
mod findings;
mod forwarding;
mod identity;
mod interleaving;
mod kills;
mod label_following;
mod label_upkeep;
mod limits;
mod metrics;
mod names;
mod pinned;
mod proxies;
mod races;
mod redis_rs;
mod smoke;
mod standing;
mod standing_connections;
mod standing_races;
mod streaming;
mod support;
mod tags;
mod transactions;
mod triggers;
mod upstream_loss;
