//! What each section means: its keys, their defaults and their limits.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::addresses::Places;
use super::duration::parse_duration;
use super::reader::{Context, Kind, Section, Wants};
use super::secret::shown;
use super::size::parse_size;
use super::{
    Admin, Config, Endpoint, Fsync, HostPort, Journal, Listen, Secret, Upstream, UpstreamUrl, rules,
};

/// More threads than any machine has cores is a mistake.
const MOST_WORKERS: usize = 1024;

/// `MAX_TCP_KEEPIDLE` of the kernel.
const MOST_KEEPALIVE: Duration = Duration::from_secs(32_767);

const ENDPOINT: Kind<Endpoint> =
    Kind { wants: Wants::Text, example: r#""127.0.0.1:6380""#, parse: Endpoint::parse };
const COUNT: Kind<usize> = Kind { wants: Wants::Number, example: "10000", parse: count };
const KEEPALIVE: Kind<Duration> = Kind { wants: Wants::Text, example: r#""300s""#, parse: keepalive };
const OUTPUT: Kind<usize> = Kind { wants: Wants::Text, example: r#""1gb""#, parse: output_limit };
const WORKERS: Kind<usize> = Kind { wants: Wants::Number, example: "0", parse: workers };
const URL: Kind<UpstreamUrl> =
    Kind { wants: Wants::Text, example: r#""redis://127.0.0.1:6379""#, parse: UpstreamUrl::parse };
const ADMIN: Kind<HostPort> =
    Kind { wants: Wants::Text, example: r#""127.0.0.1:9380""#, parse: HostPort::parse };
const TOKEN: Kind<Secret> = Kind { wants: Wants::Text, example: r#""a long random word""#, parse: token };
const PATH: Kind<PathBuf> = Kind { wants: Wants::Text, example: r#""data/journal""#, parse: path };
const FSYNC: Kind<Fsync> = Kind { wants: Wants::Text, example: r#""always""#, parse: fsync };
const WINDOW: Kind<Duration> = Kind { wants: Wants::Text, example: r#""1h""#, parse: parse_duration };

/// A time, also zero.
pub(super) const DURATION: Kind<Duration> =
    Kind { wants: Wants::Text, example: r#""5s""#, parse: parse_duration };

/// Second stage: what the tables of a file mean, together with the variables; and where the addresses stand.
pub(super) fn config<'a>(root: &'a DeTable<'a>, context: &'a Context) -> (Config, Places) {
    let mut top = Section::top(context, root);
    let mut places = Places::default();
    let config = Config {
        listen: listen(top.table("listen", "[listen]", Some("LISTEN")), &mut places),
        upstream: upstream(top.table("upstream", "[upstream]", Some("UPSTREAM"))),
        admin: admin(top.table("admin", "[admin]", Some("ADMIN")), &mut places),
        rules: rules::rules(&mut top),
        journal: journal(top.table("journal", "[journal]", Some("JOURNAL"))),
    };
    top.finish();
    (config, places)
}

fn listen(mut section: Section<'_>, places: &mut Places) -> Listen {
    let default = Listen::default();
    let address = section.many("address", &ENDPOINT, true);
    places.listen = address.iter().flatten().map(|one| section.place("address", one.line)).collect();
    let listen = Listen {
        address: address.map_or(default.address, |list| list.into_iter().map(|a| a.value).collect()),
        max_clients: section.one("max_clients", &COUNT).map_or(default.max_clients, |n| n.value),
        idle_timeout: section.one("idle_timeout", &DURATION).map(|d| d.value).filter(|d| !d.is_zero()),
        tcp_keepalive: match section.one("tcp_keepalive", &KEEPALIVE) {
            Some(time) => Some(time.value).filter(|time| !time.is_zero()),
            None => default.tcp_keepalive,
        },
        client_output_limit: section
            .one("client_output_limit", &OUTPUT)
            .map_or(default.client_output_limit, |size| size.value),
        workers: section.one("workers", &WORKERS).map_or(default.workers, |n| n.value),
    };
    section.finish();
    listen
}

fn upstream(mut section: Section<'_>) -> Upstream {
    let default = Upstream::default();
    let upstream = Upstream {
        url: section.one("url", &URL).map_or(default.url, |url| url.value),
        max_pinned: section.one("max_pinned", &COUNT).map_or(default.max_pinned, |n| n.value),
    };
    section.finish();
    upstream
}

fn admin(mut section: Section<'_>, places: &mut Places) -> Admin {
    let default = Admin::default();
    let address = section.one("address", &ADMIN);
    places.admin = address.as_ref().map(|one| section.place("address", one.line));
    let admin = Admin {
        address: address.map_or(default.address, |a| a.value),
        token: section.one("token", &TOKEN).map(|token| token.value),
    };
    section.finish();
    admin
}

fn journal(mut section: Section<'_>) -> Journal {
    let default = Journal::default();
    let journal = Journal {
        path: section.one("path", &PATH).map_or(default.path, |path| path.value),
        fsync: section.one("fsync", &FSYNC).map_or(default.fsync, |fsync| fsync.value),
        replay_window: section.one("replay_window", &WINDOW).map_or(default.replay_window, |time| time.value),
    };
    section.finish();
    journal
}

/// A whole number without a sign.
pub(super) fn whole(text: &str) -> Result<u64, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{} is not a whole number from 0 on; write digits only", shown(text)));
    }
    text.parse().map_err(|_| format!("{} is too large; write a smaller number", shown(text)))
}

fn count(text: &str) -> Result<usize, String> {
    match usize::try_from(whole(text)?) {
        Ok(0) => Err("0 is too few; write 1 or more".to_owned()),
        Ok(count) if count <= 10_000_000 => Ok(count),
        _ => Err(format!("{text} is too many; write at most 10000000")),
    }
}

/// The kernel counts in seconds, and takes no more than these.
fn keepalive(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if time > MOST_KEEPALIVE => {
            Err(format!("{} is too long; write at most \"{}s\"", shown(text), MOST_KEEPALIVE.as_secs()))
        }
        time if time.is_zero() || time >= Duration::from_secs(1) => Ok(time),
        _ => Err(format!("{} is too short; write at least \"1s\", or \"0s\" for never", shown(text))),
    }
}

fn output_limit(text: &str) -> Result<usize, String> {
    match parse_size(text)? {
        size if size >= 1 << 20 => Ok(size),
        _ => Err(format!("{} is too little; write at least \"1mb\"", shown(text))),
    }
}

fn workers(text: &str) -> Result<usize, String> {
    match usize::try_from(whole(text)?) {
        Ok(count) if count <= MOST_WORKERS => Ok(count),
        _ => Err(format!("{text} is too many; write at most {MOST_WORKERS}, or 0 for one per core")),
    }
}

/// A bearer token: it travels in an HTTP header, so visible ASCII only. The error does not repeat it.
fn token(text: &str) -> Result<Secret, String> {
    if text.is_empty() {
        Err("the token is empty; write a long random word, or leave the key out".to_owned())
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        Err("the token has spaces or characters outside ASCII; write letters and digits".to_owned())
    } else {
        Ok(Secret::new(text))
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        Err(format!("{} is not a path; write one such as \"data/journal\"", shown(text)))
    } else {
        Ok(PathBuf::from(text))
    }
}

fn fsync(text: &str) -> Result<Fsync, String> {
    match text {
        "always" => Ok(Fsync::Always),
        "everysec" => Ok(Fsync::EverySec),
        "never" => Ok(Fsync::Never),
        _ => Err(format!("{} is unknown; write \"always\", \"everysec\" or \"never\"", shown(text))),
    }
}
