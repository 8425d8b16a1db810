//! Who may read the status and who may invalidate.
//!
//! The attackers are web pages in the browser of somebody who can reach the admin address.
//!
//! - A page of another site that posts here: the browser names the site in `Origin`, and cannot send
//!   `application/json` across sites without a permission that this server never gives.
//! - A page whose own host name is made to resolve to this address (DNS rebinding): to the browser it is the same
//!   site, and its `Origin` equals its `Host`. But its `Host` is a name of the attacker's. So a name other than
//!   `localhost` and the configured one is not trusted; an IP address is, because nobody can rebind that.
//!
//! The token settles the second case as well, since such a page does not know it: programs that send it may use
//! any host name, as in a network of containers. A browser's request (one with an `Origin`) needs a trusted host
//! even so. Metrics and health are not guarded: they hold what the configuration says, and are asked for by
//! whatever name the monitoring knows. Nor are reads on an address that is not loopback: its network may read.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use axum::http::{HeaderMap, StatusCode};

use super::Config;

/// Why a request is refused.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub reason: &'static str,
}

const NOT_JSON: &str = "Content-Type must be application/json";
const FOREIGN_ORIGIN: &str =
    "requests from pages of other sites are refused: Origin is not this admin address";
const FOREIGN_HOST: &str = "Host is a name that this server does not know (it could be a rebound DNS name): \
     use an IP address, localhost, or the host of admin.address";
const NO_TOKEN_SET: &str = "POST is refused because the admin address is not loopback and has no token: \
     set admin.token in proxy.toml (RESCIND_ADMIN_TOKEN) and send it as Authorization: Bearer, \
     or listen on 127.0.0.1";
const WRONG_TOKEN: &str = "send admin.token as Authorization: Bearer";

/// The rules for one listener.
#[derive(Debug)]
pub(super) struct Guard {
    loopback: bool,
    host: Option<String>,
    token: Option<String>,
}

impl Guard {
    pub fn new(local: SocketAddr, config: Config) -> Guard {
        Guard {
            loopback: local.ip().to_canonical().is_loopback(),
            host: host_of(&config.address).map(str::to_owned),
            token: config.token,
        }
    }

    /// Whether the status and the log may be read.
    pub fn read(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        self.origin(headers)?;
        if self.loopback { self.host(headers) } else { Ok(()) }
    }

    /// Whether tags may be invalidated.
    pub fn write(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if !only(headers, CONTENT_TYPE).is_some_and(is_json) {
            return Err(forbidden(NOT_JSON));
        }
        self.origin(headers)?;
        match &self.token {
            Some(token) => bearer(headers, token),
            None if !self.loopback => Err(forbidden(NO_TOKEN_SET)),
            None => self.host(headers),
        }
    }

    /// Refuses browsers that are on another site, or that got here by a name we do not trust.
    fn origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if !headers.contains_key(ORIGIN) {
            return Ok(());
        }
        match (only(headers, ORIGIN), only(headers, HOST)) {
            (Some(origin), Some(host)) if same_site(origin, host) => self.host(headers),
            _ => Err(forbidden(FOREIGN_ORIGIN)),
        }
    }

    fn host(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        // No browser leaves it out, so a request without one is not from a web page.
        if !headers.contains_key(HOST) {
            return Ok(());
        }
        match only(headers, HOST).and_then(host_of) {
            Some(host) if self.trusts(host) => Ok(()),
            _ => Err(forbidden(FOREIGN_HOST)),
        }
    }

    fn trusts(&self, host: &str) -> bool {
        host.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.host.as_ref().is_some_and(|configured| host.eq_ignore_ascii_case(configured))
    }
}

fn forbidden(reason: &'static str) -> Refusal {
    Refusal { status: StatusCode::FORBIDDEN, reason }
}

/// The value of a header that is there exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// Whether an `Origin` names the server that `Host` names. The scheme may be https: a proxy in front may speak TLS.
fn same_site(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare =
        |authority: &str| authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
    bare(authority) == bare(host)
}

/// The host of `host`, `host:port` or `[address]:port`; nothing if it is none of these.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            rest.split_once(']').map(|(host, port)| (host, port.strip_prefix(':').or(Some(port))))?
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port_is_one = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()));
    (!host.is_empty() && port_is_one).then_some(host)
}

/// Whether `Authorization` carries the token.
fn bearer(headers: &HeaderMap, token: &str) -> Result<(), Refusal> {
    let given = only(headers, AUTHORIZATION)
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, given)| given.trim());
    match given {
        // An empty token would be no secret.
        Some(given) if !token.is_empty() && equal(given.as_bytes(), token.as_bytes()) => Ok(()),
        _ => Err(Refusal { status: StatusCode::UNAUTHORIZED, reason: WRONG_TOKEN }),
    }
}

/// Compares in a time that depends on `given` alone, so that answers do not tell how much of a guess was right.
fn equal(given: &[u8], secret: &[u8]) -> bool {
    let mut difference = given.len() ^ secret.len();
    for (i, byte) in given.iter().enumerate() {
        let other = secret.get(i).copied().unwrap_or(0);
        difference = std::hint::black_box(difference | usize::from(byte ^ other));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(local: &str, address: &str, token: Option<&str>) -> Guard {
        let config = Config { address: address.into(), token: token.map(str::to_owned), connections: 1 };
        Guard::new(local.parse().unwrap(), config)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn write(guard: &Guard, pairs: &[(&'static str, &str)]) -> Result<(), &'static str> {
        let mut map = headers(pairs);
        map.insert(CONTENT_TYPE, "application/json".parse().unwrap());
        guard.write(&map).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn content_types() {
        for good in ["application/json", "application/json; charset=utf-8", "Application/JSON ;x=y"] {
            assert!(is_json(good), "{good}");
        }
        for bad in [
            "",
            "text/plain",
            "text/plain; application/json",
            "application/jsonp",
            "application/json,text/plain",
        ] {
            assert!(!is_json(bad), "{bad}");
        }
    }

    #[test]
    fn hosts() {
        assert_eq!(host_of("127.0.0.1:9380"), Some("127.0.0.1"));
        assert_eq!(host_of("admin.example"), Some("admin.example"));
        assert_eq!(host_of("[::1]:9380"), Some("::1"));
        assert_eq!(host_of("[::1]"), Some("::1"));
        for bad in ["", ":9380", "[::1", "a:b", "127.0.0.1:80@evil.example", "[::1].evil.example", "::1"] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn origins() {
        assert!(same_site("http://127.0.0.1:9380", "127.0.0.1:9380"));
        assert!(same_site("https://Admin.example", "admin.example:443"));
        assert!(same_site("http://[::1]:9380", "[::1]:9380"));
        for (origin, host) in [
            ("null", "127.0.0.1:9380"),
            ("http://127.0.0.1:9381", "127.0.0.1:9380"),
            ("http://127.0.0.1", "127.0.0.1:9380"),
            ("http://localhost:9380", "127.0.0.1:9380"),
            ("http://127.0.0.1:9380.evil.example", "127.0.0.1:9380"),
            ("ftp://127.0.0.1:9380", "127.0.0.1:9380"),
            ("http://a:443", "a"),
            ("", ""),
        ] {
            assert!(!same_site(origin, host), "{origin} {host}");
        }
    }

    #[test]
    fn loopback_without_a_token() {
        let guard = guard("127.0.0.1:9380", "admin.internal:9380", None);
        assert_eq!(write(&guard, &[]), Ok(()));
        for host in
            ["127.0.0.1:9380", "localhost:1", "LOCALHOST", "[::1]:9380", "admin.internal:9380", "10.0.0.1"]
        {
            assert_eq!(write(&guard, &[("host", host)]), Ok(()), "{host}");
            assert_eq!(
                write(&guard, &[("host", host), ("origin", &format!("http://{host}"))]),
                Ok(()),
                "{host}"
            );
            assert_eq!(guard.read(&headers(&[("host", host)])), Ok(()), "{host}");
        }
        for host in
            ["evil.example:9380", "localhost.evil.example", "127.0.0.1.evil.example:9380", "0x7f.1", ""]
        {
            assert_eq!(write(&guard, &[("host", host)]), Err(FOREIGN_HOST), "{host}");
            assert_eq!(guard.read(&headers(&[("host", host)])), Err(forbidden(FOREIGN_HOST)), "{host}");
        }
    }

    #[test]
    fn pages_of_other_sites() {
        let guard = guard("127.0.0.1:9380", "127.0.0.1:9380", None);
        let rebound = [("host", "evil.example:9380"), ("origin", "http://evil.example:9380")];
        assert_eq!(write(&guard, &rebound), Err(FOREIGN_HOST));
        let cross = [("host", "127.0.0.1:9380"), ("origin", "http://evil.example")];
        assert_eq!(write(&guard, &cross), Err(FOREIGN_ORIGIN));
        assert!(guard.read(&headers(&cross)).is_err());
        assert_eq!(
            write(&guard, &[("origin", "http://127.0.0.1:9380")]),
            Err(FOREIGN_ORIGIN),
            "without a host"
        );
        let twice =
            [("host", "127.0.0.1"), ("origin", "http://127.0.0.1"), ("origin", "http://evil.example")];
        assert_eq!(write(&guard, &twice), Err(FOREIGN_ORIGIN));
        assert_eq!(write(&guard, &[("host", "127.0.0.1"), ("host", "evil.example")]), Err(FOREIGN_HOST));
    }

    #[test]
    fn not_loopback() {
        let open = guard("0.0.0.0:9380", "0.0.0.0:9380", None);
        assert_eq!(write(&open, &[("host", "127.0.0.1:9380")]), Err(NO_TOKEN_SET));
        assert_eq!(open.read(&headers(&[("host", "rescind:9380")])), Ok(()));

        let closed = guard("0.0.0.0:9380", "0.0.0.0:9380", Some("secret"));
        let token = ("authorization", "Bearer secret");
        assert_eq!(write(&closed, &[("host", "rescind:9380"), token]), Ok(()));
        assert_eq!(write(&closed, &[("host", "rescind:9380")]), Err(WRONG_TOKEN));
        let browser = [("host", "evil.example"), ("origin", "http://evil.example"), token];
        assert_eq!(write(&closed, &browser), Err(FOREIGN_HOST));
        assert_eq!(write(&guard("[::ffff:127.0.0.1]:9380", "", None), &[]), Ok(()));
    }

    #[test]
    fn tokens() {
        let guarded = guard("127.0.0.1:9380", "", Some("secret"));
        for good in ["Bearer secret", "bearer secret", "BEARER  secret"] {
            assert_eq!(write(&guarded, &[("authorization", good)]), Ok(()), "{good}");
        }
        for bad in
            ["secret", "Basic secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Bearer Secret"]
        {
            assert_eq!(write(&guarded, &[("authorization", bad)]), Err(WRONG_TOKEN), "{bad}");
        }
        let empty = guard("127.0.0.1:9380", "", Some(""));
        assert_eq!(write(&empty, &[("authorization", "Bearer ")]), Err(WRONG_TOKEN));
        assert!(equal(b"", b"") && !equal(b"a", b"") && !equal(b"", b"a") && !equal(b"\0", b""));
    }
}
