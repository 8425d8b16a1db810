//! The simulated Redis: it executes one command after the other, and tells the feeds in the order in which it happens.

use std::collections::BTreeMap;

use rescind::lease::{Expected, Moment};
use rescind::peers::ProxyId;

use crate::names::{TAGS, Versions, names};
use crate::network::{ConnId, Down, Epoch, Kind, Network, Push, Reply, Request, Up};
use crate::oracle::Oracle;
use crate::proxy::WINDOW;

/// A cached value: what the database said when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    pub versions: Versions,
    /// It was written by a client that was told of a miss; a write without one may be stale whenever it likes.
    pub filled: bool,
    /// When it was written, in the order of Redis.
    pub at: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Data {
    pub keys: BTreeMap<usize, Cached>,
    pub epochs: [Option<(Epoch, Moment)>; TAGS],
}

#[derive(Debug)]
pub struct Redis {
    pub data: Data,
    /// What it comes back with.
    pub snapshot: Data,
    /// `None`: it is down.
    pub identity: Option<u64>,
    identities: u64,
    /// Counts commands.
    pub clock: u64,
    /// Trigger keys written in this turn of the event loop: reported at its end.
    written: BTreeMap<usize, Vec<usize>>,
    pub turn_open: bool,
    /// Fills that it undid.
    pub undone: u64,
    /// So many of the next writes and deletions get an error.
    pub refuses: u32,
}

/// The name of an epoch, as proxies write it.
pub fn epoch_name((fan_out, attempt): Epoch) -> Box<[u8]> {
    format!("{fan_out}.{attempt}").into_bytes().into()
}

/// Whether a fill is stale, or may be.
fn differs(expected: &Expected, found: Option<Epoch>) -> bool {
    match expected {
        Expected::Stale => true,
        Expected::Epoch(id) => found.is_some_and(|found| *id != epoch_name(found)),
        Expected::NoEpoch => found.is_some(),
    }
}

impl Redis {
    pub fn new() -> Self {
        Self {
            data: Data::default(),
            snapshot: Data::default(),
            identity: Some(1),
            identities: 1,
            clock: 0,
            written: BTreeMap::new(),
            turn_open: false,
            undone: 0,
            refuses: 0,
        }
    }

    fn epoch(&mut self, tag: usize, now: Moment) -> Option<Epoch> {
        self.data.epochs[tag] = self.data.epochs[tag].filter(|(_, until)| *until > now);
        self.data.epochs[tag].map(|(epoch, _)| epoch)
    }

    fn has_lifeline(network: &Network, proxy: &ProxyId) -> bool {
        let lives =
            |conn: &crate::network::Conn| conn.subscribed && conn.redis_open && conn.proxy.1 == *proxy;
        network.conns.iter().any(lives)
    }

    fn write(&mut self, key: usize, mut value: Cached, network: &mut Network) {
        value.at = self.clock;
        if self.data.keys.insert(key, value).is_none() {
            network.push(&Push::New(key));
        }
    }

    /// Takes what is next on a connection.
    pub fn receive(&mut self, conn: ConnId, network: &mut Network, oracle: &mut Oracle) {
        let Some((_, up)) = network.conns[conn].up.pop_front() else { return };
        self.turn_open = true;
        match up {
            Up::Close => {
                let conn = &mut network.conns[conn];
                (conn.redis_open, conn.subscribed) = (false, false);
                conn.up.clear();
            }
            Up::Request(request) => {
                self.clock += 1;
                let reply = self.execute(conn, request, network, oracle);
                if network.conns[conn].kind != Kind::Direct {
                    network.stage(conn, Down::Reply(reply));
                }
            }
        }
    }

    fn execute(&mut self, conn: ConnId, request: Request, net: &mut Network, oracle: &mut Oracle) -> Reply {
        let now = net.now;
        match request {
            Request::Subscribe => net.conns[conn].subscribed = true,
            Request::Ping => {}
            Request::Get(key) => return Reply::Value(self.data.keys.get(&key).copied()),
            Request::Set(..) | Request::Fill { .. } | Request::Unlink(..) if self.refuses > 0 => {
                self.refuses -= 1;
                return Reply::Refused;
            }
            Request::Set(key, value) => self.write(key, value, net),
            Request::Fill { key, value, expected } => {
                self.write(key, value, net);
                if expected.iter().any(|(tag, expected)| differs(expected, self.epoch(*tag, now))) {
                    self.data.keys.remove(&key);
                    self.undone += 1;
                }
            }
            Request::Del(key) => {
                self.data.keys.remove(&key);
            }
            Request::Flush => {
                self.data = Data::default();
                net.push(&Push::Flushed);
            }
            Request::Trigger(trigger, invalidation) => {
                oracle.executed(invalidation, self.clock);
                self.written.entry(trigger).or_default().push(invalidation);
            }
            Request::SetEpochs(tags, epoch) => {
                for tag in tags {
                    self.data.epochs[tag] = Some((epoch, now + 2 * WINDOW));
                }
            }
            Request::Publish(message) => net.push(&Push::Message(message)),
            Request::Unlink(keys, tags) => {
                for key in keys {
                    let depends = names().keys[key].tags.iter().any(|tag| tags.contains(tag));
                    oracle
                        .demand(depends, || format!("key {key} deleted for tags {tags:?}, which it has not"));
                    self.data.keys.remove(&key);
                }
            }
            Request::Exists(keys) => {
                return Reply::Exists(keys.iter().map(|key| self.data.keys.contains_key(key)).collect());
            }
            // Half of the keys each time.
            Request::Scan(half) => {
                let found = self.data.keys.keys().copied().filter(|key| key % 2 == half);
                return Reply::Keys(found.collect());
            }
            Request::NumSub(proxies) => {
                return Reply::NumSub(proxies.iter().map(|proxy| Self::has_lifeline(net, proxy)).collect());
            }
            Request::Identity => return Reply::Identity(self.identity.unwrap_or(0)),
        }
        Reply::Ok
    }

    /// The end of a turn of the event loop.
    pub fn end_turn(&mut self, network: &mut Network) {
        for (trigger, invalidations) in std::mem::take(&mut self.written) {
            network.push(&Push::Written(trigger, invalidations));
        }
        network.flush();
        self.turn_open = false;
    }

    /// A key expires or is evicted.
    pub fn lose_key(&mut self, key: usize, network: &mut Network) {
        if self.data.keys.remove(&key).is_some() {
            network.push(&Push::Gone(key));
            self.turn_open = true;
        }
    }

    pub fn evict_epoch(&mut self, tag: usize, network: &mut Network) {
        if self.data.epochs[tag].take().is_some() {
            network.push(&Push::EpochEvicted(tag));
            self.turn_open = true;
        }
    }

    /// It is killed, with whatever it was about to say.
    pub fn crash(&mut self) {
        self.identity = None;
        self.written.clear();
        self.turn_open = false;
    }

    /// It comes back, or a replica takes its place, with that.
    pub fn start(&mut self, data: Data) {
        self.data = data;
        self.identities += 1;
        self.identity = Some(self.identities);
    }
}
