//! Keys that may be stale although somebody was promised they are not: reads of them are answered as misses.
//!
//! A fan-out that cannot finish, a start after a crash, a Redis that came back with old data: until the deletion is
//! made up for, what Redis holds of the affected keys must not be seen. Looking costs one load where there is no doubt.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::rules::Tag;

/// How soon somebody looks again who has waited so long for doubt to end: after a failover many may wait, and all that they do keeps
/// from its work who is to end it.
pub fn next_look(waited: Duration) -> Duration {
    (waited / 8).clamp(Duration::from_millis(5), Duration::from_millis(100))
}

/// What is invalidated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// These tags.
    Tags(Vec<Tag>),
    /// Every tag: which ones is not known any more.
    Everything,
}

impl Scope {
    /// This and the other.
    pub fn and(self, other: &Scope) -> Scope {
        match (self, other) {
            (Scope::Tags(mut tags), Scope::Tags(more)) => {
                tags.extend_from_slice(more);
                tags.sort_unstable();
                tags.dedup();
                Scope::Tags(tags)
            }
            _ => Scope::Everything,
        }
    }

    /// Nobody knows any more what the tags stand for.
    pub fn generalize(&mut self) {
        if !self.is_empty() {
            *self = Scope::Everything;
        }
    }

    /// Whether nothing is invalidated.
    pub fn is_empty(&self) -> bool {
        matches!(self, Scope::Tags(tags) if tags.is_empty())
    }
}

/// The tags whose keys are in doubt.
#[derive(Debug, Default)]
pub struct Doubt {
    reasons: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tags: HashMap<Tag, usize>,
    /// How many reasons have put these there, and stand for no more.
    named: usize,
    everything: usize,
    /// How often all tags have come to stand for everything.
    generalized: u64,
}

/// One reason for doubt; it ends when this is dropped.
#[derive(Debug)]
pub struct Reason {
    doubt: Arc<Doubt>,
    scope: Scope,
    /// How often all tags had come to stand for everything before.
    generalized: u64,
}

impl Reason {
    /// Whether nothing more would be in doubt with another reason, for `scope`.
    pub fn covers(&self, scope: &Scope) -> bool {
        self.scope == Scope::Everything || self.scope == *scope
    }
}

impl Doubt {
    /// From now on the keys of `scope` are in doubt, until the reason is dropped.
    pub fn enter(self: &Arc<Self>, scope: Scope) -> Reason {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &scope {
            Scope::Everything => state.everything += 1,
            Scope::Tags(tags) => {
                tags.iter().for_each(|tag| *state.tags.entry(tag.clone()).or_default() += 1);
                state.named += usize::from(!tags.is_empty());
            }
        }
        self.reasons.fetch_add(usize::from(!scope.is_empty()), Ordering::Release);
        Reason { doubt: Arc::clone(self), scope, generalized: state.generalized }
    }

    /// The tags in doubt are names of other keys from now on: until the present reasons end, everything is.
    pub fn generalize(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.everything += std::mem::take(&mut state.named);
        state.generalized += 1;
    }

    /// Whether any key is in doubt.
    #[inline]
    pub fn any(&self) -> bool {
        self.reasons.load(Ordering::Acquire) > 0
    }

    /// Whether one of these tags is by its very name, as explicit labels are: no rules give them another meaning.
    pub fn names(&self, tags: &[Tag]) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        tags.iter().any(|tag| state.tags.contains_key(tag))
    }

    /// Whether a key with these tags is.
    pub fn concerns(&self, tags: &[Tag]) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        !tags.is_empty() && (state.everything > 0 || tags.iter().any(|tag| state.tags.contains_key(tag)))
    }
}

impl Drop for Reason {
    fn drop(&mut self) {
        let mut state = self.doubt.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.scope {
            Scope::Everything => state.everything -= 1,
            Scope::Tags(tags) if tags.is_empty() => {}
            Scope::Tags(tags) => {
                match state.generalized > self.generalized {
                    true => state.everything -= 1,
                    false => state.named -= 1,
                }
                for tag in tags {
                    if let Some(count) = state.tags.get_mut(tag) {
                        *count -= 1;
                        if *count == 0 {
                            state.tags.remove(tag);
                        }
                    }
                }
            }
        }
        self.doubt.reasons.fetch_sub(usize::from(!self.scope.is_empty()), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(names: &str) -> Vec<Tag> {
        names.split_whitespace().map(|name| name.as_bytes().into()).collect()
    }

    #[test]
    fn who_waits_long_looks_rarely() {
        let ms = Duration::from_millis;
        let (mut waited, mut looks) = (ms(0), 0);
        while waited < ms(10_000) {
            let pause = next_look(waited);
            assert!(pause <= ms(5).max(waited / 8), "nor does it come much later");
            waited += pause;
            looks += 1;
        }
        assert!(looks < 150);
    }

    #[test]
    fn doubt_lasts_as_long_as_its_reasons() {
        let doubt = Arc::new(Doubt::default());
        assert!(!doubt.any());
        let nothing = doubt.enter(Scope::Tags(vec![]));
        assert!(!doubt.any());
        let one = doubt.enter(Scope::Tags(tags("a b")));
        let two = doubt.enter(Scope::Tags(tags("b")));
        assert!(doubt.any() && doubt.concerns(&tags("x a")) && !doubt.concerns(&tags("x")));
        drop(one);
        assert!(!doubt.concerns(&tags("a")) && doubt.concerns(&tags("b")));
        assert!(two.covers(&Scope::Tags(tags("b"))) && !two.covers(&Scope::Tags(tags("b c"))));
        let all = doubt.enter(Scope::Everything);
        assert!(doubt.concerns(&tags("x")) && all.covers(&Scope::Tags(tags("x"))));
        assert!(!doubt.concerns(&[]), "nothing invalidates a key without tags");
        drop((all, two, nothing));
        assert!(!doubt.any() && !doubt.concerns(&tags("b")));
    }

    #[test]
    fn tags_that_become_other_names_are_everything_until_their_reasons_end() {
        let doubt = Arc::new(Doubt::default());
        let before = ["", "a", "a b"].map(|names| doubt.enter(Scope::Tags(tags(names))));
        doubt.generalize();
        let after = doubt.enter(Scope::Tags(tags("a")));
        assert!(doubt.concerns(&tags("x")) && doubt.names(&tags("x b")) && !doubt.names(&tags("x")));
        doubt.generalize();
        drop(after);
        assert!(doubt.concerns(&tags("x")));
        drop(before);
        let last = doubt.enter(Scope::Tags(tags("b")));
        assert!(doubt.concerns(&tags("b")) && !doubt.concerns(&tags("a")) && !doubt.names(&tags("a")));
        drop(last);
        assert!(!doubt.any() && !doubt.concerns(&tags("b")));
    }
}
