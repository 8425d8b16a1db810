//! A simulated proxy: the real index, leases, epochs, peers and rules, and its I/O as steps that are taken one by one.

use std::collections::BTreeSet;
use std::sync::Arc;

use rescind::doubt::Doubt;
use rescind::fanout::OwnTriggers;
use rescind::index::{Generation, Index, KeyId};
use rescind::lease::{Clock, Epochs, KeyHash, Leases, Moment};
use rescind::peers::{Message, Peers, ProxyId};

use crate::clients::{Answer, ClientConnId, Clients};
use crate::fanout::{FanOut, FanOutId};
use crate::journal::{IntentId, Journal};
use crate::known::RedisDoubt;
use crate::mutations::Protections;
use crate::names::names;
use crate::network::{ConnId, Down, Kind, Network, Reply, Request};
use crate::oracle::Oracle;

/// How long after its miss a fill is watched.
pub const WINDOW: Moment = 5000;
/// Connections that clients share.
pub const UPSTREAMS: usize = 2;

/// What a reply is awaited for.
#[derive(Clone, Debug)]
pub enum Wait {
    Nothing,
    Subscribed,
    /// The epochs of these tags that were set before they got lost have been announced.
    EpochsLost(Vec<usize>),
    /// Redis had been doubted that often.
    Identity(u64),
    /// Who Redis is, is asked now and then.
    Look,
    /// On a new connection of clients, that one.
    Greeting(usize),
    Get(ClientConnId, usize),
    /// With the miss that it fills.
    Set(ClientConnId, Option<(KeyHash, Clock)>),
    Trigger {
        conn: ClientConnId,
        trigger: usize,
        intent: IntentId,
    },
    /// The barrier of an attempt of a fan-out.
    Barrier(FanOutId, u64),
    /// The epochs of an attempt are set, over another connection than the feed.
    EpochsSet(FanOutId, u64),
    Unlinked(FanOutId, u64),
    /// A part of a scan for an attempt of a fan-out.
    Scanned(FanOutId, u64),
    /// A part of a scan for the index, begun under that connection of the feed.
    Rebuilt(usize, u64),
    Lifelines(Vec<ProxyId>),
    Sampled(Vec<(KeyId, Generation, usize)>),
}

/// Everything around a proxy that its steps touch.
pub struct Around<'a> {
    pub net: &'a mut Network,
    pub clients: &'a mut Clients,
    pub oracle: &'a mut Oracle,
    pub journal: &'a mut Journal,
    pub protect: &'a Protections,
    pub rng: &'a mut fastrand::Rng,
    pub overtaking: bool,
}

impl Around<'_> {
    pub fn now(&self) -> Moment {
        self.net.now
    }
}

/// A connection that clients share.
#[derive(Debug)]
pub struct Upstream {
    pub conn: ConnId,
    created: Moment,
    /// Redis has said who it is.
    pub is_set_up: bool,
    /// What is not sent before.
    pub behind: Vec<(Request, Wait)>,
}

impl Upstream {
    fn new(conn: ConnId, created: Moment) -> Self {
        Self { conn, created, is_set_up: false, behind: vec![] }
    }
}

pub struct Proxy {
    pub place: usize,
    pub life: u32,
    pub name: ProxyId,
    pub index: Index,
    /// Every dependent is known to be in the index.
    pub complete: bool,
    /// The keys that exist are being taken in.
    pub rebuilding: bool,
    pub leases: Leases,
    pub epochs: Epochs,
    pub peers: Peers<()>,
    pub own: OwnTriggers,
    pub feed: Option<ConnId>,
    /// Events flow on it.
    pub feed_up: bool,
    /// The feed has been connected before.
    pub was_connected: bool,
    /// The others have been told that it is there: clients are let in.
    pub introduced: bool,
    /// Counts its connections.
    pub session: u64,
    pub upstreams: [Option<Upstream>; UPSTREAMS],
    pub deletes: Option<ConnId>,
    pub scans: Option<ConnId>,
    pub fanouts: Vec<FanOut>,
    /// Keys whose reads are answered as misses.
    pub doubt: Arc<Doubt>,
    pub redis: RedisDoubt,
    /// The Redis that was seen last.
    pub known: Option<u64>,
    /// The Redis that was seen last and has been caught up with.
    pub run: Option<u64>,
    /// What others have invalidated.
    pub recent_of_others: BTreeSet<usize>,
    /// One of them has gone without a word.
    pub lost_another: bool,
    pub speed: u32,
    /// When it next does what it does once a second.
    pub next_tick: Moment,
}

impl Proxy {
    fn set_connection(&mut self, kind: Kind, conn: Option<ConnId>, now: Moment) {
        match kind {
            Kind::Feed => self.feed = conn,
            Kind::Upstream(number) => self.upstreams[number] = conn.map(|conn| Upstream::new(conn, now)),
            Kind::Deletes => self.deletes = conn,
            Kind::Scans | Kind::Direct => self.scans = conn,
        }
    }

    pub fn missing(&self) -> impl Iterator<Item = Kind> {
        let upstreams = (0..UPSTREAMS)
            .map(|n| (Kind::Upstream(n), self.upstreams[n].as_ref().map(|upstream| upstream.conn)));
        let own = [(Kind::Feed, self.feed), (Kind::Deletes, self.deletes), (Kind::Scans, self.scans)];
        own.into_iter().chain(upstreams).filter(|(_, conn)| conn.is_none()).map(|(kind, _)| kind)
    }

    /// It waits for nothing but the passing of time.
    pub fn is_quiet(&self) -> bool {
        self.fanouts.is_empty()
            && self.missing().next().is_none()
            && self.complete
            && !self.redis.is_open()
            && self.peers.next_due().is_none()
    }

    pub fn connect(&mut self, kind: Kind, around: &mut Around<'_>) {
        let speed = [1, 2, 4, 8, 16][around.rng.usize(0..5)];
        let conn = around.net.open(kind, (self.place, self.name.clone()), speed);
        self.set_connection(kind, Some(conn), around.now());
        match kind {
            Kind::Feed => around.net.send(conn, Request::Subscribe, Wait::Subscribed),
            Kind::Upstream(number) => around.net.send(conn, Request::Identity, Wait::Greeting(number)),
            _ => {}
        }
        self.start_waiting(around);
        self.ask_again(around);
    }

    /// A connection that nobody waits on is closed; there will be another one.
    pub fn turn_over(&mut self, number: usize, around: &mut Around<'_>) {
        let idle = |upstream: &Upstream| around.net.conns[upstream.conn].waits.is_empty();
        if let Some(upstream) = self.upstreams[number].take_if(|upstream| idle(upstream)) {
            around.net.close_by_proxy(upstream.conn, usize::MAX);
        }
    }

    /// A new connection may reach another Redis while the feed has not noticed yet that its own is gone.
    fn greeted(&mut self, number: usize, identity: u64, around: &mut Around<'_>) {
        let Some(created) = self.upstreams[number].as_ref().map(|upstream| upstream.created) else { return };
        if around.protect.greeting && !self.is_same_run(identity, created, around) {
            return self.refuse(number, around);
        }
        if let Some(upstream) = &mut self.upstreams[number] {
            upstream.is_set_up = true;
            let behind = std::mem::take(&mut upstream.behind);
            behind.into_iter().for_each(|(request, wait)| around.net.send(upstream.conn, request, wait));
        }
    }

    /// A connection cannot be used: what was to be sent over it was certainly not done, and gets errors.
    fn refuse(&mut self, number: usize, around: &mut Around<'_>) {
        let Some(upstream) = self.upstreams[number].take() else { return };
        around.net.close_by_proxy(upstream.conn, usize::MAX);
        upstream.behind.into_iter().for_each(|(_, wait)| self.unsent(wait, around));
    }

    /// Whether reads of the key are answered as misses: an invalidation of it is known not to be complete.
    pub fn answers_misses(&self, key: usize, around: &Around<'_>) -> bool {
        around.protect.as_misses && self.doubt.concerns(&names().keys[key].labels)
    }

    /// Something has arrived from Redis.
    pub fn told(&mut self, conn: ConnId, down: Down, around: &mut Around<'_>) {
        match down {
            Down::Closed => self.lost(conn, around),
            Down::Push(push) => self.pushed(push, around),
            Down::Reply(reply) => {
                let wait = around.net.conns[conn].waits.pop_front();
                self.replied(wait.unwrap_or(Wait::Nothing), reply, around);
            }
        }
    }

    fn replied(&mut self, wait: Wait, reply: Reply, around: &mut Around<'_>) {
        let now = around.now();
        match (wait, reply) {
            (Wait::Get(conn, key), Reply::Value(value)) => match value {
                None => self.missed(conn, key, around),
                value => {
                    if !names().keys[key].tags.is_empty() {
                        self.read(conn, None, around);
                    }
                    around.clients.answer(conn, Answer::Value(value), now);
                }
            },
            (Wait::Set(conn, fill), Reply::Refused) => {
                self.give_back(conn, fill.as_slice(), around);
                around.clients.answer(conn, Answer::Failed, now);
            }
            (Wait::Set(conn, _), _) => around.clients.answer(conn, Answer::Ok, now),
            (Wait::Trigger { conn, trigger, intent }, _) => {
                self.fan_out_own(trigger, Some(conn), intent, around);
            }
            (Wait::EpochsLost(tags), _) => self.set_epochs_again(&tags, around),
            (Wait::Subscribed, _) => self.feed_connected(around),
            (Wait::Identity(doubts), Reply::Identity(identity)) => self.identified(identity, doubts, around),
            (Wait::Look, Reply::Identity(identity)) => self.looked_at(identity, around),
            (Wait::Greeting(number), Reply::Identity(identity)) => self.greeted(number, identity, around),
            (Wait::Barrier(id, attempt), _) => self.barrier_passed(id, attempt, around),
            (Wait::EpochsSet(id, attempt), _) => self.epochs_set(id, attempt, around),
            (Wait::Unlinked(id, _), Reply::Refused) => self.failed(id, around),
            (Wait::Unlinked(id, attempt), _) => self.unlinked(id, attempt, around),
            (Wait::Scanned(id, attempt), Reply::Keys(keys)) => self.found_by_scan(id, attempt, &keys, around),
            (Wait::Rebuilt(part, session), Reply::Keys(keys)) => self.rebuilt(part, session, &keys, around),
            (Wait::Lifelines(proxies), Reply::NumSub(live)) => self.lifelines(&proxies, &live, around),
            (Wait::Sampled(asked), Reply::Exists(exist)) => {
                for ((id, generation, key), _) in asked.into_iter().zip(exist).filter(|(_, exists)| !exists) {
                    self.forget(id, generation, key, around);
                }
            }
            _ => {}
        }
    }

    /// The key is gone as of a reply.
    pub fn forget(&mut self, id: KeyId, generation: Generation, key: usize, around: &Around<'_>) {
        if around.protect.generation {
            self.index.drop_if(id, generation);
        } else {
            self.index.gone(0, names().keys[key].name);
        }
    }

    /// A connection is gone.
    pub fn lost(&mut self, conn: ConnId, around: &mut Around<'_>) {
        let kind = around.net.conns[conn].kind;
        let waits = std::mem::take(&mut around.net.conns[conn].waits);
        around.net.close_by_proxy(conn, usize::MAX);
        match kind {
            Kind::Feed => self.feed_lost(around),
            Kind::Upstream(number) => {
                self.doubt_redis(around);
                self.refuse(number, around);
            }
            _ => {}
        }
        self.set_connection(kind, None, around.now());
        for wait in waits {
            match wait {
                Wait::Get(client, _) | Wait::Set(client, _) => self.cut(client, true, around),
                Wait::Trigger { conn, trigger, intent } => {
                    self.cut(conn, true, around);
                    self.fan_out_own(trigger, None, intent, around);
                }
                Wait::Barrier(id, attempt) => self.barrier_lost(id, attempt, around),
                Wait::EpochsSet(id, _) | Wait::Unlinked(id, _) | Wait::Scanned(id, _) => {
                    self.failed(id, around)
                }
                Wait::Rebuilt(..) => self.rebuilding = false,
                Wait::Identity(_) => self.not_identified(),
                _ => {}
            }
        }
    }

    /// Publishes over the feed, where it is heard in order with what the feed does; else where it can.
    pub fn publish(&mut self, message: Message, around: &mut Around<'_>) {
        let feed = self.feed.filter(|_| self.feed_up);
        if let Some(conn) = feed.or(self.deletes) {
            around.net.send(conn, Request::Publish(message), Wait::Nothing);
        }
    }
}
