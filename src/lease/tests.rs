use super::*;
use crate::rules::Tag;

const WINDOW: Moment = 5000;

fn client(id: u64) -> Client {
    Client { id, host: 7 }
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
    assert_eq!(clock(leases.filled(2, client(1), Fill::Whole, 1)), None);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(10));
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), None, "a write without a miss");
    leases.expire(1);
    assert!(leases.is_idle(1));
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.give_back(&[(1, 7)], 7, 1, WINDOW);
    assert_eq!(
        leases.filled(1, client(2), Fill::Whole, 1).clock,
        Some(7),
        "a fill that nobody may have got an answer to"
    );
}

#[test]
fn a_miss_ends_with_its_window() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, WINDOW)), None);
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.expire(WINDOW);
    assert!(leases.is_empty());
}

#[test]
fn any_connection_of_a_pool_may_fill() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(2), 12, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, client(3), Fill::Whole, 1)), Some(10), "the oldest decides");
    assert_eq!(
        clock(leases.filled(1, client(3), Fill::Whole, 1)),
        Some(10),
        "and stays, for it may still be open"
    );
    assert_eq!(clock(leases.filled(1, client(3), Fill::Whole, 1)), None);
    // The writer may have missed nothing: then these are the fills.
    assert_eq!(clock(leases.filled(1, client(2), Fill::Whole, 1)), Some(12));
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(10));
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), None);
}

#[test]
fn the_miss_of_the_connection_itself_comes_first() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(2), 12, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, client(2), Fill::Whole, 1)), Some(12));
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(10));
}

/// Fills over connections without a miss, until that is known to be usual from that host.
fn give_away(leases: &Leases) {
    for key in 100..100 + u64::from(SHARING) {
        leases.missed(key, client(1), 1, 0, WINDOW);
        assert_eq!(clock(leases.filled(key, client(2), Fill::Whole, 0)), Some(1));
    }
}

#[test]
fn the_latest_of_several_misses_on_one_connection_decides() {
    // Looked up twice, or given up once: then filled.
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(1), 12, 0, WINDOW);
    leases.missed(1, client(1), 12, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(12));
    leases.missed(1, client(1), 14, 1, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(14));
    // A write without a miss: perhaps somebody shares the connection, and nothing was given up.
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(10));
    leases.missed(1, client(1), 15, 1, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(15));
    // If there are several of these, somebody does.
    for key in 2..=u64::from(SHARING) {
        leases.missed(key, client(1), 10, 1, WINDOW);
        leases.missed(key, client(1), 12, 1, WINDOW);
        assert_eq!(clock(leases.filled(key, client(1), Fill::Whole, 1)), Some(12));
        assert_eq!(clock(leases.filled(key, client(1), Fill::Whole, 1)), Some(10));
    }
    leases.missed(100, client(1), 10, 1, WINDOW);
    leases.missed(100, client(1), 12, 1, WINDOW);
    assert_eq!(clock(leases.filled(100, client(1), Fill::Whole, 1)), Some(10));
}

#[test]
fn a_miss_that_another_fill_left_behind_may_be_filled_over_another_connection() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(1), 12, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(12));
    assert_eq!(clock(leases.filled(1, client(2), Fill::Whole, 1)), Some(10));
}

#[test]
fn where_requests_of_several_connections_are_under_way_at_once_an_own_miss_proves_nothing() {
    let leases = Leases::new();
    assert!(leases.busy(7, 0), "to be told");
    assert!(!leases.busy(7, 1), "once in a while");
    assert!(leases.busy(7, SHARING_MEMORY) && leases.knows_sharing(SHARING_MEMORY));
    let miss_both = |now| {
        leases.missed(1, client(1), 10, now, WINDOW);
        leases.missed(1, client(2), 12, now, WINDOW);
    };
    let fill_both =
        |now| [2, 1].map(|id| clock(leases.filled(1, client(id), Fill::Whole, now)).unwrap_or_default());
    miss_both(0);
    assert_eq!(fill_both(0), [10, 10]);
    // Until it shows that each keeps to its connection.
    let proof = u64::from(PROOF);
    for key in 0..=proof {
        leases.missed(2 + key, client(1), 1, 0, WINDOW);
        leases.missed(2 + key, client(2), 1, 0, WINDOW);
        leases.filled(2 + key, client(1), Fill::Whole, 0);
    }
    miss_both(0);
    assert_eq!(fill_both(0), [12, 10]);
    leases.assume_sharing(0);
    miss_both(0);
    assert_eq!(fill_both(0), [12, 10], "who says so from afar knows less");
    let later = SHARING_MEMORY;
    miss_both(later);
    assert_eq!(fill_both(later), [12, 10], "it need not be shown again every minute");
    // One fill of a key that it had not missed weighs as much as many others.
    leases.missed(1, client(1), 10, later, WINDOW);
    assert_eq!(clock(leases.filled(1, client(3), Fill::Whole, later)), Some(10));
    miss_both(later);
    assert_eq!(fill_both(later), [10, 10]);
    // Who is alone with its keys has proven nothing.
    assert!(leases.busy(8, 0));
    let other = |id| Client { id, host: 8 };
    for key in 0..=proof {
        leases.missed(10_000 + key, other(1), 1, 0, WINDOW);
        leases.filled(10_000 + key, other(1), Fill::Whole, 0);
    }
    leases.missed(1, other(1), 10, 0, WINDOW);
    leases.missed(1, other(2), 12, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, other(2), Fill::Whole, 0)), Some(10));
    // It is forgotten when it has not happened for long.
    let later = 4 * SHARING_MEMORY;
    leases.expire(later);
    assert!(!leases.knows_sharing(later));
    miss_both(later);
    assert_eq!(fill_both(later), [12, 10]);
}

#[test]
fn where_tasks_share_a_connection_its_misses_are_a_bag() {
    let leases = Leases::new();
    give_away(&leases);
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(1), 12, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(10));
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(10));
    // One of these may have been somebody's who had missed nothing.
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), Some(10));
    assert_eq!(clock(leases.filled(1, client(9), Fill::Whole, WINDOW)), None);
}

#[test]
fn where_tasks_share_connections_an_own_miss_proves_nothing() {
    let leases = Leases::new();
    give_away(&leases);
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(2), 12, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, client(2), Fill::Whole, 1)), Some(10));
    // Elsewhere it does.
    let far = Client { id: 9, host: 8 };
    leases.missed(1, far, 13, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, far, Fill::Whole, 1)), Some(13));
    // And here again when nothing of the kind has been seen for long.
    let later = 2 * SHARING_MEMORY;
    leases.missed(1, client(1), 10, later, WINDOW);
    leases.missed(1, client(2), 12, later, WINDOW);
    assert_eq!(clock(leases.filled(1, client(2), Fill::Whole, later)), Some(12));
}

#[test]
fn a_write_from_elsewhere_may_be_no_fill() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    let far = Client { id: 9, host: 8 };
    assert_eq!(both(leases.filled(1, far, Fill::Whole, 1)), (Some(10), false));
    assert_eq!(both(leases.filled(1, client(1), Fill::Whole, 1)), (Some(10), true));
    assert_eq!(both(leases.filled(1, client(1), Fill::Whole, 1)), (None, false));
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.suspect(100);
    assert_eq!(both(leases.filled(1, far, Fill::Whole, 1)), (Some(BEFORE_ALL), false));
}

#[test]
fn a_fill_in_parts_has_one_miss() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Part, 1)), Some(10));
    assert_eq!(clock(leases.filled(1, client(1), Fill::Part, 1)), Some(10));
    assert_eq!(clock(leases.filled(1, client(2), Fill::Part, 1)), None, "somebody else's write");
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 1)), None, "a write without a miss");
    // A new miss is a new fill.
    leases.missed(1, client(1), 12, 2, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Part, 3)), Some(12));
    assert_eq!(clock(leases.filled(1, client(1), Fill::Part, 3)), Some(12));
}

#[test]
fn lost_misses_make_every_write_suspect() {
    let leases = Leases::new();
    leases.suspect(100);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 99)), Some(BEFORE_ALL));
    leases.missed(1, client(1), 10, 99, WINDOW);
    assert_eq!(clock(leases.filled(1, client(1), Fill::Whole, 99)), Some(10), "this one's miss is known");
    assert_eq!(clock(leases.filled(3, client(1), Fill::Whole, 100)), None);
    for key in 0..=MOST_KEYS as u64 {
        leases.missed(key, client(1), 10, 200, WINDOW);
    }
    assert!(leases.len() < 10);
    assert_eq!(clock(leases.filled(77, client(1), Fill::Whole, 200)), Some(BEFORE_ALL));
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
        assert!(clock(leases.filled(1, client(500), Fill::Whole, 1)).is_some_and(|clock| clock < 100));
    }
    assert!(clock(leases.filled(1, client(500), Fill::Whole, 1)).is_some(), "none is forgotten");
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
                let taken = leases.filled(1, client(50), Fill::Whole, 0).clock;
                assert!(taken.is_some_and(|taken| taken <= truth), "seed {seed}: {taken:?} for {truth}");
            }
        }
    }
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
}

#[test]
fn who_is_told_that_tasks_share_connections_believes_no_own_miss_after_a_crash() {
    let leases = Leases::new();
    leases.suspect(WINDOW);
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(both(leases.filled(1, client(1), Fill::Whole, 1)), (Some(10), true));
    leases.assume_sharing(1);
    assert!(leases.knows_sharing(1) && !leases.knows_sharing(WINDOW + 2 * SHARING_MEMORY));
    leases.missed(1, client(1), 10, 1, WINDOW);
    assert_eq!(both(leases.filled(1, client(1), Fill::Whole, 2)), (Some(BEFORE_ALL), false));
}
