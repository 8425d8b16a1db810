//! What a simulated proxy does with its clients' requests: misses, fills, triggers, and how connections end.

use rescind::lease::{Client, Clock, Expected, Fill, Filled, KeyHash, Write};
use rescind::rules::Tag;

use crate::clients::{Answer, Ask, ClientConnId};
use crate::names::names;
use crate::network::Request;
use crate::proxy::{Around, Proxy, UPSTREAMS, WINDOW, Wait};
use crate::redis::Cached;

impl Proxy {
    /// A request was not sent.
    pub fn unsent(&mut self, wait: Wait, around: &mut Around<'_>) {
        match wait {
            Wait::Get(conn, _) => around.clients.answer(conn, Answer::Failed, around.net.now),
            Wait::Set(conn, fill) => {
                if around.protect.unsent {
                    self.give_back(conn, fill.as_slice(), around);
                }
                around.clients.answer(conn, Answer::Failed, around.net.now);
            }
            Wait::Trigger { conn, trigger, intent } => {
                around.clients.answer(conn, Answer::Failed, around.net.now);
                around.journal.done(intent);
                if !self.own.leave(&crate::fanout::firing(trigger), false).is_empty() {
                    self.fan_out_detached(names().triggers[trigger].tags.clone(), around);
                }
            }
            _ => {}
        }
    }

    /// Something of a client has arrived.
    pub fn asked(&mut self, conn: ClientConnId, ask: Ask, around: &mut Around<'_>) {
        if !around.clients.conns[conn].pending {
            // It goes on, so it has got the answers.
            if !matches!(ask, Ask::Bye) {
                around.clients.conns[conn].fills.clear();
            }
        }
        around.clients.conns[conn].pending |= !matches!(ask, Ask::Bye);
        match ask {
            Ask::Get(key) if self.answers_misses(key, around) => self.missed(conn, key, around),
            Ask::Get(key) => self.send(conn, Request::Get(key), Wait::Get(conn, key), around),
            Ask::Set(key, value) => {
                let (request, fill) = self.write(conn, key, value, around);
                around.clients.conns[conn].fills.extend(fill);
                self.send(conn, request, Wait::Set(conn, fill), around);
            }
            Ask::Trigger(trigger, invalidation) => {
                let intent = around.journal.intend(&names().triggers[trigger].tags, around.protect.journal);
                self.own.enter(&crate::fanout::firing(trigger));
                let wait = Wait::Trigger { conn, trigger, intent };
                self.send(conn, Request::Trigger(trigger, invalidation), wait, around);
            }
            Ask::Bye => {
                // The kernel tells of what was not read, but perhaps later than of the end.
                let broken = around.clients.conns[conn].unread && !around.overtaking;
                self.cut(conn, broken, around);
            }
        }
    }

    /// Over the connection that the client shares.
    fn send(&mut self, conn: ClientConnId, request: Request, wait: Wait, around: &mut Around<'_>) {
        match &mut self.upstreams[conn % UPSTREAMS] {
            Some(upstream) if upstream.is_set_up => around.net.send(upstream.conn, request, wait),
            Some(upstream) => upstream.behind.push((request, wait)),
            None => self.unsent(wait, around),
        }
    }

    /// The connection of a client ends, in order or not.
    pub fn cut(&mut self, conn: ClientConnId, broken: bool, around: &mut Around<'_>) {
        let fills = std::mem::take(&mut around.clients.conns[conn].fills);
        if broken || around.clients.conns[conn].pending || around.protect.every_end {
            self.give_back(conn, &fills, around);
        }
        around.clients.close(conn, around.net.now);
    }

    pub fn give_back(&mut self, conn: ClientConnId, fills: &[(KeyHash, Clock)], around: &mut Around<'_>) {
        if around.protect.give_back {
            self.leases.give_back(fills, self.client(conn, around).host, around.now(), WINDOW);
        }
    }

    fn client(&self, conn: ClientConnId, around: &Around<'_>) -> Client {
        Client { id: conn as u64 + 1, host: around.clients.conns[conn].host as u64 + 1 }
    }

    /// The client has been told of a key that has tags; `missed`: that it is not there.
    pub fn read(&self, conn: ClientConnId, missed: Option<KeyHash>, around: &mut Around<'_>) {
        let now = around.now();
        let alone = around.clients.conns[conn].hits.read(missed, now);
        self.leases.went_alone(self.client(conn, around).host, alone, now);
    }

    pub fn missed(&mut self, conn: ClientConnId, key: usize, around: &mut Around<'_>) {
        let name = &names().keys[key];
        if !name.tags.is_empty() {
            let hash = self.leases.hash(0, name.name);
            let client = self.client(conn, around);
            self.leases.missed(hash, client, self.epochs.clock(), around.now(), WINDOW);
            self.read(conn, Some(hash), around);
        }
        around.clients.answer(conn, Answer::Value(None), around.net.now);
    }

    /// What is sent for a write, and which miss it fills.
    fn write(
        &mut self,
        conn: ClientConnId,
        key: usize,
        value: Cached,
        around: &mut Around<'_>,
    ) -> (Request, Option<(KeyHash, Clock)>) {
        let (name, now) = (&names().keys[key], around.now());
        let plain = Request::Set(key, value);
        if name.tags.is_empty() || (self.leases.is_idle(now) && self.is_alone()) {
            return (plain, None);
        }
        let hash = self.leases.hash(0, name.name);
        let client = self.client(conn, around);
        let tags = || name.tags.iter().zip(&name.labels);
        let told = || name.labels.iter().any(|label| self.epochs.told(label, client.id).is_some());
        let hits = &mut around.clients.conns[conn].hits;
        let along = hits.writes(hash, now, WINDOW);
        let write = Write { client, fill: Fill::Whole, found: None, along, now };
        let filled = self.leases.filled(hash, write, told);
        if filled.is_ahead {
            hits.went_ahead();
        }
        let Filled { clock, is_own, is_lone, .. } = filled;
        let fill = clock.map(|clock| (hash, clock));
        let mut expected: Vec<(usize, Expected)> = vec![];
        if let Some(clock) = clock {
            expected.extend(tags().map(|(tag, label)| (*tag, self.epochs.expected(label, clock))));
        }
        if !is_own && !self.is_alone() && around.protect.elsewhere {
            let told = (is_lone || !around.protect.told).then_some(client.id);
            let elsewhere = |label| self.elsewhere(label, told, around);
            expected.extend(tags().map(|(tag, label)| (*tag, elsewhere(label))));
        }
        if expected.is_empty() || !around.protect.fill_check {
            return (plain, fill);
        }
        (Request::Fill { key, value, expected }, fill)
    }

    /// What a write without a miss of its connection is compared with, because it may fill one of another proxy.
    fn elsewhere(&self, label: &Tag, told: Option<u64>, around: &Around<'_>) -> Expected {
        let known = told.and_then(|connection| self.epochs.told(label, connection));
        let expected = known.map_or(Expected::NoEpoch, Expected::Epoch);
        let since = around.now().saturating_sub(2 * WINDOW);
        let is_known = around.protect.news && self.epochs.invalidated_since(label, since);
        if is_known && expected == Expected::NoEpoch { Expected::Stale } else { expected }
    }
}
