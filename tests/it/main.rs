//! Integration tests: a real rescind in front of a real redis-server.

mod races;
mod smoke;
mod support;
mod tags;
mod triggers;
