//! A pipelined connection for the proxy's own commands, shared by its tasks and made again when it is lost.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis_protocol::resp3::types::BytesFrame;
use tokio::sync::{Notify, oneshot};

use super::known;
use super::wire::{Credentials, Error, Wire};
use crate::process::Process;
use crate::resp::encode;

/// How long Redis may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long Redis may leave a command unanswered before the connection counts as lost.
const SILENCE: Duration = Duration::from_secs(10);
/// The pause after a failed attempt, within which calls fail at once.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether an error says that Redis has no such database, and hence no keys in it.
pub fn has_no_database(error: &str) -> bool {
    error.starts_with("ERR") && error.contains("out of range")
}

/// Commands for one database, sent together.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: BytesMut,
    commands: usize,
}

impl Batch {
    /// Adds a command.
    pub fn push<A: AsRef<[u8]>>(&mut self, args: impl IntoIterator<Item = A, IntoIter: ExactSizeIterator>) {
        encode::request(&mut self.bytes, args);
        self.commands += 1;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.commands
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.commands == 0
    }
}

struct Call {
    db: u32,
    batch: Batch,
    reply: oneshot::Sender<Result<Vec<BytesFrame>, Error>>,
}

/// A connection for the proxy's own commands. Cheap to clone.
#[derive(Clone)]
pub struct Link(Rc<Inner>);

struct Inner {
    process: Arc<Process>,
    credentials: Credentials,
    calls: RefCell<VecDeque<Call>>,
    wake: Notify,
    db: Cell<u32>,
    /// Redis has so many databases at least.
    databases: Cell<u32>,
    connections: prometheus::IntGauge,
}

impl Link {
    /// A link to Redis; it connects with its first call, if it is not [asked to](Link::connect) before.
    pub fn new(process: Arc<Process>, credentials: Credentials, connections: prometheus::IntGauge) -> Self {
        let link = Self(Rc::new(Inner {
            process,
            credentials,
            calls: RefCell::default(),
            wake: Notify::new(),
            db: Cell::new(0),
            databases: Cell::new(1),
            connections,
        }));
        tokio::task::spawn_local(link.clone().run());
        link
    }

    /// Has the connection made now, if there is none.
    pub fn connect(&self) {
        let mut ping = Batch::default();
        ping.push(["PING"]);
        drop(self.call(0, ping));
    }

    /// Makes the connection anew if new ones lead to another Redis.
    pub fn follow(&self) {
        self.0.wake.notify_one();
    }

    /// Runs a batch in database `db`; one frame per command, error replies included. An `Err` means that
    /// nobody knows what has run, unless it [says](has_no_database) that there is no such database. An empty one is
    /// answered at once.
    pub fn call(
        &self,
        db: u32,
        batch: Batch,
    ) -> impl Future<Output = Result<Vec<BytesFrame>, Error>> + use<> {
        let (reply, result) = oneshot::channel();
        if batch.is_empty() {
            // No reply would ever end it, nor what is asked for behind it.
            let _ = reply.send(Ok(vec![]));
        } else {
            self.0.calls.borrow_mut().push_back(Call { db, batch, reply });
            self.0.wake.notify_one();
        }
        async { result.await.unwrap_or_else(|_| Err("the link has ended".to_owned())) }
    }

    /// Runs one command; an error reply is an `Err`.
    pub async fn one<A: AsRef<[u8]>>(
        &self,
        db: u32,
        args: impl IntoIterator<Item = A, IntoIter: ExactSizeIterator>,
    ) -> Result<BytesFrame, Error> {
        let mut batch = Batch::default();
        batch.push(args);
        let mut frames = self.call(db, batch).await?;
        frames.pop().ok_or_else(|| "no reply".to_owned()).and_then(super::wire::into_result)
    }

    async fn run(self) {
        loop {
            while self.0.calls.borrow().is_empty() {
                self.0.wake.notified().await;
            }
            let connecting = known::dial(&self.0.process, &self.0.credentials);
            let error = match tokio::time::timeout(PATIENCE, connecting).await {
                Ok(Ok(known::Dialled { wire, era, .. })) => {
                    self.0.db.set(0);
                    self.0.databases.set(1);
                    self.0.connections.inc();
                    let error = self.serve(wire, era).await;
                    self.0.connections.dec();
                    error
                }
                Ok(Err(error)) => self.refuse(error).await,
                Err(_) => self.refuse("no answer within 5 s".to_owned()).await,
            };
            tracing::debug!(%error, "control connection ended");
        }
    }

    /// Fails what is asked for a little while.
    async fn refuse(&self, error: Error) -> Error {
        let until = Instant::now() + PAUSE.mul_f64(0.5 + fastrand::f64());
        loop {
            for call in self.0.calls.borrow_mut().drain(..) {
                let _ = call.reply.send(Err(error.clone()));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || tokio::time::timeout(left, self.0.wake.notified()).await.is_err() {
                return error;
            }
        }
    }

    async fn serve(&self, mut wire: Wire, era: u64) -> Error {
        let mut waiting: VecDeque<Waiting> = VecDeque::new();
        let mut deadline = tokio::time::Instant::now();
        let error = loop {
            if era != self.0.process.era() {
                break "new connections lead to another Redis".to_owned();
            }
            if waiting.is_empty() {
                deadline = tokio::time::Instant::now() + SILENCE;
            }
            while !waiting.back().is_some_and(|last| last.is_unsent)
                && let Some(call) = self.next_call()
            {
                waiting.push_back(self.send(&mut wire, call));
            }
            let next = tokio::select! {
                frame = wire.next() => frame,
                () = self.0.wake.notified() => continue,
                () = tokio::time::sleep_until(deadline), if !waiting.is_empty() => {
                    Err(format!("no answer within {} s", SILENCE.as_secs()))
                }
            };
            deadline = tokio::time::Instant::now() + SILENCE;
            match next.and_then(|frame| self.take(&mut wire, &mut waiting, frame)) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        for waiting in waiting {
            let _ = waiting.call.reply.send(Err(error.clone()));
        }
        error
    }

    fn next_call(&self) -> Option<Call> {
        self.0.calls.borrow_mut().pop_front()
    }

    /// Behind a SELECT that may fail nothing is sent: it would run in the database before.
    fn send(&self, wire: &mut Wire, call: Call) -> Waiting {
        let before = self.0.db.replace(call.db);
        let select = (call.db != before).then_some(before);
        if select.is_some() {
            wire.queue(&[b"SELECT".as_slice(), call.db.to_string().as_bytes()]);
        }
        let is_unsent = select.is_some() && call.db >= self.0.databases.get();
        if !is_unsent {
            wire.queue_bytes(&call.batch.bytes);
        }
        Waiting { call, select, is_unsent, frames: vec![] }
    }

    fn take(&self, wire: &mut Wire, waiting: &mut VecDeque<Waiting>, frame: BytesFrame) -> Result<(), Error> {
        if matches!(frame, BytesFrame::Push { .. }) {
            return Ok(());
        }
        let Some(first) = waiting.front_mut() else { return Err("an unexpected reply".to_owned()) };
        let mut result = None;
        if let Some(before) = first.select.take() {
            match super::wire::into_result(frame) {
                Ok(_) => self.selected(wire, first),
                Err(error) if first.is_unsent && has_no_database(&error) => {
                    self.0.db.set(before);
                    result = Some(Err(error));
                }
                // In the wrong database everything that follows would be wrong.
                Err(error) => return Err(error),
            }
        } else {
            first.frames.push(frame);
            if first.frames.len() == first.call.batch.commands {
                result = Some(Ok(std::mem::take(&mut first.frames)));
            }
        }
        if let Some(result) = result
            && let Some(done) = waiting.pop_front()
        {
            let _ = done.call.reply.send(result);
        }
        Ok(())
    }

    fn selected(&self, wire: &mut Wire, first: &mut Waiting) {
        self.0.databases.set(self.0.databases.get().max(first.call.db + 1));
        if std::mem::take(&mut first.is_unsent) {
            wire.queue_bytes(&first.call.batch.bytes);
        }
    }
}

struct Waiting {
    call: Call,
    /// The reply to SELECT is still to come: the database before.
    select: Option<u32>,
    /// The batch waits for it.
    is_unsent: bool,
    frames: Vec<BytesFrame>,
}
