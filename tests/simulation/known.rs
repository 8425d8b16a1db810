//! Whether Redis is the one that it was, as a simulated proxy finds out; what it hides until it knows.

use rescind::doubt::{Reason, Scope};
use rescind::lease::Moment;

use crate::fanout::FanOutId;
use crate::names::names;
use crate::network::Request;
use crate::proxy::{Around, Proxy, Wait};

/// The question whether Redis is the one that it was.
#[derive(Debug, Default)]
pub struct RedisDoubt {
    /// How often it was asked.
    count: u64,
    /// It is open.
    comparing: bool,
    /// Redis has been asked who it is.
    asked: bool,
    /// What is hidden meanwhile, and since when.
    reason: Option<(Reason, Moment)>,
    /// The fan-out of all that was invalidated lately, for a Redis of that identity, doubted that often.
    replay: Option<(FanOutId, u64, u64)>,
}

impl RedisDoubt {
    pub fn is_open(&self) -> bool {
        self.comparing
    }
}

impl Proxy {
    pub fn is_alone(&self) -> bool {
        self.peers.others().next().is_none()
    }

    /// Redis may have been replaced. Of what other proxies have invalidated not everything may have been heard.
    pub fn doubt_redis(&mut self, around: &mut Around<'_>) {
        self.redis.count += 1;
        let compares = std::mem::replace(&mut self.redis.comparing, true);
        let may_be_others = !self.is_alone() || (self.has_just_started() && around.protect.start);
        let scope = match !may_be_others || !around.protect.foreign_recent {
            true => Scope::Tags(names().labels(&around.journal.recent())),
            false => Scope::Everything,
        };
        // What was invalidated since it was first doubted is in doubt as well.
        if !self.redis.reason.as_ref().is_some_and(|(reason, _)| reason.covers(&scope)) {
            self.redis.reason = (!scope.is_empty()).then(|| (self.doubt.enter(scope), around.now()));
        }
        if !compares {
            self.ask_again(around);
        }
    }

    /// What was known of other proxies is lost, and Redis may be another one than the journal says.
    fn has_just_started(&self) -> bool {
        self.run.is_none() && self.known.is_some()
    }

    /// Asks who Redis is, if that is to be known and cannot be under way.
    pub fn ask_again(&mut self, around: &mut Around<'_>) {
        let Some(scans) = self.scans else { return };
        if self.redis.comparing && !self.redis.asked && self.redis.replay.is_none() {
            self.redis.asked = true;
            around.net.send(scans, Request::Identity, Wait::Identity(self.redis.count));
        }
    }

    /// The question got no answer.
    pub fn not_identified(&mut self) {
        self.redis.asked = false;
    }

    pub fn identified(&mut self, identity: u64, doubts: u64, around: &mut Around<'_>) {
        self.redis.asked = false;
        let before = self.known.replace(identity);
        if before.is_some_and(|before| before != identity) && around.protect.replay {
            self.doubt_redis(around);
            self.rebuild(around);
            let scope = self.to_repeat(around);
            if !scope.is_empty() {
                let reason = self.doubt.enter(scope.clone());
                let id = self.repeat(scope, reason, around);
                self.redis.replay = Some((id, identity, doubts));
                return self.start(id, around);
            }
        }
        self.settled(identity, doubts, around);
    }

    /// What may be back with a Redis of another identity.
    fn to_repeat(&self, around: &Around<'_>) -> Scope {
        let mut tags = around.journal.recent();
        if around.protect.foreign_recent {
            if self.lost_another || (self.has_just_started() && around.protect.start) {
                return Scope::Everything;
            }
            tags.extend(self.recent_of_others.iter().copied());
            tags.sort_unstable();
            tags.dedup();
        }
        Scope::Tags(names().labels(&tags))
    }

    /// A fan-out is done: was it the one that reads wait for?
    pub fn caught_up(&mut self, around: &mut Around<'_>) {
        let Some((id, identity, doubts)) = self.redis.replay else { return };
        if self.fanouts.iter().all(|fanout| fanout.id != id) {
            self.redis.replay = None;
            self.settled(identity, doubts, around);
        }
    }

    fn settled(&mut self, identity: u64, doubts: u64, around: &mut Around<'_>) {
        self.run = Some(identity);
        around.journal.redis = Some(identity);
        // A connection lost since the question makes the answer void.
        if self.redis.count == doubts {
            (self.redis.reason, self.redis.comparing) = (None, false);
        }
        self.ask_again(around);
    }

    /// It is asked now and then, too.
    pub fn looked_at(&mut self, identity: u64, around: &mut Around<'_>) {
        if self.known.is_some_and(|known| known != identity) {
            self.doubt_redis(around);
        }
    }

    /// Whether a new connection leads to the Redis that was seen last, or may be used all the same: what has been asked
    /// for over it since `created` was asked for in doubt.
    pub fn is_same_run(&mut self, identity: u64, created: Moment, around: &mut Around<'_>) -> bool {
        if self.run.is_none_or(|run| run == identity) {
            return true;
        }
        self.doubt_redis(around);
        self.redis.reason.as_ref().is_some_and(|(_, since)| *since < created)
    }
}
