//! Clients of the proxies: tasks that read, fill what they miss, write, and invalidate, over connections of pools.

use std::collections::VecDeque;

use fastrand::Rng;
use rescind::lease::{Clock, Hits, KeyHash, Moment};

use crate::names::{TAGS, Versions, names};
use crate::options::Options;
use crate::oracle::{Acknowledged, Oracle};
use crate::proxy::WINDOW;
use crate::redis::Cached;
use crate::schedule::LONGEST_DELAY;

pub type ClientConnId = usize;

#[derive(Clone, Copy, Debug)]
pub enum Ask {
    Get(usize),
    Set(usize, Cached),
    Trigger(usize, usize),
    /// It hangs up.
    Bye,
}

#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Value(Option<Cached>),
    Ok,
    /// An error: nothing was done.
    Failed,
    Acknowledged(Acknowledged),
    Closed,
}

#[derive(Debug)]
pub struct ClientConn {
    pub host: usize,
    /// The place of the proxy, and which start of it.
    pub proxy: (usize, u32),
    pub to: VecDeque<(Moment, Ask)>,
    pub from: VecDeque<(Moment, Answer)>,
    /// The proxy still has it.
    pub open: bool,
    /// The client has closed it.
    pub closed: bool,
    pub speed: u32,
    /// The proxy's: fills whose answers may not have been read.
    pub fills: Vec<(KeyHash, Clock)>,
    /// The proxy's: what it has read.
    pub hits: Hits,
    /// The proxy's: it owes an answer.
    pub pending: bool,
    /// An answer was sent to it that it has not read and will not.
    pub unread: bool,
    busy: bool,
    /// No task's.
    pub scripted: bool,
}

/// That a key was missed.
#[derive(Clone, Copy, Debug)]
struct Miss {
    at: Moment,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    Reading {
        key: usize,
        acknowledged: usize,
    },
    Missed {
        key: usize,
        miss: Option<Miss>,
    },
    /// It has a value from the database.
    Holds {
        key: usize,
        versions: Versions,
        miss: Option<Miss>,
    },
    Writing {
        key: usize,
        versions: Versions,
        miss: Option<Miss>,
    },
    Committed {
        trigger: usize,
        invalidation: usize,
    },
    Triggering {
        trigger: usize,
        invalidation: usize,
    },
}

#[derive(Debug)]
pub struct Task {
    pub host: usize,
    state: State,
    conn: Option<ClientConnId>,
    /// The connection on which it has not waited for an answer.
    left: Option<ClientConnId>,
    pub speed: u32,
}

#[derive(Debug)]
pub struct Host {
    pub pooled: bool,
    /// Its connections lead to any proxy.
    balanced: bool,
    home: usize,
    conns: Vec<ClientConnId>,
}

#[derive(Debug)]
pub struct Clients {
    pub hosts: Vec<Host>,
    pub tasks: Vec<Task>,
    pub conns: Vec<ClientConn>,
    pub database: Versions,
    /// What this schedule is about.
    keys: Vec<usize>,
    triggers: Vec<usize>,
    /// No more new operations.
    pub stopping: bool,
}

/// What a client sees of the proxies: which start of each is there; `None`: nobody listens.
pub type Listening = Vec<Option<u32>>;

impl Clients {
    pub fn new(rng: &mut Rng, options: &Options) -> Self {
        // Few keys, so that much happens to each of them.
        let mut keys: Vec<usize> = (0..names().keys.len()).collect();
        rng.shuffle(&mut keys);
        keys.truncate(rng.usize(1..=keys.len()));
        let concerns = |trigger: &usize| {
            let tags = &names().triggers[*trigger].tags;
            keys.iter().any(|key| names().keys[*key].tags.iter().any(|tag| tags.contains(tag)))
        };
        let triggers: Vec<usize> = (0..TAGS).filter(concerns).collect();
        let mut clients = Self {
            hosts: vec![],
            tasks: vec![],
            conns: vec![],
            database: [1; TAGS],
            keys,
            triggers,
            stopping: false,
        };
        for host in 0..rng.usize(2..=4) {
            let pooled = options.pools && rng.bool();
            let balanced = options.balanced && rng.bool();
            clients.hosts.push(Host { pooled, balanced, home: rng.usize(0..options.proxies), conns: vec![] });
            for _ in 0..if pooled { rng.usize(2..=3) } else { 1 } {
                clients.tasks.push(Task {
                    host,
                    state: State::Idle,
                    conn: None,
                    left: None,
                    speed: rng.u32(1..8),
                });
            }
        }
        clients
    }

    pub fn is_idle(&self) -> bool {
        self.tasks.iter().all(|task| matches!(task.state, State::Idle))
    }

    pub fn answer(&mut self, conn: ClientConnId, answer: Answer, now: Moment) {
        let conn = &mut self.conns[conn];
        conn.pending = false;
        conn.unread |= conn.closed;
        if conn.open && !conn.closed {
            conn.from.push_back((now, answer));
        }
    }

    /// The proxy closes the connection.
    pub fn close(&mut self, conn: ClientConnId, now: Moment) {
        self.answer(conn, Answer::Closed, now);
        let conn = &mut self.conns[conn];
        conn.open = false;
        conn.to.clear();
    }

    /// The process of a proxy ends: what it has not been able to say is lost.
    pub fn cut_off(&mut self, proxy: (usize, u32), rng: &mut Rng, now: Moment) {
        for conn in 0..self.conns.len() {
            if self.conns[conn].proxy == proxy && self.conns[conn].open {
                let said = self.conns[conn].from.len();
                self.conns[conn].from.truncate(rng.usize(0..=said));
                self.close(conn, now);
            }
        }
    }

    /// Whether the task could do something now.
    pub fn can_step(&self, task: usize) -> bool {
        let task = &self.tasks[task];
        match task.state {
            State::Idle => !self.stopping,
            _ => task.conn.is_none(),
        }
    }

    /// A connection of the pool that is free, or a new one.
    fn connect(&mut self, host: usize, listening: &Listening, rng: &mut Rng) -> Option<ClientConnId> {
        let usable = |conn: &ClientConn| conn.open && !conn.closed && !conn.busy;
        let Host { pooled, balanced, home, .. } = self.hosts[host];
        let free: Vec<_> =
            self.hosts[host].conns.iter().copied().filter(|conn| usable(&self.conns[*conn])).collect();
        let anew = (pooled || balanced) && rng.u32(0..8) == 0;
        if !free.is_empty() && !anew {
            return Some(free[rng.usize(0..free.len())]);
        }
        let there: Vec<usize> = (0..listening.len()).filter(|place| listening[*place].is_some()).collect();
        let stays = !balanced && there.contains(&home);
        let place = if stays { home } else { *there.get(rng.usize(0..there.len().max(1)))? };
        self.hosts[host].home = place;
        let conn = self.open(host, (place, listening[place]?), rng.u32(1..8));
        self.hosts[host].conns.push(conn);
        Some(conn)
    }

    /// A connection that is told what to do.
    pub fn scripted(&mut self, proxy: (usize, u32)) -> ClientConnId {
        let conn = self.open(self.hosts.len() + self.conns.len(), proxy, 1);
        self.conns[conn].scripted = true;
        conn
    }

    fn open(&mut self, host: usize, proxy: (usize, u32), speed: u32) -> ClientConnId {
        self.conns.push(ClientConn {
            host,
            proxy,
            to: VecDeque::new(),
            from: VecDeque::new(),
            open: true,
            closed: false,
            speed,
            fills: vec![],
            hits: Hits::default(),
            pending: false,
            unread: false,
            busy: false,
            scripted: false,
        });
        self.conns.len() - 1
    }

    fn send(&mut self, task: usize, conn: ClientConnId, ask: Ask, state: State, now: Moment) {
        self.conns[conn].busy = true;
        self.conns[conn].to.push_back((now, ask));
        self.tasks[task].conn = Some(conn);
        self.tasks[task].state = state;
    }

    /// The task does the next thing that it has to do.
    pub fn step(&mut self, task: usize, world: &mut Step<'_>) {
        let (now, host) = (world.now, self.tasks[task].host);
        match self.tasks[task].state {
            State::Idle => self.begin(task, world),
            State::Missed { key, miss } => {
                self.tasks[task].state = State::Holds { key, versions: self.database, miss };
            }
            State::Holds { key, versions, miss } => {
                let Some(conn) = self.connect(host, world.listening, world.rng) else { return };
                let proxy = self.conns[conn].proxy;
                // Known limit: the same proxy has not noticed yet that the connection of the first attempt has ended.
                let unnoticed = |left: ClientConnId| self.conns[left].open && self.conns[left].proxy == proxy;
                if self.tasks[task].left.is_some_and(unnoticed) {
                    return;
                }
                // Known limit: a fill after its window. What is on its way takes up to two delays.
                let late = miss.is_some_and(|miss| miss.at + WINDOW - 2 * LONGEST_DELAY <= now);
                if late {
                    self.tasks[task].state = State::Idle;
                    return;
                }
                let value = Cached { versions, filled: miss.is_some(), at: 0 };
                let state = State::Writing { key, versions, miss };
                self.send(task, conn, Ask::Set(key, value), state, now);
            }
            State::Committed { trigger, invalidation } => {
                let Some(conn) = self.connect(host, world.listening, world.rng) else { return };
                let state = State::Triggering { trigger, invalidation };
                self.send(task, conn, Ask::Trigger(trigger, invalidation), state, now);
            }
            State::Reading { .. } | State::Writing { .. } | State::Triggering { .. } => {}
        }
    }

    /// The rows behind the tags of a trigger change.
    pub fn commit(&mut self, trigger: usize) -> Versions {
        for tag in &names().triggers[trigger].tags {
            self.database[*tag] += 1;
        }
        self.database
    }

    fn begin(&mut self, task: usize, world: &mut Step<'_>) {
        let key = self.keys[world.rng.usize(0..self.keys.len())];
        match world.rng.u32(0..10) {
            0..=6 => {
                let host = self.tasks[task].host;
                let Some(conn) = self.connect(host, world.listening, world.rng) else { return };
                let state = State::Reading { key, acknowledged: world.oracle.acknowledged.len() };
                self.send(task, conn, Ask::Get(key), state, world.now);
            }
            7..=8 if !self.triggers.is_empty() => {
                let trigger = self.triggers[world.rng.usize(0..self.triggers.len())];
                let versions = self.commit(trigger);
                let tags = &names().triggers[trigger].tags;
                let invalidation = world.oracle.sent(tags, versions, false);
                self.tasks[task].state = State::Committed { trigger, invalidation };
            }
            _ if world.options.blind_writes => {
                self.tasks[task].state = State::Missed { key, miss: None };
            }
            _ => {}
        }
    }

    /// The client gets the next answer on a connection.
    pub fn receive(&mut self, conn: ClientConnId, world: &mut Step<'_>) {
        let Some((_, answer)) = self.conns[conn].from.pop_front() else { return };
        let Some(task) = self.tasks.iter().position(|task| task.conn == Some(conn)) else {
            if let Answer::Closed = answer {
                self.conns[conn].closed = true;
            }
            return;
        };
        self.conns[conn].busy = false;
        self.tasks[task].conn = None;
        let state = std::mem::replace(&mut self.tasks[task].state, State::Idle);
        let proxy = self.conns[conn].proxy;
        self.tasks[task].state = match (state, answer) {
            (State::Reading { key, acknowledged }, Answer::Value(Some(value))) => {
                world.oracle.read(key, &names().keys[key].tags, &value, acknowledged, proxy.0);
                State::Idle
            }
            (State::Reading { key, .. }, Answer::Value(None)) => {
                world.oracle.reads += 1;
                State::Missed { key, miss: Some(Miss { at: world.now }) }
            }
            (State::Triggering { invalidation, .. }, Answer::Acknowledged(how)) => {
                world.oracle.acknowledge(invalidation, how);
                State::Idle
            }
            (state, Answer::Closed | Answer::Failed) => {
                self.conns[conn].closed |= matches!(answer, Answer::Closed);
                self.again(state, world)
            }
            _ => State::Idle,
        };
    }

    /// The task does not wait any longer for an answer.
    pub fn give_up(&mut self, task: usize, world: &mut Step<'_>) {
        let Some(conn) = self.tasks[task].conn.take() else { return };
        let one = &mut self.conns[conn];
        one.closed = true;
        one.unread |= !one.from.is_empty();
        one.from.clear();
        if one.open {
            one.to.push_back((world.now, Ask::Bye));
        }
        let state = std::mem::replace(&mut self.tasks[task].state, State::Idle);
        self.tasks[task].state = self.again(state, world);
        self.tasks[task].left = Some(conn);
    }

    /// What a task does whose connection was lost before the answer came.
    fn again(&self, state: State, world: &mut Step<'_>) -> State {
        match state {
            State::Writing { key, versions, miss } if world.options.retries && world.rng.bool() => {
                State::Holds { key, versions, miss }
            }
            State::Triggering { trigger, invalidation } if world.options.retries && world.rng.bool() => {
                State::Committed { trigger, invalidation }
            }
            _ => State::Idle,
        }
    }
}

/// What a step of a client takes from around it.
pub struct Step<'a> {
    pub rng: &'a mut Rng,
    pub now: Moment,
    pub options: &'a Options,
    pub oracle: &'a mut Oracle,
    pub listening: &'a Listening,
}
