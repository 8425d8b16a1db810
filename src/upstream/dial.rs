//! Making connections, with a growing pause between attempts while Redis cannot be reached.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::conn::Conn;
use super::pool::Pool;
use crate::context::Context;
use crate::net;

/// How long Redis may take to accept.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may then take to answer the first commands: as long as it may be silent to those who are connected.
const SILENCE: Duration = Duration::from_secs(10);
/// The pause after the first failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Exponential back-off with jitter: while it lasts, attempts fail at once with the last error.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: Cell<u32>,
    until: Cell<Option<Instant>>,
    error: RefCell<String>,
}

impl Backoff {
    /// The error to give instead of an attempt.
    fn refuses(&self, now: Instant) -> Option<String> {
        self.until.get().filter(|until| now < *until).map(|_| self.error.borrow().clone())
    }

    fn succeeded(&self) {
        self.failures.set(0);
        self.until.set(None);
    }

    fn failed(&self, now: Instant, error: &str) {
        let failures = self.failures.get().min(10);
        self.failures.set(failures + 1);
        let pause = (FIRST_PAUSE * 2u32.pow(failures)).min(LONGEST_PAUSE);
        // Between half and the whole, so that many proxies do not come back at the same moment.
        self.until.set(Some(now + pause.mul_f64(0.5 + fastrand::f64() / 2.0)));
        error.clone_into(&mut self.error.borrow_mut());
    }
}

/// Starts the task of a connection.
pub(super) fn start(conn: &Rc<Conn>, backoff: &Rc<Backoff>, pool: Weak<Pool>) {
    let (conn, backoff) = (Rc::clone(conn), Rc::clone(backoff));
    tokio::task::spawn_local(async move {
        let context = Rc::clone(&conn.context);
        let reason = run(&conn, &context, &backoff).await;
        let was_usable = conn.is_usable();
        if was_usable {
            tracing::debug!(%reason, "upstream connection ended");
        } else {
            tracing::debug!(%reason, "upstream connection failed");
        }
        conn.fail(&reason);
        if let Some(pool) = pool.upgrade() {
            pool.ended(&conn, was_usable, &reason);
        }
    });
}

/// Connects and moves bytes; returns why it ended, as the text of an error reply.
async fn run(conn: &Rc<Conn>, context: &Rc<Context>, backoff: &Backoff) -> String {
    let address = &context.process.upstream;
    if let Some(error) = backoff.refuses(Instant::now()) {
        return error;
    }
    let unreachable = |error: &str| {
        let error = format!("ERR upstream {address} cannot be reached: {error}");
        if !conn.is_detour() {
            backoff.failed(Instant::now(), &error);
        }
        error
    };
    let halves = match tokio::time::timeout(PATIENCE, net::dial(address)).await {
        Err(_) => return unreachable("it did not accept within 5 s"),
        Ok(Err(error)) => return unreachable(&error.to_string()),
        Ok(Ok(halves)) => halves,
    };
    let driving = conn.drive(halves.0, halves.1);
    tokio::pin!(driving);
    let greeted = tokio::select! {
        reason = &mut driving => Some(reason),
        () = tokio::time::sleep(SILENCE), if !conn.is_open() => None,
    };
    let reason = match greeted {
        Some(reason) => reason,
        None if conn.is_open() => {
            backoff.succeeded();
            driving.await
        }
        None => return unreachable("it accepted, but did not answer PING within 10 s"),
    };
    if conn.is_open() {
        backoff.succeeded();
        return reason;
    }
    if conn.is_retired() {
        // Its client went before Redis had answered: that says nothing about Redis.
        return reason;
    }
    unreachable(&reason)
}
