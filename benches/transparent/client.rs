//! A blocking connection, and as much of the protocol as the parts need.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::Result;

/// Nothing here waits longer for a byte: a proxy that hangs ends the run.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Connection {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends `request` and reads exactly `reply`; another answer is an error as soon as it differs.
    pub fn exchange(&mut self, request: &[u8], reply: &[u8]) -> Result<()> {
        self.stream.write_all(request)?;
        self.expect(reply)
    }

    pub fn expect(&mut self, reply: &[u8]) -> Result<()> {
        self.buffer.resize(reply.len(), 0);
        let mut filled = 0;
        while filled < reply.len() {
            let count = self.stream.read(&mut self.buffer[filled..])?;
            let got = &self.buffer[..filled + count];
            if count == 0 || got != &reply[..got.len()] {
                return Err(format!("another reply than expected: {:?}", String::from_utf8_lossy(got)).into());
            }
            filled += count;
        }
        Ok(())
    }

    /// A number of `INFO`.
    pub fn info(&mut self, field: &str) -> Result<u64> {
        self.stream.write_all(&request(&["INFO"]))?;
        let mut text = vec![0; self.bulk_length()? + 2];
        self.stream.read_exact(&mut text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(found.ok_or_else(|| format!("INFO has no {field}"))?.trim().parse()?)
    }

    /// The first line of a bulk reply, byte by byte: what follows belongs to the caller.
    pub fn bulk_length(&mut self) -> Result<usize> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while !line.ends_with(b"\r\n") {
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let length = line.trim_end().strip_prefix('$').and_then(|digits| digits.parse().ok());
        length.ok_or_else(|| format!("no bulk string: {line:?}").into())
    }
}

/// A command in multibulk form.
pub fn request(arguments: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", arguments.len());
    arguments.iter().for_each(|argument| out += &format!("${}\r\n{argument}\r\n", argument.len()));
    out.into_bytes()
}

/// A `SET` up to where its value begins.
pub fn set_head(key: &str, length: usize) -> Vec<u8> {
    format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${length}\r\n", key.len()).into_bytes()
}

pub fn bulk(value: &str) -> Vec<u8> {
    format!("${}\r\n{value}\r\n", value.len()).into_bytes()
}
