//! Integration tests: a real rescind in front of a real redis-server.

mod bad_input;
mod differential;
mod forwarding;
mod identity;
mod interleaving;
mod limits;
mod races;
mod smoke;
mod support;
mod tags;
mod triggers;
mod upstream_loss;
