//! Bounds on connections: neither many nor silent ones may use up the descriptors that clients need, or keep a health check
//! from its answer.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// A connection on which nothing moves for so long is closed. Above the intervals at which monitoring asks, so
/// that it can keep its connection, and above the time of a large fan-out.
const IDLE: Duration = Duration::from_secs(120);

/// The time from the first byte of a request until its head is there.
const HEAD: Duration = Duration::from_secs(5);

/// So long one that has to go may take to do so before another one has to.
const PARTING: Duration = Duration::from_millis(100);

/// A listener whose connections are limited in number and in silence.
pub(super) struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    seats: Vec<Weak<Seat>>,
}

impl Bounded {
    /// With so many connections at a time.
    pub fn new(listener: TcpListener, most: usize) -> Bounded {
        Bounded { listener, permits: Arc::new(Semaphore::new(most.max(1))), seats: Vec::new() }
    }

    /// Leave for one more connection; where there are too many, one of them goes.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            // Fails otherwise only when the semaphore is closed, which nobody does; then there is simply no limit.
            if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
                return Some(permit);
            }
            // What is least of use: first those that have nobody waiting for an invalidation, which goes on without them.
            let seats = self.seats.iter().filter_map(Weak::upgrade).filter(|seat| !seat.lock().dismissed);
            if let Some(seat) = seats.min_by_key(|seat| seat.lock().worth()) {
                seat.dismiss();
            }
            if let Ok(permit) = timeout(PARTING, Arc::clone(&self.permits).acquire_owned()).await {
                return permit.ok();
            }
        }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let permit = self.permit().await;
        let connection = Connection::new(stream, permit);
        self.seats.retain(|seat| seat.strong_count() > 0);
        self.seats.push(Arc::downgrade(&connection.seat));
        (connection, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The HTTP client.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its connection.
    pub seat: Arc<Seat>,
}

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Peer {
        Peer { address: *stream.remote_addr(), seat: Arc::clone(&stream.io().seat) }
    }
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Seat(Mutex<State>);

#[derive(Debug)]
struct State {
    turn: Turn,
    /// When something was last read or written.
    moved: Instant,
    /// It has to make room for another one.
    dismissed: bool,
    waker: Option<Waker>,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    /// The client's, to ask something.
    Idle,
    /// The client's, which began its request then.
    Head(Instant),
    /// The head of the request is there.
    Request,
    /// The proxy's, which invalidates.
    Work,
}

impl State {
    /// When it is to be closed, if nothing happens until then.
    fn deadline(&self) -> Instant {
        match self.turn {
            Turn::Head(since) => since + HEAD,
            _ => self.moved + IDLE,
        }
    }

    /// The lowest goes first: what has been silent for longest.
    fn worth(&self) -> (bool, Instant) {
        (self.turn == Turn::Work, self.moved)
    }
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The head of a request is there.
    pub fn requested(&self) {
        self.lock().turn = Turn::Request;
    }

    /// The request is there as a whole, and asks for something that takes its time.
    pub fn works(&self) {
        self.lock().turn = Turn::Work;
    }

    /// The response is on its way.
    pub fn responded(&self) {
        self.lock().turn = Turn::Idle;
    }

    fn received(&self) {
        let mut state = self.lock();
        state.moved = Instant::now();
        if state.turn == Turn::Idle {
            state.turn = Turn::Head(state.moved);
        }
    }

    fn sent(&self) {
        self.lock().moved = Instant::now();
    }

    fn dismiss(&self) {
        let mut state = self.lock();
        state.dismissed = true;
        state.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// A connection that fails when it is silent for too long, or has to make room.
pub(super) struct Connection {
    stream: TcpStream,
    seat: Arc<Seat>,
    timer: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn new(stream: TcpStream, permit: Option<OwnedSemaphorePermit>) -> Connection {
        let state = State { turn: Turn::Idle, moved: Instant::now(), dismissed: false, waker: None };
        let timer = Box::pin(sleep_until(state.deadline()));
        Connection { stream, seat: Arc::new(Seat(Mutex::new(state))), timer, _permit: permit }
    }

    /// Ready with an error once it has to end.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let mut state = self.seat.lock();
            let deadline = state.deadline();
            if state.dismissed || deadline <= Instant::now() {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            state.waker = Some(context.waker().clone());
            drop(state);
            if self.timer.deadline() != deadline {
                self.timer.as_mut().reset(deadline);
            }
            // Meanwhile the end may have moved.
            ready!(self.timer.as_mut().poll(context));
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.poll_end(context).map(Err),
            done => {
                self.seat.received();
                done
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => self.poll_end(context).map(Err),
            done => {
                self.seat.sent();
                done
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
