//! What a client has sent and the proxy has not used yet.

use crate::resp::RequestParser;

/// Buffers above this are given back once they are empty.
const KEEP: usize = 4 * 1024;

/// Unused input. Most reads are used up at once and never copied here.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// The state of the request that has begun.
    pub parser: RequestParser,
    left: Vec<u8>,
    /// The start of the current request: in what is being worked on, else in `left`.
    offset: usize,
    /// All of `left` has been looked at: more must arrive.
    partial: bool,
}

impl Input {
    /// Whether there is nothing to look at before more arrives.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty() || self.partial
    }

    /// Bytes that are kept here.
    pub fn len(&self) -> usize {
        self.left.len()
    }

    /// Whether the start of a request is kept here.
    pub fn has_partial(&self) -> bool {
        !self.left.is_empty()
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
