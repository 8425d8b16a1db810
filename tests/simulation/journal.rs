//! What a proxy has on disk: intents are there before anybody goes on, completions some time later.

use crate::names::TAGS;

pub type IntentId = usize;

#[derive(Clone, Debug)]
struct Intent {
    tags: Vec<usize>,
    done: bool,
}

/// Of one place; it outlives the process.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    intents: Vec<Intent>,
    /// Not written yet: lost in a crash.
    lazily: Vec<IntentId>,
    recent: [bool; TAGS],
    /// The identity of the Redis that was last caught up with.
    pub redis: Option<u64>,
    /// The process has stopped in order.
    pub closed: bool,
    pub lives: u32,
    /// Counts fan-outs of all lives.
    pub fanouts: u64,
}

impl Journal {
    pub fn intend(&mut self, tags: &[usize], durable: bool) -> IntentId {
        // Without the protection nothing is ever found again.
        self.intents.push(Intent { tags: tags.to_vec(), done: !durable });
        self.saw(tags);
        self.intents.len() - 1
    }

    /// These tags were invalidated, by whomever.
    pub fn saw(&mut self, tags: &[usize]) {
        for tag in tags {
            self.recent[*tag] = true;
        }
    }

    pub fn done(&mut self, intent: IntentId) {
        self.lazily.push(intent);
    }

    /// What was said lazily is written.
    pub fn write(&mut self, some: usize) {
        for intent in self.lazily.drain(..some.min(self.lazily.len())) {
            self.intents[intent].done = true;
        }
    }

    pub fn has_unwritten(&self) -> bool {
        !self.lazily.is_empty()
    }

    pub fn crash(&mut self) {
        self.lazily.clear();
    }

    /// Intents that are not known to be done.
    pub fn pending(&self) -> Vec<(IntentId, Vec<usize>)> {
        let open = self.intents.iter().enumerate().filter(|(_, intent)| !intent.done);
        open.map(|(id, intent)| (id, intent.tags.clone())).collect()
    }

    /// The tags that were invalidated within the replay window.
    pub fn recent(&self) -> Vec<usize> {
        (0..TAGS).filter(|tag| self.recent[*tag]).collect()
    }
}
