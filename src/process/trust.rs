//! Whether Redis is the one that it was, and what is served until that is known.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Process;
use super::lead::{self, Lead, Way};
use crate::doubt::{self, Scope};
use crate::fanout;
use crate::lease::Moment;

/// What is known about that.
#[derive(Debug, Default)]
pub struct Trust {
    doubted: Mutex<Doubted>,
    /// Since then Redis may not know what was invalidated before. 0: never.
    epochs_lost: AtomicU64,
    /// Until it is known, any key may be stale: it may have had a label. Those without tags may be no cached values at all, so they
    /// are not hidden: their readers wait.
    labels: AtomicBool,
    /// Where new connections lead.
    lead: Mutex<Lead>,
    /// How often that was another Redis than before: what is from an earlier era must not be used any more.
    era: AtomicU64,
    /// Tells of new eras.
    moves: watch::Sender<()>,
    /// The control thread has been asked where they lead, and has not looked yet.
    looks: AtomicBool,
    /// It has been said that they lead to several in turn.
    complained: AtomicBool,
}

/// The question whether it is.
#[derive(Debug, Default)]
struct Doubted {
    /// How often it was asked.
    count: u64,
    /// The control thread has been asked to find out and has not yet.
    comparing: bool,
    /// How much had ever been invalidated when it was last looked what there is to doubt.
    news: u64,
    /// The doubt, if there is anything to doubt, and since when.
    reason: Option<(doubt::Reason, Instant)>,
}

impl Trust {
    fn doubted(&self) -> MutexGuard<'_, Doubted> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lead(&self) -> MutexGuard<'_, Lead> {
        self.lead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Redis may have been replaced: until that is known, what it holds of keys invalidated lately is not served.
    pub fn doubt_redis(&self) {
        let mut state = self.trust.doubted();
        let asks = self.doubt(&mut state);
        drop(state);
        if asks {
            self.fanout.order(fanout::Order::Compare);
        }
    }

    /// Whether it is to be asked who it is.
    fn doubt(&self, state: &mut Doubted) -> bool {
        state.count += 1;
        // Who compares goes on until nothing was doubted meanwhile.
        let compares = std::mem::replace(&mut state.comparing, !self.dry_run);
        if self.dry_run {
            return false;
        }
        // What was invalidated since it was first doubted is in doubt as well: Redis may be another one once more. Many connections
        // may be lost at once, so that is only looked for if there is any.
        let (is_alone, news) = (self.is_alone(), self.journal.news());
        let has_news = std::mem::replace(&mut state.news, news) != news;
        if !compares || has_news || !is_alone {
            // Of what other proxies invalidate at this moment not everything may have been heard.
            let recent = if is_alone { self.journal.recent() } else { Scope::Everything };
            if !state.reason.as_ref().is_some_and(|(reason, _)| reason.covers(&recent)) {
                state.reason = (!recent.is_empty()).then(|| (self.doubt.enter(recent), Instant::now()));
            }
        }
        // Which keys had labels an old Redis knows, not the index.
        let labels = self.may_have_had_labels();
        self.trust.labels.store(state.reason.is_some() && labels, Ordering::Release);
        !compares
    }

    /// Whether any key may have an explicit label that is in doubt: one that nobody has any more, or one of an earlier process that
    /// has not been read yet.
    pub fn doubts_labels(&self) -> bool {
        self.trust.labels.load(Ordering::Acquire) || (self.labels.are_unread() && self.doubt.any())
    }

    /// A new connection, which began to be made at `created`, leads to the Redis of which its `INFO server` says this, if it
    /// is allowed to ask. Returns the era in which it can be used. If that is another Redis than before, a new one begins: the
    /// connections that there are lead to the old one, to which nothing is sent any more. `None`: it must not be used.
    pub fn leads_to(&self, info: Option<&[u8]>, created: Instant) -> Option<u64> {
        let made = self.age_at(created);
        let mut lead = self.trust.lead();
        let Some(run) = info.and_then(lead::run_of) else {
            return lead.was_before(made).then(|| self.era());
        };
        match lead.way(run, made, self.age_at(Instant::now())) {
            Way::Here => {}
            Way::Elsewhere => self.follow(&mut lead, run, made),
            Way::Outdated => return None,
            Way::Back => {
                if !self.trust.complained.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        upstream = %self.upstream,
                        "new connections lead to different Redis servers in turn: those that do not lead to the one in \
                         use are refused for some seconds at a time; let the address lead to one"
                    );
                }
                self.look_for_another();
                return None;
            }
        }
        Some(self.era())
    }

    /// Another Redis is in use from now on.
    fn follow(&self, lead: &mut Lead, run: &str, made: Duration) {
        self.index.set_incomplete("new connections lead to another Redis");
        let mut state = self.trust.doubted();
        let asks = self.doubt(&mut state);
        // Not before: what is asked of connections that are made from here on is asked in doubt. Nor after the doubt may end:
        // it must not be the old one that is asked who it is.
        lead.follow(run, made, self.age_at(Instant::now()));
        self.trust.era.fetch_add(1, Ordering::AcqRel);
        drop(state);
        self.trust.moves.send_replace(());
        self.fanout.order(fanout::Order::Redial);
        if asks {
            self.fanout.order(fanout::Order::Compare);
        }
    }

    /// Whether a connection that began to be made at `created` can carry what it has been asked for since. Not if Redis was
    /// found to be another one meanwhile, and reads were sent to it that would have been answered as misses.
    pub fn may_carry(&self, created: Instant) -> bool {
        let was_before = self.trust.lead().was_before(self.age_at(created));
        was_before || self.trust.doubted().reason.as_ref().is_none_or(|(_, since)| *since < created)
    }

    /// The present era: how often new connections have led to another Redis than those before them.
    #[inline]
    pub fn era(&self) -> u64 {
        self.trust.era.load(Ordering::Acquire)
    }

    /// Tells of new eras.
    pub fn moves(&self) -> watch::Receiver<()> {
        self.trust.moves.subscribe()
    }

    /// New connections may lead to another Redis than those that there are: the control thread is to look.
    pub fn look_for_another(&self) {
        if !self.trust.looks.swap(true, Ordering::AcqRel) {
            self.fanout.order(fanout::Order::Look);
        }
    }

    /// It looks now: whoever thinks so from now on is to say so.
    pub fn looks_for_another(&self) {
        self.trust.looks.store(false, Ordering::Release);
    }

    /// The run id of the Redis that an earlier process saw last.
    pub fn saw_run(&self, run: &str) {
        *self.trust.lead() = Lead::to(run);
    }

    fn age_at(&self, time: Instant) -> Duration {
        time.saturating_duration_since(self.born)
    }

    /// How often it was doubted.
    pub fn doubts_of_redis(&self) -> u64 {
        self.trust.doubted().count
    }

    /// Redis is the one that it was, or what was invalidated lately is invalidated again. False: it was doubted again
    /// since it had been doubted that often.
    pub fn trust_redis(&self, doubts: u64) -> bool {
        let mut state = self.trust.doubted();
        let holds = state.count == doubts;
        if holds {
            (state.reason, state.comparing) = (None, false);
            self.trust.labels.store(false, Ordering::Release);
        }
        holds
    }

    /// Whether it is being found out who Redis is.
    pub fn compares(&self) -> bool {
        self.trust.doubted().comparing
    }

    /// Redis need not tell of all invalidations that this proxy has not heard of: it is another one, or has told them for long
    /// enough.
    pub fn lost_epochs(&self, now: Moment) {
        self.trust.epochs_lost.store(now + 1, Ordering::Release);
    }

    /// Whether Redis may lack the epochs of invalidations of which this proxy need not have heard: that was so within `window`, or
    /// it is being found out who Redis is.
    pub fn may_lack_epochs(&self, now: Moment, window: Moment) -> bool {
        let lost = self.trust.epochs_lost.load(Ordering::Acquire);
        self.compares() || (lost > 0 && now < lost + window)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::fanout::{Handle, Order};
    use crate::journal::Journal;
    use crate::metrics::Metrics;
    use crate::net::Address;
    use crate::rules::Tag;

    fn process() -> (Process, UnboundedReceiver<Order>) {
        let (handle, orders) = Handle::new();
        let address = Address::Tcp("redis:6379".to_owned());
        (Process::new(address, Metrics::new(), Journal::none(Duration::from_secs(60)), handle), orders)
    }

    fn info(run: &str) -> Vec<u8> {
        format!("# Server\r\nrun_id:{run}\r\n").into_bytes()
    }

    #[test]
    fn a_new_era_begins_in_doubt() {
        let (process, mut orders) = process();
        // What others have invalidated is not known, so everything may be back.
        process.journal.heard(&Scope::Everything, Duration::ZERO);
        let moves = process.moves();
        assert_eq!(process.leads_to(Some(&info("a")), Instant::now()), Some(0));
        assert!(!process.doubt.any() && orders.try_recv().is_err());
        let created = Instant::now();
        assert_eq!(process.leads_to(Some(&info("b")), created), Some(1));
        assert!(process.doubt.any() && !process.index.is_complete() && moves.has_changed().unwrap());
        assert!(matches!(orders.try_recv(), Ok(Order::Redial)));
        assert!(matches!(orders.try_recv(), Ok(Order::Compare)));
        assert!(!process.may_carry(created) && process.may_carry(Instant::now()));
        // One that may not say where it leads was made too early to be believed, or not.
        assert_eq!(
            (process.leads_to(None, created), process.leads_to(None, Instant::now())),
            (None, Some(1))
        );
        assert!(process.trust_redis(process.doubts_of_redis()));
        assert!(process.may_carry(created), "what was invalidated lately is so again");
    }

    #[test]
    fn who_doubts_again_doubts_what_was_invalidated_meanwhile() {
        let (process, mut orders) = process();
        let [a, b] = [b"a", b"b"].map(|name| Tag::from(name.as_slice()));
        process.journal.heard(&Scope::Tags(vec![a.clone()]), Duration::ZERO);
        process.doubt_redis();
        assert!(matches!(orders.try_recv(), Ok(Order::Compare)));
        process.journal.heard(&Scope::Tags(vec![b.clone()]), Duration::ZERO);
        assert!(
            process.doubt.names(std::slice::from_ref(&a)) && !process.doubt.names(std::slice::from_ref(&b))
        );
        // It dies again before that is done, and may come back with data from before either.
        process.doubt_redis();
        assert!(process.doubt.names(&[a]) && process.doubt.names(&[b]));
        assert!(orders.try_recv().is_err(), "who compares goes on");
        process.has_peers.store(true, Ordering::Release);
        process.doubt_redis();
        assert!(process.doubt.concerns(&[b"any".as_slice().into()]), "others may have invalidated anything");
    }

    #[test]
    fn doubt_grows_with_what_was_invalidated_until_redis_is_another_one() {
        let (process, mut orders) = process();
        process.leads_to(Some(&info("a")), Instant::now());
        process.doubt_redis();
        assert!(matches!(orders.try_recv(), Ok(Order::Compare)));
        let (doubts, created) = (process.doubts_of_redis(), Instant::now());
        assert!(!process.doubt.any(), "nothing was invalidated");
        process.journal.heard(&Scope::Tags(vec![b"t".as_slice().into()]), Duration::ZERO);
        assert_eq!(process.leads_to(Some(&info("b")), created), Some(1));
        assert!(process.doubt.any() && !process.may_carry(created));
        assert!(matches!(orders.try_recv(), Ok(Order::Redial)));
        assert!(orders.try_recv().is_err(), "who compares goes on");
        assert!(!process.trust_redis(doubts) && process.doubt.any(), "the answer came from the old one");
    }

    #[test]
    fn any_key_is_in_doubt_until_the_labels_of_an_earlier_process_are_read() {
        let (mut process, _orders) = process();
        // Old data are another matter.
        process.replay_window = Duration::ZERO;
        process.labels.remember(true);
        assert!(!process.doubts_labels(), "nothing was invalidated");
        process.journal.heard(&Scope::Tags(vec![b"t".as_slice().into()]), Duration::ZERO);
        process.doubt_redis();
        assert!(process.doubts_labels());
        process.labels.read();
        assert!(!process.doubts_labels() && process.doubt.any());
    }

    #[test]
    fn old_data_may_have_labels_that_nobody_has_any_more() {
        let (mut process, _orders) = process();
        assert!(!process.may_have_had_labels());
        process.labels.remember(true);
        assert!(process.may_have_had_labels());
        process.journal.heard(&Scope::Tags(vec![b"t".as_slice().into()]), Duration::ZERO);
        process.doubt_redis();
        assert!(process.doubts_labels());
        process.replay_window = Duration::ZERO;
        assert!(!process.may_have_had_labels(), "that was too long ago");
        process.journal.heard(&Scope::Everything, Duration::ZERO);
        assert!(process.may_have_had_labels(), "whatever others had");
    }

    #[test]
    fn one_that_was_doubted_already_can_be_used_at_once() {
        let (process, _orders) = process();
        process.leads_to(Some(&info("a")), Instant::now());
        process.journal.heard(&Scope::Everything, Duration::ZERO);
        process.doubt_redis();
        let created = Instant::now();
        assert_eq!(process.leads_to(Some(&info("b")), created), Some(1));
        assert!(process.may_carry(created));
    }
}
