//! What a client has sent and the proxy has not used yet.

use std::io;

use crate::backlog::{Backlog, MOST_IN_MEMORY};
use crate::resp::RequestParser;

/// Buffers above this are given back once they are empty.
const KEEP: usize = 4 * 1024;
/// The most that is kept for a client that waits, or because the proxy itself must see all of a request (Redis's
/// `client-query-buffer-limit`).
pub(super) const MOST_KEPT: usize = 1024 * 1024 * 1024;

/// Unused input. Most reads are used up at once and never copied here.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// The state of the request that has begun.
    pub parser: RequestParser,
    left: Vec<u8>,
    /// What is behind it: read while the client waits.
    ahead: Backlog,
    /// The start of the current request: in what is being worked on, else in `left`.
    offset: usize,
    /// All of `left` has been looked at: more must arrive.
    partial: bool,
}

impl Input {
    /// Whether there is nothing to look at before more arrives.
    pub fn is_empty(&self) -> bool {
        (self.left.is_empty() || self.partial) && self.ahead.is_empty()
    }

    /// Whether anything is kept here.
    pub fn has_partial(&self) -> bool {
        !(self.left.is_empty() && self.ahead.is_empty())
    }

    /// Adds what was read behind the start of a request.
    pub fn append(&mut self, bytes: &[u8]) {
        // A long argument is not copied again and again while it grows.
        let needed = self.parser.needed().min(64 * 1024 * 1024);
        if needed > self.left.len() + bytes.len() && needed > self.left.capacity() {
            let more = (needed - self.left.len()).min(self.left.len().max(64 * 1024));
            self.left.reserve(more);
        }
        self.left.extend_from_slice(bytes);
        self.partial = false;
    }

    /// Keeps what is read while the client waits. False: it is too much.
    pub fn read_ahead(&mut self, bytes: &[u8]) -> bool {
        self.ahead.append(|out| out.extend_from_slice(bytes));
        self.left.len() + self.ahead.len() <= MOST_KEPT && self.ahead.in_memory() <= MOST_IN_MEMORY
    }

    /// Goes on to the next piece of what was read ahead. False: there is nothing more. The error is that of a file: what it
    /// held is lost.
    #[inline]
    pub fn refill(&mut self) -> io::Result<bool> {
        if self.ahead.is_empty() {
            return Ok(false);
        }
        let mut ahead = std::mem::take(&mut self.ahead);
        let piece = ahead.front()?;
        let length = piece.len();
        self.append(piece);
        ahead.advance(length);
        if !ahead.is_empty() {
            self.ahead = ahead;
        }
        Ok(true)
    }

    /// Puts a request in front of what has not been used up.
    pub fn put_before(&mut self, request: &[u8]) {
        self.left.splice(..0, request.iter().copied());
        self.parser = RequestParser::default();
        self.partial = false;
    }

    /// Takes what is kept, to work on it.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.left)
    }

    /// Puts back what [`Input::take`] gave: what is before the offset is used up.
    pub fn put_back(&mut self, mut left: Vec<u8>) {
        if self.offset >= left.len() {
            left.clear();
            if left.capacity() > KEEP {
                left = Vec::new();
                self.parser.shrink();
            }
        } else if self.offset > 0 {
            left.drain(..self.offset);
        }
        self.offset = 0;
        self.left = left;
        self.partial = true;
    }

    /// Keeps what of `bytes` has not been used up.
    pub fn keep(&mut self, bytes: &[u8]) {
        if self.offset < bytes.len() {
            self.left.extend_from_slice(&bytes[self.offset..]);
        }
        self.offset = 0;
        self.partial = true;
    }

    /// There may be whole requests in what is kept.
    pub fn look_again(&mut self) {
        self.partial = false;
    }

    /// The start of the current request.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The current request, `len` bytes, is used up.
    pub fn advance(&mut self, len: usize) {
        self.offset += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_ahead_comes_behind_what_is_left() {
        let bytes: Vec<u8> = (0..5_000_000u32).map(|at| (at * 31 % 251) as u8).collect();
        let mut input = Input::default();
        input.keep(&bytes[..10]);
        let (mut ahead, mut got) = (bytes[10..].chunks(60_000), vec![]);
        ahead.by_ref().take(40).for_each(|piece| assert!(input.read_ahead(piece)));
        loop {
            assert!(!input.is_empty());
            let left = input.take();
            // The last byte waits for more.
            let used = left.len() - usize::from(got.len() + left.len() < bytes.len());
            got.extend_from_slice(&left[..used]);
            input.advance(used);
            input.put_back(left);
            ahead.by_ref().take(1).for_each(|piece| assert!(input.read_ahead(piece)));
            if !input.refill().unwrap() {
                break;
            }
        }
        assert!(got == bytes && !input.has_partial());
    }
}
