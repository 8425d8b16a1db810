//! What is known about the misses of one key, and which of them a write fills.

use smallvec::SmallVec;

use super::{Client, Clock, Fill, Found, Moment, Shares, Write};

/// Open misses of one key that are told apart; of more, one that was filled is forgotten, or two are told apart no more.
pub(super) const MOST_MISSES: usize = 32;
/// A fill over a connection with a miss of the key could have shown that tasks share connections if the connections with one
/// are not more than one in so many of its host: among tasks that share connections that would be chance.
const CHANCE: usize = 4;
/// Where tasks share connections, parts of a fill over the same one that are further apart count as fills of their own if
/// somebody has missed the key.
pub(super) const PAUSE: Moment = 500;
/// Where tasks are known to share connections, fills in parts that begin so soon behind one another may be mixed.
pub(super) const TOGETHER: Moment = 125;

/// Misses with the same meaning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Miss {
    pub(super) client: Client,
    pub(super) clock: Clock,
    /// Not open any more from then on.
    pub(super) until: Moment,
    /// How many are open.
    pub(super) count: u16,
    /// How many a write has taken out that had no miss of its own: perhaps wrongly.
    pub(super) taken: u16,
    /// How many of these an older one stands for that was open then: if that one's time is over, they are open again.
    pub(super) lent: u16,
    /// It has been opened again.
    pub(super) reopened: bool,
    /// Its connection has filled the key since. Only where tasks share connections it may still be open.
    pub(super) left: bool,
    /// How many its connection has not filled, whatever else has been taken for their fills.
    pub(super) owed: u16,
}

/// A fill, with its miss.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling {
    pub(super) miss: Miss,
    /// The connection that had missed the key.
    of: u64,
    /// When the time of the latest miss was to be over that had come when it began: others came later.
    latest: Moment,
    is_whole: bool,
    /// Its connection has deleted the key since: what that writes next begins anew.
    has_ended: bool,
    began: Moment,
    at: Moment,
}

impl Filling {
    /// Whether such a write may go on with it.
    fn goes_on(&self, fill: Fill) -> bool {
        match fill {
            Fill::Whole | Fill::Perhaps => false,
            Fill::Part | Fill::Count => !self.is_whole,
            Fill::More => true,
        }
    }
}

/// The id of misses of which it is not known any more whose they are.
pub(super) const ANYBODY: u64 = 0;

impl Miss {
    pub(super) fn new(client: Client, clock: Clock, until: Moment) -> Self {
        Self { client, clock, until, count: 1, taken: 0, lent: 0, reopened: false, left: false, owed: 1 }
    }

    /// An older one stands for it no more: so many of what that stood for are open again. Answers how many.
    fn reopen(&mut self, most: u16) -> u16 {
        let back = self.lent.min(most);
        self.reopened |= back > 0;
        self.lent -= back;
        self.taken = self.taken.saturating_sub(back);
        self.count = self.count.saturating_add(back);
        back
    }

    /// Both are one from now on.
    fn merge(&mut self, other: Miss) {
        self.clock = self.clock.min(other.clock);
        self.until = self.until.max(other.until);
        self.count = self.count.saturating_add(other.count);
        self.taken = self.taken.saturating_add(other.taken);
        self.lent = self.lent.saturating_add(other.lent);
        (self.left, self.reopened) = (self.left && other.left, self.reopened || other.reopened);
        self.owed = self.owed.saturating_add(other.owed);
        if self.client != other.client {
            self.client.id = ANYBODY;
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.count > 0
    }

    /// Whether it is open, or was taken out and may be open after all, or its connection has not filled it.
    pub(super) fn may_be_filled(&self, now: Moment) -> bool {
        self.until > now && (self.count > 0 || self.taken > 0 || self.owed > 0)
    }

    pub(super) fn is_own(&self, client: Client) -> bool {
        self.client.id == client.id
    }
}

/// What is known about one key.
#[derive(Clone, Debug, Default)]
pub(super) struct Open {
    /// In the order in which they came, so the oldest first.
    pub(super) misses: SmallVec<[Miss; 1]>,
    /// The latest fill of each connection, and those that had begun just before, the last one at the end: its miss, closed. A
    /// fill may come in parts, or be followed by labels.
    pub(super) filled: Vec<Filling>,
}

impl Open {
    pub(super) fn expire(&mut self, now: Moment) {
        for over in 0..self.misses.len() {
            let Miss { client, mut count, until, reopened, .. } = self.misses[over];
            let open = |miss: &&mut Miss| miss.until > now && miss.client.host == client.host;
            if until <= now && count > 0 && !reopened {
                // Most likely the youngest. And only once: a miss that nobody fills must come to an end.
                self.misses.iter_mut().rev().filter(open).for_each(|miss| count -= miss.reopen(count));
            }
        }
        self.misses.retain(|miss| miss.may_be_filled(now));
        self.filled.retain(|filling| filling.miss.until > now);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.misses.is_empty() && self.filled.is_empty()
    }

    /// The connection has filled the key, as of that miss of whichever connection.
    pub(super) fn fill(&mut self, write: Write, miss: Miss, begun: Option<Filling>, shares: Shares) {
        let Write { client, fill, now, .. } = write;
        let same =
            |one: &Filling, other: &Filling| (one.miss.clock, one.began) == (other.miss.clock, other.began);
        let begun = begun.filter(|begun| begun.miss.clock == miss.clock);
        let near = self.misses.iter().filter(|one| one.client.host == client.host);
        let latest = near.map(|one| one.until).max().unwrap_or_default();
        let anew = Filling {
            miss: Miss { client, ..miss },
            of: miss.client.id,
            latest,
            is_whole: fill == Fill::Whole,
            has_ended: false,
            began: now,
            at: now,
        };
        let filling = match begun {
            Some(Filling { of, latest, began, .. }) => Filling { of, latest, began, ..anew },
            None => anew,
        };
        // Another task's parts may come over the same connection.
        let stays = |filling: &Filling| {
            shares == Shares::Known
                && filling.at + TOGETHER > now
                && !begun.is_some_and(|begun| same(filling, &begun))
        };
        self.filled.retain(|filling| !filling.miss.is_own(client) || stays(filling));
        if self.filled.len() == MOST_MISSES {
            self.filled.remove(0);
        } else if self.filled.is_empty() {
            self.filled.reserve_exact(1);
        }
        self.filled.push(filling);
    }

    /// The connection deletes the key.
    pub(super) fn clear(&mut self, client: Client) {
        let own = self.filled.iter_mut().filter(|filling| filling.miss.is_own(client));
        own.for_each(|filling| filling.has_ended = true);
    }

    /// The oldest miss of the fills that such a write of another task of the host may go on with, over whichever connection.
    pub(super) fn may_go_on(&self, Write { client, fill, now, .. }: Write) -> Option<Clock> {
        let lately = |filling: &&Filling| {
            let last = if filling.miss.is_own(client) { filling.at } else { filling.began };
            filling.miss.client.host == client.host && last + TOGETHER > now && filling.goes_on(fill)
        };
        self.filled.iter().filter(lately).map(|filling| filling.miss.clock).min()
    }

    pub(super) fn add(&mut self, miss: Miss) {
        let same =
            |known: &&mut Miss| known.client == miss.client && known.clock == miss.clock && !known.left;
        if let Some(known) = self.misses.last_mut().filter(same) {
            known.count = known.count.saturating_add(1);
            known.owed = known.owed.saturating_add(1);
            known.until = known.until.max(miss.until);
            return;
        }
        if self.misses.len() == MOST_MISSES {
            self.make_room();
        }
        self.misses.push(miss);
    }

    /// Forgets one that was filled, if there is one; else those of the same clock are told apart no more, or the two oldest.
    fn make_room(&mut self) {
        if let Some(filled) = self.misses.iter().position(|miss| !miss.is_open()) {
            self.misses.remove(filled);
            return;
        }
        let pairs = (1..self.misses.len()).flat_map(|later| (0..later).map(move |first| (first, later)));
        let is_same =
            |(first, later): &(usize, usize)| self.misses[*first].clock == self.misses[*later].clock;
        let (first, later) = pairs.into_iter().find(is_same).unwrap_or((0, 1));
        let other = self.misses.remove(later);
        self.misses[first].merge(other);
    }

    /// Whether it says something about how the connections of its host are used, of which there are so many, that this one
    /// fills the key, with or without a miss of its own.
    pub(super) fn is_telling(&self, client: Client, is_own: bool, connections: usize) -> bool {
        let near = |miss: &&Miss| miss.client.host == client.host && (miss.is_open() || miss.owed > 0);
        if self.misses.iter().filter(near).any(|miss| miss.client.id == ANYBODY) {
            return false;
        }
        let mut ids: SmallVec<[u64; MOST_MISSES]> =
            self.misses.iter().filter(near).map(|miss| miss.client.id).collect();
        ids.sort_unstable();
        ids.dedup();
        match is_own {
            true => ids.len() > 1 && ids.len() * CHANCE <= connections,
            false => self.misses.iter().filter(near).any(Miss::is_open),
        }
    }

    /// The connection has filled the key: what else it missed has been given up, as it seems.
    pub(super) fn pay(&mut self, client: Client) {
        self.misses.iter_mut().filter(|miss| miss.is_own(client)).for_each(|miss| miss.owed = 0);
    }

    /// The oldest miss of the connection since it has `found` the key there decides: it may have looked once more, with what it
    /// had read before. The latest one is taken out; the others have been given up, as it seems.
    fn take_own(&mut self, client: Client, found: Found) -> Option<Miss> {
        let own = |miss: &Miss| miss.is_own(client) && miss.is_open() && !miss.left;
        let since = |miss: &Miss| own(miss) && found.is_none_or(|found| miss.until > found);
        let oldest = self.misses.iter().filter(|miss| since(miss)).map(|miss| miss.clock).min();
        let latest = self.misses.iter_mut().filter(|miss| own(miss)).max_by_key(|miss| miss.clock)?;
        latest.count -= 1;
        let taken = Miss { clock: oldest.unwrap_or(latest.clock), ..*latest };
        for miss in self.misses.iter_mut().filter(|miss| miss.is_own(client)) {
            (miss.left, miss.taken) = (true, 0);
        }
        Some(taken)
    }

    /// A miss of the connection that a write without a miss took decides: it was open after all.
    fn take_back(&mut self, client: Client) -> Option<Miss> {
        let own = |miss: &&mut Miss| miss.is_own(client) && miss.taken > 0;
        let oldest = self.misses.iter_mut().filter(own).min_by_key(|miss| miss.clock)?;
        oldest.taken -= 1;
        Some(*oldest)
    }

    /// The connection has not filled the key after all, and not because of a failure.
    pub(super) fn outdone(&mut self, client: Client) {
        let Some(filling) = self.filled.iter().rfind(|filling| filling.miss.is_own(client)) else { return };
        let closed = filling.miss;
        let same = |miss: &&mut Miss| miss.is_own(client) && miss.clock == closed.clock;
        if let Some(miss) = self.misses.iter_mut().find(same) {
            miss.taken = miss.taken.max(1);
        } else if self.misses.len() < MOST_MISSES {
            let closed = Miss::new(client, closed.clock, closed.until);
            self.misses.push(Miss { count: 0, taken: 1, left: true, owed: 0, ..closed });
        }
    }

    /// The oldest of those that `may` be meant decides; the youngest goes.
    fn take(&mut self, may: impl Fn(&Miss) -> bool) -> Option<Miss> {
        let open = |miss: &Miss| miss.is_open() && may(miss);
        let oldest = self.misses.iter().copied().filter(open).min_by_key(|miss| miss.clock)?;
        if let Some(youngest) = self.misses.iter_mut().filter(|miss| open(miss)).max_by_key(|miss| miss.clock)
        {
            youngest.count -= 1;
            youngest.taken = youngest.taken.saturating_add(1);
            youngest.lent = youngest.lent.saturating_add(1);
        }
        // As many fills as misses: whatever stood for another one, all are filled.
        if !self.misses.iter().any(open) {
            self.misses.iter_mut().filter(|miss| may(miss)).for_each(|miss| miss.lent = 0);
        }
        Some(oldest)
    }

    /// The oldest that is open.
    fn oldest(&self) -> Option<Miss> {
        self.misses.iter().copied().filter(|miss| miss.is_open() && !miss.left).min_by_key(|miss| miss.clock)
    }

    /// One was taken out wrongly, as it seems: the oldest of those that have been decides, the youngest stands for one less.
    fn take_again(&mut self, may: impl Fn(&Miss) -> bool) -> Option<Miss> {
        let taken = |miss: &Miss| miss.taken > 0 && may(miss);
        let oldest = self.misses.iter().copied().filter(taken).min_by_key(|miss| miss.clock)?;
        let youngest = self.misses.iter_mut().filter(|miss| taken(miss)).max_by_key(|miss| miss.clock);
        youngest.into_iter().for_each(|miss| miss.taken -= 1);
        Some(oldest)
    }

    /// The oldest miss that the connection has not filled, whatever has been taken for its fill.
    fn unpaid(&self, client: Client) -> Option<Miss> {
        let own = |miss: &Miss| miss.is_own(client) && miss.owed > 0;
        self.misses.iter().copied().filter(own).min_by_key(|miss| miss.clock)
    }

    /// The miss that decides about a write, which may go on with a fill of its own.
    pub(super) fn decide(&mut self, write: Write, begun: Option<Filling>, shares: Shares) -> Option<Miss> {
        let Write { client, found, now, .. } = write;
        let near = |miss: &Miss| miss.client.host == client.host;
        let part = begun.map(|begun| begun.miss);
        if shares != Shares::No {
            if let Some(begun) = begun.filter(|begun| now < begun.at + PAUSE) {
                // Or it is another task's first one: then that task's miss decides. None is taken out for each part.
                let open = self.misses.iter().copied().filter(|miss| miss.is_open() && near(miss));
                return open.chain([begun.miss]).min_by_key(|miss| miss.clock);
            }
            let found = self.take(near).or(part).or_else(|| self.take_again(near));
            let found = found.or_else(|| self.unpaid(client));
            // Of other hosts: it may be no fill at all, so nothing is taken out.
            return found.or_else(|| self.oldest());
        }
        let own = self.take_own(client, found).or(part);
        let found =
            own.or_else(|| self.take_back(client)).or_else(|| self.take(|miss| near(miss) && !miss.left));
        // Given up, as it seemed; or somebody else has filled the key over the connection meanwhile.
        found.or_else(|| self.take(near)).or_else(|| self.oldest())
    }

    /// The fill in parts with which a write goes on. Unless it is only presumed how the connections of its host are used, what they
    /// have missed since tells when a fill over another one begins anew.
    pub(super) fn begun(&self, write: Write, shares: Shares) -> Option<Filling> {
        let Write { client, fill, now, .. } = write;
        let last = self.filled.iter().copied().rfind(|filling| filling.miss.is_own(client));
        let begun = last.filter(|filling| filling.goes_on(fill) && !filling.has_ended)?;
        let has_paused = begun.at + PAUSE <= now;
        // With a miss of its own since then it begins anew. So does a fill of what another connection had missed, when that one
        // misses the key once more, or after a while any of them.
        let is_foreign = shares != Shares::Presumed && begun.of != client.id;
        let may_be_next = |other: Client| other.id == begun.of || (has_paused && other.host == client.host);
        let is_next = |miss: &Miss| {
            miss.is_own(client) || (is_foreign && miss.until > begun.latest && may_be_next(miss.client))
        };
        let later = |miss: &&Miss| miss.is_open() && !miss.left && miss.clock > begun.miss.clock;
        (!self.misses.iter().filter(later).any(is_next)).then_some(begun)
    }
}
