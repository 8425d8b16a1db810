//! Misses and fills, with plain numbers for keys, clients and moments.

use super::open::{MOST_MISSES, PAUSE, TOGETHER};
use super::sharing::{MEMORY, PROOF, SHOWN};
use super::*;
use crate::rules::Tag;

mod parts;
mod through;

const WINDOW: Moment = 5000;

fn client(id: u64) -> Client {
    Client { id, host: 7 }
}

impl Leases {
    /// Which miss decides about a write over a connection that has been told nothing.
    fn fills(&self, key: KeyHash, client: Client, fill: Fill, found: Found, now: Moment) -> Filled {
        self.filled(key, Write { client, fill, found, along: Along::No, now }, || false)
    }
}

fn both(filled: Filled) -> (Option<Clock>, bool) {
    (filled.clock, filled.is_own)
}

fn clock(filled: Filled) -> Option<Clock> {
    filled.clock
}

fn tag(name: &str) -> Tag {
    name.as_bytes().into()
}

#[test]
fn a_fill_is_compared_with_what_came_after_its_miss() {
    let epochs = Epochs::default();
    let before = epochs.clock();
    assert_eq!(epochs.expected(&tag("a"), before), Expected::NoEpoch);
    epochs.announced(&[tag("a"), tag("b")], b"1", 0);
    assert_eq!(epochs.expected(&tag("a"), before), Expected::Stale);
    let after = epochs.clock();
    assert_eq!(epochs.expected(&tag("a"), after), Expected::Epoch(b"1".as_slice().into()));
    assert_eq!(epochs.expected(&tag("c"), before), Expected::NoEpoch);
    epochs.announced(&[tag("b")], b"2", 10);
    assert_eq!(epochs.expected(&tag("a"), after), Expected::Epoch(b"1".as_slice().into()));
    assert_eq!(epochs.expected(&tag("b"), after), Expected::Stale);
    epochs.forget_before(5);
    assert_eq!(epochs.expected(&tag("a"), before), Expected::NoEpoch);
    assert_eq!(epochs.expected(&tag("b"), BEFORE_ALL), Expected::Stale);
}

#[test]
fn a_miss_knows_the_latest_mark_that_was_seen_before_it() {
    let epochs = Epochs::default();
    let first = epochs.clock();
    assert_eq!((epochs.mark_at(first), epochs.has_news(first)), ((Box::default(), 0), false));
    epochs.announced(&[tag("a")], b"1", 10);
    // Between an announcement and its mark.
    let between = epochs.clock();
    epochs.marked(b"m1", 10);
    epochs.announced(&[tag("b")], b"2", 20);
    epochs.announced(&[tag("c")], b"3", 20);
    epochs.marked(b"m2", 20);
    // Nothing was announced since: what may stand in front of it in Redis has not been heard of.
    epochs.marked(b"m3", 30);
    assert_eq!([b"m1".as_slice(), b"m2"].map(|mark| epochs.clock_at(mark)), [between, epochs.clock()]);
    assert_eq!(epochs.clock_at(b"m0"), BEFORE_ALL);
    let mark = |clock| {
        let (mark, entries) = epochs.mark_at(clock);
        (String::from_utf8(mark.to_vec()).unwrap(), entries)
    };
    assert_eq!(mark(first), (String::new(), 6));
    assert_eq!(mark(between), ("m1".to_owned(), 4));
    assert_eq!(mark(between + 1), ("m1".to_owned(), 4));
    assert_eq!(mark(epochs.clock()), ("m2".to_owned(), 1));
    assert_eq!((epochs.has_news(between), epochs.has_news(epochs.clock())), (true, false));
    assert!(epochs.has_news(BEFORE_ALL));
    epochs.forget_before(100);
    assert_eq!(mark(epochs.clock()), ("m2".to_owned(), 1));
    assert_eq!(mark(between), (String::new(), 6));
}

#[test]
fn the_list_tells_what_was_invalidated_since_a_mark() {
    use script::{MOST_SINCE, Recent};
    let entries: Vec<Vec<u8>> =
        [Recent::Mark(b"2"), Recent::Tag(b"mark"), Recent::Tag(b"b"), Recent::Mark(b"1"), Recent::Tag(b"a")]
            .map(Recent::encoded)
            .to_vec();
    let since = |mark: &str| Recent::tags_since(&entries, mark.as_bytes());
    assert_eq!(since("2"), (vec![], true));
    assert_eq!(since("1"), (vec![b"b".as_slice(), b"mark"], true));
    // It was never seen, or is so old that the list has gone since.
    assert_eq!(since("0").0.len(), 3);
    assert_eq!(since("ark").0.len(), 3);
    let full = vec![Recent::Tag(b"a").encoded(); MOST_SINCE];
    assert_eq!(Recent::tags_since(&full[1..], b"0"), (vec![b"a".as_slice()], true), "each once");
    assert_eq!(
        Recent::tags_since(&full, b"0"),
        (vec![b"a".as_slice()], false),
        "nobody knows what is missing"
    );
}

#[test]
fn what_is_found_again_is_no_news() {
    let epochs = Epochs::default();
    epochs.found(&tag("a"), b"1", 0);
    let clock = epochs.clock();
    epochs.found(&tag("a"), b"1", 0);
    assert_eq!(epochs.expected(&tag("a"), clock), Expected::Epoch(b"1".as_slice().into()));
    epochs.found(&tag("a"), b"2", 0);
    assert_eq!(epochs.expected(&tag("a"), clock), Expected::Stale);
}

#[test]
fn a_miss_is_filled_once() {
    let leases = Leases::new();
    assert!(leases.is_idle(0));
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert!(!leases.is_idle(0));
    assert_eq!(clock(leases.fills(2, client(1), Fill::Whole, None, 1)), None);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), None, "a write without a miss");
    leases.expire(WINDOW);
    assert!(leases.is_idle(WINDOW));
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.give_back(&[(1, 7)], 7, 1, WINDOW);
    assert_eq!(
        leases.fills(1, client(2), Fill::Whole, None, 1).clock,
        Some(7),
        "a fill that nobody may have got an answer to"
    );
}

#[test]
fn a_miss_that_somebody_else_seems_to_have_filled_may_still_be_filled_by_a_key_that_gets_labels() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(2), Fill::Whole, None, 1)), Some(10));
    assert_eq!(leases.oldest(1, 1), Some(10));
    assert_eq!(leases.oldest(1, WINDOW), None);
    leases.missed(2, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.fills(2, client(1), Fill::Whole, None, 1)), Some(10));
    assert_eq!(leases.oldest(2, 1), None);
}

#[test]
fn a_miss_ends_with_its_window() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, WINDOW)), None);
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.expire(WINDOW);
    assert!(leases.is_empty());
}

#[test]
fn any_connection_of_a_pool_may_fill() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(2), 12, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(3), Fill::Whole, None, 1)), Some(10), "the oldest decides");
    assert_eq!(
        clock(leases.fills(1, client(3), Fill::Whole, None, 1)),
        Some(10),
        "and stays, for it may still be open"
    );
    assert_eq!(clock(leases.fills(1, client(3), Fill::Whole, None, 1)), None);
    // The writer may have missed nothing: then these are the fills.
    assert_eq!(clock(leases.fills(1, client(2), Fill::Whole, None, 1)), Some(12));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), None);
}

#[test]
fn the_miss_of_the_connection_itself_comes_first() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(2), 12, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(2), Fill::Whole, None, 1)), Some(12));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
}

/// Fills over connections without a miss, until that is known to be usual from that host.
fn give_away(leases: &Leases) {
    for key in 100..100 + u64::from(SHOWN) {
        leases.missed(key, client(1), 1, 0, WINDOW);
        assert_eq!(clock(leases.fills(key, client(2), Fill::Whole, None, 0)), Some(1));
    }
}

#[test]
fn the_oldest_of_several_misses_on_one_connection_decides() {
    // Looked up twice, or given up once: then filled.
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(1), 12, 0, WINDOW);
    leases.missed(1, client(1), 12, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    // That was the end of it.
    leases.missed(1, client(1), 14, 1, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(14));
    // A write without a miss: perhaps somebody shares the connection, and nothing was given up.
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    leases.missed(1, client(1), 15, 1, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(15));
    // If there are several of these, somebody does.
    for key in 2..=u64::from(SHOWN) {
        leases.missed(key, client(1), 10, 1, WINDOW);
        leases.missed(key, client(1), 12, 1, WINDOW);
        assert_eq!(clock(leases.fills(key, client(1), Fill::Whole, None, 1)), Some(10));
        assert_eq!(clock(leases.fills(key, client(1), Fill::Whole, None, 1)), Some(10));
    }
    leases.missed(100, client(1), 10, 1, WINDOW);
    leases.missed(100, client(1), 12, 1, WINDOW);
    assert_eq!(clock(leases.fills(100, client(1), Fill::Whole, None, 1)), Some(10));
}

#[test]
fn a_miss_that_another_fill_left_behind_may_be_filled_over_another_connection() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(1), 12, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    assert_eq!(clock(leases.fills(1, client(2), Fill::Whole, None, 1)), Some(10));
}

#[test]
fn what_was_missed_before_the_key_was_found_there_has_been_given_up() {
    let leases = Leases::new();
    let mut hits = Hits::default();
    leases.missed(1, client(1), 10, 0, WINDOW);
    hits.found(1, 10, 5);
    let found = hits.found_until(1, WINDOW);
    leases.missed(1, client(1), 12, 10, WINDOW);
    leases.missed(1, client(1), 14, 15, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, found, 20)), Some(12));
    // Without another look the miss decides all the same.
    leases.missed(2, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.fills(2, client(1), Fill::Whole, Some(5 + WINDOW), 20)), Some(10));
}

#[test]
fn what_may_only_read_closes_no_miss() {
    for shared in [false, true] {
        let leases = Leases::new();
        leases.missed(1, client(1), 10, 0, WINDOW);
        if shared {
            leases.assume_sharing(0);
        }
        let fills = |id, fill| clock(leases.fills(1, client(id), fill, None, 1));
        assert_eq!([1, 1, 2].map(|id| fills(id, Fill::Perhaps)), [Some(10); 3], "{shared}");
        assert_eq!(fills(2, Fill::Whole), Some(10), "{shared}");
        assert_eq!(fills(3, Fill::Perhaps), shared.then_some(10), "{shared}");
    }
    // Of a connection it is as young as its last look.
    let leases = Leases::new();
    [10, 12].into_iter().for_each(|clock| leases.missed(1, client(1), clock, 0, WINDOW));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Perhaps, None, 1)), Some(12));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
}

#[test]
fn a_fill_that_found_the_key_there_leaves_it_cacheable() {
    for shared in [false, true] {
        let leases = Leases::new();
        if shared {
            leases.assume_sharing(0);
        }
        let fills = |id| clock(leases.fills(1, client(id), Fill::Whole, None, 1));
        [1, 2].into_iter().for_each(|id| leases.missed(1, client(id), 10, 0, WINDOW));
        assert_eq!([1, 2].map(fills), [Some(10), Some(10)]);
        leases.outdone([1].into_iter(), client(2));
        leases.missed(1, client(3), 12, 1, WINDOW);
        assert_eq!(fills(3), Some(12), "{shared}");
        // Should it fill the key all the same, with what it has.
        assert!(fills(2).is_some_and(|clock| clock == 10 || shared), "{shared}");
    }
}

#[test]
fn where_tasks_share_connections_as_many_writes_without_a_miss_are_watched_as_misses_were_taken_out() {
    let leases = Leases::new();
    leases.assume_sharing(0);
    let fills = |id| clock(leases.fills(1, client(id), Fill::Whole, None, 1));
    for (id, at) in [(1, 10), (2, 12)] {
        leases.missed(1, client(id), at, 0, WINDOW);
        assert_eq!(fills(id), Some(at));
    }
    // One of these may have been taken out by somebody who had changed the database, and be filled yet; the others are new.
    assert_eq!([3, 4, 5].map(fills), [Some(10), Some(10), None]);
}

#[test]
fn however_often_somebody_writes_unread_an_own_miss_still_decides() {
    for leases in [Leases::new(), busy(7, 20)] {
        leases.assume_sharing(0);
        let fills = |id| clock(leases.fills(1, client(id), Fill::Whole, None, 1));
        leases.missed(1, client(1), 10, 0, WINDOW);
        assert_eq!([2, 2, 2, 1, 1].map(fills), [Some(10), Some(10), None, Some(10), None]);
    }
}

/// Two connections miss a key, each with a clock of its own; the clocks that decide when the second one fills first.
fn swapped(leases: &Leases, host: u64, now: Moment) -> [Clock; 2] {
    let [first, second] = [1, 2].map(|id| Client { id, host });
    leases.missed(1, first, 10, now, WINDOW);
    leases.missed(1, second, 12, now, WINDOW);
    [second, first].map(|client| clock(leases.fills(1, client, Fill::Whole, None, now)).unwrap_or_default())
}

/// A host with so many connections, and requests of several under way at once.
fn busy(host: u64, connections: usize) -> Leases {
    let leases = Leases::new();
    (0..connections).for_each(|_| leases.connected(host));
    assert!(leases.busy(host, 0), "to be told");
    leases
}

#[test]
fn where_requests_of_several_connections_are_under_way_at_once_an_own_miss_proves_nothing() {
    let leases = busy(7, 20);
    assert!(!leases.busy(7, 1), "once in a while");
    assert!(leases.busy(7, MEMORY));
    assert_eq!(swapped(&leases, 7, 0), [10, 10]);
    assert_eq!(swapped(&leases, 8, 0), [12, 10], "another host");
    // What is only presumed concerns nobody else, and no fill of this proxy's own misses after a crash.
    assert!(!leases.knows_sharing(0));
    leases.missed(2, client(1), 10, 0, WINDOW);
    assert_eq!(both(leases.fills(2, client(1), Fill::Whole, None, 0)), (Some(10), true));
    // A quiet time does not change it.
    let later = 4 * MEMORY;
    leases.expire(later);
    assert_eq!(swapped(&leases, 7, later), [10, 10]);
    // It is forgotten when the connections are gone.
    (0..20).for_each(|_| leases.disconnected(7));
    leases.expire(later);
    assert_eq!(swapped(&leases, 7, later), [12, 10]);
}

#[test]
fn who_always_fills_over_its_own_connection_shares_it_with_nobody() {
    // Each fills what it has missed, or one for all.
    for fillers in [2, 1] {
        let leases = busy(7, 20);
        for key in 100..100 + u64::from(PROOF) {
            leases.missed(key, client(1), 1, 0, WINDOW);
            leases.missed(key, client(2), 1, 0, WINDOW);
            for id in 1..=fillers {
                leases.fills(key, client(id), Fill::Whole, None, 0);
            }
        }
        assert_eq!(swapped(&leases, 7, 0), [12, 10], "{fillers}");
        // As long as there are fills it need not be shown again every minute.
        for minute in 1..5 {
            leases.busy(7, minute * MEMORY);
            assert_eq!(swapped(&leases, 7, minute * MEMORY), [12, 10], "{fillers}, {minute}");
        }
        let later = 100 * MEMORY;
        leases.busy(7, later);
        assert_eq!(swapped(&leases, 7, later), [10, 10], "but after hours");
    }
}

#[test]
fn one_fill_over_a_foreign_connection_weighs_as_much_as_many_others() {
    let leases = busy(7, 20);
    leases.missed(99, client(1), 1, 0, WINDOW);
    assert_eq!(clock(leases.fills(99, client(3), Fill::Whole, None, 0)), Some(1));
    for key in 100..100 + u64::from(PROOF) {
        leases.missed(key, client(1), 1, 0, WINDOW);
        leases.missed(key, client(2), 1, 0, WINDOW);
        leases.fills(key, client(1), Fill::Whole, None, 0);
    }
    assert_eq!(swapped(&leases, 7, 0), [10, 10]);
    // Time alone proves nothing.
    for minute in 1..5 {
        leases.busy(7, minute * MEMORY);
        assert_eq!(swapped(&leases, 7, minute * MEMORY), [10, 10], "{minute}");
    }
}

#[test]
fn where_all_connections_have_missed_a_key_an_own_miss_proves_nothing() {
    // One of many computes, whichever connection it then gets.
    let leases = busy(7, 7);
    for key in 100..100 + u64::from(2 * PROOF) {
        leases.missed(key, client(1), 1, 0, WINDOW);
        leases.missed(key, client(2), 1, 0, WINDOW);
        leases.fills(key, client(1), Fill::Whole, None, 0);
    }
    assert_eq!(swapped(&leases, 7, 0), [10, 10]);
}

#[test]
fn where_tasks_share_a_connection_its_misses_are_a_bag() {
    let leases = Leases::new();
    give_away(&leases);
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(1), 12, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    // One of these may have been somebody's who had missed nothing.
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    assert_eq!(clock(leases.fills(1, client(9), Fill::Whole, None, WINDOW)), None);
}

#[test]
fn where_tasks_share_connections_an_own_miss_proves_nothing() {
    let leases = Leases::new();
    give_away(&leases);
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(2), 12, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(2), Fill::Whole, None, 1)), Some(10));
    // Elsewhere it does.
    let far = Client { id: 9, host: 8 };
    leases.missed(1, far, 13, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, far, Fill::Whole, None, 1)), Some(13));
    // And here again when nothing of the kind has been seen for long, and its connections are gone.
    assert_eq!(swapped(&leases, 7, 2 * MEMORY), [12, 10]);
}

#[test]
fn that_tasks_share_connections_is_not_forgotten_while_they_are_quiet() {
    let leases = Leases::new();
    leases.connected(7);
    give_away(&leases);
    for hours in 1..9 {
        let later = hours * 60 * MEMORY;
        leases.expire(later);
        assert_eq!(swapped(&leases, 7, later), [10, 10], "after {hours} hours");
    }
    // Many fills, each over the connection that has missed the key, say that it has changed.
    let later = 10 * 60 * MEMORY;
    (0..100).for_each(|_| leases.connected(7));
    for key in 1000..1400 {
        [1, 2].into_iter().for_each(|id| leases.missed(key, client(id), 1, later, WINDOW));
        for id in [1, 2] {
            leases.fills(key, client(id), Fill::Whole, None, later);
        }
    }
    assert_eq!(swapped(&leases, 7, later), [12, 10]);
}

#[test]
fn a_write_from_elsewhere_may_be_no_fill() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    let far = Client { id: 9, host: 8 };
    assert_eq!(both(leases.fills(1, far, Fill::Whole, None, 1)), (Some(10), false));
    assert_eq!(both(leases.fills(1, client(1), Fill::Whole, None, 1)), (Some(10), true));
    assert_eq!(both(leases.fills(1, client(1), Fill::Whole, None, 1)), (None, false));
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.suspect(100);
    assert_eq!(both(leases.fills(1, far, Fill::Whole, None, 1)), (Some(BEFORE_ALL), false));
}

#[test]
fn a_fill_in_parts_has_one_miss() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Part, None, 1)), Some(10));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Part, None, 1)), Some(10));
    assert_eq!(clock(leases.fills(1, client(2), Fill::Part, None, 1)), None, "somebody else's write");
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), None, "a write without a miss");
    // A new miss is a new fill.
    leases.missed(1, client(1), 12, 2, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Part, None, 3)), Some(12));
    assert_eq!(clock(leases.fills(1, client(1), Fill::Part, None, 3)), Some(12));
}

#[test]
fn lost_misses_make_every_write_suspect() {
    let leases = Leases::new();
    leases.suspect(100);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 99)), Some(BEFORE_ALL));
    leases.missed(1, client(1), 10, 99, WINDOW);
    assert_eq!(
        clock(leases.fills(1, client(1), Fill::Whole, None, 99)),
        Some(10),
        "this one's miss is known"
    );
    assert_eq!(clock(leases.fills(3, client(1), Fill::Whole, None, 100)), None);
    for key in 0..=MOST_KEYS as u64 {
        leases.missed(key, client(1), 10, 200, WINDOW);
    }
    assert!(leases.len() < 10);
    assert_eq!(clock(leases.fills(77, client(1), Fill::Whole, None, 200)), Some(BEFORE_ALL));
}

#[test]
fn a_key_that_is_missed_all_the_time_takes_bounded_memory() {
    let leases = Leases::new();
    for n in 0..10_000 {
        leases.missed(1, client(n % 100), n, 0, WINDOW);
    }
    assert!(leases.open.get(&1).is_some_and(|open| open.misses.len() == MOST_MISSES));
    give_away(&leases);
    for _ in 0..9_999 {
        assert!(clock(leases.fills(1, client(500), Fill::Whole, None, 1)).is_some_and(|clock| clock < 100));
    }
    assert!(clock(leases.fills(1, client(500), Fill::Whole, None, 1)).is_some(), "none is forgotten");
}

/// Whatever the order: a fill whose miss is older than some clock is never taken for a younger one, if the clients
/// share connections in a way that gives them away.
#[test]
fn the_bag_is_never_younger_than_what_is_open() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..2000 {
        let leases = Leases::new();
        let mut open: Vec<Clock> = vec![];
        for clock in 1..40 {
            let any = Client { id: random.u64(1..4), host: 7 };
            if open.is_empty() || random.bool() {
                leases.missed(1, any, clock, 0, WINDOW);
                open.push(clock);
            } else {
                let truth = open.swap_remove(random.usize(..open.len()));
                // Always over a connection without a miss: what pools may do.
                let taken = leases.fills(1, client(50), Fill::Whole, None, 0).clock;
                assert!(taken.is_some_and(|taken| taken <= truth), "seed {seed}: {taken:?} for {truth}");
            }
        }
    }
}

#[test]
fn a_miss_whose_time_is_over_stands_for_a_younger_one_no_more() {
    let leases = Leases::new();
    leases.assume_sharing(0);
    let fills = |id, now| clock(leases.fills(1, client(id), Fill::Whole, None, now));
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(2), 10, 1800, WINDOW);
    assert_eq!(fills(1, 1800), Some(10));
    leases.missed(1, client(1), 10, 3600, WINDOW);
    assert_eq!(fills(2, 3600), Some(10));
    // The last one is still to be filled.
    leases.missed(1, client(2), 12, 5200, WINDOW);
    assert_eq!(fills(1, 5200), Some(10));
    assert_eq!(fills(2, 5200), Some(10));
    // With as many fills as misses nothing is open.
    leases.missed(1, client(3), 14, 5300, WINDOW);
    assert_eq!(fills(3, 5300), Some(14));
}

#[test]
fn where_many_have_missed_a_key_a_fresh_miss_stays_fresh() {
    let leases = busy(7, 40);
    for round in 1..5 {
        (0..40).for_each(|id| leases.missed(1, client(id + 1), round, 0, WINDOW));
        for id in 0..40 {
            assert_eq!(clock(leases.fills(1, client(id + 1), Fill::Whole, None, 1)), Some(round));
        }
    }
    // If none can be forgotten, the oldest are told apart no more.
    let leases = busy(7, 40);
    (1..=40).for_each(|clock| leases.missed(1, client(clock), clock, 0, WINDOW));
    for taken in [1; 40] {
        assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(taken));
    }
    leases.missed(1, client(1), 41, 1, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(41));
}

#[test]
fn misses_of_unlabelled_keys_are_remembered_roughly() {
    let leases = Leases::new();
    assert_eq!(leases.filled_unlabelled(5, 0), None);
    leases.missed_unlabelled(5, 10, 0, WINDOW);
    leases.missed_unlabelled(5, 12, 1, WINDOW);
    assert_eq!(leases.filled_unlabelled(5, 2), Some(10));
    assert_eq!(leases.filled_unlabelled(5, 1 + WINDOW), None);
    leases.missed_unlabelled(5, 14, 1 + WINDOW, WINDOW);
    assert_eq!(leases.filled_unlabelled(5, 2 + WINDOW), Some(14));
    leases.missed_unlabelled(5, 13, 1 + WINDOW, WINDOW);
    assert_eq!(
        leases.filled_unlabelled(5, 2 + WINDOW),
        Some(13),
        "another thread was quicker with a younger one"
    );
}

#[test]
fn who_is_told_that_tasks_share_connections_believes_no_own_miss_after_a_crash() {
    let leases = Leases::new();
    leases.suspect(WINDOW);
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(both(leases.fills(1, client(1), Fill::Whole, None, 1)), (Some(10), true));
    leases.assume_sharing(1);
    assert!(leases.knows_sharing(1) && !leases.knows_sharing(WINDOW + 2 * MEMORY));
    leases.missed(1, client(1), 10, 1, WINDOW);
    assert_eq!(both(leases.fills(1, client(1), Fill::Whole, None, 2)), (Some(BEFORE_ALL), false));
}

#[test]
fn where_tasks_share_connections_the_parts_of_a_fill_take_one_miss_together() {
    let leases = Leases::new();
    leases.assume_sharing(0);
    let fills = |id, fill| clock(leases.fills(1, client(id), fill, None, 1));
    // Two have missed; one fills in two parts, so the other's miss is still open.
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(2), 10, 0, WINDOW);
    assert_eq!([fills(1, Fill::Part), fills(1, Fill::Part)], [Some(10), Some(10)]);
    leases.missed(1, client(3), 20, 1, WINDOW);
    assert_eq!(fills(2, Fill::Whole), Some(10));
    // Another miss does not make the rest of a fill younger.
    leases.missed(2, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.fills(2, client(1), Fill::Part, None, 1)), Some(10));
    leases.missed(2, client(2), 20, 1, WINDOW);
    assert_eq!(clock(leases.fills(2, client(1), Fill::Part, None, 1)), Some(10));
    // Unless it is some time ago: then it is the fill of that one.
    assert_eq!(clock(leases.fills(2, client(1), Fill::Part, None, 1 + PAUSE)), Some(20));
    assert_eq!(clock(leases.fills(2, client(1), Fill::Part, None, 1 + 3 * PAUSE)), Some(20));
}

#[test]
fn where_tasks_share_connections_parts_of_several_fills_may_be_mixed() {
    // The fill of one task begins over a connection; another task misses the key and fills it, and the first one goes on, over
    // the same connection or the other one's.
    for (second, third) in [(1, 1), (2, 2), (2, 1)] {
        let leases = Leases::new();
        leases.assume_sharing(0);
        let part = |id, now| clock(leases.fills(1, client(id), Fill::Part, None, now));
        leases.missed(1, client(1), 10, 0, WINDOW);
        assert_eq!(part(1, 1), Some(10));
        leases.missed(1, client(second), 12, 1, WINDOW);
        assert_eq!(part(second, 1), Some(10), "it may be the rest of the first one");
        assert_eq!(part(third, 2), Some(10), "over {second} and {third}");
        // Soon it is not any more.
        leases.missed(1, client(3), 14, 2, WINDOW);
        assert!(part(3, 2 + TOGETHER).is_some_and(|clock| clock >= 12), "over {second} and {third}");
    }
}

#[test]
fn who_deletes_a_key_first_fills_it_anew_in_parts() {
    let leases = Leases::new();
    leases.assume_sharing(0);
    let part = |id| clock(leases.fills(1, client(id), Fill::Part, None, 1));
    // Each task clears the key and fills it, all over one connection: as many fills as misses.
    (0..3).for_each(|_| leases.missed(1, client(1), 10, 0, WINDOW));
    for _ in 0..3 {
        leases.cleared(1, client(1));
        assert_eq!([1, 1].map(part), [Some(10), Some(10)]);
    }
    leases.missed(1, client(2), 12, 1, WINDOW);
    assert_eq!(clock(leases.fills(1, client(2), Fill::Whole, None, 1)), Some(12));
    // The rest of what another task had begun before is as old as it was.
    leases.missed(2, client(1), 10, 0, WINDOW);
    let part = || clock(leases.fills(2, client(1), Fill::Part, None, 1));
    assert_eq!(part(), Some(10));
    leases.missed(2, client(1), 12, 0, WINDOW);
    leases.cleared(2, client(1));
    assert_eq!([part(), part()], [Some(10), Some(10)]);
}

#[test]
fn labels_behind_a_fill_are_compared_with_its_miss_and_close_none() {
    let leases = Leases::new();
    assert_eq!(leases.labelled(1, client(1), false, 0), None);
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.fills(1, client(1), Fill::Whole, None, 1)), Some(10));
    assert_eq!([1, 1].map(|key| leases.labelled(key, client(1), false, 2)), [Some(10), Some(10)]);
    // What another one has filled since is what the key has.
    leases.missed(1, client(2), 20, 2, WINDOW);
    leases.fills(1, client(2), Fill::Whole, None, 2);
    assert_eq!([1, 2].map(|id| leases.labelled(1, client(id), false, 3)), [Some(20), Some(20)]);
    assert_eq!([1, 2].map(|id| leases.labelled(1, client(id), true, 3)), [Some(BEFORE_ALL), Some(20)]);
    assert_eq!(leases.labelled(1, client(2), false, 2 + WINDOW), None);
    // Of a key that nobody is known to have filled, it is the fill.
    leases.missed(3, client(1), 10, 0, WINDOW);
    assert_eq!([3, 3].map(|key| leases.labelled(key, client(1), false, 1)), [Some(10), Some(10)]);
    assert_eq!(clock(leases.fills(3, client(1), Fill::Whole, None, 1)), None);
}

#[test]
fn where_fills_are_watched_for_a_short_time_shorter_stops_are_noticed() {
    assert_eq!([0, 60_000, 1500, 600, 60].map(pulse), [250, 250, 250, 100, 25]);
    let leases = Leases::new();
    assert!(leases.stood_still(301, 600) && !leases.stood_still(300, 600));
    assert!(leases.stood_still(2501, 5000) && !leases.stood_still(2500, 5000));
}

#[test]
fn a_process_that_stood_still_suspects_fills_once() {
    let leases = Leases::new();
    leases.runs(0, WINDOW, WINDOW);
    leases.runs(WINDOW / 2, WINDOW, WINDOW);
    assert!(!leases.is_suspect(WINDOW / 2) && !leases.stood_still(WINDOW, WINDOW));
    assert!(leases.stood_still(WINDOW + 1, WINDOW) && !leases.stood_still(WINDOW + 1, 0));
    leases.runs(WINDOW + 1, WINDOW, WINDOW);
    assert!(leases.is_suspect(2 * WINDOW) && !leases.is_suspect(2 * WINDOW + 1));
    assert!(!leases.stood_still(WINDOW + 2, WINDOW));
}
