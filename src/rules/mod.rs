//! Rules: which tags a key depends on, which family it counts for, what a write triggers.

pub mod spec;
