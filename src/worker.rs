//! A worker thread: its listeners, its clients, its upstream connections, on a runtime of its own.

mod seats;

pub use seats::Seats;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::client::Client;
use crate::context::Context;
use crate::control::Knowledge;
use crate::descriptors::Place;
use crate::net::{Bound, Listener, Stream, Unregistered};
use crate::outbox::Outbox;
use crate::process::Process;
use crate::relay::{self, Relay};
use crate::upstream::Pool;

/// How long Redis may answer nothing at all, to nobody, before those who wait are told.
const SILENCE: Duration = Duration::from_secs(10);
/// The pause after `accept` failed, for want of file descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a proxy that has just started waits until others have heard of it before it serves clients.
const INTRODUCTION: Duration = Duration::from_secs(1);

static NEXT_CLIENT: AtomicU64 = AtomicU64::new(1);

/// What a worker is made from.
pub struct Parts {
    /// What all threads share.
    pub process: Arc<Process>,
    /// Its sockets.
    pub sockets: Vec<Bound>,
    /// How clients are spread over the workers.
    pub seats: Seats<Accepted>,
    /// Rules and commands, now and later.
    pub knowledge: watch::Receiver<Knowledge>,
    /// Becomes true when the worker shall let its clients go.
    pub drain: watch::Receiver<bool>,
    /// Something comes once a second.
    pub ticks: watch::Receiver<()>,
}

/// A client that another worker has accepted, its address and its place.
pub type Accepted = (Unregistered, String, Place);

struct Worker {
    context: Rc<Context>,
    pool: Rc<Pool>,
    seats: RefCell<Seats<Accepted>>,
}

/// Runs on the calling thread until it is told to drain and all clients are gone, or `patience` is over.
pub fn run(parts: Parts, patience: Duration) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(serve(parts, patience))
}

async fn serve(parts: Parts, patience: Duration) -> io::Result<()> {
    let Parts { process, sockets, seats, mut knowledge, mut drain, ticks } = parts;
    let (relay, woken) = Relay::new();
    tokio::task::spawn_local(relay::run(woken));
    let context = {
        let known = knowledge.borrow_and_update();
        Context::new(process, Arc::clone(&known.commands), &known.rules, relay)
    };
    tokio::task::spawn_local(Rc::clone(&context).end_turns());
    let pool = Pool::new(Rc::clone(&context));
    let worker = Rc::new(Worker { context: Rc::clone(&context), pool, seats: RefCell::new(seats) });
    let mut accepting = vec![tokio::task::spawn_local(take_over(Rc::clone(&worker)))];
    for socket in sockets {
        accepting.push(tokio::task::spawn_local(accept(Rc::clone(&worker), socket.listen()?)));
    }
    tokio::task::spawn_local(async move {
        while knowledge.changed().await.is_ok() {
            let known = knowledge.borrow_and_update().clone();
            context.set_rules(&known.rules);
            context.set_commands(known.commands);
        }
    });
    tokio::task::spawn_local(tend(Rc::clone(&worker), ticks));
    tokio::task::spawn_local(follow(Rc::clone(&worker)));
    // An error means that the assembly has gone, which ends the worker as well.
    let _ = drain.wait_for(|drain| *drain).await;
    accepting.iter().for_each(|task| task.abort());
    worker.let_go(patience).await;
    Ok(())
}

/// Once a second: gives back what nobody needs, and ends connections to a Redis that answers nobody, so that clients get
/// an error instead of waiting for ever.
async fn tend(worker: Rc<Worker>, mut ticks: watch::Receiver<()>) {
    while ticks.changed().await.is_ok() {
        worker.pool.trim();
        worker.context.clients.borrow().values().for_each(|client| client.shrink());
        give_back_pages();
        if worker.context.process.silent_for() >= SILENCE {
            worker.pool.give_up_after(SILENCE);
        }
    }
}

/// Leaves a Redis as soon as new connections lead to another one.
async fn follow(worker: Rc<Worker>) {
    let mut moves = worker.context.process.moves();
    while moves.changed().await.is_ok() {
        worker.pool.leave();
    }
}

/// Has the allocator give the pages back that have become free on this thread. It does so when it next has to do with pages of
/// that kind: in a thread that is idle after a burst, never. Small blocks do not make it look.
pub fn give_back_pages() {
    const ENOUGH: usize = 1024 * 1024;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(ENOUGH)));
}

/// Who misses a key here and fills it elsewhere, because this proxy dies, is noticed only if others know of it. They are
/// told as soon as Redis can be reached; if it cannot, clients are to hear of that.
async fn until_known(worker: &Worker) {
    let deadline = tokio::time::Instant::now() + INTRODUCTION;
    while !worker.context.process.is_known.load(Ordering::Acquire) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn accept(worker: Rc<Worker>, listener: Listener) {
    until_known(&worker).await;
    loop {
        match listener.accept(worker.context.process.tcp_keepalive).await {
            Ok((stream, peer)) => match Place::take() {
                Some(place) => worker.place(stream, peer, place),
                None => refuse(stream),
            },
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Says that there are too many clients.
fn refuse(stream: Stream) {
    let (_read, write) = stream.into_split();
    // If the kernel does not take it, the client is not worth waiting for.
    let _ = write.try_write(b"-ERR max number of clients reached\r\n");
}

/// Serves clients that other workers have accepted.
async fn take_over(worker: Rc<Worker>) {
    while let Some((stream, peer, place)) = poll_fn(|cx| worker.seats.borrow_mut().handed.poll_recv(cx)).await
    {
        match stream.register() {
            Ok(stream) => worker.admit(stream, peer, place),
            Err(error) => {
                worker.seats.borrow().leave();
                tracing::warn!(%error, client = %peer, "a client could not be taken over");
            }
        }
    }
}

impl Worker {
    /// Serves a client, or hands it to the worker that has the fewest.
    fn place(self: &Rc<Self>, stream: Stream, peer: String, place: Place) {
        let Some(other) = self.seats.borrow().take() else { return self.admit(stream, peer, place) };
        match stream.unregister() {
            Ok(stream) => self.seats.borrow().hand(other, (stream, peer, place)),
            Err(error) => {
                self.seats.borrow().give_back(other);
                tracing::warn!(%error, client = %peer, "a client could not be handed to another worker");
            }
        }
    }

    fn admit(self: &Rc<Self>, stream: Stream, peer: String, place: Place) {
        let process = &self.context.process;
        let before = process.clients.fetch_add(1, Ordering::Relaxed);
        if before >= process.max_clients {
            process.clients.fetch_sub(1, Ordering::Relaxed);
            self.seats.borrow().leave();
            return refuse(stream);
        }
        let (read, write) = stream.into_split();
        process.metrics.clients.inc();
        let id = NEXT_CLIENT.fetch_add(1, Ordering::Relaxed);
        let outbox = Rc::new(Outbox::new(id, peer, write, process.output_limit));
        self.context.clients.borrow_mut().insert(id, Rc::clone(&outbox));
        let client = Client::new(Rc::clone(&self.context), Rc::clone(&self.pool), outbox, read);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            client.run().await;
            worker.context.clients.borrow_mut().remove(&id);
            worker.context.process.metrics.clients.dec();
            worker.context.process.clients.fetch_sub(1, Ordering::Relaxed);
            worker.seats.borrow().leave();
            drop(place);
        });
    }

    /// Lets clients finish what they have begun.
    async fn let_go(&self, patience: Duration) {
        let deadline = tokio::time::Instant::now() + patience;
        while !self.context.clients.borrow().is_empty() && tokio::time::Instant::now() < deadline {
            let clients: Vec<_> = self.context.clients.borrow().values().cloned().collect();
            clients.iter().for_each(|client| client.wake());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let clients = self.context.clients.borrow().len();
        if clients > 0 {
            tracing::warn!(clients, "cut: they were not done in time");
        }
        self.pool.close();
    }
}
