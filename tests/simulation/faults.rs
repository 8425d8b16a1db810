//! What goes wrong: keys and connections are lost, proxies and Redis die and come back.

use rescind::doubt::Scope;
use rescind::index::Index;
use rescind::lease::{Along, Client, Epochs, Fill, Leases, Write};
use rescind::peers::{Peers, ProxyId};

use crate::names::{TAGS, names};
use crate::network::{ConnId, Request};
use crate::proxy::{Proxy, UPSTREAMS, WINDOW, Wait};
use crate::redis::{Cached, Data};
use crate::schedule::World;

impl World {
    pub fn start_proxy(&mut self, place: usize) {
        let journal = &mut self.journals[place];
        journal.lives += 1;
        let life = journal.lives;
        let unclean = life > 1 && !std::mem::take(&mut journal.closed);
        let name: ProxyId = format!("p{place}.{life}").into_bytes().into();
        let leases = Leases::new();
        // Known limit: before pools have given themselves away. They do so here at once.
        for (number, _) in self.clients.hosts.iter().enumerate().filter(|(_, host)| host.pooled) {
            let host = number as u64 + 1;
            for _ in 0..8 {
                leases.missed(0, Client { id: u64::MAX, host }, 1, self.net.now, WINDOW);
                let client = Client { id: u64::MAX - 1, host };
                let write =
                    Write { client, fill: Fill::Whole, found: None, along: Along::No, now: self.net.now };
                leases.filled(0, write, || false);
            }
        }
        if unclean && self.protect.suspect {
            leases.suspect(self.net.now + WINDOW);
        }
        let mut proxy = Proxy {
            place,
            life,
            peers: Peers::new(name.clone()),
            name,
            index: Index::new(),
            complete: false,
            rebuilding: false,
            leases,
            epochs: Epochs::default(),
            own: Default::default(),
            feed: None,
            feed_up: false,
            introduced: false,
            was_connected: false,
            session: 0,
            upstreams: Default::default(),
            deletes: None,
            scans: None,
            fanouts: vec![],
            doubt: Default::default(),
            redis: Default::default(),
            known: journal.redis,
            run: None,
            recent_of_others: Default::default(),
            lost_another: false,
            speed: self.rng.u32(1..8),
            next_tick: self.net.now,
        };
        let pending = self.journals[place].pending();
        self.with(
            |_, around| {
                // Redis may have been replaced meanwhile.
                proxy.doubt_redis(around);
                for (intent, tags) in pending {
                    let reason = proxy.doubt.enter(Scope::Tags(names().labels(&tags)));
                    proxy.fan_out(tags, Some(intent), around);
                    if let Some(fanout) = proxy.fanouts.last_mut() {
                        fanout.doubt = Some(reason);
                    }
                }
            },
            place,
        );
        self.proxies[place] = Some(proxy);
    }

    pub fn start_redis(&mut self) {
        let data = match self.rng.u32(0..3) {
            0 => Data::default(),
            _ => self.redis.snapshot.clone(),
        };
        self.redis.start(data);
    }

    pub fn fault(&mut self) {
        let options = &self.options;
        let live: Vec<ConnId> =
            (1..self.net.conns.len()).filter(|conn| self.net.conns[*conn].proxy_open).collect();
        match self.rng.u32(0..20) {
            0..=2 if options.losses => {
                let key = self.rng.usize(0..names().keys.len());
                self.redis.lose_key(key, &mut self.net);
            }
            3 if options.losses => {
                let key = self.rng.usize(0..names().keys.len());
                self.net.send(self.direct, Request::Del(key), Wait::Nothing);
            }
            4..=5 if options.direct => {
                let key = self.rng.usize(0..names().keys.len());
                let value = Cached { versions: self.clients.database, filled: false, at: 0 };
                self.net.send(self.direct, Request::Set(key, value), Wait::Nothing);
            }
            6 if options.direct => {
                let trigger = self.rng.usize(0..TAGS);
                let versions = self.clients.commit(trigger);
                let tags = &names().triggers[trigger].tags;
                let invalidation = self.oracle.sent(tags, versions, true);
                self.net.send(self.direct, Request::Trigger(trigger, invalidation), Wait::Nothing);
            }
            7 if options.evicted_epochs => {
                let tag = self.rng.usize(0..TAGS);
                self.redis.evict_epoch(tag, &mut self.net);
            }
            8..=9 if options.cuts && !live.is_empty() => {
                let conn = live[self.rng.usize(0..live.len())];
                let (up, down) = (self.net.conns[conn].up.len(), self.net.conns[conn].down.len());
                let (up, down) = (self.rng.usize(0..=up), self.rng.usize(0..=down));
                self.net.cut(conn, up, down);
            }
            10..=11 if options.proxy_crashes => {
                let place = self.rng.usize(0..self.proxies.len());
                self.crash_proxy(place);
            }
            12 if options.redis_crashes => self.redis.snapshot = self.redis.data.clone(),
            13 if options.redis_crashes && self.redis.identity.is_some() => {
                self.redis.crash();
                // Its host may be gone, or another one have its address: nobody is told for a while.
                let silent = self.rng.bool();
                for conn in 1..self.net.conns.len() {
                    let said = self.net.conns[conn].down.len();
                    self.net.close_by_redis(conn, self.rng.usize(0..=said));
                    if silent {
                        self.net.conns[conn].speed = 0;
                    }
                }
                self.net.conns[self.direct].up.clear();
            }
            14..=15 if options.turnover => {
                let (place, number) = (self.rng.usize(0..self.proxies.len()), self.rng.usize(0..UPSTREAMS));
                self.at(place, |proxy, around| proxy.turn_over(number, around));
            }
            16 if options.flushes => self.net.send(self.direct, Request::Flush, Wait::Nothing),
            17 if options.errors => self.redis.refuses += 1,
            18..=19 if options.timeouts => {
                let task = self.rng.usize(0..self.clients.tasks.len());
                self.client(|clients, step| clients.give_up(task, step));
            }
            // Others get their turn.
            _ => {
                let conn = self.rng.usize(0..self.net.conns.len());
                self.net.conns[conn].speed = [1, 1, 2, 6, 16][self.rng.usize(0..5)];
            }
        }
    }

    fn crash_proxy(&mut self, place: usize) {
        let Some(proxy) = self.proxies[place].take() else { return };
        for conn in 0..self.net.conns.len() {
            let one = &self.net.conns[conn];
            if one.proxy_open && one.proxy.1 == proxy.name {
                let sent = one.up.len();
                self.net.close_by_proxy(conn, self.rng.usize(0..=sent));
            }
        }
        let journal = &mut self.journals[place];
        journal.write(self.rng.usize(0..3));
        journal.crash();
        self.clients.cut_off((place, proxy.life), &mut self.rng, self.net.now);
    }
}
