//! Writes of somebody who has missed nothing, over a connection that has been told of an invalidation of the key.

use super::*;

fn through(leases: &Leases, key: KeyHash, id: u64) -> Option<Clock> {
    let write = Write { client: client(id), fill: Fill::Whole, found: None, along: Along::No, now: 1 };
    clock(leases.filled(key, write, || true))
}

fn fills(leases: &Leases, id: u64) -> Option<Clock> {
    clock(leases.fills(1, client(id), Fill::Whole, None, 1))
}

#[test]
fn they_do_not_show_that_tasks_share_connections() {
    let leases = Leases::new();
    for key in 100..100 + u64::from(4 * SHOWN) {
        leases.missed(key, client(1), 1, 0, WINDOW);
        assert_eq!(through(&leases, key, 2), Some(1), "it may be a fill all the same");
    }
    assert_eq!(swapped(&leases, 7, 0), [12, 10]);
}

#[test]
fn nor_do_writes_that_go_along_with_another_key() {
    let leases = Leases::new();
    for key in 100..100 + u64::from(4 * SHOWN) {
        leases.missed(key, client(1), 1, 0, WINDOW);
        let write = Write { client: client(2), fill: Fill::Whole, found: None, along: Along::Yes, now: 1 };
        assert_eq!(clock(leases.filled(key, write, || false)), Some(1), "it may be a fill all the same");
    }
    assert!(!leases.knows_sharing(1));
}

#[test]
fn if_they_do_so_only_perhaps_it_is_to_be_seen_whether_they_do() {
    let leases = Leases::new();
    for key in 100..100 + u64::from(SHOWN) {
        leases.missed(key, client(1), 1, 0, WINDOW);
        let write =
            Write { client: client(2), fill: Fill::Whole, found: None, along: Along::Perhaps, now: 1 };
        assert!(leases.filled(key, write, || false).is_ahead);
        assert!(!leases.knows_sharing(1));
        leases.went_alone(7, 1, 1);
    }
    assert!(leases.knows_sharing(1));
    leases.missed(1, client(2), 1, 0, WINDOW);
    let write = Write { client: client(2), fill: Fill::Whole, found: None, along: Along::Perhaps, now: 1 };
    assert!(!leases.filled(1, write, || false).is_ahead, "it has missed that itself");
}

#[test]
fn second_fills_of_a_key_that_the_connection_has_missed_twice_show_it_all_the_same() {
    let leases = Leases::new();
    for key in 100..100 + u64::from(SHOWN) {
        assert!(!leases.knows_sharing(1));
        [10, 12].into_iter().for_each(|clock| leases.missed(key, client(1), clock, 0, WINDOW));
        assert_eq!([1, 1].map(|id| through(&leases, key, id)), [Some(10), Some(10)]);
    }
    assert!(leases.knows_sharing(1));
}

#[test]
fn they_fill_no_miss_where_it_is_only_presumed_that_tasks_share_connections() {
    let leases = busy(7, 20);
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(through(&leases, 1, 2), Some(10));
    [3, 4].into_iter().for_each(|id| leases.missed(1, client(id), 12, 1, WINDOW));
    assert_eq!([3, 1].map(|id| fills(&leases, id)), [Some(10), Some(10)]);
    // Then all that were open before have been filled.
    assert_eq!(fills(&leases, 4), Some(10));
    leases.missed(1, client(5), 14, 1, WINDOW);
    assert_eq!(fills(&leases, 5), Some(14));
}

#[test]
fn whose_connection_has_missed_the_key_itself_fills_it() {
    for leases in [Leases::new(), busy(7, 20)] {
        leases.missed(1, client(1), 10, 0, WINDOW);
        assert_eq!(through(&leases, 1, 1), Some(10));
        leases.missed(1, client(2), 12, 1, WINDOW);
        assert_eq!(fills(&leases, 2), Some(12));
    }
}

#[test]
fn where_tasks_do_share_connections_it_may_be_the_fill_of_another_one() {
    let leases = Leases::new();
    leases.assume_sharing(0);
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(through(&leases, 1, 2), Some(10));
    // So the key can be cached again at once.
    leases.missed(1, client(3), 12, 1, WINDOW);
    assert_eq!(fills(&leases, 3), Some(12));
}
