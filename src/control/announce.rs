//! What this proxy tells the others, and what it makes of what they tell.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis_protocol::resp3::types::BytesFrame;
use tokio::sync::Notify;

use super::Engine;
use super::link::Batch;
use super::wire::{Wire, array_of, bytes_of, int_of};
use crate::accounting::{Firing, TriggerLabel};
use crate::doubt::Scope;
use crate::fanout::Cause;
use crate::lease::Moment;
use crate::lease::script::epoch_key;
use crate::peers::{self, Duty, Message, Peers, lifeline};
use crate::rules::Tag;

/// Tags of others' invalidations that are remembered; beyond, all count.
const MOST_RECENT: usize = 100_000;
/// Tags of one fan-out that are told together.
const MOST_TAGS: usize = 1000;
/// A message beyond so many bytes is not made longer.
const LARGE: usize = 64 * 1024;

/// Something to tell.
#[derive(Clone)]
pub(super) enum Announcement {
    /// A fan-out begins: the epochs of its tags are set, then it is told.
    Begun {
        /// Who begins it.
        proxy: peers::ProxyId,
        /// The new epoch of all the tags.
        epoch: Box<[u8]>,
        /// The tags.
        tags: Arc<[Tag]>,
        /// How long Redis keeps the epochs, in milliseconds.
        lifetime: Moment,
    },
    /// Anything else.
    Message(Message),
}

/// Queues the commands that it takes to tell all this, in this order; how many there are. What is told together goes in
/// one message. All epochs are set before.
pub(super) fn queue(announcements: &[Announcement], mut command: impl FnMut(&[&[u8]])) -> usize {
    let mut commands = set_epochs(announcements, &mut command);
    let mut payload = BytesMut::new();
    let mut publish = |payload: &mut BytesMut, least: usize| {
        if payload.len() > least {
            command(&[b"PUBLISH", peers::CHANNEL, payload]);
            commands += 1;
            payload.clear();
        }
    };
    for announcement in announcements {
        match announcement {
            Announcement::Message(message) => message.encode(&mut payload),
            Announcement::Begun { proxy, epoch, tags, .. } => {
                for tags in tags.chunks(MOST_TAGS) {
                    peers::encode_begun(&mut payload, proxy, epoch, tags);
                    publish(&mut payload, LARGE);
                }
            }
        }
        publish(&mut payload, LARGE);
    }
    publish(&mut payload, 0);
    commands
}

/// Of several epochs of one tag the last.
fn set_epochs(announcements: &[Announcement], command: &mut impl FnMut(&[&[u8]])) -> usize {
    let begun = |one: &&Announcement| matches!(one, Announcement::Begun { .. });
    let several = announcements.iter().filter(begun).nth(1).is_some();
    let (mut known, mut commands) = (HashSet::new(), 0);
    for announcement in announcements.iter().rev() {
        let Announcement::Begun { epoch, tags, lifetime, .. } = announcement else { continue };
        let lifetime = lifetime.to_string();
        for tag in tags.iter().filter(|tag| !several || known.insert(*tag)) {
            command(&[b"SET", &epoch_key(tag), epoch, b"PX", lifetime.as_bytes()]);
            commands += 1;
        }
    }
    commands
}

/// The other proxies, and when to look again what is left to this one.
pub(super) struct Others {
    peers: RefCell<Peers<Firing>>,
    wake: Notify,
    /// When one was last found to be gone without a word.
    lost: Cell<Option<Instant>>,
    /// What they have invalidated lately.
    recent: RefCell<HashMap<Tag, Instant>>,
    /// The last fan-out of this proxy that the feed has shown.
    echo: Cell<u64>,
}

impl Others {
    pub fn new(me: peers::ProxyId) -> Self {
        let peers = RefCell::new(Peers::new(me));
        let (wake, lost, recent, echo) = Default::default();
        Self { peers, wake, lost, recent, echo }
    }

    /// Somebody has invalidated these tags.
    fn note(&self, tags: &[Tag]) {
        let mut recent = self.recent.borrow_mut();
        if recent.len() < MOST_RECENT {
            recent.extend(tags.iter().map(|tag| (tag.clone(), Instant::now())));
        }
    }

    /// The feed shows a fan-out of this proxy.
    fn echo(&self, epoch: &[u8]) {
        if let Some(number) = number_of(epoch) {
            self.echo.set(number);
        }
    }

    /// Whether the feed has shown this fan-out of this proxy.
    pub fn has_echoed(&self, epoch: &[u8]) -> bool {
        number_of(epoch).is_some_and(|number| number <= self.echo.get())
    }

    /// `own` and what the others have invalidated within `window`, as far as that is known.
    pub fn with_recent(&self, own: Scope, window: Duration) -> Scope {
        let Scope::Tags(mut tags) = own else { return own };
        let mut recent = self.recent.borrow_mut();
        recent.retain(|_, at| at.elapsed() < window);
        let lost = self.lost.get().is_some_and(|at| at.elapsed() < window);
        if lost || recent.len() >= MOST_RECENT {
            return Scope::Everything;
        }
        let known: HashSet<Tag> = tags.iter().cloned().collect();
        tags.extend(recent.keys().filter(|tag| !known.contains(*tag)).cloned());
        Scope::Tags(tags)
    }

    /// Whether there are none.
    pub fn is_alone(&self) -> bool {
        self.peers.borrow().others().next().is_none()
    }
}

/// The name of a fan-out.
fn epoch_named(proxy: &[u8], number: u64) -> Box<[u8]> {
    [proxy, b"-", number.to_string().as_bytes()].concat().into()
}

/// The number in such a name.
fn number_of(epoch: &[u8]) -> Option<u64> {
    let start = memchr::memrchr(b'-', epoch)? + 1;
    std::str::from_utf8(&epoch[start..]).ok()?.parse().ok()
}

/// Listens to the other proxies, and shows them that this one lives. Without the right to it this one can only be alone.
pub(super) async fn subscribe(engine: &Engine, wire: &mut Wire) -> Result<(), String> {
    wire.queue(&[b"SUBSCRIBE", peers::CHANNEL, &lifeline(&engine.process.id)]);
    if let Err(error) = wire.call(&["PING"]).await {
        tracing::warn!(
            %error,
            "SUBSCRIBE rescind:proxies is not possible: with other proxies on this Redis stale data may be served"
        );
        // The reply to PING is still to come.
        while matches!(wire.next().await?, BytesFrame::Push { .. }) {}
    }
    Ok(())
}

/// Does what others have left undone; runs for ever.
pub(super) async fn run(engine: Rc<Engine>) {
    loop {
        let next = engine.others.peers.borrow().next_due();
        let left = next.map_or(60_000, |due| due.saturating_sub(engine.moment()));
        let _ = tokio::time::timeout(Duration::from_millis(left), engine.others.wake.notified()).await;
        let due = engine.others.peers.borrow_mut().due(engine.moment());
        due.into_iter().for_each(|duty| engine.fan_out_direct(duty.what));
    }
}

/// Asks whether the others still live; called now and then.
pub(super) async fn look_for_dead(engine: &Rc<Engine>) {
    let others: Vec<_> = engine.others.peers.borrow().others().cloned().collect();
    if others.is_empty() {
        return;
    }
    let channels: Vec<_> = others.iter().map(|other| lifeline(other)).collect();
    let mut batch = Batch::default();
    let words = [b"PUBSUB".as_slice(), b"NUMSUB"];
    batch.push(words.into_iter().chain(channels.iter().map(Vec::as_slice)).collect::<Vec<_>>());
    let Ok(frames) = engine.scans.call(0, batch).await else { return };
    let counts = frames.into_iter().next().map(array_of).unwrap_or_default();
    for pair in counts.chunks(2) {
        if let (Some(channel), Some(0)) = (bytes_of(&pair[0]), pair.get(1).and_then(int_of))
            && let Some(dead) = others.iter().find(|other| lifeline(other) == **channel)
        {
            tracing::warn!(proxy = %String::from_utf8_lossy(dead), "another proxy is gone without a word");
            engine.others.lost.set(Some(Instant::now()));
            engine.process.leases.suspect(engine.moment() + engine.longest_window());
            engine.gone_for_ever(dead);
        }
    }
}

impl Engine {
    /// Milliseconds since the start.
    pub(super) fn moment(&self) -> Moment {
        self.process.moment_of(Instant::now())
    }

    /// The longest time that a fill of any family is watched.
    pub(super) fn longest_window(&self) -> Moment {
        let windows = self.rules.borrow().families().iter().map(|f| f.fill_window.as_millis()).max();
        windows.unwrap_or(0) as Moment
    }

    /// A name for a fan-out that none ever had.
    pub(super) fn next_epoch(&self) -> Box<[u8]> {
        self.epoch.set(self.epoch.get() + 1);
        epoch_named(&self.process.id, self.epoch.get())
    }

    /// Another proxy, or this one, has said something.
    pub(super) fn told(self: &Rc<Self>, message: Message) {
        let now = self.moment();
        match message {
            Message::Begun { proxy, epoch, tags } => {
                self.process.epochs.announced(&tags, &epoch, now);
                if proxy == self.process.id {
                    self.others.echo(&epoch);
                } else {
                    self.others.note(&tags);
                    self.heard(&proxy);
                }
                self.others.peers.borrow_mut().begun(&proxy, &epoch, &tags, now);
            }
            Message::Done { proxy, epoch } => {
                self.heard(&proxy);
                self.others.peers.borrow_mut().done(&epoch);
            }
            Message::Hello(proxy) => {
                if proxy == self.process.id {
                    self.process.is_known.store(true, Ordering::Release);
                } else {
                    self.heard(&proxy);
                    let shared = self.process.leases.knows_sharing(now);
                    self.feed.say(Announcement::Message(Message::Here(self.process.id.clone(), shared)));
                }
            }
            Message::Here(proxy, shared) => {
                if shared && proxy != self.process.id {
                    self.process.leases.assume_sharing(now);
                }
                self.heard(&proxy);
            }
            Message::Bye(proxy, open) => {
                if open && proxy != self.process.id {
                    self.process.leases.suspect(now + self.longest_window());
                }
                self.gone_for_ever(&proxy);
            }
            Message::Undone { proxy, db, key } => {
                if proxy == self.process.id {
                    self.process.metrics.stale_fills(&self.family_of(db, &key));
                }
            }
        }
    }

    /// Tells the others that this proxy goes in order.
    pub(super) async fn say_bye(&self) {
        let open = self.process.leases.has_open(self.moment());
        if self.feed.say(Announcement::Message(Message::Bye(self.process.id.clone(), open))) {
            self.feed.barrier(vec![], self).await;
        }
    }

    /// Whether other proxies may give labels of which this one hears a moment later, with events of their keys in between.
    pub(super) fn others_label(&self) -> bool {
        !self.others.is_alone() && self.process.index.has_had_labels()
    }

    fn heard(&self, proxy: &peers::ProxyId) {
        if self.others.peers.borrow_mut().heard(proxy, self.moment()) {
            tracing::info!(proxy = %String::from_utf8_lossy(proxy), "another proxy is there");
            self.tell_workers();
            super::known::note(self);
        }
    }

    fn gone_for_ever(&self, proxy: &peers::ProxyId) {
        let taken_over = |tags: &[Tag]| {
            let what = format!("begun by {}", String::from_utf8_lossy(proxy));
            Firing::unconditional(TriggerLabel::TakenOver, tags.to_vec(), what)
        };
        self.others.peers.borrow_mut().gone(proxy, self.moment(), taken_over);
        self.tell_workers();
        self.others.wake.notify_one();
    }

    /// The workers must know whether this proxy is alone, and on which channels to look for life.
    fn tell_workers(&self) {
        let peers = self.others.peers.borrow();
        let channels = peers.others().map(|other| lifeline(other).into_boxed_slice()).collect();
        drop(peers);
        *self.process.lifelines.write().unwrap_or_else(PoisonError::into_inner) = channels;
        self.process.has_peers.store(!self.others.is_alone(), Ordering::Release);
    }

    /// What others said in the meantime is not known: what was left to them is done here.
    pub(super) fn lost_track_of_peers(&self) {
        self.others.peers.borrow_mut().lost_track(self.moment());
        self.others.wake.notify_one();
    }

    /// The feed shows a trigger that all proxies see: one of them fans it out.
    pub(super) fn seen_by_all(self: &Rc<Self>, firing: Firing) {
        let duty = Duty { tags: firing.tags.clone(), what: firing };
        match self.others.peers.borrow_mut().seen(duty, self.moment()) {
            Some(duty) => self.fan_out_direct(duty.what),
            None => self.others.wake.notify_one(),
        }
    }

    /// Fans out for somebody who wrote straight to Redis.
    fn fan_out_direct(self: &Rc<Self>, firing: Firing) {
        let fired = vec![firing];
        self.process.fanout.detached(Cause::of("direct", &fired), fired);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(epoch: &str, tags: &[&str]) -> Announcement {
        let tags = tags.iter().map(|tag| Tag::from(tag.as_bytes())).collect();
        Announcement::Begun {
            proxy: b"p".as_slice().into(),
            epoch: epoch.as_bytes().into(),
            tags,
            lifetime: 10,
        }
    }

    fn queued(announcements: &[Announcement]) -> Vec<Vec<Vec<u8>>> {
        let mut commands = vec![];
        let count =
            queue(announcements, |words| commands.push(words.iter().map(|word| word.to_vec()).collect()));
        assert_eq!(count, commands.len());
        commands
    }

    /// The epochs of what is told, in one message or several.
    fn told(command: &[Vec<u8>]) -> Vec<String> {
        assert_eq!(command[..2], [b"PUBLISH".to_vec(), peers::CHANNEL.to_vec()]);
        let mut epochs = vec![];
        assert!(Message::decode(&command[2], |message| epochs.push(match message {
            Message::Begun { epoch, .. } => format!("begun {}", String::from_utf8_lossy(&epoch)),
            Message::Done { epoch, .. } => format!("done {}", String::from_utf8_lossy(&epoch)),
            other => format!("{other:?}"),
        })));
        epochs
    }

    #[test]
    fn what_is_told_together_is_one_message_behind_the_latest_epochs() {
        let done = Announcement::Message(Message::Done {
            proxy: b"p".as_slice().into(),
            epoch: b"p-1".as_slice().into(),
        });
        let commands = queued(&[begun("p-2", &["a", "b"]), done, begun("p-3", &["a"])]);
        let text = |words: &[Vec<u8>]| String::from_utf8_lossy(&words.join(&b' ')).into_owned();
        assert_eq!(text(&commands[0]), "SET rescind:epoch:a p-3 PX 10");
        assert_eq!(text(&commands[1]), "SET rescind:epoch:b p-2 PX 10");
        assert_eq!(told(&commands[2]), ["begun p-2", "done p-1", "begun p-3"]);
        assert_eq!(commands.len(), 3);
        assert_eq!(queued(&[]).len(), 0);
    }

    #[test]
    fn messages_do_not_grow_without_bound() {
        let long = "x".repeat(LARGE);
        let commands = queued(&[begun("p-1", &[&long]), begun("p-2", &["a"])]);
        assert_eq!(
            (told(&commands[2]), told(&commands[3])),
            (vec!["begun p-1".into()], vec!["begun p-2".into()])
        );
        let many = vec!["t"; 2 * MOST_TAGS + 1];
        assert_eq!(told(queued(&[begun("p-1", &many)]).last().unwrap()).len(), 3);
    }

    #[test]
    fn epochs_have_numbers() {
        assert_eq!(number_of(&epoch_named(b"1-2-x", 17)), Some(17));
        assert_eq!(number_of(b"x"), None);
    }
}
