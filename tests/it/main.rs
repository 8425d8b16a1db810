//! Integration tests: a real rescind in front of a real redis-server.

mod smoke;
mod support;
