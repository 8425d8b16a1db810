//! One schedule: everything that could happen next, and the choice of it.

use rescind::lease::Moment;
use rescind::peers::ProxyId;

use crate::clients::{Answer, Ask, ClientConnId, Clients, Listening, Step};
use crate::journal::Journal;
use crate::mutations::Protections;
use crate::names::names;
use crate::network::{ConnId, Kind, Network};
use crate::options::Options;
use crate::oracle::Oracle;
use crate::proxy::{Around, Proxy, WINDOW};
use crate::redis::{Cached, Redis};

/// No message is on its way for longer.
pub const LONGEST_DELAY: Moment = 1000;

#[derive(Clone, Copy, Debug)]
enum Action {
    ToRedis(ConnId),
    ToProxy(ConnId),
    FromClient(ClientConnId),
    ToClient(ClientConnId),
    Task(usize),
    Tick(usize),
    Connect(usize, Kind),
    Journal(usize),
    EndTurn,
    Fault,
    Pass(Moment),
    StartRedis,
    StartProxy(usize),
}

pub struct World {
    pub rng: fastrand::Rng,
    pub options: Options,
    pub protect: Protections,
    pub net: Network,
    pub redis: Redis,
    pub clients: Clients,
    pub oracle: Oracle,
    pub proxies: Vec<Option<Proxy>>,
    pub journals: Vec<Journal>,
    pub direct: ConnId,
    /// The end: no more faults, and everything is delivered.
    healing: bool,
    pub trace: Option<Vec<String>>,
    candidates: Vec<(u32, Action)>,
}

impl World {
    pub fn new(seed: u64, options: Options, protect: Protections) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut net = Network { now: 1_000_000, ..Network::default() };
        let nobody: ProxyId = b"direct".as_slice().into();
        let direct = net.open(Kind::Direct, (usize::MAX, nobody), 4);
        let clients = Clients::new(&mut rng, &options);
        // Known limit: until an epoch that was evicted or flushed is set again, stale fills can be read.
        let oracle = Oracle {
            lenient: options.evicted_epochs || options.flushes,
            witnesses: options.stay_dead,
            ..Oracle::default()
        };
        let mut world = Self {
            proxies: (0..options.proxies).map(|_| None).collect(),
            journals: vec![Journal::default(); options.proxies],
            rng,
            options,
            protect,
            net,
            redis: Redis::new(),
            clients,
            oracle,
            direct,
            healing: false,
            trace: None,
            candidates: vec![],
        };
        (0..world.options.proxies).for_each(|place| world.start_proxy(place));
        // What is suspect at the start is not any more when the clients come.
        world.heal(0);
        world.net.now += 2 * WINDOW;
        (world.healing, world.clients.stopping) = (false, false);
        world
    }

    /// Runs it to its end.
    pub fn run(&mut self) {
        for _ in 0..self.options.steps {
            self.step();
            if self.oracle.violation.is_some() {
                return;
            }
        }
        // What others have begun is taken over some seconds after they were last heard of.
        self.heal(if self.proxies.len() > 1 { 10 } else { 0 });
        self.check_end();
    }

    /// Runs something with all that is around the proxies.
    pub fn with(&mut self, run: impl FnOnce(Option<&mut Proxy>, &mut Around<'_>), place: usize) {
        let mut around = Around {
            net: &mut self.net,
            clients: &mut self.clients,
            oracle: &mut self.oracle,
            journal: &mut self.journals[place],
            protect: &self.protect,
            rng: &mut self.rng,
            overtaking: self.options.overtaking,
        };
        run(self.proxies[place].as_mut(), &mut around);
    }

    pub fn at(&mut self, place: usize, run: impl FnOnce(&mut Proxy, &mut Around<'_>)) {
        self.with(
            |proxy, around| {
                if let Some(proxy) = proxy {
                    run(proxy, around)
                }
            },
            place,
        );
    }

    fn gather(&mut self) {
        let mut all = std::mem::take(&mut self.candidates);
        all.clear();
        let overdue = self.net.now.saturating_sub(LONGEST_DELAY);
        let mut late = None;
        for (id, conn) in self.net.conns.iter().enumerate() {
            if let Some((at, _)) = conn.up.front() {
                all.push((conn.speed, Action::ToRedis(id)));
                late = late.or((*at <= overdue).then_some(Action::ToRedis(id)));
            }
            if let Some((at, _)) = conn.down.front() {
                all.push((conn.speed, Action::ToProxy(id)));
                late = late.or((*at <= overdue).then_some(Action::ToProxy(id)));
            }
        }
        for (id, conn) in self.clients.conns.iter().enumerate() {
            if let Some((at, _)) = conn.to.front() {
                all.push((conn.speed, Action::FromClient(id)));
                late = late.or((*at <= overdue).then_some(Action::FromClient(id)));
            }
            if let Some((at, _)) = conn.from.front().filter(|_| !conn.scripted) {
                all.push((conn.speed, Action::ToClient(id)));
                late = late.or((*at <= overdue).then_some(Action::ToClient(id)));
            }
        }
        if self.redis.turn_open {
            all.push((12, Action::EndTurn));
        }
        if let Some(late) = late.filter(|_| !self.redis.turn_open) {
            all.clear();
            all.push((1, late));
            self.candidates = all;
            return;
        }
        for task in 0..self.clients.tasks.len() {
            if self.clients.can_step(task) {
                all.push((self.clients.tasks[task].speed, Action::Task(task)));
            }
        }
        for place in 0..self.proxies.len() {
            let Some(proxy) = &self.proxies[place] else {
                if !self.may_stay_dead() {
                    all.push((if self.healing { 20 } else { 1 }, Action::StartProxy(place)));
                }
                continue;
            };
            if proxy.is_due(self.net.now) {
                all.push((proxy.speed, Action::Tick(place)));
            }
            if self.redis.identity.is_some() {
                all.extend(proxy.missing().map(|kind| (proxy.speed, Action::Connect(place, kind))));
            }
            if self.journals[place].has_unwritten() {
                all.push((1, Action::Journal(place)));
            }
        }
        if self.redis.identity.is_none() {
            all.push((if self.healing { 20 } else { 3 }, Action::StartRedis));
        }
        if !self.healing {
            all.push((self.options.faults, Action::Fault));
            all.push((1, Action::Pass(self.rng.u64(1..400))));
        }
        self.candidates = all;
    }

    fn may_stay_dead(&self) -> bool {
        self.options.stay_dead && self.proxies.iter().any(Option::is_some)
    }

    pub fn step(&mut self) {
        self.net.now += self.rng.u64(0..2);
        self.gather();
        let total: u32 = self.candidates.iter().map(|(weight, _)| weight).sum();
        if total == 0 {
            return;
        }
        let mut chosen = self.rng.u32(0..total);
        let candidate = self.candidates.iter().find(|(weight, _)| {
            let found = chosen < *weight;
            chosen = chosen.wrapping_sub(*weight);
            found
        });
        let Some(&(_, action)) = candidate else { return };
        self.act(action);
    }

    fn act(&mut self, action: Action) {
        if self.trace.is_some() {
            self.note(action);
        }
        match action {
            Action::ToRedis(conn) => {
                self.redis.receive(conn, &mut self.net, &mut self.oracle);
                if self.rng.u32(0..3) > 0 {
                    self.redis.end_turn(&mut self.net);
                }
            }
            Action::EndTurn => self.redis.end_turn(&mut self.net),
            Action::ToProxy(conn) => {
                let place = self.net.conns[conn].proxy.0;
                if let Some((_, down)) = self.net.conns[conn].down.pop_front() {
                    self.at(place, |proxy, around| proxy.told(conn, down, around));
                }
            }
            Action::FromClient(conn) => {
                let place = self.clients.conns[conn].proxy.0;
                if let Some((_, ask)) = self.clients.conns[conn].to.pop_front() {
                    self.at(place, |proxy, around| proxy.asked(conn, ask, around));
                }
            }
            Action::ToClient(conn) => self.client(|clients, step| clients.receive(conn, step)),
            Action::Task(task) => self.client(|clients, step| clients.step(task, step)),
            Action::Tick(place) => self.at(place, |proxy, around| proxy.tick(around)),
            Action::Connect(place, kind) => self.at(place, |proxy, around| proxy.connect(kind, around)),
            Action::Journal(place) => self.journals[place].write(1),
            Action::Pass(time) => self.net.now += time,
            Action::StartRedis => self.start_redis(),
            Action::StartProxy(place) => self.start_proxy(place),
            Action::Fault => self.fault(),
        }
    }

    pub fn client(&mut self, run: impl FnOnce(&mut Clients, &mut Step<'_>)) {
        let listening: Listening =
            self.proxies.iter().map(|p| p.as_ref().filter(|p| p.introduced).map(|p| p.life)).collect();
        let mut step = Step {
            rng: &mut self.rng,
            now: self.net.now,
            options: &self.options,
            oracle: &mut self.oracle,
            listening: &listening,
        };
        run(&mut self.clients, &mut step);
    }

    /// No more faults: everything that is on its way arrives, and time passes, until nothing is left to do.
    fn heal(&mut self, least: usize) {
        self.healing = true;
        self.clients.stopping = true;
        for second in 0..30 {
            for _ in 0..5000 {
                self.gather();
                if self.candidates.is_empty() {
                    break;
                }
                self.step();
                if self.oracle.violation.is_some() {
                    return;
                }
            }
            let stay_dead = self.may_stay_dead();
            let busy = |proxy: &Option<Proxy>| match proxy {
                Some(proxy) => !proxy.is_quiet(),
                None => !stay_dead,
            };
            if second >= least && !self.proxies.iter().any(busy) && self.clients.is_idle() {
                return;
            }
            self.net.now += 1000;
        }
        self.oracle.demand(false, || "it does not come to rest".to_owned());
    }

    /// A client asks something of a proxy while nothing else happens.
    fn ask(&mut self, conn: ClientConnId, ask: Ask) -> Option<Answer> {
        self.clients.conns[conn].to.push_back((self.net.now, ask));
        self.heal(0);
        self.clients.conns[conn].from.pop_front().map(|(_, answer)| answer)
    }

    /// After an acknowledged invalidation: what is missed and filled is a hit.
    pub fn fill_afresh(&mut self) -> Result<(), String> {
        let places = self.proxies.len();
        let conns: Vec<ClientConnId> = (0..places).map(|place| self.clients.scripted((place, 1))).collect();
        for key in 0..names().keys.len() {
            let (writer, reader) = (self.rng.usize(0..places), self.rng.usize(0..places));
            for tag in &names().keys[key].tags {
                let versions = self.clients.commit(*tag);
                let invalidation = self.oracle.sent(&names().triggers[*tag].tags, versions, false);
                let answer = self.ask(conns[writer], Ask::Trigger(*tag, invalidation));
                if !matches!(answer, Some(Answer::Acknowledged(_))) {
                    return Err(format!("the trigger of tag {tag} got {answer:?}"));
                }
                let missed = self.ask(conns[reader], Ask::Get(key));
                if !matches!(missed, Some(Answer::Value(None))) {
                    return Err(format!("key {key} is not gone: {missed:?}"));
                }
                let value = Cached { versions, filled: true, at: 0 };
                self.ask(conns[reader], Ask::Set(key, value));
                let read = self.ask(conns[reader], Ask::Get(key));
                if !matches!(read, Some(Answer::Value(Some(Cached { versions: found, .. }))) if found == versions)
                {
                    return Err(format!("key {key} was filled, and then there was {read:?}"));
                }
            }
        }
        Ok(())
    }

    /// A key is missed; its invalidation through another proxy is in a part of the feed that is lost, and its epoch is gone
    /// when the key is filled. Whether the value is there.
    pub fn fills_after_gap(&mut self) -> bool {
        let (key, tag) = (0, names().keys[0].tags[0]);
        let [other, conn] = [0, 1].map(|place| self.clients.scripted((place, 1)));
        let value = Cached { versions: self.clients.database, filled: true, at: 0 };
        self.ask(conn, Ask::Get(key));
        let feed = self.proxies[1].as_ref().and_then(|proxy| proxy.feed).expect("a feed");
        self.net.conns[feed].speed = 0;
        let versions = self.clients.commit(tag);
        let invalidation = self.oracle.sent(&names().triggers[tag].tags, versions, false);
        self.clients.conns[other].to.push_back((self.net.now, Ask::Trigger(tag, invalidation)));
        while self.clients.conns[other].from.is_empty() {
            self.step();
        }
        self.net.cut(feed, 0, 0);
        self.redis.data.epochs = Default::default();
        self.heal(0);
        self.ask(conn, Ask::Set(key, value));
        matches!(self.ask(conn, Ask::Get(key)), Some(Answer::Value(Some(_))))
    }

    fn check_end(&mut self) {
        if self.oracle.violation.is_some() {
            return;
        }
        let alive: Vec<(usize, u32)> = self.proxies.iter().flatten().map(|p| (p.place, p.life)).collect();
        for (key, value) in &self.redis.data.keys {
            self.oracle.finally(*key, &names().keys[*key].tags, value, &alive);
        }
    }

    fn note(&mut self, action: Action) {
        let what = match action {
            Action::ToRedis(conn) => {
                let one = &self.net.conns[conn];
                format!("{action:?} {:?} of p{}: {:?}", one.kind, one.proxy.0, one.up.front())
            }
            Action::ToProxy(conn) => {
                let one = &self.net.conns[conn];
                let wait = one.waits.front();
                format!("{action:?} {:?} of p{}: {:?} for {wait:?}", one.kind, one.proxy.0, one.down.front())
            }
            Action::FromClient(conn) => {
                let one = &self.clients.conns[conn];
                format!("{action:?} host {} to p{}: {:?}", one.host, one.proxy.0, one.to.front())
            }
            Action::ToClient(conn) => {
                let one = &self.clients.conns[conn];
                format!("{action:?} host {} from p{}: {:?}", one.host, one.proxy.0, one.from.front())
            }
            Action::Task(task) => format!("task {task}: {:?}", self.clients.tasks[task]),
            _ => format!("{action:?}"),
        };
        let line = format!("{:6} {what}", self.net.now - 1_000_000);
        if let Some(trace) = &mut self.trace {
            trace.push(line);
        }
    }
}
