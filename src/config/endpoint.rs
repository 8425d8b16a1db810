//! Addresses as they are written: `host:port`, `[::1]:6380`, `unix:/path`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::secret::shown;

/// The kernel's `sun_path` has 108 bytes, the last of them a zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// A TCP address; the host may be a name that is not resolved yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: String,
    /// The port; 0 lets the system choose one to listen on.
    pub port: u16,
}

impl HostPort {
    /// Reads `host:port` or `[IPv6]:port`.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        host_port(text).map_err(|hint| format!("{} is not an address; {hint}", shown(text)))
    }

    /// Whether only this machine can reach it: `localhost`, `127.…`, `::1`.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where to listen or connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `host:port`
    Tcp(HostPort),
    /// `unix:/path`; an absolute path of at most 107 bytes.
    Unix(PathBuf),
}

impl Endpoint {
    /// Reads `host:port`, `[IPv6]:port` or `unix:/path`.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => {
                // unix:///path is how URLs write it.
                let path = if path.starts_with("///") { &path[2..] } else { path };
                socket_path(path).map(Self::Unix)
            }
            None => match host_port(text) {
                Ok(address) => Ok(Self::Tcp(address)),
                Err(hint) => Err(format!("{} is not an address; {hint} or unix:/path", shown(text))),
            },
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The path of a Unix socket. The error does not repeat it: it may have been cut out of a URL.
pub(super) fn socket_path(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') || path.starts_with("//") || path.ends_with('/') {
        Err("the socket's path is not absolute; write one such as unix:/run/redis.sock".to_owned())
    } else if path.contains('\0') {
        Err("the socket's path has a zero byte; write one without".to_owned())
    } else if path.len() > LONGEST_SOCKET_PATH {
        Err(format!("the socket's path has {} bytes; write one of at most {LONGEST_SOCKET_PATH}", path.len()))
    } else {
        Ok(PathBuf::from(path))
    }
}

/// Reads `host:port`; the error says only what to write.
pub(super) fn host_port(text: &str) -> Result<HostPort, &'static str> {
    const WRITE: &str = "write host:port or [IPv6]:port";
    let (host, port) = text.rsplit_once(':').ok_or(WRITE)?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(WRITE);
    }
    let port = port.parse().map_err(|_| "write a port of at most 65535")?;
    Ok(HostPort { host: checked_host(host)?.to_owned(), port })
}

/// A host as the part before `:port`, without the brackets of an IPv6 address.
pub(super) fn checked_host(host: &str) -> Result<&str, &'static str> {
    const WRITE: &str = "write host:port or [IPv6]:port";
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().map(|_| inner).map_err(|_| WRITE);
    }
    if host.contains(':') && !host.contains('/') {
        return Err("write an IPv6 address in brackets: [::1]:6380");
    }
    match host {
        "" | "*" => return Err("write 0.0.0.0:port for every interface, otherwise host:port"),
        _ if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            return host.parse::<Ipv4Addr>().map(|_| host).map_err(|_| WRITE);
        }
        _ => {}
    }
    let name = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if name { Ok(host) } else { Err(WRITE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_read() {
        for text in ["127.0.0.1:6380", "localhost:0", "[::1]:6380", "redis_1.x-y:65535", "unix:/run/r.sock"] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Endpoint::parse("unix:///a b").unwrap(), Endpoint::Unix("/a b".into()));
        assert_eq!(HostPort::parse("[::1]:1").unwrap(), HostPort { host: "::1".into(), port: 1 });
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for text in [
            "",
            ":",
            "6380",
            "host",
            "host:",
            ":6380",
            "*:6380",
            "::1:6380",
            "[::1]",
            "[::1]6380",
            "[x]:1",
            "[]:1",
            "host:+1",
            "host:-1",
            "host:65536",
            "256.0.0.1:1",
            "1.2.3:1",
            "a b:1",
            "é:1",
            "unix:",
            "unix:x.sock",
            "unix://host/x",
            "unix:/a/",
            "redis://host:1",
            "[::1:1",
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            assert!(error.contains("; write "), "{text}: {error}");
        }
        assert!(HostPort::parse("::1:6380").unwrap_err().contains("brackets"));
        assert!(Endpoint::parse(&format!("unix:/{}", "x".repeat(107))).unwrap_err().contains("108 bytes"));
    }

    #[test]
    fn loopback() {
        for text in
            ["localhost:1", "LOCALHOST:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"]
        {
            assert!(HostPort::parse(text).unwrap().is_loopback(), "{text}");
        }
        for text in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "redis:1", "localhost.example.org:1"] {
            assert!(!HostPort::parse(text).unwrap().is_loopback(), "{text}");
        }
    }
}
