//! From records to bytes to a state, through every kind of damage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::decode::{Unreadable, decode};
use super::*;

const MARK: u64 = 0x0123_4567_89ab_cdef;
const NOW: Now = Now { steady: 1_000_000, wall: 1_700_000_000_000 };
const HOUR: Duration = Duration::from_secs(3600);

fn tag(text: &str) -> Tag {
    text.as_bytes().into()
}

fn intent(id: u64, scope: Scope) -> Intent {
    Intent { id: IntentId(id), scope, what: format!("SET {id}"), unix_ms: NOW.wall - 1000 }
}

fn done(id: u64) -> Record {
    Record::Done { id: IntentId(id), unix_ms: NOW.wall - 500 }
}

/// The bytes of a file, and where each record ends.
fn file(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = vec![];
    record::header(MARK, "up", &mut bytes);
    let end = |record| {
        record::append(record, MARK, &mut bytes);
        bytes.len()
    };
    let ends = records.iter().map(end).collect();
    (bytes, ends)
}

/// What is pending according to some records, by the text that says what it was.
fn pending_of(records: &[Record]) -> BTreeMap<String, Scope> {
    let mut open: BTreeMap<IntentId, &Intent> = BTreeMap::new();
    for record in records {
        match record {
            Record::Intent(intent) => drop(open.insert(intent.id, intent)),
            Record::Done { id, .. } => drop(open.remove(id)),
            _ => {}
        }
    }
    open.into_values().map(|intent| (intent.what.clone(), intent.scope.clone())).collect()
}

#[test]
fn what_others_have_invalidated_is_recent_and_not_written() {
    let mut state = State::new(HOUR);
    let later = |ms: i64| Now { steady: NOW.steady + ms, ..NOW };
    state.heard(&Scope::Tags(vec![tag("a")]), 0, NOW);
    assert_eq!(state.recent(NOW), Scope::Tags(vec![tag("a")]));
    assert!(state.has_heard(NOW) && !state.has_missed(NOW));
    state.heard(&Scope::Everything, 3_000_000, NOW);
    assert_eq!(state.recent(NOW), Scope::Everything);
    assert!(state.has_missed(NOW) && !state.has_missed(later(600_001)));
    assert!(state.has_heard(later(3_600_000)) && !state.has_heard(later(3_600_001)));
    assert_eq!(state.recent(later(600_001)), Scope::Tags(vec![tag("a")]), "everything was before");
    let (_, mut next) = taken_over(&state.snapshot(MARK, "up", NOW)).unwrap();
    assert!(next.recent(NOW).is_empty());
    let many = (0..=super::super::recent::MOST_TAGS).map(|n| tag(&n.to_string())).collect();
    state.heard(&Scope::Tags(many), 0, NOW);
    assert_eq!(state.recent(later(600_001)), Scope::Everything, "too many to be told apart");
}

#[test]
fn what_another_upstream_had_later_is_begun_here_as_well() {
    let ago = |ms: u64| NOW.wall - ms;
    let recent = |name: &str, ms| Record::Recent { scope: Scope::Tags(vec![tag(name)]), unix_ms: ago(ms) };
    let begun = |id, name: &str, ms| {
        let scope = Scope::Tags(vec![tag(name)]);
        Record::Intent(Intent { id: IntentId(id), scope, what: String::new(), unix_ms: ago(ms) })
    };
    let records = [
        recent("early", 9000),
        begun(1, "begun early", 8000),
        begun(2, "done", 7000),
        recent("late", 3000),
        Record::Done { id: IntentId(2), unix_ms: ago(2000) },
        begun(3, "begun late", 1000),
    ];
    let other = || decode(&file(&records).0).unwrap();
    let overheard = |own: &[Record]| {
        let mut state = State::new(HOUR);
        state.take_over(decode(&file(own).0).unwrap(), NOW);
        let is_news = state.overhear(other(), NOW);
        let scopes: Vec<_> = state.pending().map(|intent| intent.scope.clone()).collect();
        assert_eq!(is_news, !scopes.is_empty());
        let mut names = match scopes.into_iter().next() {
            Some(Scope::Tags(tags)) => tags,
            scope => return assert_eq!(scope, None),
        };
        names.sort_unstable();
        let expected = ["begun early", "begun late", "done", "early", "late"].map(tag);
        match own {
            [] => assert_eq!(names, expected),
            _ => assert_eq!(names, ["begun late", "done", "late"].map(tag)),
        }
    };
    overheard(&[]);
    overheard(&[recent("early", 5000)]);
    overheard(&[recent("early", 500)]);
    let mut state = State::new(Duration::from_millis(500));
    assert!(!state.overhear(other(), NOW), "too long ago");
}

/// Names by rules of that number, and completions of intents.
fn by(rules: u32, records: &[Record]) -> Vec<Record> {
    let heading = Record::Rules { fingerprint: rules, unix_ms: NOW.wall - 3000 };
    std::iter::once(heading).chain(records.iter().cloned()).collect()
}

#[test]
fn tags_that_other_rules_have_named_stand_for_everything() {
    let [a, b, c] = ["a", "b", "c"].map(|name| Scope::Tags(vec![tag(name)]));
    let begun = |id: u64, scope: &Scope| Record::Intent(intent(id, scope.clone()));
    let found = |present: Option<u32>, records: &[Record]| {
        let mut state = State::new(HOUR);
        present.into_iter().for_each(|rules| state.follow_rules(rules));
        state.take_over(decode(&file(records).0).unwrap(), NOW);
        let pending = state.pending().map(|intent| intent.scope.clone()).collect::<Vec<_>>();
        (pending, state.recent(NOW))
    };
    let records = [
        by(1, &[begun(1, &a), begun(2, &b)]),
        by(2, &[done(1), begun(3, &c), begun(4, &Scope::Tags(vec![]))]),
    ];
    let (pending, recent) = found(Some(1), &records.concat());
    assert_eq!(
        (&pending[..], recent),
        (&[b.clone(), Scope::Everything, Scope::Tags(vec![])][..], Scope::Everything)
    );
    assert_eq!(found(Some(2), &records.concat()).0[..2], [Scope::Everything, c.clone()]);
    assert_eq!(found(Some(2), &by(1, &[begun(1, &a), done(1)])).1, Scope::Everything);
    assert_eq!(found(Some(2), &by(1, &[])), (vec![], Scope::Tags(vec![])));
    // As earlier versions write them.
    assert_eq!(found(Some(2), &[begun(1, &a), done(1)]).1, a);
    // Whoever reads them for somebody to whom it does not matter.
    assert_eq!(found(None, &records.concat()).0[..2], [b, c]);
}

#[test]
fn so_do_those_that_are_known_when_the_rules_change() {
    let mut state = State::new(HOUR);
    state.follow_rules(1);
    for id in [1, 2] {
        state.begin(intent(id, Scope::Tags(vec![tag("a")])));
    }
    state.done(IntentId(1), NOW);
    state.heard(&Scope::Tags(vec![tag("b")]), 0, NOW);
    state.follow_rules(1);
    assert_eq!(state.recent(NOW).and(&Scope::Tags(vec![])), Scope::Tags(vec![tag("a"), tag("b")]));
    state.follow_rules(2);
    assert!(state.recent(NOW) == Scope::Everything && state.has_missed(NOW));
    assert!(state.pending().all(|intent| intent.scope == Scope::Everything));
    let mut next = State::new(HOUR);
    next.follow_rules(2);
    next.take_over(decode(&state.snapshot(MARK, "up", NOW)).unwrap(), NOW);
    assert!(next.recent(NOW) == Scope::Everything && next.pending().len() == 1);
}

#[test]
fn earlier_versions_pass_over_what_tells_of_rules() {
    let payload = |record| {
        let mut frame = vec![];
        record::append(record, MARK, &mut frame);
        frame.split_off(record::FRAME)
    };
    let unix_ms = NOW.wall;
    // The completion of something that was never begun.
    let done = Record::Done { id: IntentId(0xffff_ffff_0000_0007), unix_ms };
    assert_eq!(payload(&Record::Rules { fingerprint: 7, unix_ms }), payload(&done));
}

#[test]
fn the_redis_seen_last_may_have_been_under_another_upstream() {
    let redis = |name: &str, ms| Record::Redis { identity: name.to_owned(), unix_ms: NOW.wall - ms };
    let recent = |ms| Record::Recent { scope: Scope::Tags(vec![tag("t")]), unix_ms: NOW.wall - ms };
    let seen = |own: &[Record], others: &[u64]| {
        let mut state = State::new(HOUR);
        state.take_over(decode(&file(own).0).unwrap(), NOW);
        for ms in others {
            state.overhear(decode(&file(&[redis(&format!("there {ms}"), *ms)]).0).unwrap(), NOW);
        }
        state.redis().unwrap_or("none").to_owned()
    };
    assert_eq!(seen(&[], &[]), "none");
    assert_eq!(seen(&[], &[5000, 3000, 4000]), "there 3000");
    assert_eq!(seen(&[redis("here", 6000)], &[5000]), "there 5000");
    assert_eq!(seen(&[redis("here", 4000)], &[5000]), "here");
    assert_eq!(seen(&[redis("here", 6000), recent(4000)], &[5000]), "here", "in use since");
}

#[test]
fn who_starts_beside_others_knows_what_they_know() {
    let redis = |name: &str, ms| Record::Redis { identity: name.to_owned(), unix_ms: NOW.wall - ms };
    let recent = |name: &str| Record::Recent { scope: Scope::Tags(vec![tag(name)]), unix_ms: NOW.wall - 5 };
    let begun = Record::Intent(intent(1, Scope::Tags(vec![tag("begun")])));
    let living = || {
        [vec![redis("new", 10), recent("a")], vec![redis("old", 5000), begun.clone()]]
            .map(|records| decode(&file(&records).0).unwrap())
    };
    let mut state = State::new(HOUR);
    state.start_beside(living().into(), NOW);
    assert_eq!(state.redis(), Some("old"), "one of them has still to repeat something");
    let Scope::Tags(mut tags) = state.recent(NOW) else { panic!("everything") };
    tags.sort_unstable();
    assert_eq!(tags, ["a", "begun"].map(tag));
    assert!(state.pending().next().is_none(), "they do it themselves");
    let (_, mut own) = taken_over(&file(&[redis("own", 1)]).0).unwrap();
    own.start_beside(living().into(), NOW);
    assert_eq!(own.redis(), Some("own"));
}

/// What a process makes of a file: whether its predecessor stopped in order, and the state.
fn taken_over(bytes: &[u8]) -> Option<(bool, State)> {
    let decoded = decode(bytes).ok()?;
    let mut state = State::new(HOUR);
    if !decoded.damage.is_empty() {
        state.suspect("damaged".to_owned(), NOW);
    }
    let clean = state.take_over(decoded, NOW);
    Some((clean, state))
}

fn pending(state: &State) -> BTreeMap<String, Scope> {
    state.pending().map(|intent| (intent.what.clone(), intent.scope.clone())).collect()
}

/// Nothing of what was durable is missing: neither intents nor recent tags.
fn covers(bytes: &[u8], durable: &[Record]) -> Result<(), TestCaseError> {
    // A file that cannot be read counts as everything.
    let Some((_, mut state)) = taken_over(bytes) else { return Ok(()) };
    if state.pending().any(|intent| intent.what == "damaged" && intent.scope == Scope::Everything) {
        return Ok(());
    }
    let found = pending(&state);
    for (what, scope) in pending_of(durable) {
        prop_assert_eq!(found.get(&what), Some(&scope), "{} is lost", what);
    }
    let Scope::Tags(recent) = state.recent(NOW) else { return Ok(()) };
    for record in durable {
        if let Record::Intent(Intent { scope: Scope::Tags(tags), .. })
        | Record::Recent { scope: Scope::Tags(tags), .. } = record
        {
            tags.iter().try_for_each(|tag| {
                prop_assert!(recent.contains(tag), "{:?} is no longer known", tag);
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn any_scope() -> impl Strategy<Value = Scope> {
    let tag = prop::collection::vec(any::<u8>(), 0..12).prop_map(Tag::from);
    // Zeros look like what was never written, and bytes of a frame like a frame.
    let odd = prop_oneof![
        Just(Tag::from(&[0; 40][..])),
        Just(Tag::from(&file(&[done(1), Record::Closed]).0[38..])),
    ];
    prop_oneof![
        8 => prop::collection::vec(prop_oneof![4 => tag, 1 => odd], 0..4).prop_map(Scope::Tags),
        1 => Just(Scope::Everything),
    ]
}

/// The records of a process: intents with ids of their own, completions of some of them, and the rest.
fn any_records() -> impl Strategy<Value = Vec<Record>> {
    let step = (0..11u8, any_scope(), any::<prop::sample::Index>());
    (prop::collection::vec(step, 0..12), any::<bool>()).prop_map(|(steps, closed)| {
        let (mut records, mut open, mut next) = (vec![], vec![], 0);
        for (kind, scope, which) in steps {
            records.push(match kind {
                0..5 => {
                    next += 1;
                    open.push(next);
                    Record::Intent(intent(next, scope))
                }
                5..8 if !open.is_empty() => done(open.remove(which.index(open.len()))),
                8 => Record::Redis { identity: format!("id {next}"), unix_ms: NOW.wall - 100 + next },
                9 => Record::Rules { fingerprint: next as u32, unix_ms: NOW.wall - 100 },
                _ => Record::Recent { scope, unix_ms: NOW.wall - 2000 },
            });
        }
        records.extend(closed.then_some(Record::Closed));
        records
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read(records in any_records()) {
        let (bytes, _) = file(&records);
        let decoded = decode(&bytes).unwrap();
        prop_assert_eq!(&decoded.records, &records);
        prop_assert_eq!((decoded.certain, decoded.torn, decoded.damage.len()), (records.len(), false, 0));
        let (clean, state) = taken_over(&bytes).unwrap();
        prop_assert_eq!(clean, records.last() == Some(&Record::Closed));
        prop_assert_eq!(pending(&state), pending_of(&records));
    }

    #[test]
    fn a_snapshot_says_all_that_the_state_knows(records in any_records()) {
        let (_, mut state) = taken_over(&file(&records).0).unwrap();
        let (clean, mut copy) = taken_over(&state.snapshot(MARK, "up", NOW)).unwrap();
        prop_assert!(!clean);
        prop_assert_eq!(pending(&copy), pending(&state));
        prop_assert_eq!(copy.redis(), state.redis());
        let sorted = |scope| match scope {
            Scope::Tags(mut tags) => { tags.sort_unstable(); Scope::Tags(tags) }
            Scope::Everything => Scope::Everything,
        };
        prop_assert_eq!(sorted(copy.recent(NOW)), sorted(state.recent(NOW)));
    }

    #[test]
    fn a_file_that_ends_anywhere_keeps_what_was_whole(records in any_records()) {
        let (bytes, ends) = file(&records);
        let header = file(&[]).0.len();
        for length in 0..bytes.len() {
            let whole = ends.iter().take_while(|end| **end <= length).count();
            covers(&bytes[..length], &records[..whole])?;
            if length >= header {
                let decoded = decode(&bytes[..length]).unwrap();
                prop_assert_eq!(decoded.damage.len(), 0, "a torn end is no damage");
                let at_an_end = length == header || ends.contains(&length);
                prop_assert_eq!((decoded.records.len(), decoded.torn), (whole, !at_an_end));
            }
        }
    }

    #[test]
    fn no_wrong_byte_hides_an_intent(records in any_records(), xor in 1..=255u8) {
        let (bytes, _) = file(&records);
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= xor;
            covers(&wrong, &records)?;
            wrong[at] = 0;
            covers(&wrong, &records)?;
        }
    }

    #[test]
    fn no_hole_hides_an_intent(records in any_records(), from: prop::sample::Index, length in 1..40usize) {
        let (mut bytes, _) = file(&records);
        let from = from.index(bytes.len());
        // What is missing at the end cannot be known: something must be left behind the hole.
        let until = (from + length).min(bytes.len() - 1);
        if from < until {
            bytes[from..until].fill(0);
            covers(&bytes, &records)?;
            bytes.drain(from..until);
            if bytes.len() > until {
                let _ = taken_over(&bytes);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index) {
        let _ = taken_over(&bytes);
        let (mut behind_header, _) = file(&[Record::Intent(intent(1, Scope::Everything)), done(1)]);
        behind_header.splice(at.index(behind_header.len()).., bytes);
        let _ = taken_over(&behind_header);
    }
}

#[test]
fn damage_in_the_middle_is_found_and_nothing_behind_it_counts_as_done() {
    let records: Vec<_> = (1..=4).map(|n| Record::Intent(intent(n, Scope::Tags(vec![tag("t")])))).collect();
    let (mut bytes, ends) = file(&[&records[..], &[done(1), done(2), done(3), Record::Closed]].concat());
    // The completion of the second intent.
    bytes[ends[4] + 25] ^= 1;
    let decoded = decode(&bytes).unwrap();
    assert_eq!((decoded.damage, decoded.certain, decoded.records.len()), (vec![ends[4]], 5, 7));
    let (clean, state) = taken_over(&bytes).unwrap();
    assert!(!clean);
    let pending: Vec<_> = pending(&state).into_keys().collect();
    assert_eq!(pending, ["SET 2", "SET 3", "SET 4", "damaged"]);
}

#[test]
fn headers_that_are_none() {
    let (bytes, _) = file(&[]);
    assert_eq!(decode(b""), Err(Unreadable::Header));
    assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(Unreadable::Header));
    let mut later = bytes.clone();
    later[16] = 2;
    assert_eq!(decode(&later), Err(Unreadable::Version(2)));
    let mut earlier = bytes;
    earlier[16] = 0;
    assert_eq!(decode(&earlier), Err(Unreadable::Header));
}

#[test]
fn lengths_are_not_believed() {
    let mut payload = vec![1; 17];
    payload.extend_from_slice(&[0, 0, 0, 0, 1, 255, 255, 255, 255]);
    assert_eq!(record::read(&payload), None, "four billion tags in no bytes");
    let mut cut = vec![];
    record::append(&Record::Intent(intent(1, Scope::Tags(vec![tag("abc")]))), MARK, &mut cut);
    for length in 0..cut.len() - record::FRAME {
        assert_eq!(record::read(&cut[record::FRAME..record::FRAME + length]), None);
    }
}

#[test]
fn zeros_at_the_end_are_what_a_power_cut_leaves() {
    let (mut bytes, _) = file(&[Record::Intent(intent(1, Scope::Everything))]);
    bytes.extend_from_slice(&[0; 5000]);
    let decoded = decode(&bytes).unwrap();
    assert_eq!((decoded.records.len(), decoded.torn, decoded.damage.len()), (1, true, 0));
    bytes.push(1);
    assert_eq!(decode(&bytes).unwrap().damage.len(), 1);
}

#[test]
fn work_on_hostile_bytes_is_bounded() {
    // Frame heads that all speak of a payload up to the end, whose checksum is wrong.
    let (mut bytes, _) = file(&[]);
    let heads = 100_000;
    let end = bytes.len() + heads * record::FRAME;
    while bytes.len() < end {
        let mut head = MARK.to_le_bytes().to_vec();
        let length = u32::try_from(end - bytes.len() - record::FRAME).unwrap();
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&[7; 4]);
        let checksum = crc32fast::hash(&head);
        head.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&head);
    }
    // Without a bound these are 100 GB to go through.
    assert_eq!(decode(&bytes).unwrap().damage.len(), 1);
}

#[test]
fn clocks_that_jump_make_nothing_older() {
    let tags = Scope::Tags(vec![tag("t")]);
    let future = Record::Recent { scope: tags.clone(), unix_ms: NOW.wall + 10_000_000 };
    let (_, mut state) = taken_over(&file(&[future]).0).unwrap();
    let later = |milliseconds: i64, jump: u64| Now {
        steady: NOW.steady + milliseconds,
        wall: NOW.wall + milliseconds.unsigned_abs() + jump,
    };
    // It happened now, however often it is handed on, and whatever the wall clock says meanwhile.
    assert_eq!(state.recent(later(3_599_000, 1 << 40)), tags);
    let set = later(3_000_000, 1 << 40);
    let decoded = decode(&state.snapshot(MARK, "up", set)).unwrap();
    let mut next = State::new(HOUR);
    next.take_over(decoded, Now { steady: 0, wall: set.wall });
    assert_eq!(next.recent(Now { steady: 599_000, wall: 0 }), tags);
    assert_eq!(next.recent(Now { steady: 601_000, wall: 0 }), Scope::Tags(vec![]));
}

#[test]
fn the_latest_identity_wins_wherever_it_stands() {
    let seen = |identity: &str, ago| {
        file(&[Record::Redis { identity: identity.to_owned(), unix_ms: NOW.wall - ago }]).0
    };
    let mut state = State::new(HOUR);
    for bytes in [seen("old", 50), seen("latest", 10), seen("older", 30)] {
        state.take_over(decode(&bytes).unwrap(), NOW);
    }
    assert_eq!(state.redis(), Some("latest"));
    assert!(!state.saw("latest", NOW) && state.saw("new", NOW));
}

#[test]
fn ids_of_several_files_do_not_meet() {
    let bytes = |name: &str| file(&[Record::Intent(intent(1, Scope::Tags(vec![tag(name)])))]).0;
    let mut state = State::new(HOUR);
    for name in ["a", "b"] {
        state.take_over(decode(&bytes(name)).unwrap(), NOW);
    }
    let found: Vec<_> = state.pending().map(|intent| (intent.id, intent.scope.clone())).collect();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].1, Scope::Tags(vec![tag("a")]));
    assert!(state.done(found[0].0, NOW) && !state.done(found[0].0, NOW));
    assert_eq!(state.pending().len(), 1);
}

#[test]
fn what_it_takes_is_known_about() {
    let (_, mut state) = taken_over(
        &file(&[
            Record::Intent(intent(1, Scope::Tags(vec![tag("some tag"), tag("other")]))),
            Record::Recent { scope: Scope::Tags(vec![tag("third")]), unix_ms: NOW.wall },
            Record::Redis { identity: "id".to_owned(), unix_ms: NOW.wall },
        ])
        .0,
    )
    .unwrap();
    let (about, exact) = (state.live_bytes(NOW), state.snapshot(MARK, "up", NOW).len());
    assert!(about.abs_diff(exact) < 100, "{about} for {exact}");
}
