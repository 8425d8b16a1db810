//! All key patterns as one automaton, walked byte by byte.
//!
//! Few patterns, and many that only begin differently, make a DFA that is small enough to be built as a whole. Others have
//! a lazy one, which takes twice as many instructions for each byte.
//!
//! A lazy DFA keeps the states it has met in a cache, one per thread. The cache is bounded: when it is full it is
//! emptied and filled anew, and if that happens too often the automaton gives up, which the caller must take as "ask
//! the patterns one by one".

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind, nfa::thompson};

use super::pattern::Pattern;

/// The cache at its smallest and largest, and what each pattern adds.
const CACHE_MIN: usize = 2 << 20;
const CACHE_PER_PATTERN: usize = 8 << 10;
const CACHE_MAX: usize = 32 << 20;

/// A whole DFA may have so many bytes, and so many may be taken while it is made.
const DENSE_MOST: usize = 256 << 10;
const DENSE_WORK: usize = 1 << 20;

#[derive(Debug)]
enum Engine {
    Dense(Box<dense::DFA<Vec<u32>>>),
    Lazy(Box<DFA>),
}

/// The matcher of all patterns; shared by all threads.
#[derive(Debug)]
pub(super) struct Automaton {
    /// What all patterns begin with, such as a prefix: compared at once, the automaton goes on behind it.
    common: Vec<u8>,
    engine: Engine,
}

/// The automaton gave up; the patterns have to be tried one by one.
pub(super) struct GaveUp;

impl Automaton {
    /// Builds the automaton; a match's number is the place of its pattern in `patterns`.
    pub(super) fn build(patterns: &[&Pattern]) -> Result<Automaton, String> {
        let capacity = (CACHE_MIN + patterns.len() * CACHE_PER_PATTERN).min(CACHE_MAX);
        Automaton::dense(patterns).map_or_else(|| Automaton::lazy(patterns, capacity), Ok)
    }

    /// `None`: it would be too big.
    fn dense(patterns: &[&Pattern]) -> Option<Automaton> {
        let (common, regexes) = regexes(patterns);
        let config = dense::Config::new()
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Anchored)
            .accelerate(false)
            .dfa_size_limit(Some(DENSE_MOST))
            .determinize_size_limit(Some(DENSE_WORK));
        let dfa = dense::Builder::new()
            .syntax(syntax())
            .thompson(thompson())
            .configure(config)
            .build_many(&regexes)
            .ok()?;
        Some(Automaton { common, engine: Engine::Dense(Box::new(dfa)) })
    }

    fn lazy(patterns: &[&Pattern], capacity: usize) -> Result<Automaton, String> {
        let (common, regexes) = regexes(patterns);
        let dfa = DFA::builder()
            .syntax(syntax())
            .thompson(thompson())
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
        dfa.map(|dfa| Automaton { common, engine: Engine::Lazy(Box::new(dfa)) })
            .map_err(|error| error.to_string())
    }

    /// What one thread needs to search, if anything.
    pub(super) fn create_cache(&self) -> Option<Cache> {
        match &self.engine {
            Engine::Dense(_) => None,
            Engine::Lazy(dfa) => Some(dfa.create_cache()),
        }
    }

    /// Appends the numbers of all patterns that match the whole key.
    #[inline]
    pub(super) fn search(
        &self,
        cache: &mut Option<Cache>,
        key: &[u8],
        hits: &mut Vec<u32>,
    ) -> Result<(), GaveUp> {
        let Some(key) = key.strip_prefix(self.common.as_slice()) else { return Ok(()) };
        match (&self.engine, cache) {
            (Engine::Dense(dfa), _) => search_dense(dfa, key, hits),
            (Engine::Lazy(dfa), Some(cache)) => search_lazily(dfa, cache, key, hits),
            (Engine::Lazy(_), None) => Err(GaveUp),
        }
    }
}

#[inline]
fn search_dense(dfa: &dense::DFA<Vec<u32>>, key: &[u8], hits: &mut Vec<u32>) -> Result<(), GaveUp> {
    let anchored = start::Config::new().anchored(Anchored::Yes);
    let mut state = dfa.start_state(&anchored).map_err(|_| GaveUp)?;
    for &byte in key {
        state = dfa.next_state(state, byte);
        // There are no match states on the way, because every pattern ends with `\z`.
        if dfa.is_special_state(state) {
            return if dfa.is_dead_state(state) { Ok(()) } else { Err(GaveUp) };
        }
    }
    state = dfa.next_eoi_state(state);
    if dfa.is_match_state(state) {
        hits.extend((0..dfa.match_len(state)).map(|index| dfa.match_pattern(state, index).as_u32()));
    }
    Ok(())
}

#[inline]
fn search_lazily(dfa: &DFA, cache: &mut Cache, key: &[u8], hits: &mut Vec<u32>) -> Result<(), GaveUp> {
    let anchored = start::Config::new().anchored(Anchored::Yes);
    let mut state = dfa.start_state(cache, &anchored).map_err(|_| GaveUp)?;
    if state.is_tagged() {
        return if state.is_dead() { Ok(()) } else { Err(GaveUp) };
    }
    cache.search_start(0);
    for (at, &byte) in key.iter().enumerate() {
        let mut next = dfa.next_state_untagged(cache, state, byte);
        // As above.
        if next.is_tagged() {
            if next.is_unknown() {
                next = dfa.next_state(cache, state, byte).map_err(|_| GaveUp)?;
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
    state = dfa.next_eoi_state(cache, state).map_err(|_| GaveUp)?;
    cache.search_finish(key.len());
    if state.is_match() {
        hits.extend((0..dfa.match_len(cache, state)).map(|at| dfa.match_pattern(cache, state, at).as_u32()));
    }
    Ok(())
}

/// What all patterns begin with, and a regex for what is behind it in each.
fn regexes(patterns: &[&Pattern]) -> (Vec<u8>, Vec<String>) {
    let common = common_prefix(patterns.iter().map(|pattern| pattern.literal_prefix())).unwrap_or_default();
    (common.to_vec(), patterns.iter().map(|pattern| pattern.to_regex(common.len())).collect())
}

fn syntax() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false).dot_matches_new_line(true)
}

fn thompson() -> thompson::Config {
    thompson::Config::new().utf8(false).which_captures(thompson::WhichCaptures::None)
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

    /// The numbers of the patterns that match, found one by one.
    fn expected(patterns: &[Pattern], key: &[u8]) -> Vec<u32> {
        let mut spans = super::super::capture::Spans::new();
        let matches =
            |at: &u32| super::super::capture::matches(&patterns[*at as usize].tokens, key, &mut spans);
        (0..patterns.len() as u32).filter(matches).collect()
    }

    #[test]
    fn dense_and_lazy_find_the_same() {
        let texts = ["a:*", "a:{x}:b", "a:[bc]?", "*b", "a:{x*}z", "\\*a"];
        let patterns: Vec<Pattern> = texts.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        let all: Vec<&Pattern> = patterns.iter().collect();
        let (dense, lazy) = (Automaton::dense(&all).unwrap(), Automaton::lazy(&all, 1 << 20).unwrap());
        assert!(dense.create_cache().is_none());
        let (mut none, mut cache) = (None, lazy.create_cache());
        for key in ["a:", "a:b", "a:bc", "a:x:b", "a:x:y:b", "b", "a:\n\u{e9}z", "*a", "xa", ""] {
            let (mut found, mut found_lazily) = (vec![], vec![]);
            assert!(dense.search(&mut none, key.as_bytes(), &mut found).is_ok());
            assert!(lazy.search(&mut cache, key.as_bytes(), &mut found_lazily).is_ok());
            found.sort_unstable();
            found_lazily.sort_unstable();
            assert_eq!(found, expected(&patterns, key.as_bytes()), "{key}");
            assert_eq!(found, found_lazily, "{key}");
        }
    }

    #[test]
    fn what_would_be_big_is_lazy() {
        let patterns: Vec<Pattern> =
            (0..60).map(|n| Pattern::parse(&format!("*{n}*{}*x", n * 7)).unwrap()).collect();
        let automaton = Automaton::build(&patterns.iter().collect::<Vec<_>>()).unwrap();
        assert!(automaton.create_cache().is_some());
    }

    #[test]
    fn a_tiny_cache_is_right_or_gives_up() {
        let patterns: Vec<Pattern> =
            (0..40).map(|n| Pattern::parse(&format!("*{}*x{n}", n % 7)).unwrap()).collect();
        let automaton = Automaton::lazy(&patterns.iter().collect::<Vec<_>>(), 1).unwrap();
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
            assert_eq!(hits, expected(&patterns, key.as_bytes()), "{key}");
        }
        assert!(gave_up > 0, "the test is meant to overflow the cache");
    }
}
