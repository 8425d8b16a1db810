//! The journal: a durable log of invalidations.
//!
//! An intent is written before its trigger is forwarded, a completion after its fan-out. Whatever a process leaves
//! behind, by whatever end, is taken over by the next one that starts with the same folder and upstream: what was
//! begun and not done is done again, and what was invalidated lately is known. In doubt it invalidates more. What was begun
//! those do as well that run already.
//!
//! Pure: `record` (how records are written), `decode` (from bytes to records, whatever happened to them), `state` and
//! `recent` (what they add up to). I/O: `folder` (whose file is whose), `file` (whole records or none), `writer` (the
//! thread that writes). This file is what others see of it.

mod decode;
mod describe;
mod file;
mod folder;
mod recent;
mod record;
mod state;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

pub use crate::accounting::{IntentId, Noted};
pub use crate::doubt::Scope;
pub use describe::Description;

use crate::config::Fsync;
use folder::{Folder, plain};
use record::MOST_TAGS;
use state::{Now, State};
use writer::{Asked, Message, Writer};

/// How long an orderly stop may take; a disk that takes longer has stopped.
const CLOSING: Duration = Duration::from_secs(5);
/// Bytes kept of what an intent was and of an identity.
const MOST_TEXT: usize = 1024;
const CLOSED: &str = "the journal is closed";

/// A handle to the journal of this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    /// To the thread that writes; `None`: nothing is kept on the disk. It has no bound, but who asks waits for the
    /// answer, and what is told without waiting comes once for each answer.
    queue: Option<mpsc::Sender<Message>>,
}

/// Where the journal is kept, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder; it is made if there is none, and several processes may share one.
    pub folder: PathBuf,
    /// When it is forced to the disk.
    pub fsync: Fsync,
    /// Names the Redis that it is about. It is written to the files: no credentials, and the same words each time.
    pub upstream: String,
    /// How far back [`Journal::recent`] looks.
    pub window: Duration,
    /// The fingerprint of the rules by which tags are named.
    pub rules: u32,
}

/// An invalidation that is to be noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What is to be invalidated.
    pub scope: Scope,
    /// The fingerprint of the rules by which its tags are named. `None`: those that are in force.
    pub rules: Option<u32>,
    /// What caused it, for people.
    pub what: String,
}

impl From<(Scope, String)> for Wanted {
    fn from((scope, what): (Scope, String)) -> Self {
        Self { scope, rules: None, what }
    }
}

impl Wanted {
    /// What that is where `rules` are in force. By other rules its tags are names of other keys.
    fn by(mut self, rules: Option<u32>) -> (Scope, String) {
        if self.rules.is_some() && self.rules != rules {
            self.scope.generalize();
        }
        (self.scope, self.what)
    }
}

/// An invalidation that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// For [`Journal::done`].
    pub id: IntentId,
    /// What is to be invalidated.
    pub scope: Scope,
    /// What caused it, for people.
    pub what: String,
    /// When it was begun, in milliseconds since 1970, by the clock of its process.
    pub unix_ms: u64,
}

/// Intents that are asked for together.
#[derive(Default, Debug)]
pub struct Intents(Vec<Asked>);

impl Intents {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What earlier processes left behind.
#[derive(Default, Debug)]
pub struct Recovered {
    /// Intents begun and not known to be done, in order. They are this process's own now, and need [`Journal::done`].
    pub pending: Vec<Intent>,
    /// Some process did not stop in order.
    pub unclean: bool,
    /// The latest identity noted by [`Journal::saw`]; under another upstream, if this one has not been in use since.
    pub redis: Option<String>,
    /// What was wrong with files, a line each; something like it is followed by a pending [`Scope::Everything`].
    pub damage: Vec<String>,
}

/// What the handles and the thread have in common.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Intents that are done, for the thread to note when it next writes.
    finished: Mutex<Vec<IntentId>>,
    counts: Counts,
    /// What the steady clock counts from.
    started: Instant,
    fsync: Fsync,
}

/// What [`Journal::describe`] tells of the file.
#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    fsyncs: AtomicU64,
    rewrites: AtomicU64,
    failures: AtomicU64,
    /// That it cannot be written has been said.
    failing: AtomicBool,
}

impl Journal {
    /// Takes over what processes that are gone left behind and begins a file. Blocks; the error is one line for the
    /// user.
    ///
    /// Where there is no room for a file, but for those that were found, these stay until there is: triggers are refused until
    /// then.
    ///
    /// # Errors
    /// The folder cannot be made, read or written.
    pub fn open(options: Options) -> Result<(Self, Recovered), String> {
        let Options { folder: path, fsync, upstream, window, rules } = options;
        let cannot = |error| format!("the journal cannot be kept at {}: {}", path.display(), plain(&error));
        writer::survive_file_size_limit();
        let shared = Arc::new(Shared::new(fsync, window));
        shared.state().follow_rules(rules);
        let folder = Folder::open(path.clone(), upstream).map_err(cannot)?;
        let now = shared.now();
        let mut taken = folder.take_over(&mut shared.state(), now)?;
        let snapshot = |mark| shared.state().snapshot(mark, folder.upstream(), now);
        let (file, full) = match folder.begin(now, snapshot) {
            Err(error) if writer::is_full(&error) && !taken.is_empty() => {
                taken.reopen().map_err(cannot)?;
                (folder.unwritten().map_err(cannot)?, Some(error))
            }
            begun => (begun.map_err(cannot)?, None),
        };
        let recovered = {
            let state = shared.state();
            Recovered {
                pending: state.pending().cloned().collect(),
                unclean: taken.unclean,
                redis: state.redis().map(str::to_owned),
                damage: std::mem::take(&mut taken.damage),
            }
        };
        let (queue, messages) = mpsc::channel();
        let mut writer = Writer::new(shared.clone(), folder, file);
        match full {
            None => taken.remove(),
            Some(error) => writer.wait_for_room(taken, &error),
        }
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&messages))
            .map_err(|error| format!("the journal's thread cannot be started: {}", plain(&error)))?;
        Ok((Self { shared, queue: Some(queue) }, recovered))
    }

    /// A journal that keeps nothing on the disk. What was invalidated within `window` it knows all the same.
    pub fn none(window: Duration) -> Self {
        Self { shared: Arc::new(Shared::new(Fsync::Never, window)), queue: None }
    }

    /// Whether it is kept on the disk.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Asks for an invalidation to be remembered until it is [`done`](Journal::done). It resolves when that is as
    /// durable as the configuration says; the error is a text for the client, whose trigger must not be forwarded.
    ///
    /// The order among intents is that of the calls. If the future is dropped before its end, the intent counts as
    /// done.
    pub fn intend<T: Into<Wanted>>(
        &self,
        wanted: T,
    ) -> impl Future<Output = Result<Noted, String>> + Send + use<T> {
        let mut intents = Intents::default();
        let noted = self.prepare(wanted.into(), &mut intents);
        self.submit(intents);
        noted
    }

    /// As [`Journal::intend`], for several that are asked for together, by [`Journal::submit`].
    pub fn prepare(
        &self,
        wanted: Wanted,
        among: &mut Intents,
    ) -> impl Future<Output = Result<Noted, String>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let wanted =
            Wanted { scope: bounded(wanted.scope), what: shortened(wanted.what), rules: wanted.rules };
        among.0.push(Asked { wanted, answer });
        let mut waiting = Waiting { answered, journal: self.clone() };
        let asked = Instant::now();
        async move {
            let answer = (&mut waiting.answered).await.unwrap_or_else(|_| Err(CLOSED.to_owned()));
            answer.map(|id| Noted { id, took: asked.elapsed() })
        }
    }

    /// Asks for intents that were prepared.
    pub fn submit(&self, intents: Intents) {
        match &self.queue {
            // If the thread is gone, so are the senders of the answers.
            Some(queue) => drop(queue.send(Message::Intend(intents.0))),
            None => intents.0.into_iter().for_each(|asked| self.shared.remember(asked)),
        }
    }

    /// The fan-out of an intent is complete, or its trigger did not fire. Written soon, with what else there is;
    /// nobody waits for it.
    pub fn done(&self, id: IntentId) {
        match &self.queue {
            Some(_) => self.shared.finished().push(id),
            None => drop(self.shared.state().done(id, self.shared.now())),
        }
    }

    /// Notes the identity of the Redis, if it is news. It is durable soon.
    pub fn saw(&self, redis: String) {
        let redis = shortened(redis);
        let is_known = self.shared.state().redis().is_some_and(|known| known == redis);
        match &self.queue {
            _ if is_known => {}
            Some(queue) => drop(queue.send(Message::Saw(redis))),
            None => drop(self.shared.state().saw(&redis, self.shared.now())),
        }
    }

    /// From now on tags are named by rules of this fingerprint. What was invalidated lately, or is about to be, is known by the
    /// names that it had: where these are others, it becomes everything.
    pub fn follow_rules(&self, rules: u32) {
        self.shared.state().follow_rules(rules);
    }

    /// What processes had begun that have ended since this one started, or since it was last asked. Their files stay for who
    /// starts next.
    pub async fn orphans(&self) -> Vec<Intent> {
        let Some(queue) = &self.queue else { return vec![] };
        let (answer, answered) = oneshot::channel();
        drop(queue.send(Message::Look(answer)));
        answered.await.unwrap_or_default()
    }

    /// Another proxy has invalidated this, so long ago. It is not written: that proxy has a journal of its own.
    pub fn heard(&self, scope: &Scope, age: Duration) {
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        self.shared.state().heard(scope, age, self.shared.now());
    }

    /// Whether others have invalidated anything within the window, or may have: who starts next has to know, whom no file tells.
    pub fn has_heard(&self) -> bool {
        self.shared.state().has_heard(self.shared.now())
    }

    /// Whether others may have invalidated what is not known here.
    pub fn has_missed(&self) -> bool {
        self.shared.state().has_missed(self.shared.now())
    }

    /// What was invalidated within the window or is about to be, each tag once; also by the processes taken over, and what
    /// was [`heard`](Journal::heard) of.
    pub fn recent(&self) -> Scope {
        self.shared.state().recent(self.shared.now())
    }

    /// How often there has come to be more in what [`Journal::recent`] says than before. Costs nothing, unlike that.
    pub fn news(&self) -> u64 {
        self.shared.state().news()
    }

    /// Stops in order: writes what is left and, if `clean`, says so in the file; else whoever comes next has to be as
    /// careful as after a crash. Blocks, for some seconds at most. Later intents are refused.
    pub fn close(&self, clean: bool) {
        let Some(queue) = &self.queue else { return };
        let (closed, wait) = mpsc::sync_channel(1);
        if queue.send(Message::Close { clean, closed }).is_ok() && wait.recv_timeout(CLOSING).is_err() {
            tracing::warn!("the journal could not be closed in order");
        }
    }
}

/// Too many tags in one intent stand for everything.
fn bounded(scope: Scope) -> Scope {
    if record::size(&scope) > MOST_TAGS { Scope::Everything } else { scope }
}

fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MOST_TEXT));
    text
}

/// Who waits for an intent to be accepted. One that stops waiting will not say when it is done.
struct Waiting {
    answered: oneshot::Receiver<Result<IntentId, String>>,
    journal: Journal,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.answered.close();
        if let Ok(Ok(id)) = self.answered.try_recv() {
            self.journal.done(id);
        }
    }
}

impl Shared {
    fn new(fsync: Fsync, window: Duration) -> Self {
        let state = Mutex::new(State::new(window));
        let (finished, counts) = (Mutex::default(), Counts::default());
        Self { state, finished, counts, started: Instant::now(), fsync }
    }

    /// Where nothing is kept on the disk.
    fn remember(&self, Asked { wanted, answer }: Asked) {
        let mut state = self.state();
        let (id, (scope, what)) = (state.next_id(), wanted.by(state.rules()));
        state.begin(Intent { id, scope, what, unix_ms: self.now().wall });
        let _ = answer.send(Ok(id));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finished(&self) -> MutexGuard<'_, Vec<IntentId>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, milliseconds);
        Now { steady: i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX), wall }
    }
}

/// For fuzzers: whatever stands in a file or a record, what is made of it comes to the same when it is written again.
pub(crate) fn reread(bytes: &[u8]) {
    let now = Now { steady: 0, wall: 1 << 41 };
    let take_over = |bytes: &[u8]| {
        let decoded = decode::decode(bytes).ok()?;
        let mut state = State::new(Duration::from_secs(3600));
        state.take_over(decoded, now);
        Some(state)
    };
    let contents = |state: &State| {
        let pending = state.pending().map(|intent| (intent.scope.clone(), intent.what.clone()));
        (pending.collect::<Vec<_>>(), state.redis().map(str::to_owned))
    };
    if let Some(mut state) = take_over(bytes) {
        let again = take_over(&state.snapshot(1, "up", now));
        assert_eq!(again.map(|again| contents(&again)), Some(contents(&state)));
    }
    if let Some(record) = record::read(bytes) {
        let mut frame = vec![];
        record::append(&record, 1, &mut frame);
        assert_eq!(record::read(&frame[record::FRAME..]), Some(record));
    }
}
