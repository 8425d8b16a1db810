//! Bytes that have to wait: in memory first, in temporary files when there are many.
//!
//! What was asked for on a shared upstream connection must be taken off it, or others would wait. A client that reads
//! a big reply slowly therefore gets it from a file. And what a client sends behind a command that blocks must be read, or
//! nobody would see that it hangs up. The files have no names and go with the process.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BytesMut};

use crate::descriptors::Place;

/// Bytes in memory beyond which what follows goes to a file.
const MEMORY: usize = 1024 * 1024;
/// Bytes written to a file at once, and read from it.
const CHUNK: usize = 128 * 1024;
/// Bytes in one file: its place on the disk is free again when it has been read to its end.
const FILE: u64 = 64 * 1024 * 1024;
/// Bytes beyond which the client is cut if they cannot be put into files.
pub const MOST_IN_MEMORY: usize = 256 * 1024 * 1024;

/// That no file could be made has been said.
static COMPLAINED: AtomicBool = AtomicBool::new(false);

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Backlog {
    /// What goes out first.
    front: BytesMut,
    /// What is behind it, and its bytes.
    files: VecDeque<Segment>,
    in_files: usize,
    /// What is behind the files and not yet written.
    tail: BytesMut,
    /// No file could be made: all stays in memory until there is nothing left.
    diskless: bool,
}

#[derive(Debug)]
struct Segment {
    file: File,
    _place: Place,
    written: u64,
    read: u64,
}

impl Backlog {
    /// Lets `write` append.
    #[inline]
    pub fn append(&mut self, write: impl FnOnce(&mut BytesMut)) {
        if self.tail.is_empty() && self.files.is_empty() && self.front.len() < MEMORY {
            return write(&mut self.front);
        }
        write(&mut self.tail);
        if self.tail.len() >= CHUNK
            && !self.diskless
            && let Err(error) = self.spill()
        {
            self.diskless = true;
            if !COMPLAINED.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "no temporary file (TMPDIR): what waits for clients stays in memory");
            }
        }
    }

    /// Writes the tail to the last file.
    fn spill(&mut self) -> io::Result<()> {
        if self.files.back().is_none_or(|last| last.written >= FILE) {
            let place = Place::take().ok_or_else(|| io::Error::other("too many files are open"))?;
            let file = tempfile::tempfile()?;
            self.files.push_back(Segment { file, _place: place, written: 0, read: 0 });
        }
        let Some(last) = self.files.back_mut() else { return Ok(()) };
        last.file.write_all_at(&self.tail, last.written)?;
        last.written += self.tail.len() as u64;
        self.in_files += self.tail.len();
        self.tail.clear();
        Ok(())
    }

    /// The next bytes; empty only if there are none. The error is that of a file: what it held is lost.
    #[inline]
    pub fn front(&mut self) -> io::Result<&[u8]> {
        if self.front.is_empty() && !(self.files.is_empty() && self.tail.is_empty()) {
            self.refill()?;
        }
        Ok(&self.front)
    }

    fn refill(&mut self) -> io::Result<()> {
        while let Some(first) = self.files.front_mut() {
            let left = first.written - first.read;
            if left == 0 {
                self.files.pop_front();
                continue;
            }
            let length = left.min(CHUNK as u64) as usize;
            self.front.resize(length, 0);
            if let Err(error) = first.file.read_exact_at(&mut self.front, first.read) {
                // It holds nothing that anybody may get.
                self.front.clear();
                return Err(error);
            }
            first.read += length as u64;
            self.in_files -= length;
            return Ok(());
        }
        self.front = std::mem::take(&mut self.tail);
        Ok(())
    }

    /// The first `n` bytes of [`Backlog::front`] are gone.
    pub fn advance(&mut self, n: usize) {
        self.front.advance(n);
    }

    /// All bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.front.len() + self.in_files + self.tail.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of them that are in memory.
    pub fn in_memory(&self) -> usize {
        self.front.len() + self.tail.len()
    }

    /// Drops all bytes.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Makes the buffer of an empty queue ready for what comes next: kept if it is of at most `keep` bytes.
    pub fn reclaim(&mut self, keep: usize) {
        if !self.is_empty() {
            return;
        }
        self.files.clear();
        self.tail = BytesMut::new();
        // There may be room for files again.
        self.diskless = false;
        // What has been written no longer counts as capacity unless it is reclaimed.
        if self.front.try_reclaim(keep + 1) {
            self.front = BytesMut::new();
        } else {
            self.front.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(backlog: &mut Backlog, bytes: &[u8]) {
        backlog.append(|out| out.extend_from_slice(bytes));
    }

    #[test]
    fn little_stays_in_memory_and_much_does_not() {
        let mut backlog = Backlog::default();
        push(&mut backlog, &[7; MEMORY]);
        assert_eq!((backlog.in_memory(), backlog.files.len()), (MEMORY, 0));
        for _ in 0..2000 {
            push(&mut backlog, &[8; 64 * 1024]);
        }
        assert_eq!(backlog.len(), MEMORY + 2000 * 64 * 1024);
        assert!(backlog.in_memory() <= MEMORY + CHUNK);
        assert_eq!(backlog.files.len(), 2);
    }

    #[test]
    fn what_cannot_be_read_is_not_made_up() {
        let mut backlog = Backlog::default();
        push(&mut backlog, &[7; MEMORY]);
        push(&mut backlog, &[8; CHUNK]);
        backlog.files[0].file.set_len(10).unwrap();
        backlog.advance(MEMORY);
        for _ in 0..2 {
            assert!(backlog.front().is_err());
            assert!(backlog.front.is_empty());
        }
    }

    #[test]
    fn files_are_tried_again_once_all_has_gone_out() {
        let mut backlog = Backlog { diskless: true, ..Backlog::default() };
        let fill = |backlog: &mut Backlog| [MEMORY, CHUNK].iter().for_each(|n| push(backlog, &vec![7; *n]));
        fill(&mut backlog);
        backlog.reclaim(0);
        assert_eq!((backlog.in_memory(), backlog.files.len()), (MEMORY + CHUNK, 0), "not yet");
        while !backlog.is_empty() {
            let length = backlog.front().unwrap().len();
            backlog.advance(length);
        }
        backlog.reclaim(0);
        fill(&mut backlog);
        assert_eq!((backlog.in_memory(), backlog.files.len()), (MEMORY, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever is put in comes out in the same order, in memory or not.
        #[test]
        fn a_queue_it_is(steps in prop::collection::vec((1..300_000usize, 0..300_000usize), 1..40), diskless: bool) {
            let mut backlog = Backlog { diskless, ..Backlog::default() };
            let (mut put, mut taken) = (0u64, 0u64);
            for (more, less) in steps.into_iter().chain([(0, usize::MAX)]) {
                let bytes: Vec<u8> = (put..put + more as u64).map(|at| (at * 31 % 251) as u8).collect();
                push(&mut backlog, &bytes);
                put += more as u64;
                let mut left = less;
                while left > 0 && !backlog.is_empty() {
                    let got: Vec<u8> = backlog.front().unwrap().iter().copied().take(left).collect();
                    prop_assert!(!got.is_empty());
                    for byte in &got {
                        prop_assert_eq!(*byte, (taken * 31 % 251) as u8);
                        taken += 1;
                    }
                    backlog.advance(got.len());
                    left -= got.len();
                }
                prop_assert_eq!(backlog.len() as u64, put - taken);
            }
            backlog.reclaim(0);
            prop_assert!(backlog.files.is_empty() && put == taken);
        }
    }
}
