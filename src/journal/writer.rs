//! The thread that writes: everything that waits goes to the file in one write and to the disk in one go; while that
//! lasts, more gathers.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use self::hope::Hope;
use super::file::LogFile;
use super::folder::{Folder, Taken, plain};
use super::record::{self, Record};
use super::state::State;
use super::{Intent, IntentId, Shared, Wanted};
use crate::config::Fsync;
use crate::relay;

/// A file beyond this is rewritten if less than half of it is needed; otherwise it is asked again when it has grown by as much.
const COMPACT: u64 = 512 << 10;
/// How often it is looked whether the file is still in its place and the clock has not been set, if nothing is written.
const LOOK: Duration = Duration::from_secs(60);
/// What gathers is written at once up to about so many bytes.
const MOST_BATCH: usize = 32 << 20;
/// A buffer beyond this is given back.
const KEEP: usize = 1 << 20;
/// So soon a completion is written if nothing else is; as long as none comes it is looked for less and less often.
const SOON: Duration = Duration::from_millis(10);
const LATER: Duration = Duration::from_millis(100);
/// How often [`Fsync::EverySec`] is.
const SECOND: Duration = Duration::from_secs(1);
/// It is not worth waiting a part of less.
const LEAST_SYNC: Duration = Duration::from_micros(100);
/// A wall clock that differs by more has been set: the times in the file mean something else now.
const CLOCK_SET: u64 = 60_000;
/// "File size limit exceeded"; the same on all common machines. Its default is to end the process.
const SIGXFSZ: i32 = 25;

/// What the handles tell the thread.
pub(super) enum Message {
    Intend(Vec<Asked>),
    Saw(String),
    /// What have processes begun that have ended meanwhile?
    Look(oneshot::Sender<Vec<Intent>>),
    Close {
        /// Nobody has to be careful afterwards.
        clean: bool,
        /// Told when it is done.
        closed: SyncSender<()>,
    },
}

/// An intent that waits to be accepted.
#[derive(Debug)]
pub(super) struct Asked {
    pub wanted: Wanted,
    pub answer: Answer,
}

type Answer = oneshot::Sender<Result<IntentId, String>>;

/// What the thread holds.
pub(super) struct Writer {
    shared: Arc<Shared>,
    folder: Folder,
    file: LogFile,
    /// Files of earlier processes that say what this one has not written yet.
    taken: Taken,
    /// Records that nobody waits for and that are not in the file yet. What they say is in the state already.
    notes: Vec<Record>,
    /// By which rules tags are named at the end of the file, if that is known.
    rules: Option<u32>,
    buffer: Vec<u8>,
    /// Since when something is in the file that may not be on the disk, with [`Fsync::EverySec`].
    unsynced: Option<Instant>,
    /// How long the last fsync took that somebody waited for.
    sync_time: Duration,
    /// That it is worth waiting for more.
    hope: Hope,
    /// How long to wait for the next message before it is looked what is complete.
    lull: Duration,
    /// The size at which it is asked whether the file is worth rewriting.
    compact_at: u64,
    /// How much the clocks differed when the file was begun.
    difference: i64,
}

/// What one turn takes from the queue.
#[derive(Default)]
struct Batch {
    asked: Vec<Asked>,
    bytes: usize,
    close: Option<(bool, SyncSender<()>)>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.bytes >= MOST_BATCH || self.close.is_some()
    }
}

/// A write beyond the limit of `ulimit -f` is an error then, and no longer the end of the process.
pub(super) fn survive_file_size_limit() {
    // A thread of its own, since the caller may be inside a runtime. The handler stays for good.
    let install = || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let _inside = runtime.enter();
        signal(SignalKind::from_raw(SIGXFSZ)).map(drop)
    };
    if !matches!(std::thread::spawn(install).join(), Ok(Ok(()))) {
        tracing::warn!("a limit on the size of files would end the process");
    }
}

impl Writer {
    pub fn new(shared: Arc<Shared>, folder: Folder, file: LogFile) -> Self {
        let difference = shared.now().difference();
        let writer = Self {
            shared,
            folder,
            file,
            taken: Taken::default(),
            notes: vec![],
            rules: None,
            buffer: vec![],
            unsynced: None,
            sync_time: Duration::ZERO,
            hope: Hope::default(),
            lull: SOON,
            compact_at: COMPACT,
            difference,
        };
        writer.tell_size();
        writer
    }

    /// The file could not be begun. Once it can be written it takes the place of those that were `taken` over.
    pub fn wait_for_room(&mut self, taken: Taken, error: &io::Error) {
        self.taken = taken;
        self.complain(error);
    }

    fn tell_size(&self) {
        self.shared.counts.bytes.store(self.file.length(), Ordering::Relaxed);
    }

    /// Ends when the journal is closed, or when nobody has a handle any more.
    pub fn run(mut self, messages: &Receiver<Message>) {
        while let ControlFlow::Continue(batch) = self.gather(messages) {
            let close = self.turn(batch);
            if let Some((clean, closed)) = close {
                self.close(clean);
                // The file is free again when the other side goes on.
                drop(self);
                let _ = closed.send(());
                return;
            }
        }
        self.take_finished();
        self.write(&[], None).unwrap_or_else(|error| self.complain(&error));
    }

    /// Waits for the next message, and takes all that are there.
    fn gather(&mut self, messages: &Receiver<Message>) -> ControlFlow<(), Batch> {
        let mut batch = Batch::default();
        let first = messages.recv_timeout(self.patience());
        self.lull = if first.is_ok() { SOON } else { (2 * self.lull).min(LATER) };
        match first {
            Ok(first) => self.take(first, &mut batch),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
        }
        self.drain(messages, &mut batch);
        self.take_finished();
        self.linger(messages, &mut batch);
        ControlFlow::Continue(batch)
    }

    /// Takes all that are there.
    fn drain(&mut self, messages: &Receiver<Message>, batch: &mut Batch) {
        while !batch.is_full()
            && let Ok(message) = messages.try_recv()
        {
            self.take(message, batch);
        }
    }

    /// Whoever has an invalidation under way may soon ask for the next. If many do, waiting for them a part of the time that
    /// an fsync takes halves the number of fsyncs, and whoever comes too late for one waits for two.
    fn linger(&mut self, messages: &Receiver<Message>, batch: &mut Batch) {
        let under_way = self.state().pending().len();
        let worth = batch.asked.len() <= 2 * under_way && self.sync_time >= LEAST_SYNC;
        if batch.asked.is_empty() || !worth || !self.hope.is_up() {
            return;
        }
        let (before, deadline) = (batch.asked.len(), Instant::now() + self.sync_time / 2);
        while batch.asked.len() < before + under_way && !batch.is_full() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(message) = messages.recv_timeout(left) else { break };
            self.take(message, batch);
            self.drain(messages, batch);
        }
        self.hope.learn(batch.asked.len() > before);
        self.take_finished();
    }

    /// How long nothing has to be done if nobody says anything.
    fn patience(&self) -> Duration {
        let sync = self.unsynced.map(|since| SECOND.saturating_sub(since.elapsed()));
        // What failed is tried again.
        let again = (self.file.is_distrusted() || !self.notes.is_empty()).then_some(SECOND);
        // Whoever is done with an intent does not wake this thread for that.
        let finished = (self.state().pending().len() > 0).then_some(self.lull);
        [sync, again, finished].into_iter().flatten().fold(LOOK, Duration::min)
    }

    fn take(&mut self, message: Message, batch: &mut Batch) {
        match message {
            Message::Intend(asked) => {
                let size = |Asked { wanted, .. }: &Asked| wanted.what.len() + record::size(&wanted.scope);
                batch.bytes += asked.iter().map(size).sum::<usize>();
                batch.asked.extend(asked);
            }
            Message::Saw(identity) => {
                let now = self.shared.now();
                if self.state().saw(&identity, now) {
                    self.notes.push(Record::Redis { identity, unix_ms: now.wall });
                }
            }
            Message::Look(answer) => {
                let rules = self.state().rules();
                drop(answer.send(self.folder.orphans(rules, self.shared.now())));
            }
            Message::Close { clean, closed } => batch.close = Some((clean, closed)),
        }
    }

    /// What is complete since it was last looked.
    fn take_finished(&mut self) {
        if self.shared.finished().is_empty() {
            return;
        }
        let (mut state, now) = (self.shared.state(), self.shared.now());
        let finished = std::mem::take(&mut *self.shared.finished());
        let known = finished.into_iter().filter(|id| state.done(*id, now));
        self.notes.extend(known.map(|id| Record::Done { id, unix_ms: now.wall }));
        self.lull = SOON;
    }

    /// Writes what has gathered and answers.
    fn turn(&mut self, batch: Batch) -> Option<(bool, SyncSender<()>)> {
        let rules = self.state().rules();
        let (intents, answers): (Vec<_>, Vec<_>) = self.number(batch.asked, rules);
        let mut written = self.write(&intents, rules);
        if written.as_ref().is_err_and(is_full) && self.is_mostly_dead() {
            written = self.rewrite().and_then(|()| self.write(&intents, rules));
        }
        match written.and_then(|()| self.sync_if_due()) {
            Ok(()) => self.accept(intents, rules, answers),
            Err(error) => {
                self.complain(&error);
                let text = format!("the journal cannot be written: {}", plain(&error));
                answers.into_iter().for_each(|answer| drop(answer.send(Err(text.clone()))));
            }
        }
        self.compact();
        batch.close
    }

    /// What is to be written where tags are named by these rules.
    fn number(&self, asked: Vec<Asked>, rules: Option<u32>) -> (Vec<Record>, Vec<Answer>) {
        let (mut state, unix_ms) = (self.state(), self.shared.now().wall);
        let numbered = asked.into_iter().map(|Asked { wanted, answer }| {
            let (scope, what) = wanted.by(rules);
            (Record::Intent(Intent { id: state.next_id(), scope, what, unix_ms }), answer)
        });
        numbered.unzip()
    }

    fn accept(&mut self, intents: Vec<Record>, rules: Option<u32>, answers: Vec<Answer>) {
        let ids: Vec<IntentId> = {
            let mut state = self.state();
            // There may be others while it is being written.
            let is_outdated = state.rules() != rules;
            let begin = |record| match record {
                Record::Intent(mut intent) => {
                    if is_outdated {
                        intent.scope.generalize();
                    }
                    Some((intent.id, state.begin(intent)).0)
                }
                _ => None,
            };
            intents.into_iter().filter_map(begin).collect()
        };
        relay::together(|| {
            for (id, answer) in ids.into_iter().zip(answers) {
                // Nobody waits for it any more: nobody will say that it is done.
                if answer.send(Ok(id)).is_err() {
                    self.shared.finished().push(id);
                }
            }
        });
    }

    /// Writes the notes and the intents, whose tags these rules name, to the disk if they must be there.
    fn write(&mut self, intents: &[Record], rules: Option<u32>) -> io::Result<()> {
        self.file.look();
        if self.file.is_distrusted() || self.clock_was_set() {
            self.rewrite()?;
        }
        if self.notes.is_empty() && intents.is_empty() {
            return Ok(());
        }
        self.buffer.clear();
        self.buffer.shrink_to(KEEP);
        let (mark, unix_ms) = (self.file.mark(), self.shared.now().wall);
        let news = rules.filter(|rules| !intents.is_empty() && self.rules != Some(*rules));
        let news = news.map(|fingerprint| Record::Rules { fingerprint, unix_ms });
        let records = self.notes.iter().chain(&news).chain(intents);
        records.for_each(|one| record::append(one, mark, &mut self.buffer));
        let written = self.file.append(&self.buffer);
        self.tell_size();
        written?;
        self.rules = if news.is_some() { rules } else { self.rules };
        // That something is done needs no durability: in doubt it is done twice.
        let matters = |record: &Record| !matches!(record, Record::Done { .. });
        let must = self.notes.iter().any(matters) || !intents.is_empty();
        self.notes.clear();
        match self.shared.fsync {
            Fsync::Always if must => {
                let began = Instant::now();
                self.sync()?;
                self.sync_time = began.elapsed();
            }
            Fsync::EverySec => drop(self.unsynced.get_or_insert_with(Instant::now)),
            Fsync::Always | Fsync::Never => {}
        }
        self.has_written();
        Ok(())
    }

    fn has_written(&self) {
        if self.shared.counts.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the journal can be written again");
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = None;
        count(&self.shared.counts.fsyncs);
        self.file.sync()
    }

    fn sync_if_due(&mut self) -> io::Result<()> {
        match self.unsynced {
            Some(since) if since.elapsed() >= SECOND => self.sync(),
            _ => Ok(()),
        }
    }

    fn clock_was_set(&self) -> bool {
        self.shared.now().difference().abs_diff(self.difference) > CLOCK_SET
    }

    /// Writes all that counts to a new file, which takes the place of this one.
    fn rewrite(&mut self) -> io::Result<()> {
        let now = self.shared.now();
        let snapshot = |mark| self.state().snapshot(mark, self.folder.upstream(), now);
        let file = self.folder.begin(now, snapshot)?;
        let old = std::mem::replace(&mut self.file, file);
        if let Err(error) = std::fs::remove_file(old.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %old.path().display(), "an old journal cannot be removed");
        }
        std::mem::take(&mut self.taken).remove();
        self.notes.clear();
        self.rules = None;
        self.unsynced = None;
        self.difference = now.difference();
        self.compact_at = COMPACT;
        count(&self.shared.counts.rewrites);
        self.tell_size();
        self.has_written();
        Ok(())
    }

    /// Rewrites the file if it has grown and most of it is not needed any more.
    fn compact(&mut self) {
        let length = self.file.length();
        if length <= self.compact_at || self.file.is_distrusted() {
            return;
        }
        self.compact_at = length + COMPACT;
        if self.is_mostly_dead() {
            self.rewrite().unwrap_or_else(|error| self.complain(&error));
        }
    }

    /// Whether a new file would be less than half as long.
    fn is_mostly_dead(&self) -> bool {
        let live = self.state().live_bytes(self.shared.now());
        self.file.length() / 2 >= live as u64
    }

    fn close(&mut self, clean: bool) {
        if clean {
            self.notes.push(Record::Closed);
        }
        let written = self.write(&[], None);
        let closed = match self.shared.fsync {
            Fsync::Always => written,
            Fsync::EverySec | Fsync::Never => written.and_then(|()| self.sync()),
        };
        closed.unwrap_or_else(|error| self.complain(&error));
    }

    /// Counts a failure; the first of several is logged.
    fn complain(&mut self, error: &io::Error) {
        count(&self.shared.counts.failures);
        if !self.shared.counts.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(
                %error,
                file = %self.file.path().display(),
                "the journal cannot be written: triggers are refused until it can"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

/// Whether there is no room for more.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | FileTooLarge | QuotaExceeded)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

mod hope;
#[cfg(test)]
mod tests;
