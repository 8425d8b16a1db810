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
    connections: prometheus::IntGauge,
}

impl Link {
    /// A link to Redis; it connects with its first call.
    pub fn new(process: Arc<Process>, credentials: Credentials, connections: prometheus::IntGauge) -> Self {
        let link = Self(Rc::new(Inner {
            process,
            credentials,
            calls: RefCell::default(),
            wake: Notify::new(),
            db: Cell::new(0),
            connections,
        }));
        tokio::task::spawn_local(link.clone().run());
        link
    }

    /// Makes the connection anew if new ones lead to another Redis.
    pub fn follow(&self) {
        self.0.wake.notify_one();
    }

    /// Runs a batch in database `db`; one frame per command, error replies included. An `Err` means that
    /// nobody knows what has run. An empty one is answered at once.
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
            while let Some(call) = self.0.calls.borrow_mut().pop_front() {
                let select = call.db != self.0.db.get();
                if select {
                    wire.queue(&[b"SELECT".as_slice(), call.db.to_string().as_bytes()]);
                    self.0.db.set(call.db);
                }
                wire.queue_bytes(&call.batch.bytes);
                waiting.push_back(Waiting { call, select, frames: vec![] });
            }
            let next = tokio::select! {
                frame = wire.next() => frame,
                () = self.0.wake.notified() => continue,
                () = tokio::time::sleep_until(deadline), if !waiting.is_empty() => {
                    Err(format!("no answer within {} s", SILENCE.as_secs()))
                }
            };
            deadline = tokio::time::Instant::now() + SILENCE;
            match next.and_then(|frame| take(&mut waiting, frame)) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        for waiting in waiting {
            let _ = waiting.call.reply.send(Err(error.clone()));
        }
        error
    }
}

struct Waiting {
    call: Call,
    /// The reply to SELECT is still to come.
    select: bool,
    frames: Vec<BytesFrame>,
}

fn take(waiting: &mut VecDeque<Waiting>, frame: BytesFrame) -> Result<(), Error> {
    if matches!(frame, BytesFrame::Push { .. }) {
        return Ok(());
    }
    let Some(first) = waiting.front_mut() else { return Err("an unexpected reply".to_owned()) };
    if std::mem::take(&mut first.select) {
        // In the wrong database everything that follows would be wrong.
        return super::wire::into_result(frame).map(|_| ());
    }
    first.frames.push(frame);
    if first.frames.len() == first.call.batch.commands
        && let Some(done) = waiting.pop_front()
    {
        let _ = done.call.reply.send(Ok(done.frames));
    }
    Ok(())
}
