//! Fills in parts over another connection than the one that had missed the key.

use super::*;

fn part(leases: &Leases, id: u64, now: Moment) -> Option<Clock> {
    clock(leases.fills(1, client(id), Fill::Part, None, now))
}

#[test]
fn the_next_miss_of_the_same_connection_ends_it() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!([1, 2].map(|now| part(&leases, 2, now)), [Some(10), Some(10)]);
    leases.missed(1, client(1), 12, 3, WINDOW);
    assert_eq!([4, 5].map(|now| part(&leases, 2, now)), [Some(12), Some(12)]);
}

#[test]
fn a_second_look_before_it_began_does_not() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    leases.missed(1, client(1), 12, 1, WINDOW);
    leases.missed(1, client(1), 12, 1, WINDOW);
    assert_eq!([2, 3, 3 + 2 * PAUSE].map(|now| part(&leases, 2, now)), [Some(10); 3]);
}

#[test]
fn a_miss_of_a_third_connection_does_after_a_while() {
    let leases = Leases::new();
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(part(&leases, 2, 1), Some(10));
    leases.missed(1, client(3), 12, 2, WINDOW);
    assert_eq!([3, 3 + PAUSE].map(|now| part(&leases, 2, now)), [Some(10), Some(12)]);
    // Who goes on with what it had missed itself takes nobody's.
    let leases = Leases::new();
    leases.missed(1, client(2), 10, 0, WINDOW);
    assert_eq!(part(&leases, 2, 1), Some(10));
    leases.missed(1, client(3), 12, 2, WINDOW);
    assert_eq!([3, 3 + PAUSE].map(|now| part(&leases, 2, now)), [Some(10), Some(10)]);
}

#[test]
fn where_tasks_share_connections_it_may_be_the_rest_for_a_moment() {
    let leases = Leases::new();
    leases.assume_sharing(0);
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(part(&leases, 2, 1), Some(10));
    leases.missed(1, client(1), 12, 2, WINDOW);
    assert_eq!(part(&leases, 2, 3), Some(10));
    leases.missed(1, client(1), 14, 3 + TOGETHER, WINDOW);
    assert_eq!(part(&leases, 2, 4 + TOGETHER), Some(14));
    // Where that is only presumed, it is the rest for longer.
    let leases = busy(7, 20);
    leases.missed(1, client(1), 10, 0, WINDOW);
    assert_eq!(part(&leases, 2, 1), Some(10));
    leases.missed(1, client(1), 12, 2, WINDOW);
    assert_eq!([2 + TOGETHER, 2 + TOGETHER + PAUSE].map(|now| part(&leases, 2, now)), [Some(10), Some(12)]);
}
