//! What a key in the index costs, allocator included: a million keys of 30 bytes with two tags each.

#![allow(unsafe_code, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rescind::index::Index;
use rescind::rules::Tag;

/// The allocator of the binary, counting what is asked of it.
struct Counting(mimalloc::MiMalloc);

static ASKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(layout.size(), Relaxed);
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ASKED.fetch_sub(layout.size(), Relaxed);
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.fetch_add(size, Relaxed);
        ASKED.fetch_sub(layout.size(), Relaxed);
        unsafe { self.0.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(mimalloc::MiMalloc);

/// A quarter without optimization, which is slow; tables are as full with either.
const KEYS: usize = if cfg!(debug_assertions) { 250_000 } else { 1_000_000 };

/// Bytes of memory that the process occupies; 0 where the system does not say.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

fn key(n: usize) -> String {
    format!(":1:some_cached_page_{n:010}")
}

fn measure(what: &str, limit: usize, tags_of: impl Fn(usize) -> [Tag; 2]) -> Index {
    let (asked, occupied) = (ASKED.load(Relaxed), resident());
    let mut index = Index::new();
    for n in 0..KEYS {
        index.add(0, key(n).as_bytes(), &tags_of(n));
    }
    assert_eq!(index.len(), KEYS);
    let asked = (ASKED.load(Relaxed) - asked) / KEYS;
    let occupied = resident().saturating_sub(occupied) / KEYS;
    let estimated = index.bytes() / KEYS;
    println!("{what}: {asked} bytes asked for, {occupied} occupied, {estimated} estimated per key");
    assert!(asked <= limit && estimated <= limit && occupied <= limit, "{what}: more than {limit}");
    assert!(estimated >= asked * 9 / 10 && estimated <= asked * 13 / 10, "the estimate is off");

    index
}

fn gives_back(mut index: Index) {
    let full = index.bytes();
    (0..KEYS).for_each(|n| drop(index.gone(0, key(n).as_bytes())));
    assert!(index.is_empty() && index.tag_count() == 0);
    assert!(index.bytes() < full / 1000, "{} bytes are left", index.bytes());
}

#[test]
fn bytes_per_key() {
    assert_eq!(key(0).len(), 30);
    let shared = [Tag::from(&b"Post"[..]), Tag::from(&b"PersonalInfo"[..])];
    // All are kept until the end: memory given back would make the next seem to occupy less.
    let first = measure("two tags of all keys", 200, |_| shared.clone());
    let of = |kind: &str, n: usize| Tag::from(format!("{kind}:{n}").as_bytes());
    let second = measure("one tag of all keys, one of few", 200, |n| [shared[0].clone(), of("post", n / 3)]);
    let third =
        measure("two tags of hardly any other key", 250, |n| [of("post", n), of("author", n - n % 2)]);
    [first, second, third].into_iter().for_each(gives_back);
}
