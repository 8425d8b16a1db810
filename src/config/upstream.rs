//! `[upstream]`: the Redis behind the proxy, written as a URL that may hold a password.
//!
//! No error here repeats any part of the URL but a known scheme, and no form of these types shows the password.

use std::fmt::{self, Write as _};

use super::endpoint::{Endpoint, HostPort, checked_host, host_port, socket_path};
use super::secret::Secret;

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Which Redis.
    pub url: UpstreamUrl,
    /// Most connections to it that belong to one client each; at least 1.
    pub max_pinned: usize,
}

impl Default for Upstream {
    fn default() -> Self {
        Self { url: UpstreamUrl::default(), max_pinned: 10_000 }
    }
}

/// Which Redis: one that runs somewhere, or one of the proxy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamUrl {
    /// `redis://…` or `unix://…`
    Server(Server),
    /// `spawn`: the proxy starts a private redis-server and stops it at exit.
    Spawn,
}

/// One Redis server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it listens.
    pub address: Endpoint,
    /// What the proxy authenticates its own connections with.
    pub credentials: Option<Credentials>,
    /// The database that the URL names; 0 if none.
    pub database: u32,
}

/// User and password, already percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// `None`: Redis's default user.
    pub user: Option<String>,
    /// Its password; may be empty.
    pub password: Secret,
}

const DEFAULT_PORT: u16 = 6379;
const ENCODE: &str = "write / ? # @ : % in a user or password as %2F %3F %23 %40 %3A %25";

impl UpstreamUrl {
    /// Reads `redis://[user[:password]@]host[:port][/db]`, `unix://[user:password@]/path[?db=N]` or `spawn`.
    ///
    /// # Errors
    /// What is wrong and what to write instead; never with the URL itself.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "spawn" {
            return Ok(Self::Spawn);
        }
        if text.contains('#') {
            return Err(format!("the URL has a #; {ENCODE}"));
        }
        if text.starts_with("unix:/") && !text.starts_with("unix://") {
            return unix_server(&text["unix:".len()..]).map(Self::Server);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("this is not a URL; write redis://host:port, unix:///path or spawn".to_owned());
        };
        match scheme.to_ascii_lowercase().as_str() {
            "redis" => tcp_server(rest).map(Self::Server),
            "unix" => unix_server(rest).map(Self::Server),
            known @ ("rediss" | "redis-sentinel" | "redis-cluster") => Err(format!(
                "{known}:// is not supported by this version; write redis://host:port or unix:///path"
            )),
            _ => Err("the URL's scheme is unknown; write redis://host:port or unix:///path".to_owned()),
        }
    }
}

impl Default for UpstreamUrl {
    fn default() -> Self {
        let address = HostPort { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT };
        Self::Server(Server { address: Endpoint::Tcp(address), credentials: None, database: 0 })
    }
}

/// As a URL with `***` for the password: fit for logs.
impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Server(server) = self else { return f.write_str("spawn") };
        let unix = matches!(server.address, Endpoint::Unix(_));
        f.write_str(if unix { "unix://" } else { "redis://" })?;
        if let Some(credentials) = &server.credentials {
            write!(f, "{}:***@", credentials.user.as_deref().unwrap_or_default().escape_debug())?;
        }
        match &server.address {
            Endpoint::Tcp(address) => address.fmt(f)?,
            Endpoint::Unix(path) => path.display().fmt(f)?,
        }
        match server.database {
            0 => Ok(()),
            database if unix => write!(f, "?db={database}"),
            database => {
                f.write_char('/')?;
                database.fmt(f)
            }
        }
    }
}

/// The part after `redis://`.
fn tcp_server(rest: &str) -> Result<Server, String> {
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if tail.contains('@') {
        return Err(format!("the URL has an @ behind its host; {ENCODE}"));
    }
    let (credentials, address) = credentials(authority)?;
    let address = address_with_default_port(address)
        .map_err(|hint| format!("the host or port in the URL is wrong; {hint} behind redis://"))?;
    if address.port == 0 {
        return Err("the URL names port 0; write the port of the Redis server".to_owned());
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let database = match (path.trim_start_matches('/'), database_of_query(query)?) {
        ("", database) => database.unwrap_or(0),
        (_, Some(_)) => return Err("the URL names its database twice; write either /N or ?db=N".to_owned()),
        (path, None) => database(path)?,
    };
    Ok(Server { address: Endpoint::Tcp(address), credentials, database })
}

/// The part after `unix://`, from the user or the path on.
fn unix_server(rest: &str) -> Result<Server, String> {
    let slash = rest.find('/').unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(slash);
    let (credentials, host) = credentials(authority)?;
    if !host.is_empty() {
        return Err("the URL names a host before the socket's path; write unix:///path".to_owned());
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let path = socket_path(&percent_decoded(path)?)?;
    let database = database_of_query(query)?.unwrap_or(0);
    Ok(Server { address: Endpoint::Unix(path), credentials, database })
}

/// Splits `[user[:password]@]address`.
fn credentials(authority: &str) -> Result<(Option<Credentials>, &str), String> {
    let Some((userinfo, address)) = authority.rsplit_once('@') else { return Ok((None, authority)) };
    if userinfo.is_empty() || userinfo == ":" {
        return Ok((None, address));
    }
    let Some((user, password)) = userinfo.split_once(':') else {
        return Err("the URL has a user without a password; write user:password@, \
                    or :password@ for the default user"
            .to_owned());
    };
    let user = Some(percent_decoded(user)?).filter(|user| !user.is_empty());
    Ok((Some(Credentials { user, password: Secret::new(percent_decoded(password)?) }), address))
}

fn address_with_default_port(text: &str) -> Result<HostPort, &'static str> {
    if text.is_empty() {
        return Err("write host:port");
    }
    // A colon outside brackets begins a port, or is an IPv6 address without them, which host_port refuses.
    if text.ends_with(']') || !text.contains(':') {
        Ok(HostPort { host: checked_host(text)?.to_owned(), port: DEFAULT_PORT })
    } else {
        host_port(text)
    }
}

/// The only query parameter is `db`.
fn database_of_query(query: &str) -> Result<Option<u32>, String> {
    let mut found = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("db", value)) if found.is_none() => found = Some(database(value)?),
            _ => return Err("the URL has a parameter that is not supported; write only ?db=N".to_owned()),
        }
    }
    Ok(found)
}

fn database(text: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number
        .ok_or_else(|| "the URL's database is not a number; write one such as redis://host:6379/0".to_owned())
}

/// `%40` becomes `@`; everything else, `+` too, stays.
fn percent_decoded(text: &str) -> Result<String, String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            decoded.push(*first);
            rest = tail;
            continue;
        }
        let digit = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(format!("the URL has a % without two hexadecimal digits; {ENCODE}"));
        };
        decoded.push((high * 16 + low) as u8);
        rest = &tail[2..];
    }
    String::from_utf8(decoded)
        .map_err(|_| "the URL decodes to something that is not UTF-8; write UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Server {
        match UpstreamUrl::parse(text) {
            Ok(UpstreamUrl::Server(server)) => server,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn written_as_read() {
        for (text, shown) in [
            ("redis://host", "redis://host:6379"),
            ("REDIS://host:1/", "redis://host:1"),
            ("redis://host:1?", "redis://host:1"),
            ("redis://host:1/3", "redis://host:1/3"),
            ("redis://host?db=3", "redis://host:6379/3"),
            ("redis://@[::1]", "redis://[::1]:6379"),
            ("redis://:@[::1]:7/0", "redis://[::1]:7"),
            ("redis://:pw@h", "redis://:***@h:6379"),
            ("redis://me:pw@h/2", "redis://me:***@h:6379/2"),
            ("unix:///run/r.sock", "unix:///run/r.sock"),
            ("unix:/run/r.sock", "unix:///run/r.sock"),
            ("unix://me:pw@/run/a%20b?db=2", "unix://me:***@/run/a b?db=2"),
            ("unix:///run/r@1.sock?", "unix:///run/r@1.sock"),
            ("spawn", "spawn"),
        ] {
            assert_eq!(UpstreamUrl::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn user_and_password_are_decoded() {
        let credentials = server("redis://m%C3%A9:p%40%2f+%25:x@h").credentials.unwrap();
        assert_eq!(credentials.user.as_deref(), Some("mé"));
        assert_eq!(credentials.password.expose(), "p@/+%:x");
        let credentials = server("redis://nopass:@h").credentials.unwrap();
        assert_eq!((credentials.user.as_deref(), credentials.password.expose()), (Some("nopass"), ""));
        assert_eq!(server("redis://:a@b@h").credentials.unwrap().password.expose(), "a@b");
    }

    #[test]
    fn unsupported_schemes_say_so() {
        for scheme in ["rediss", "redis-sentinel", "redis-cluster"] {
            let error = UpstreamUrl::parse(&format!("{scheme}://:hunter2@host")).unwrap_err();
            assert!(error.starts_with(&format!("{scheme}:// is not supported by this version")), "{error}");
            assert!(!error.contains("hunter2"));
        }
    }

    #[test]
    fn no_error_shows_a_password() {
        for text in [
            "hunter2",
            "hunter2://x",
            "hunter2@host",
            "redis://",
            "redis:///1",
            "redis://hunter2@h",
            "redis://:hunter2@",
            "redis://:hunter2@h:x",
            "redis://:hunter2@h:0",
            "redis://:hunter2@h:99999",
            "redis://:hunter2@h/x",
            "redis://:hunter2@h/1/2",
            "redis://:hunter2@h?x=1",
            "redis://:hunter2@::1",
            "redis://:hunter2@h/1?db=2",
            "redis://:hunter2%@h",
            "redis://:hunter2%f@h",
            "redis://:hunter2%ff@h",
            "redis://:hunter2#x@h",
            "redis://u:123/hunter2@h",
            "redis://u:1?hunter2@h",
            "redis://h/hunter2",
            "redis://h?db=hunter2",
            "redis://h?hunter2",
            "unix://hunter2",
            "unix://:hunter2@host/x",
            "unix://:hunter2@",
            "unix:///x?password=hunter2",
            "unix:hunter2",
            "redis://:hunter2",
            "http://hunter2",
            "redis://:hunter2%é@h",
        ] {
            let error = UpstreamUrl::parse(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{text}: {error}");
            assert!(error.contains("; write "), "{text}: {error}");
        }
        let url = UpstreamUrl::parse("redis://u:hunter2@h").unwrap();
        assert!(!format!("{url:?} {url}").contains("hunter2"));
    }
}
