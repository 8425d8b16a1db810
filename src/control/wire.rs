//! A connection of the proxy's own to Redis, in RESP3, decoded in full.

use bytes::{Buf, BytesMut};
use redis_protocol::resp3::decode::complete::decode_bytes_mut;
use redis_protocol::resp3::types::BytesFrame;
use tokio::io::AsyncReadExt;

use crate::net::{self, Address, ReadHalf, WriteHalf};
use crate::resp::encode;

/// User (`None`: the default one) and password of the proxy itself.
pub type Credentials = Option<(Option<String>, String)>;

/// Why something could not be done with Redis.
pub type Error = String;

/// A connection after its greeting.
#[derive(Debug)]
pub struct Wire {
    read: ReadHalf,
    write: WriteHalf,
    input: BytesMut,
    output: BytesMut,
}

impl Wire {
    /// Connects, authenticates and switches to RESP3.
    pub async fn connect(address: &Address, credentials: &Credentials) -> Result<Self, Error> {
        Self::connect_in(b"3", address, credentials).await
    }

    /// As [`Wire::connect`], in RESP2 or RESP3.
    pub async fn connect_in(
        version: &[u8],
        address: &Address,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let (read, write) = net::dial(address).await.map_err(|error| error.to_string())?;
        let mut wire = Self { read, write, input: BytesMut::new(), output: BytesMut::new() };
        let mut hello: Vec<&[u8]> = vec![b"HELLO", version];
        if let Some((user, password)) = credentials {
            let user = user.as_deref().unwrap_or("default");
            hello.extend([b"AUTH".as_slice(), user.as_bytes(), password.as_bytes()]);
        }
        wire.call(&hello).await?;
        Ok(wire)
    }

    /// Queues a request.
    pub fn queue<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        encode::request(&mut self.output, args);
    }

    /// Queues what is already encoded.
    pub fn queue_bytes(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Sends one request and waits for its reply, an error reply being an `Err`. Pushes are dropped.
    pub async fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<BytesFrame, Error> {
        self.queue(args);
        loop {
            match self.next().await? {
                BytesFrame::Push { .. } => {}
                frame => return into_result(frame),
            }
        }
    }

    /// Asks whether Redis is there, and waits for the answer.
    pub async fn ping(&mut self) -> Result<(), Error> {
        let answer = self.call(&["PING"]).await;
        is_there(answer.map(drop))
    }

    /// Sends one subscription. Confirmations are pushes, a refusal is a reply: it is given back, and the connection goes on.
    pub async fn subscribe<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Result<(), Error>, Error> {
        self.queue(args);
        let answered = self.ping().await;
        if answered.is_err() {
            // The reply to PING is still to come.
            while matches!(self.next().await?, BytesFrame::Push { .. }) {}
        }
        Ok(answered)
    }

    /// Writes what is queued, as far as the socket takes it now, and waits for the next frame. Safe to cancel.
    pub async fn next(&mut self) -> Result<BytesFrame, Error> {
        loop {
            if let Some((frame, ..)) = decode_bytes_mut(&mut self.input).map_err(|e| e.to_string())? {
                return Ok(frame);
            }
            self.progress().await?;
        }
    }

    /// What has arrived and is not read yet.
    pub fn received(&self) -> &[u8] {
        &self.input
    }

    /// So much of it has been read.
    pub fn consume(&mut self, length: usize) {
        self.input.advance(length);
    }

    /// Writes what is queued, as far as the socket takes it now, and waits until something arrives or can be written. Safe
    /// to cancel.
    pub async fn progress(&mut self) -> Result<(), Error> {
        while !self.output.is_empty() {
            match self.write.try_write(&self.output) {
                Ok(n) => self.output.advance(n),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        self.input.reserve(32 * 1024);
        let (write, blocked) = (&self.write, !self.output.is_empty());
        tokio::select! {
            read = self.read.read_buf(&mut self.input) => match read {
                Ok(0) => Err("the connection was closed".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
            ready = std::future::poll_fn(|cx| write.poll_write_ready(cx)), if blocked => {
                ready.map_err(|error| error.to_string())
            }
        }
    }
}

/// What the answer to a `PING` says. While Redis takes no writes, since it cannot save them, or shows nothing, since it has lost
/// its master, it refuses that as well: in its turn, so that it is an answer like any other.
pub fn is_there<E: AsRef<str>>(answer: Result<(), E>) -> Result<(), E> {
    match answer {
        Err(error) if ["MISCONF ", "MASTERDOWN "].iter().any(|word| error.as_ref().starts_with(word)) => {
            Ok(())
        }
        answer => answer,
    }
}

/// An error reply as an `Err`.
pub fn into_result(frame: BytesFrame) -> Result<BytesFrame, Error> {
    match frame {
        BytesFrame::SimpleError { data, .. } => Err(data.to_string()),
        BytesFrame::BlobError { data, .. } => Err(String::from_utf8_lossy(&data).into_owned()),
        frame => Ok(frame),
    }
}

/// The bytes of a string reply.
pub fn bytes_of(frame: &BytesFrame) -> Option<&bytes::Bytes> {
    match frame {
        BytesFrame::BlobString { data, .. } | BytesFrame::SimpleString { data, .. } => Some(data),
        _ => None,
    }
}

/// The text of a string reply, verbatim or not.
pub fn text_of(frame: &BytesFrame) -> String {
    let bytes = match frame {
        BytesFrame::VerbatimString { data, .. } => data.clone(),
        other => bytes_of(other).cloned().unwrap_or_default(),
    };
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The elements of an array reply.
pub fn array_of(frame: BytesFrame) -> Vec<BytesFrame> {
    match frame {
        BytesFrame::Array { data, .. } | BytesFrame::Push { data, .. } => data,
        _ => vec![],
    }
}

/// A number reply.
pub fn int_of(frame: &BytesFrame) -> Option<i64> {
    match frame {
        BytesFrame::Number { data, .. } => Some(*data),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_that_takes_no_writes_is_there() {
        assert_eq!(is_there::<&str>(Ok(())), Ok(()));
        assert_eq!(is_there(Err("MISCONF Redis is configured to save")), Ok(()));
        assert_eq!(is_there(Err("MASTERDOWN Link with MASTER is down")), Ok(()));
        for error in ["NOPERM User x", "LOADING Redis is loading", "the connection was closed"] {
            assert_eq!(is_there(Err(error)), Err(error));
        }
    }
}
