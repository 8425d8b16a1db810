//! What a simulated proxy makes of its feed: the index, announcements, other proxies, gaps.

use rescind::lease::Moment;
use rescind::peers::{Duty, Message, ProxyId};

use crate::names::{TAGS, names};
use crate::network::{Push, Request};
use crate::proxy::{Around, Proxy, WINDOW, Wait};

impl Proxy {
    /// Events flow. Until the keys that exist have been taken in, the index is not complete.
    pub fn feed_connected(&mut self, around: &mut Around<'_>) {
        self.feed_up = true;
        if std::mem::replace(&mut self.was_connected, true) && around.protect.gap {
            self.epochs.gap();
        }
        self.publish(Message::Hello(self.name.clone(), 0, 0), around);
        self.rebuild(around);
    }

    pub fn rebuild(&mut self, around: &mut Around<'_>) {
        self.complete = false;
        self.session += 1;
        let Some(scans) = self.scans.filter(|_| self.feed_up) else { return };
        self.rebuilding = true;
        for part in 0..2 {
            around.net.send(scans, Request::Scan(part), Wait::Rebuilt(part, self.session));
        }
    }

    pub fn feed_lost(&mut self, around: &mut Around<'_>) {
        self.feed_up = false;
        self.complete = false;
        self.rebuilding = false;
        self.doubt_redis(around);
        self.peers.lost_track(around.now());
    }

    /// Keys that exist; those that came to exist since the feed was connected have been taken in already.
    pub fn rebuilt(&mut self, part: usize, session: u64, keys: &[usize], around: &mut Around<'_>) {
        for key in keys {
            let name = &names().keys[*key];
            self.index.add(0, name.name, &name.labels);
        }
        if part == 1 && self.feed_up && session == self.session {
            self.rebuilding = false;
            self.complete = true;
            self.start_waiting(around);
        }
    }

    pub fn pushed(&mut self, push: Push, around: &mut Around<'_>) {
        // What comes before the connection is set up is passed over.
        if !self.feed_up {
            return;
        }
        match push {
            Push::New(key) => {
                let name = &names().keys[key];
                if !name.labels.is_empty() {
                    self.index.created(0, name.name, &name.labels);
                }
            }
            Push::Gone(key) => {
                self.index.gone(0, names().keys[key].name);
            }
            Push::EpochEvicted(tag) if around.protect.evicted_epochs => self.lost_epochs(vec![tag], around),
            Push::EpochEvicted(_) => {}
            Push::Written(trigger, invalidations) => self.written(trigger, &invalidations, around),
            Push::Flushed => {
                self.doubt_redis(around);
                if around.protect.flushed {
                    self.lost_epochs((0..TAGS).collect(), around);
                }
            }
            Push::Message(message) => self.heard(message, around),
        }
    }

    /// Epochs are gone that told stale fills from fresh ones. One that was just set may not have been announced yet: behind a
    /// barrier it has, to who set it at least.
    fn lost_epochs(&mut self, tags: Vec<usize>, around: &mut Around<'_>) {
        match self.feed {
            Some(feed) if around.protect.flushed => {
                around.net.send(feed, Request::Ping, Wait::EpochsLost(tags));
            }
            _ => self.set_epochs_again(&tags, around),
        }
    }

    /// What was filled since is deleted once more, with new epochs.
    pub fn set_epochs_again(&mut self, tags: &[usize], around: &mut Around<'_>) {
        let since = around.now().saturating_sub(WINDOW);
        for tag in tags {
            if self.epochs.invalidated_since(&names().tags[*tag], since) {
                self.seen(&[*tag], around);
            }
        }
    }

    fn written(&mut self, trigger: usize, invalidations: &[usize], around: &mut Around<'_>) {
        around.oracle.shown(invalidations, (self.place, self.life));
        let one = &names().triggers[trigger];
        if self.own.covers_key(&one.name) || !around.protect.direct {
            return;
        }
        self.seen(&one.tags, around);
    }

    /// Something that one of the proxies has to fan out.
    fn seen(&mut self, tags: &[usize], around: &mut Around<'_>) {
        let duty = Duty { tags: names().labels(tags), what: () };
        if let Some(duty) = self.peers.seen(duty, around.now()) {
            self.take(duty, around);
        }
    }

    fn take(&mut self, duty: Duty<()>, around: &mut Around<'_>) {
        let tags = duty.tags.iter().map(|tag| names().tag(tag)).collect();
        self.fan_out_detached(tags, around);
    }

    fn heard(&mut self, message: Message, around: &mut Around<'_>) {
        let now = around.now();
        match message {
            Message::Begun { proxy, epoch, tags, .. } => {
                self.epochs.announced(&tags, &epoch, now);
                let at = if around.protect.takeover { now } else { Moment::MAX / 2 };
                self.peers.begun(&proxy, &epoch, &tags, at);
                if proxy != self.name {
                    self.recent_of_others.extend(tags.iter().map(|tag| names().tag(tag)));
                }
            }
            Message::Done { epoch, .. } => self.peers.done(&epoch),
            Message::Hello(proxy, ..) => {
                if proxy == self.name {
                    self.introduced = true;
                } else {
                    self.peers.heard(&proxy);
                    let here = Message::Here {
                        proxy: self.name.clone(),
                        shared: false,
                        rules: 0,
                        window: 0,
                        suspects: 0,
                        others: vec![],
                    };
                    self.publish(here, around);
                }
            }
            Message::Here { proxy, .. } | Message::Busy(proxy, _) => {
                self.peers.heard(&proxy);
            }
            Message::Bye(proxy, open) => self.gone(&proxy, open, around),
            // Labels are not simulated.
            Message::Undone { .. } | Message::Unsure { .. } | Message::Mark(_) | Message::Repeated(..) => {}
        }
    }

    fn gone(&mut self, proxy: &ProxyId, open: bool, around: &mut Around<'_>) {
        let now = around.now();
        if around.protect.takeover {
            self.peers.gone(proxy, now, |_, _| ());
        }
        if open && around.protect.suspect {
            self.leases.suspect(now + WINDOW);
        }
    }

    pub fn lifelines(&mut self, proxies: &[ProxyId], live: &[bool], around: &mut Around<'_>) {
        for (proxy, _) in proxies.iter().zip(live).filter(|(_, live)| !**live) {
            self.lost_another |= self.peers.others().any(|other| other == proxy);
            self.gone(proxy, true, around);
        }
    }

    /// Whether something is due that the passing of time brings.
    pub fn is_due(&self, now: u64) -> bool {
        self.next_tick <= now || self.peers.next_due().is_some_and(|due| due <= now) || self.can_retry()
    }

    pub fn tick(&mut self, around: &mut Around<'_>) {
        let now = around.now();
        // Without a feed nobody's announcement can be seen.
        if self.feed_up {
            for duty in self.peers.due(now) {
                self.take(duty, around);
            }
        }
        self.answer_patient(around);
        self.start_waiting(around);
        self.ask_again(around);
        if self.next_tick > now {
            return;
        }
        self.next_tick = now + 1000;
        if !self.feed_up {
            return;
        }
        self.leases.expire(now);
        self.epochs.forget_before(now.saturating_sub(3 * WINDOW));
        if !self.complete && !self.rebuilding {
            self.rebuild(around);
        }
        let others: Vec<ProxyId> = self.peers.others().cloned().collect();
        if let Some(scans) = self.scans {
            around.net.send(scans, Request::Identity, Wait::Look);
            if !others.is_empty() {
                around.net.send(scans, Request::NumSub(others.clone()), Wait::Lifelines(others));
            }
            let mut sample = vec![];
            self.index.sample(4, &mut |one| sample.push((one.id, one.generation, names().key(one.key))));
            let keys = sample.iter().map(|(_, _, key)| *key).collect();
            around.net.send(scans, Request::Exists(keys), Wait::Sampled(sample));
        }
    }
}
