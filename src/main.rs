//! The `rescind` binary.

fn main() {}
