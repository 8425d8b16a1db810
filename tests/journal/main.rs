//! The journal with real files: what it keeps through crashes, damage, full disks and company.

#![allow(clippy::unwrap_used)]

mod basics;
mod child;
mod crashes;
mod damage;
mod sharing;
mod support;
