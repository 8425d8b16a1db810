//! TCP and Unix streams under one roof: listening, dialing, and halves that read and write.

use std::io;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, tcp, unix};

/// Silence before the kernel asks whether Redis is still there.
const KEEPALIVE: Duration = Duration::from_secs(300);
/// Connections that wait to be accepted (Redis's `tcp-backlog`).
const BACKLOG: i32 = 511;

/// An address to listen at or to dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`
    Tcp(String),
    /// A path in the file system.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The reading half of a stream.
#[derive(Debug)]
pub enum ReadHalf {
    /// TCP
    Tcp(tcp::OwnedReadHalf),
    /// Unix
    Unix(unix::OwnedReadHalf),
}

/// The writing half of a stream; writing needs no `&mut`, so that whoever has bytes for a peer can write.
#[derive(Debug)]
pub enum WriteHalf {
    /// TCP
    Tcp(tcp::OwnedWriteHalf),
    /// Unix
    Unix(unix::OwnedWriteHalf),
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_read(cx, buf),
            Self::Unix(half) => Pin::new(half).poll_read(cx, buf),
        }
    }
}

impl WriteHalf {
    /// Writes what the kernel takes now.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write(buf),
            Self::Unix(half) => half.try_write(buf),
        }
    }

    /// Ends the connection, though it may be dropped only later.
    pub fn hang_up(&self) {
        // One that has ended is refused.
        let _ = match self {
            Self::Tcp(half) => SockRef::from(half.as_ref()).shutdown(Shutdown::Both),
            Self::Unix(half) => SockRef::from(half.as_ref()).shutdown(Shutdown::Both),
        };
    }

    /// Ready once the kernel may take more.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(half) => half.as_ref().poll_write_ready(cx),
            Self::Unix(half) => half.as_ref().poll_write_ready(cx),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP
    Tcp(TcpListener),
    /// Unix
    Unix(UnixListener),
}

/// A socket bound by the assembly, before the worker's runtime exists.
#[derive(Debug)]
pub enum Bound {
    /// TCP
    Tcp(std::net::TcpListener),
    /// Unix
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    /// Registers the socket with the runtime of the calling thread.
    pub fn listen(self) -> io::Result<Listener> {
        Ok(match self {
            Self::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
            Self::Unix(listener) => Listener::Unix(UnixListener::from_std(listener)?),
        })
    }

    /// Another handle to the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }
}

impl Listener {
    /// The next client and its address as Redis would print it.
    /// `keepalive`: silence before the kernel asks whether the client is still there (Redis's `tcp-keepalive`).
    pub async fn accept(&self, keepalive: Option<Duration>) -> io::Result<(Stream, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                tune(&stream, keepalive)?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), "unix".to_owned()))
            }
        }
    }
}

/// A connection, registered with the runtime of a thread.
#[derive(Debug)]
pub enum Stream {
    /// TCP
    Tcp(TcpStream),
    /// Unix
    Unix(UnixStream),
}

/// A connection on its way to another thread.
#[derive(Debug)]
pub enum Unregistered {
    /// TCP
    Tcp(std::net::TcpStream),
    /// Unix
    Unix(std::os::unix::net::UnixStream),
}

impl Stream {
    /// Its halves.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Unix(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
        }
    }

    /// Takes it from the calling thread.
    pub fn unregister(self) -> io::Result<Unregistered> {
        Ok(match self {
            Self::Tcp(stream) => Unregistered::Tcp(stream.into_std()?),
            Self::Unix(stream) => Unregistered::Unix(stream.into_std()?),
        })
    }
}

impl Unregistered {
    /// Registers it with the runtime of the calling thread.
    pub fn register(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Self::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        })
    }
}

/// Binds `address`. With `share`, several sockets can be bound to one TCP address and the kernel spreads the
/// connections over them (`SO_REUSEPORT`); the first socket must be bound without a peer already there.
pub fn bind(address: &Address, share: bool) -> io::Result<Bound> {
    match address {
        Address::Tcp(text) => {
            use std::net::ToSocketAddrs;
            let address = text.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(share)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(Bound::Tcp(socket.into()))
        }
        Address::Unix(path) => {
            // A socket that nobody listens at is left over from an earlier run; any other file is somebody's.
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
            if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
                std::fs::remove_file(path)?;
            }
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok(Bound::Unix(listener))
        }
    }
}

/// The file of a Unix socket that this process listens at: goes when it is dropped, as with Redis, unless somebody else's has
/// taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// That of an address that has just been bound, if it has one.
    pub fn of(address: &Address) -> Option<Self> {
        let Address::Unix(path) = address else { return None };
        Some(Self { path: path.clone(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == Some(self.identity) {
            // If it cannot be removed, the next start replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Dials `address`. The name is resolved anew each time, so a server that moved is found.
pub async fn dial(address: &Address) -> io::Result<(ReadHalf, WriteHalf)> {
    match address {
        Address::Tcp(text) => {
            let stream = TcpStream::connect(text.as_str()).await?;
            tune(&stream, Some(KEEPALIVE))?;
            Ok(Stream::Tcp(stream).into_split())
        }
        Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?).into_split()),
    }
}

fn tune(stream: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
        // Within a machine there is no congestion. What paces packets (BBR, which some hosts have as their default) costs a
        // fifth of the processor time of big values here. Where the kernel refuses, all stays as it is.
        let _ = SockRef::from(stream).set_tcp_congestion(b"reno");
    }
    let Some(silence) = keepalive else { return Ok(()) };
    // As Redis does: three questions within the time that it was silent, and it counts as gone.
    let interval = (silence / 3).max(Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(silence).with_interval(interval).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_nobody_listens_at_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.sock");
        let address = Address::Unix(path.clone());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&address, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        let first = bind(&address, false).unwrap();
        assert!(bind(&address, false).is_err(), "somebody listens there");
        drop(first);
        bind(&address, false).unwrap();
    }

    #[test]
    fn a_socket_file_goes_with_its_process_but_not_another_one_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.sock");
        let address = Address::Unix(path.clone());
        let first = (bind(&address, false).unwrap(), SocketFile::of(&address).unwrap());
        std::fs::rename(&path, folder.path().join("away")).unwrap();
        let second = (bind(&address, false).unwrap(), SocketFile::of(&address).unwrap());
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
        assert!(SocketFile::of(&Address::Tcp("localhost:1".to_owned())).is_none());
    }
}
