//! A whole worker in one thread: a client at one end of a socket pair, a Redis that knows one reply at the other.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rescind::client::Client;
use rescind::command::Commands;
use rescind::context::Context;
use rescind::fanout;
use rescind::index::LabelState;
use rescind::journal::Journal;
use rescind::metrics::Metrics;
use rescind::net::{Address, ReadHalf, WriteHalf};
use rescind::outbox::Outbox;
use rescind::process::Process;
use rescind::relay::Relay;
use rescind::resp::{Limits, Parsed, RequestParser};
use rescind::upstream::Pool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Sends `request` through the proxy as often as told, `batch` of them at once, and takes the replies.
pub fn run(request: &[u8], reply: &[u8], batch: usize, repetitions: u64) {
    run_beside(None, request, reply, batch, repetitions);
}

/// Likewise, where the key `labelled` has an explicit label.
pub fn run_beside(labelled: Option<&str>, request: &[u8], reply: &[u8], batch: usize, repetitions: u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("redis.sock");
    let redis = Rc::new(Redis { request: request.len(), reply: reply.to_vec(), ready: Cell::new(false) });
    runtime.block_on(async {
        let listener = UnixListener::bind(&path).unwrap();
        let serving = Rc::clone(&redis);
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(Rc::clone(&serving), stream));
            }
        });
        let mut client = connect(&path, labelled);
        // Everything is looked up, greeted and warm before what counts begins.
        let mut buffer = vec![0; 64 * 1024];
        talk(&mut client, &mut buffer, b"*1\r\n$4\r\nPING\r\n", 7).await;
        redis.ready.set(true);
        let (requests, replies) = (request.repeat(batch), reply.len() * batch);
        for _ in 0..repetitions.div_ceil(batch as u64) {
            talk(&mut client, &mut buffer, &requests, replies).await;
        }
    });
}

/// The client's end of a connection to a worker that is made here.
fn connect(redis: &std::path::Path, labelled: Option<&str>) -> UnixStream {
    let (handle, _orders) = fanout::Handle::new();
    let journal = Journal::none(Duration::ZERO);
    let process = Process::new(Address::Unix(redis.to_owned()), Metrics::new(), journal, handle);
    // As on a Redis that the control thread has looked at.
    process.labels.read();
    if let Some(key) = labelled {
        process.use_labels();
        process.index.lock().label(0, key.as_bytes(), &[b"label".as_slice().into()], LabelState::Settled);
    }
    let context =
        Context::new(Arc::new(process), Arc::new(Commands::builtin()), &super::rules(10), Relay::new().0);
    let pool = Pool::new(Rc::clone(&context));
    let (near, far) = UnixStream::pair().unwrap();
    let (read, write) = far.into_split();
    let outbox = Rc::new(Outbox::new(1, "unix".to_owned(), WriteHalf::Unix(write), usize::MAX));
    context.clients.borrow_mut().insert(1, Rc::clone(&outbox));
    tokio::task::spawn_local(Client::new(context, pool, outbox, ReadHalf::Unix(read)).run());
    near
}

/// Sends `requests` and takes so many bytes of replies.
async fn talk(client: &mut UnixStream, buffer: &mut [u8], requests: &[u8], replies: usize) {
    client.write_all(requests).await.unwrap();
    let mut left = replies;
    while left > 0 {
        match client.read(buffer).await.unwrap() {
            0 => panic!("the proxy has hung up"),
            n => left -= n,
        }
    }
}

/// Knows how long requests are and what to say, so that next to nothing of it is counted.
struct Redis {
    request: usize,
    reply: Vec<u8>,
    /// The proxy has asked all that it asks itself.
    ready: Cell<bool>,
}

async fn serve(redis: Rc<Redis>, mut stream: UnixStream) {
    let (mut buffer, mut rest) = (vec![0; 64 * 1024], 0);
    let (mut greeting, mut parser) = (vec![], RequestParser::default());
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let mut replies = vec![];
        if redis.ready.get() {
            replies.extend(redis.reply.repeat((rest + n) / redis.request));
            rest = (rest + n) % redis.request;
        } else {
            greeting.extend_from_slice(&buffer[..n]);
            while let Parsed::Request { len, inline } = parser.parse(&greeting, &Limits::NORMAL) {
                let is_script = parser.args(&greeting, inline).get(0) == Some(b"EVAL");
                replies.extend_from_slice(if is_script { b":1\r\n" } else { b"+PONG\r\n" });
                greeting.drain(..len);
            }
        }
        stream.write_all(&replies).await.unwrap();
    }
}
