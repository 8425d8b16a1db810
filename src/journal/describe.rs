//! How the journal is doing, for people.

use std::fmt;
use std::sync::atomic::Ordering;

use super::Journal;
use crate::config::Fsync;

/// How a journal is doing. Shown as lines of `name:value`, as INFO has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Whether it is kept on the disk.
    pub enabled: bool,
    /// When it is forced to the disk.
    pub fsync: Fsync,
    /// Intents that are not done.
    pub pending: usize,
    /// Bytes of its file.
    pub bytes: u64,
    /// How often the file was forced to the disk.
    pub fsyncs: u64,
    /// How often it was rewritten.
    pub rewrites: u64,
    /// How often it could not be written or forced to the disk.
    pub failures: u64,
    /// It could not when that was last tried: triggers are refused.
    pub failing: bool,
}

impl Journal {
    /// How it is doing.
    pub fn describe(&self) -> Description {
        let counts = &self.shared.counts;
        Description {
            enabled: self.is_on(),
            fsync: self.shared.fsync,
            pending: self.pending(),
            bytes: counts.bytes.load(Ordering::Relaxed),
            fsyncs: counts.fsyncs.load(Ordering::Relaxed),
            rewrites: counts.rewrites.load(Ordering::Relaxed),
            failures: counts.failures.load(Ordering::Relaxed),
            failing: counts.failing.load(Ordering::Relaxed),
        }
    }
}

impl Journal {
    fn pending(&self) -> usize {
        // Locked in the order in which the thread does it when it takes the finished ones over.
        let state = self.shared.state();
        let finished = self.shared.finished().len();
        state.pending().len().saturating_sub(finished)
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fsync = match self.fsync {
            _ if !self.enabled => "none",
            Fsync::Always => "always",
            Fsync::EverySec => "everysec",
            Fsync::Never => "never",
        };
        let Self { pending, bytes, fsyncs, rewrites, failures, .. } = self;
        write!(
            f,
            "journal_enabled:{}\r\njournal_fsync:{fsync}\r\njournal_pending:{pending}\r\njournal_bytes:{bytes}\r\n\
             journal_fsyncs:{fsyncs}\r\njournal_rewrites:{rewrites}\r\njournal_failures:{failures}\r\n",
            u8::from(self.enabled),
        )
    }
}
