//! Connections to the simulated Redis: what was sent arrives in order, at any time, or is cut off somewhere.

use std::collections::VecDeque;

use rescind::lease::{Expected, Moment};
use rescind::peers::{Message, ProxyId};

use crate::proxy::Wait;
use crate::redis::Cached;

pub type ConnId = usize;
/// A fan-out, and which attempt of it.
pub type Epoch = (u64, u64);

/// What a proxy, or a client that goes past the proxies, asks of Redis.
#[derive(Clone, Debug)]
pub enum Request {
    Subscribe,
    Ping,
    Get(usize),
    /// A plain write.
    Set(usize, Cached),
    /// A write with the check in the same atomic step.
    Fill {
        key: usize,
        value: Cached,
        expected: Vec<(usize, Expected)>,
    },
    Del(usize),
    /// All keys, epochs too.
    Flush,
    /// The write of a trigger key: which, and the number of the invalidation.
    Trigger(usize, usize),
    SetEpochs(Vec<usize>, Epoch),
    Publish(Message),
    /// With the tags for whose sake.
    Unlink(Vec<usize>, Vec<usize>),
    Exists(Vec<usize>),
    Scan(usize),
    NumSub(Vec<ProxyId>),
    Identity,
}

#[derive(Clone, Debug)]
pub enum Reply {
    Ok,
    /// An error: nothing was done.
    Refused,
    Value(Option<Cached>),
    Exists(Vec<bool>),
    Keys(Vec<usize>),
    NumSub(Vec<bool>),
    Identity(u64),
}

/// What the feed shows.
#[derive(Clone, Debug)]
pub enum Push {
    New(usize),
    /// Expired or evicted.
    Gone(usize),
    EpochEvicted(usize),
    /// All keys are gone.
    Flushed,
    /// A write of a trigger key. The numbers of the invalidations are for the oracle.
    Written(usize, Vec<usize>),
    Message(Message),
}

#[derive(Clone, Debug)]
pub enum Up {
    Request(Request),
    Close,
}

#[derive(Clone, Debug)]
pub enum Down {
    Reply(Reply),
    Push(Push),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Feed,
    Upstream(usize),
    Deletes,
    Scans,
    /// Of a client that goes past the proxies.
    Direct,
}

#[derive(Debug)]
pub struct Conn {
    pub kind: Kind,
    /// Its place and its name.
    pub proxy: (usize, ProxyId),
    pub up: VecDeque<(Moment, Up)>,
    pub down: VecDeque<(Moment, Down)>,
    /// Said in the present turn of the event loop: not sent yet.
    pub staged: VecDeque<Down>,
    pub waits: VecDeque<Wait>,
    pub redis_open: bool,
    pub proxy_open: bool,
    /// It gets events.
    pub subscribed: bool,
    /// Nothing gets through any more.
    pub broken: bool,
    /// How readily it is served: another one now and then.
    pub speed: u32,
}

#[derive(Debug, Default)]
pub struct Network {
    pub conns: Vec<Conn>,
    pub now: Moment,
}

impl Network {
    pub fn open(&mut self, kind: Kind, proxy: (usize, ProxyId), speed: u32) -> ConnId {
        self.conns.push(Conn {
            kind,
            proxy,
            up: VecDeque::new(),
            down: VecDeque::new(),
            staged: VecDeque::new(),
            waits: VecDeque::new(),
            redis_open: true,
            proxy_open: true,
            subscribed: false,
            broken: false,
            speed,
        });
        self.conns.len() - 1
    }

    pub fn send(&mut self, conn: ConnId, request: Request, wait: Wait) {
        let now = self.now;
        let conn = &mut self.conns[conn];
        conn.waits.push_back(wait);
        if conn.redis_open && !conn.broken {
            conn.up.push_back((now, Up::Request(request)));
        }
    }

    /// Redis says something on this connection.
    pub fn stage(&mut self, conn: ConnId, down: Down) {
        let conn = &mut self.conns[conn];
        if conn.proxy_open && !conn.broken {
            conn.staged.push_back(down);
        }
    }

    /// Redis says something to all that get events.
    pub fn push(&mut self, push: &Push) {
        for conn in self.conns.iter_mut().filter(|conn| conn.subscribed && conn.redis_open) {
            if conn.proxy_open && !conn.broken {
                conn.staged.push_back(Down::Push(push.clone()));
            }
        }
    }

    /// The end of a turn of Redis's event loop: replies and pushes go out.
    pub fn flush(&mut self) {
        let now = self.now;
        for conn in &mut self.conns {
            conn.down.extend(conn.staged.drain(..).map(|down| (now, down)));
        }
    }

    /// The proxy closes the connection, or its process ends: what has been sent may still arrive.
    pub fn close_by_proxy(&mut self, conn: ConnId, arrives: usize) {
        let now = self.now;
        let conn = &mut self.conns[conn];
        conn.proxy_open = false;
        conn.broken = true;
        conn.down.clear();
        conn.staged.clear();
        conn.waits.clear();
        if conn.redis_open && !matches!(conn.up.back(), Some((_, Up::Close))) {
            conn.up.truncate(arrives);
            conn.up.push_back((now, Up::Close));
        }
    }

    /// Redis is gone: what it has sent may still arrive.
    pub fn close_by_redis(&mut self, conn: ConnId, arrives: usize) {
        let now = self.now;
        let conn = &mut self.conns[conn];
        let known = std::mem::replace(&mut conn.broken, true);
        conn.redis_open = false;
        conn.subscribed = false;
        conn.up.clear();
        conn.staged.clear();
        if conn.proxy_open && !known {
            conn.down.truncate(arrives);
            conn.down.push_back((now, Down::Closed));
        }
    }

    /// The connection breaks in the middle: both learn of it at some time.
    pub fn cut(&mut self, conn: ConnId, up: usize, down: usize) {
        let now = self.now;
        let conn = &mut self.conns[conn];
        if std::mem::replace(&mut conn.broken, true) {
            return;
        }
        if conn.redis_open {
            conn.up.truncate(up);
            conn.up.push_back((now, Up::Close));
        }
        if conn.proxy_open {
            conn.down.truncate(down);
            conn.staged.clear();
            conn.down.push_back((now, Down::Closed));
        }
    }
}
