//! The Redis serialization protocol: framing without building a tree.

pub mod args;
pub mod head;

pub use args::{Args, OwnedArgs, Span};
pub use head::Head;
