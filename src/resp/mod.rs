//! The Redis serialization protocol: framing without building a tree.
//!
//! `request` frames what clients send (`stream`: what is too big to be kept), `reply` what Redis answers, `encode` writes what the proxy itself
//! has to say. None of it knows a socket.

pub mod args;
pub mod encode;
pub mod head;
pub mod inline;
pub mod reply;
pub mod request;
pub mod stream;

pub use args::{Args, OwnedArgs, Span};
pub use head::{Head, is_error_of_redis};
pub use reply::{NotResp, Progress, ReplyFramer, whole_value};
pub use request::{Limits, Parsed, ProtocolError, RequestParser};
