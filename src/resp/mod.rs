//! The Redis serialization protocol: framing without building a tree.
//!
//! `request` frames what clients send, `reply` what Redis answers, `encode` writes what the proxy itself
//! has to say. None of it knows a socket.

pub mod args;
pub mod encode;
pub mod head;
pub mod inline;
pub mod reply;
pub mod request;

pub use args::{Args, OwnedArgs, Span};
pub use head::Head;
pub use reply::{NotResp, Progress, ReplyFramer};
pub use request::{Limits, Parsed, ProtocolError, RequestParser};
