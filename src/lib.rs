//! Rescind: a Redis-protocol invalidation proxy.
//!
//! Clients talk to it as to Redis. It forwards every command, notices the writes that make cached values stale,
//! deletes every key that depends on them before the writer gets its answer, and counts what the cache does.
//!
//! Pure, tested with plain values, knowing no sockets and no clock:
//!
//! - [`resp`]: framing of requests and replies
//! - [`command`]: the command table: keys, kinds, what a reply tells
//! - [`rules`]: patterns, tags, families, triggers; [`explain`]: what they make of a command
//! - [`index`]: which key depends on which tag
//! - [`lease`]: which fills are stale; [`doubt`]: which keys must not be read; [`peers`]: which of several proxies does what;
//!   [`news`]: what they tell each other of labels
//! - [`session`]: the protocol state of one client
//! - [`accounting`]: what a reply means for hits, misses and triggers
//!
//! One thread per worker, moving bytes:
//!
//! - [`worker`]: accepts clients; [`client`]: one client's task; [`outbox`]: what a client is still to get;
//!   [`backlog`]: its bytes, in memory or in files
//! - [`upstream`]: shared and pinned connections to Redis; [`standing`]: whether clients need AUTH;
//!   [`context`]: what the parts of a worker share; [`relay`]: how other threads wake its tasks
//!
//! [`process`]: what all threads share. [`journal`]: invalidations, noted before they begin, in a folder and a thread of its own.
//!
//! The control thread:
//!
//! - [`control`]: the feed, the index's upkeep, fan-outs; [`fanout`]: how they are asked for
//! - [`admin`], [`status`], [`metrics`]: what is shown
//!
//! Assembly: [`config`], [`cli`], [`app`], [`spawn`], [`net`], [`descriptors`], [`logging`]. For tests of crashes: [`failpoint`].

pub mod accounting;
pub mod admin;
pub mod app;
pub mod backlog;
pub mod cli;
pub mod client;
pub mod command;
pub mod config;
pub mod context;
pub mod control;
pub mod descriptors;
pub mod doubt;
pub mod explain;
pub mod failpoint;
pub mod fanout;
#[doc(hidden)]
pub mod fuzzing;
pub mod index;
pub mod journal;
pub mod lease;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod news;
pub mod outbox;
pub mod peers;
pub mod process;
pub mod relay;
pub mod resp;
pub mod rules;
pub mod session;
pub mod spawn;
pub mod standing;
pub mod status;
pub mod upstream;
pub mod worker;
