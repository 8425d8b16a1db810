//! Other proxies on the same Redis: who is there, and who does what all of them see.
//!
//! Proxies share nothing but Redis. Each announces its fan-outs, so that the others know which fills are stale. What the
//! feed shows of a trigger that none of a proxy's own clients wrote, all others see as well: one of them is to fan it out.
//! If somebody's announcement covers it, that is done; else the first of the proxies does it after a moment, and the
//! others stand by in case it dies, or stands still. A fan-out whose proxy dies is taken over in the same way.
//!
//! It knows no sockets and no clock: moments are told.

mod message;

use std::collections::BTreeMap;

use hashbrown::HashSet;

pub use message::{CHANNEL, Message, ProxyId, encode_begun, fan_out_of, lifeline};

use crate::lease::Moment;
use crate::rules::Tag;

/// How long an announcement by the proxy whose client wrote the trigger is waited for.
const HESITATION: Moment = 10;
/// How long each of the others waits for the one before it.
const TURN: Moment = 1000;
/// How long a fan-out of another proxy may say neither that it is done nor that it is tried again, before what it covers is due
/// again: that proxy may stand still.
const PATIENCE: Moment = 5000;

/// Something that one of the proxies has to fan out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty<T> {
    /// The tags that its fan-out must announce.
    pub tags: Vec<Tag>,
    /// What it is.
    pub what: T,
}

#[derive(Debug)]
struct Standby<T> {
    duty: Duty<T>,
    due: Moment,
}

#[derive(Debug)]
struct Begun<T> {
    /// The how manieth that was announced.
    number: u64,
    proxy: ProxyId,
    tags: Vec<Tag>,
    /// The same, if they came in several messages.
    known: HashSet<Tag>,
    /// What was to be done and is done by it.
    covers: Vec<Duty<T>>,
    /// When it was first announced.
    since: Moment,
    /// When it was last announced.
    at: Moment,
}

impl<T> Begun<T> {
    /// When what it covers is due again.
    fn due(&self, me: &ProxyId) -> Option<Moment> {
        (!self.covers.is_empty() && self.proxy != *me).then_some(self.at + PATIENCE)
    }
}

/// What another proxy has said of itself.
#[derive(Debug, Default)]
struct Other {
    /// The fingerprint of its rules.
    rules: Option<u32>,
    /// At which data of Redis it has repeated what it knew.
    repeated: Option<Box<[u8]>>,
}

/// The other proxies, and what is to be done if they do not.
#[derive(Debug)]
pub struct Peers<T> {
    me: ProxyId,
    others: BTreeMap<ProxyId, Other>,
    /// What nobody is known to do, by the first of its tags: who does it announces that, too.
    standby: BTreeMap<Tag, Vec<Standby<T>>>,
    /// Announced and not done, by fan-out; of this proxy's own, those that cover something.
    begun: BTreeMap<Box<[u8]>, Begun<T>>,
    announced: u64,
}

/// Proxies that are known; more on one Redis are nonsense, or somebody's who may publish and should not.
const MOST_PEERS: usize = 64;
/// Fan-outs of others that are remembered. More are under way only if somebody does not tell when they are done.
const MOST_BEGUN: usize = 10_000;

impl<T> Peers<T> {
    /// Nobody is known yet.
    pub fn new(me: ProxyId) -> Self {
        Self { me, others: BTreeMap::new(), standby: BTreeMap::new(), begun: BTreeMap::new(), announced: 0 }
    }

    /// The others.
    pub fn others(&self) -> impl Iterator<Item = &ProxyId> {
        self.others.keys()
    }

    /// A proxy has been heard of; true: it was not known.
    pub fn heard(&mut self, proxy: &ProxyId) -> bool {
        let known = self.others.contains_key(proxy) || *proxy == self.me;
        let is_new = !known && self.others.len() < MOST_PEERS;
        if is_new {
            self.others.insert(proxy.clone(), Other::default());
        }
        is_new
    }

    /// A proxy says that its rules have this fingerprint; true: that is news.
    pub fn says_rules(&mut self, proxy: &ProxyId, rules: u32) -> bool {
        self.others.get_mut(proxy).is_some_and(|known| known.rules.replace(rules) != Some(rules))
    }

    /// Whether a proxy may have other rules than these.
    pub fn may_differ(&self, proxy: &ProxyId, rules: u32) -> bool {
        self.others.get(proxy).is_none_or(|known| known.rules != Some(rules))
    }

    /// A proxy says that it has repeated what it knew at these data of Redis.
    pub fn says_repeated(&mut self, proxy: &ProxyId, data: &[u8]) {
        if let Some(known) = self.others.get_mut(proxy) {
            known.repeated = Some(data.into());
        }
    }

    /// Whether it has said so last, and has not gone since.
    pub fn has_repeated(&self, proxy: &ProxyId, data: &[u8]) -> bool {
        self.others.get(proxy).is_some_and(|known| known.repeated.as_deref() == Some(data))
    }

    /// How many of the known proxies come before this one.
    fn rank(&self) -> Moment {
        self.others.keys().filter(|other| **other < self.me).count() as Moment
    }

    /// The feed shows something that all proxies see and one has to fan out. It is given back if this one is alone.
    pub fn seen(&mut self, duty: Duty<T>, now: Moment) -> Option<Duty<T>> {
        if self.others.is_empty() {
            return Some(duty);
        }
        let due = now + HESITATION + self.rank() * TURN;
        self.stand_by(duty, due);
        None
    }

    fn stand_by(&mut self, duty: Duty<T>, due: Moment) {
        let first = duty.tags.first().cloned().unwrap_or_else(|| Tag::from(b"".as_slice()));
        self.standby.entry(first).or_default().push(Standby { duty, due });
    }

    /// What is to be done and needs none but these tags.
    fn take_covered(&mut self, tags: &[Tag]) -> Vec<Duty<T>> {
        let mut covered = vec![];
        if self.standby.is_empty() {
            return covered;
        }
        let known: HashSet<&Tag> = if tags.len() > 1 { tags.iter().collect() } else { HashSet::new() };
        for first in tags {
            let Some(waiting) = self.standby.get_mut(first) else { continue };
            let is_covered =
                |one: &mut Standby<T>| one.duty.tags.iter().all(|tag| tag == first || known.contains(tag));
            covered.extend(waiting.extract_if(.., is_covered).map(|one| one.duty));
            if waiting.is_empty() {
                self.standby.remove(first);
            }
        }
        covered
    }

    /// A fan-out was announced. What was seen before, and needs no tag besides, is covered by it: its barrier comes later. Gives
    /// back those of the tags that had not been announced with it, if it is another proxy's.
    pub fn begun(&mut self, proxy: &ProxyId, epoch: &[u8], tags: &[Tag], now: Moment) -> Vec<Tag> {
        let covers = self.take_covered(tags);
        let own = *proxy == self.me;
        if !own {
            self.heard(proxy);
        } else if covers.is_empty() {
            return vec![];
        }
        self.announced += 1;
        if self.begun.len() >= MOST_BEGUN {
            self.forget_oldest();
        }
        // In several messages if it has many tags, and again if it is tried again.
        let fan_out = fan_out_of(epoch);
        match self.begun.get_mut(fan_out) {
            Some(begun) => {
                if begun.known.is_empty() {
                    begun.known.extend(begun.tags.iter().cloned());
                }
                let new: Vec<Tag> =
                    tags.iter().filter(|tag| begun.known.insert(Tag::clone(tag))).cloned().collect();
                begun.tags.extend(new.iter().cloned());
                begun.covers.extend(covers);
                begun.at = now;
                new
            }
            None => {
                let (number, proxy, tags) = (self.announced, proxy.clone(), tags.to_vec());
                let (known, since) = (HashSet::new(), now);
                let begun = Begun { number, proxy, tags: tags.clone(), known, covers, since, at: now };
                self.begun.insert(fan_out.into(), begun);
                tags
            }
        }
    }

    /// Forgets the oldest of those that are not done. What they cover is due when it would have been: nobody will know that they
    /// are done.
    fn forget_oldest(&mut self) {
        let recent = self.announced - MOST_BEGUN as u64 * 3 / 4;
        let (me, wait) = (&self.me, self.rank() * TURN);
        let forgotten = self.begun.extract_if(.., |_, begun| begun.number <= recent);
        let due = forgotten.filter_map(|(_, begun)| Some((begun.due(me)? + wait, begun.covers)));
        for (due, covers) in due.collect::<Vec<_>>() {
            covers.into_iter().for_each(|duty| self.stand_by(duty, due));
        }
    }

    /// That fan-out is done.
    pub fn done(&mut self, epoch: &[u8]) {
        self.begun.remove(fan_out_of(epoch));
    }

    /// A proxy is gone, in order or not: what it had begun is to be done by another one. `duty` makes one of it.
    pub fn gone(&mut self, proxy: &ProxyId, now: Moment, duty: impl Fn(&[Tag], Moment) -> T) {
        if self.others.remove(proxy).is_none() {
            return;
        }
        let due = now + HESITATION + self.rank() * TURN;
        let left = self.begun.extract_if(.., |_, begun| begun.proxy == *proxy);
        let left: Vec<_> =
            left.map(|(_, begun)| Duty { what: duty(&begun.tags, begun.since), tags: begun.tags }).collect();
        left.into_iter().for_each(|duty| self.stand_by(duty, due));
    }

    /// What this proxy has to do now. If it is alone, that is all that is left.
    pub fn due(&mut self, now: Moment) -> Vec<Duty<T>> {
        let (me, late) = (&self.me, now.saturating_sub(self.rank() * TURN));
        let silent = self.begun.values_mut().filter(|begun| begun.due(me).is_some_and(|due| due <= late));
        let left: Vec<_> = silent.flat_map(|begun| std::mem::take(&mut begun.covers)).collect();
        left.into_iter().for_each(|duty| self.stand_by(duty, now));
        let alone = self.others.is_empty();
        let mut due = vec![];
        self.standby.retain(|_, waiting| {
            due.extend(waiting.extract_if(.., |one| one.due <= now || alone).map(|one| one.duty));
            !waiting.is_empty()
        });
        due
    }

    /// When [`Peers::due`] has something next.
    pub fn next_due(&self) -> Option<Moment> {
        let standing_by = self.standby.values().flatten().map(|waiting| waiting.due);
        let wait = self.rank() * TURN;
        let begun = self.begun.values().filter_map(|begun| begun.due(&self.me)).map(|due| due + wait);
        standing_by.chain(begun).min()
    }

    /// The feed was lost: what others have announced and done since is not known, so all that is left is done here.
    pub fn lost_track(&mut self, now: Moment) {
        self.others.values_mut().for_each(|other| other.repeated = None);
        self.standby.values_mut().flatten().for_each(|waiting| waiting.due = now);
        let covered = std::mem::take(&mut self.begun).into_values().flat_map(|begun| begun.covers);
        covered.for_each(|duty| self.stand_by(duty, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ProxyId {
        name.as_bytes().into()
    }

    fn tags(names: &str) -> Vec<Tag> {
        names.split(' ').map(|name| name.as_bytes().into()).collect()
    }

    fn duty(names: &str) -> Duty<&'static str> {
        Duty { tags: tags(names), what: "seen" }
    }

    fn peers(me: &str, others: &[&str]) -> Peers<&'static str> {
        let mut peers = Peers::new(id(me));
        for other in others {
            peers.heard(&id(other));
        }
        peers
    }

    #[test]
    fn who_is_alone_does_it_at_once() {
        let mut alone = peers("a", &[]);
        assert!(!alone.heard(&id("a")), "oneself is nobody else");
        assert_eq!(alone.seen(duty("x"), 0), Some(duty("x")));
    }

    #[test]
    fn who_has_not_said_so_may_have_other_rules() {
        let mut a = peers("a", &["b"]);
        assert!(a.may_differ(&id("b"), 1) && a.may_differ(&id("c"), 1));
        assert!(a.says_rules(&id("b"), 1) && !a.says_rules(&id("b"), 1));
        assert!(!a.may_differ(&id("b"), 1) && a.may_differ(&id("b"), 2));
        assert!(a.says_rules(&id("b"), 2) && !a.says_rules(&id("c"), 1));
    }

    #[test]
    fn the_first_does_it_and_the_others_stand_by() {
        let (mut a, mut b) = (peers("a", &["b"]), peers("b", &["a"]));
        assert_eq!(a.seen(duty("x"), 0), None);
        assert_eq!(b.seen(duty("x"), 0), None);
        assert_eq!(a.due(HESITATION), [duty("x")]);
        assert_eq!(b.due(HESITATION), []);
        b.begun(&id("a"), b"e1", &tags("x y"), 0);
        assert_eq!(b.due(PATIENCE), []);
        b.done(b"e1");
        b.gone(&id("a"), 0, |_, _| "taken over");
        assert_eq!(b.due(TURN * 10), []);
    }

    #[test]
    fn what_is_announced_and_not_done_for_long_is_due_again() {
        let (mut a, mut b) = (peers("a", &["b", "c"]), peers("b", &["a", "c"]));
        for proxy in [&mut a, &mut b] {
            proxy.seen(duty("x"), 0);
            proxy.begun(&id("c"), b"e1", &tags("x"), 1);
            assert_eq!(proxy.due(PATIENCE), []);
            // It is tried again.
            proxy.begun(&id("c"), b"e1.2", &tags("x"), 3);
        }
        assert_eq!((a.next_due(), b.next_due()), (Some(3 + PATIENCE), Some(3 + PATIENCE + TURN)));
        assert_eq!((a.due(3 + PATIENCE), b.due(3 + PATIENCE)), (vec![duty("x")], vec![]));
        assert_eq!((a.next_due(), a.due(Moment::MAX)), (None, vec![]));
        // It is done all the same; or by the one whose turn it was.
        b.begun(&id("a"), b"e2", &tags("x"), 4 + PATIENCE);
        b.done(b"e1.2");
        assert_eq!((b.next_due(), b.due(Moment::MAX)), (None, vec![]));
        // Its own goes on.
        a.seen(duty("x"), 0);
        a.begun(&id("a"), b"e3", &tags("x"), 0);
        assert_eq!(a.next_due(), None);
    }

    #[test]
    fn the_next_does_it_if_the_first_says_nothing() {
        let mut b = peers("b", &["a"]);
        b.seen(duty("x"), 0);
        b.begun(&id("a"), b"e1", &tags("y"), 0);
        assert_eq!(b.due(HESITATION + TURN), [duty("x")], "another tag covers nothing");
    }

    #[test]
    fn an_announcement_covers_what_was_seen_before_it_only() {
        let mut a = peers("a", &["b"]);
        a.begun(&id("b"), b"e1", &tags("x"), 0);
        a.seen(duty("x"), 0);
        assert_eq!(a.due(HESITATION), [duty("x")]);
    }

    #[test]
    fn what_a_dead_proxy_has_begun_is_taken_over() {
        let (mut a, mut b) = (peers("a", &["b", "c"]), peers("b", &["a", "c"]));
        for proxy in [&mut a, &mut b] {
            proxy.seen(duty("x"), 0);
            proxy.begun(&id("c"), b"e1", &tags("x"), 0);
            proxy.begun(&id("c"), b"e2", &tags("z"), 0);
            proxy.done(b"e2");
            proxy.gone(&id("c"), 5, |_, _| "taken over");
        }
        assert_eq!(a.due(5 + HESITATION), [Duty { tags: tags("x"), what: "taken over" }]);
        assert_eq!(b.due(5 + HESITATION), []);
        a.begun(&id("a"), b"e3", &tags("x"), 0);
        b.begun(&id("a"), b"e3", &tags("x"), 0);
        // And again, should that one die, too.
        b.gone(&id("a"), 7, |_, _| "taken over");
        assert_eq!(b.due(7), [Duty { tags: tags("x"), what: "taken over" }]);
    }

    #[test]
    fn what_another_one_has_repeated_counts_for_these_data_and_as_long_as_it_is_there() {
        let mut a = peers("a", &["b"]);
        assert!(!a.has_repeated(&id("b"), b"new"));
        a.says_repeated(&id("b"), b"old");
        assert!(a.has_repeated(&id("b"), b"old") && !a.has_repeated(&id("b"), b"new"));
        a.says_repeated(&id("b"), b"new");
        assert!(a.has_repeated(&id("b"), b"new") && !a.has_repeated(&id("b"), b"old"));
        a.lost_track(0);
        assert!(!a.has_repeated(&id("b"), b"new"), "it may have lost it since");
        a.says_repeated(&id("b"), b"new");
        a.gone(&id("b"), 0, |_, _| "taken over");
        assert!(!a.has_repeated(&id("b"), b"new"));
    }

    #[test]
    fn announcements_that_are_never_done_are_forgotten_the_oldest_first() {
        let mut a = peers("a", &["b"]);
        for n in 0..MOST_BEGUN + 1 {
            a.begun(&id("b"), n.to_string().as_bytes(), &tags(&n.to_string()), 0);
        }
        a.gone(&id("b"), 0, |_, _| "taken over");
        let left: Vec<_> = a.due(Moment::MAX).into_iter().flat_map(|duty| duty.tags).collect();
        assert!(left.len() > MOST_BEGUN / 2 && left.len() < MOST_BEGUN);
        assert!(!left.contains(&tags("0")[0]) && left.contains(&tags(&MOST_BEGUN.to_string())[0]));
    }

    #[test]
    fn what_a_forgotten_announcement_covers_is_due_all_the_same() {
        let mut b = peers("b", &["a", "c"]);
        b.seen(duty("x"), 0);
        b.begun(&id("c"), b"first", &tags("x"), 0);
        for n in 0..MOST_BEGUN {
            b.begun(&id("c"), n.to_string().as_bytes(), &tags(&n.to_string()), 1);
        }
        assert_eq!(b.next_due(), Some(PATIENCE + TURN), "as if it were remembered");
        assert_eq!(b.due(PATIENCE + TURN), [duty("x")]);
    }

    #[test]
    fn a_fan_out_told_in_parts_is_one() {
        let mut a = peers("a", &["b"]);
        a.seen(duty("x"), 0);
        a.seen(duty("y"), 0);
        for part in ["x", "y", "z"] {
            a.begun(&id("b"), b"e1", &tags(part), 0);
        }
        assert_eq!(a.begun(&id("b"), b"e1.2", &tags("x z"), 0), [], "another attempt");
        assert_eq!(a.next_due(), Some(PATIENCE));
        a.gone(&id("b"), 0, |_, _| "taken over");
        assert_eq!(a.due(0), [Duty { tags: tags("x y z"), what: "taken over" }]);
        a.heard(&id("b"));
        a.begun(&id("b"), b"e2", &tags("x"), 0);
        a.begun(&id("b"), b"e2.3", &tags("x"), 0);
        a.done(b"e2.3");
        a.gone(&id("b"), 0, |_, _| "taken over");
        assert_eq!(a.due(0), []);
    }

    #[test]
    fn after_a_gap_nothing_is_left_to_others() {
        let mut b = peers("b", &["a"]);
        b.seen(duty("x"), 0);
        b.begun(&id("a"), b"e1", &tags("x"), 0);
        b.lost_track(3);
        assert_eq!(b.due(3), [duty("x")]);
    }
}
