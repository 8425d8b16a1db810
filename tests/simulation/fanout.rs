//! The fan-outs of a simulated proxy: epochs, announcement, barrier; collect; delete; answer.

use std::sync::Arc;

use rescind::accounting::{Firing, TriggerLabel};
use rescind::command::FireCondition;
use rescind::doubt::{Reason, Scope};
use rescind::index::{Generation, KeyId};
use rescind::lease::Moment;
use rescind::peers::Message;
use rescind::rules::{Rules, TriggerId};

use crate::clients::{Answer, ClientConnId};
use crate::journal::IntentId;
use crate::names::{TAGS, names};
use crate::network::{Epoch, Request};
use crate::oracle::Acknowledged;
use crate::proxy::{Around, Proxy, Wait};
use crate::redis::epoch_name;

pub type FanOutId = u64;

/// How long a writer waits.
const PATIENCE: Moment = 1500;
/// Keys in one UNLINK.
const BATCH: usize = 2;

pub fn firing(trigger: usize) -> Firing {
    Firing {
        condition: FireCondition::NoError,
        triggers: [TriggerLabel::Rule(TriggerId(0))].into_iter().collect(),
        tags: vec![],
        rules: Arc::new(Rules::empty()),
        partial: false,
        intents: Default::default(),
        keys: vec![(0, names().triggers[trigger].name.as_slice().into())],
        what: String::new(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has failed, or could not begin: it begins when it can.
    Waiting,
    Barrier,
    Deleting,
}

#[derive(Debug)]
pub struct FanOut {
    pub id: FanOutId,
    pub tags: Vec<usize>,
    pub intent: Option<IntentId>,
    client: Option<ClientConnId>,
    since: Moment,
    own: Option<Firing>,
    /// Reads of its keys are answered as misses until it is done.
    pub doubt: Option<Reason>,
    /// Of all tags that there are.
    everything: bool,
    /// Who is told when it is done.
    cause: Option<ClientConnId>,
    phase: Phase,
    attempt: u64,
    epoch: Epoch,
    /// Requests on their way.
    open: usize,
    gone: Vec<(KeyId, Generation, usize)>,
}

impl FanOut {
    pub fn waits(&self) -> bool {
        self.phase == Phase::Waiting
    }
}

impl Proxy {
    pub fn fan_out_own(
        &mut self,
        trigger: usize,
        client: Option<ClientConnId>,
        intent: IntentId,
        around: &mut Around<'_>,
    ) {
        let id = self.fan_out(names().triggers[trigger].tags.clone(), Some(intent), around);
        let fanout = self.find(id);
        (fanout.client, fanout.cause, fanout.own) = (client, client, Some(firing(trigger)));
        self.start(id, around);
    }

    /// A fan-out for nobody's sake.
    pub fn fan_out_detached(&mut self, tags: Vec<usize>, around: &mut Around<'_>) {
        let id = self.fan_out(tags, None, around);
        self.start(id, around);
    }

    pub fn fan_out(
        &mut self,
        tags: Vec<usize>,
        intent: Option<IntentId>,
        around: &mut Around<'_>,
    ) -> FanOutId {
        let intent = intent.or_else(|| Some(around.journal.intend(&tags, around.protect.journal)));
        around.journal.fanouts += 1;
        let id = around.journal.fanouts << 8 | self.place as u64;
        self.fanouts.push(FanOut {
            id,
            tags,
            intent,
            client: None,
            since: around.now(),
            own: None,
            doubt: None,
            everything: false,
            cause: None,
            phase: Phase::Waiting,
            attempt: 0,
            epoch: (id, 0),
            open: 0,
            gone: vec![],
        });
        id
    }

    fn find(&mut self, id: FanOutId) -> &mut FanOut {
        self.fanouts.iter_mut().find(|fanout| fanout.id == id).expect("it is not done")
    }

    /// The fan-out, if that attempt is the one under way.
    fn at(&mut self, id: FanOutId, attempt: u64) -> Option<&mut FanOut> {
        self.fanouts.iter_mut().find(|fanout| fanout.id == id && fanout.attempt == attempt && !fanout.waits())
    }

    /// All that `scope` stands for is invalidated once more.
    pub fn repeat(&mut self, scope: Scope, doubt: Reason, around: &mut Around<'_>) -> FanOutId {
        let tags = match &scope {
            Scope::Tags(tags) => tags.iter().map(|tag| names().tag(tag)).collect(),
            Scope::Everything => (0..TAGS).collect(),
        };
        let id = self.fan_out(tags, None, around);
        let fanout = self.find(id);
        (fanout.doubt, fanout.everything) = (Some(doubt), scope == Scope::Everything);
        id
    }

    pub fn failed(&mut self, id: FanOutId, _around: &mut Around<'_>) {
        if let Some(fanout) = self.fanouts.iter_mut().find(|fanout| fanout.id == id) {
            fanout.phase = Phase::Waiting;
            let scope = Scope::Tags(names().labels(&fanout.tags));
            fanout.doubt.get_or_insert_with(|| self.doubt.enter(scope));
        }
    }

    /// The barrier of an attempt is lost with the feed: it goes on without.
    pub fn barrier_lost(&mut self, id: FanOutId, attempt: u64, around: &mut Around<'_>) {
        if self.at(id, attempt).is_some() {
            self.tell_without_feed(id, around);
        }
    }

    /// Whether something that has failed can begin again.
    pub fn can_retry(&self) -> bool {
        let can = |fanout: &FanOut| fanout.waits() && (self.complete || !fanout.everything);
        self.deletes.is_some() && self.scans.is_some() && self.fanouts.iter().any(can)
    }

    /// What has failed begins again.
    pub fn start_waiting(&mut self, around: &mut Around<'_>) {
        let waiting: Vec<FanOutId> = self.fanouts.iter().filter(|f| f.waits()).map(|f| f.id).collect();
        waiting.into_iter().for_each(|id| self.start(id, around));
    }

    /// Who has waited for long is answered, and what he wrote of is not shown here until it is done.
    pub fn answer_patient(&mut self, around: &mut Around<'_>) {
        let now = around.now();
        for fanout in self.fanouts.iter_mut().filter(|fanout| fanout.since + PATIENCE <= now) {
            if let Some(client) = fanout.client.take() {
                let scope = Scope::Tags(names().labels(&fanout.tags));
                fanout.doubt.get_or_insert_with(|| self.doubt.enter(scope));
                let answer = Answer::Acknowledged(Acknowledged::At(self.place));
                around.clients.answer(client, answer, now);
            }
        }
    }

    pub fn start(&mut self, id: FanOutId, around: &mut Around<'_>) {
        let (Some(_), Some(_)) = (self.deletes, self.scans) else { return };
        if self.find(id).everything {
            // Which tags there are, the index tells.
            if !self.complete {
                return;
            }
            let mut all = vec![];
            self.index.tags(0, usize::MAX, &mut all);
            let tags = all.iter().map(|tag| names().tag(tag)).collect();
            let fanout = self.find(id);
            (fanout.tags, fanout.everything) = (tags, false);
        }
        let fanout = self.find(id);
        fanout.attempt += 1;
        if around.protect.anew {
            fanout.epoch.1 = fanout.attempt;
        }
        (fanout.phase, fanout.open) = (Phase::Barrier, 0);
        fanout.gone.clear();
        let (attempt, barrier) = (fanout.attempt, Wait::Barrier(id, fanout.attempt));
        let Some(feed) = self.feed.filter(|_| self.feed_up) else {
            return self.tell_without_feed(id, around);
        };
        let (set, begun) = self.announcement(id);
        if !around.protect.order {
            around.net.send(feed, Request::Ping, barrier.clone());
        }
        around.net.send(feed, set, Wait::Nothing);
        around.net.send(feed, Request::Publish(begun), Wait::Nothing);
        if !around.protect.barrier {
            return self.barrier_passed(id, attempt, around);
        }
        if around.protect.order {
            around.net.send(feed, Request::Ping, barrier);
        }
    }

    fn announcement(&mut self, id: FanOutId) -> (Request, Message) {
        let proxy = self.name.clone();
        let FanOut { tags, epoch, .. } = self.find(id);
        let begun =
            Message::Begun { proxy, epoch: epoch_name(*epoch), tags: names().labels(tags), follows: false };
        (Request::SetEpochs(tags.clone(), *epoch), begun)
    }

    fn tell_without_feed(&mut self, id: FanOutId, around: &mut Around<'_>) {
        let Some(deletes) = self.deletes else { return self.failed(id, around) };
        let (set, begun) = self.announcement(id);
        around.net.send(deletes, set, Wait::Nothing);
        let told = Wait::EpochsSet(id, self.find(id).attempt);
        around.net.send(deletes, Request::Publish(begun), told);
    }

    /// The index reflects everything that was written before.
    pub fn barrier_passed(&mut self, id: FanOutId, attempt: u64, around: &mut Around<'_>) {
        if self.at(id, attempt).is_some() {
            self.heard_itself(id, around);
            let complete = self.complete;
            self.delete(id, attempt, !complete, around);
        }
    }

    /// Without a feed: nobody but a scan knows what there is.
    pub fn epochs_set(&mut self, id: FanOutId, attempt: u64, around: &mut Around<'_>) {
        if self.at(id, attempt).is_some() {
            self.heard_itself(id, around);
            self.delete(id, attempt, true, around);
        }
    }

    /// What it has said itself counts, whether or not the feed has told.
    fn heard_itself(&mut self, id: FanOutId, around: &Around<'_>) {
        let fanout = self.find(id);
        let (epoch, tags) = (epoch_name(fanout.epoch), names().labels(&fanout.tags));
        tags.iter().for_each(|tag| self.epochs.found(tag, &epoch, around.now()));
    }

    fn delete(&mut self, id: FanOutId, attempt: u64, scan: bool, around: &mut Around<'_>) {
        let Some(fanout) = self.at(id, attempt) else { return };
        fanout.phase = Phase::Deleting;
        let tags = fanout.tags.clone();
        if let Some(own) = fanout.own.take() {
            self.own.leave(&own, true);
        }
        let mut found: Vec<(KeyId, Generation, usize)> = vec![];
        for tag in &tags {
            let mut cursor = Some(usize::MAX);
            while let Some(at) = cursor {
                cursor = self.index.collect(&names().tags[*tag], at, BATCH, &mut |one| {
                    found.push((one.id, one.generation, names().key(one.key)));
                });
            }
        }
        let keys = found.iter().map(|(_, _, key)| *key).collect();
        self.find(id).gone = found;
        self.unlink(id, attempt, keys, around);
        if scan && around.protect.rescan {
            let Some(scans) = self.scans else { return self.failed(id, around) };
            for part in 0..2 {
                around.net.send(scans, Request::Scan(part), Wait::Scanned(id, attempt));
                self.find(id).open += 1;
            }
        }
        self.finish_if_done(id, around);
    }

    fn unlink(&mut self, id: FanOutId, attempt: u64, mut keys: Vec<usize>, around: &mut Around<'_>) {
        let Some(deletes) = self.deletes else { return self.failed(id, around) };
        keys.sort_unstable();
        keys.dedup();
        let fanout = self.find(id);
        for batch in keys.chunks(BATCH) {
            let request = Request::Unlink(batch.to_vec(), fanout.tags.clone());
            around.net.send(deletes, request, Wait::Unlinked(id, attempt));
            fanout.open += 1;
        }
    }

    pub fn unlinked(&mut self, id: FanOutId, attempt: u64, around: &mut Around<'_>) {
        let Some(fanout) = self.at(id, attempt) else { return };
        fanout.open -= 1;
        self.finish_if_done(id, around);
    }

    pub fn found_by_scan(&mut self, id: FanOutId, attempt: u64, keys: &[usize], around: &mut Around<'_>) {
        let Some(fanout) = self.at(id, attempt) else { return };
        let depends = |key: &usize| names().keys[*key].tags.iter().any(|tag| fanout.tags.contains(tag));
        let keys = keys.iter().copied().filter(depends).collect();
        fanout.open -= 1;
        self.unlink(id, attempt, keys, around);
        self.finish_if_done(id, around);
    }

    fn finish_if_done(&mut self, id: FanOutId, around: &mut Around<'_>) {
        let done = |fanout: &FanOut| fanout.id == id && fanout.phase == Phase::Deleting && fanout.open == 0;
        let Some(at) = self.fanouts.iter().position(done) else { return };
        let fanout = self.fanouts.remove(at);
        if let Some(intent) = fanout.intent {
            around.journal.done(intent);
        }
        if let Some(cause) = fanout.cause {
            let tags = names().labels(&fanout.tags);
            self.epochs.tell(&tags, &epoch_name(fanout.epoch), cause as u64 + 1);
        }
        self.publish(Message::Done { proxy: self.name.clone(), epoch: epoch_name(fanout.epoch) }, around);
        if let Some(client) = fanout.client {
            around.clients.answer(client, Answer::Acknowledged(Acknowledged::ToAll), around.net.now);
        }
        for (id, generation, key) in fanout.gone {
            self.forget(id, generation, key, around);
        }
        self.caught_up(around);
    }
}
