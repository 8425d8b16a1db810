//! All key patterns as one lazily built automaton, walked byte by byte.
//!
//! A lazy DFA keeps the states it has met in a cache, one per thread. The cache is bounded: when it is full it is
//! emptied and filled anew, and if that happens too often the automaton gives up, which the caller must take as "ask
//! the patterns one by one".

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind, nfa::thompson};

use super::pattern::Pattern;

/// The cache at its smallest and largest, and what each pattern adds.
const CACHE_MIN: usize = 2 << 20;
const CACHE_PER_PATTERN: usize = 8 << 10;
const CACHE_MAX: usize = 32 << 20;

/// The matcher of all patterns; shared by all threads.
#[derive(Debug)]
pub(super) struct Automaton {
    /// What all patterns begin with, such as a prefix: compared at once, the automaton goes on behind it.
    common: Vec<u8>,
    dfa: DFA,
}

/// The automaton gave up; the patterns have to be tried one by one.
pub(super) struct GaveUp;

impl Automaton {
    /// Builds the automaton; a match's number is the place of its pattern in `patterns`.
    pub(super) fn build(patterns: &[&Pattern]) -> Result<Automaton, String> {
        let capacity = (CACHE_MIN + patterns.len() * CACHE_PER_PATTERN).min(CACHE_MAX);
        Automaton::with_capacity(patterns, capacity)
    }

    fn with_capacity(patterns: &[&Pattern], capacity: usize) -> Result<Automaton, String> {
        let common =
            common_prefix(patterns.iter().map(|pattern| pattern.literal_prefix())).unwrap_or_default();
        let regexes: Vec<String> = patterns.iter().map(|pattern| pattern.to_regex(common.len())).collect();
        let dfa = DFA::builder()
            .syntax(syntax::Config::new().unicode(false).utf8(false).dot_matches_new_line(true))
            .thompson(thompson::Config::new().utf8(false).which_captures(thompson::WhichCaptures::None))
            .configure(
                DFA::config()
                    .match_kind(MatchKind::All)
                    .cache_capacity(capacity)
                    .skip_cache_capacity_check(true)
                    // A cache that is emptied again and again before its states were of use costs more than
                    // asking every pattern.
                    .minimum_cache_clear_count(Some(3))
                    .minimum_bytes_per_state(Some(10)),
            )
            .build_many(&regexes);
        dfa.map(|dfa| Automaton { common: common.to_vec(), dfa }).map_err(|error| error.to_string())
    }

    pub(super) fn create_cache(&self) -> Cache {
        self.dfa.create_cache()
    }

    /// Appends the numbers of all patterns that match the whole key.
    #[inline]
    pub(super) fn search(&self, cache: &mut Cache, key: &[u8], hits: &mut Vec<u32>) -> Result<(), GaveUp> {
        let Some(key) = key.strip_prefix(self.common.as_slice()) else { return Ok(()) };
        let anchored = start::Config::new().anchored(Anchored::Yes);
        let mut state = self.dfa.start_state(cache, &anchored).map_err(|_| GaveUp)?;
        if state.is_tagged() {
            return if state.is_dead() { Ok(()) } else { Err(GaveUp) };
        }
        cache.search_start(0);
        for (at, &byte) in key.iter().enumerate() {
            let mut next = self.dfa.next_state_untagged(cache, state, byte);
            // There are no match states on the way, because every pattern ends with `\z`.
            if next.is_tagged() {
                if next.is_unknown() {
                    next = self.dfa.next_state(cache, state, byte).map_err(|_| GaveUp)?;
                }
                if next.is_dead() {
                    cache.search_finish(at);
                    return Ok(());
                }
                if next.is_tagged() {
                    return Err(GaveUp);
                }
            }
            state = next;
        }
        state = self.dfa.next_eoi_state(cache, state).map_err(|_| GaveUp)?;
        cache.search_finish(key.len());
        if state.is_match() {
            for index in 0..self.dfa.match_len(cache, state) {
                hits.push(self.dfa.match_pattern(cache, state, index).as_u32());
            }
        }
        Ok(())
    }
}

/// What all of them begin with; `None` if there are none.
pub(super) fn common_prefix<'a>(mut prefixes: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    let first = prefixes.next()?;
    Some(prefixes.fold(first, |common, prefix| {
        let same = common.iter().zip(prefix).take_while(|(a, b)| a == b).count();
        &common[..same]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_cache_is_right_or_gives_up() {
        let patterns: Vec<Pattern> =
            (0..40).map(|n| Pattern::parse(&format!("*{}*x{n}", n % 7)).unwrap()).collect();
        let automaton = Automaton::with_capacity(&patterns.iter().collect::<Vec<_>>(), 1).unwrap();
        let mut cache = automaton.create_cache();
        let mut gave_up = 0;
        for n in 0..2000_u32 {
            let key = format!("{}a{}bx{}", n, n * 31, n % 50);
            let mut hits = Vec::new();
            if automaton.search(&mut cache, key.as_bytes(), &mut hits).is_err() {
                gave_up += 1;
                continue;
            }
            hits.sort_unstable();
            let mut spans = super::super::capture::Spans::new();
            let expected: Vec<u32> = (0..40)
                .filter(|&at| {
                    super::super::capture::matches(&patterns[at as usize].tokens, key.as_bytes(), &mut spans)
                })
                .collect();
            assert_eq!(hits, expected, "{key}");
        }
        assert!(gave_up > 0, "the test is meant to overflow the cache");
    }
}
