//! The configuration: `proxy.toml`, overridden by environment variables, overridden by flags.
//!
//! Loading has two stages. Syntax first: the text becomes TOML tables with spans. Then meaning: each section
//! is walked by a `reader` that takes the keys it knows and records everything else. Nothing stops at the
//! first mistake; [`Loaded::finish`] hands out either a [`Config`] or every problem at once, in file order.
//!
//! What this module does not know: patterns and captures. It carries them as text with line numbers
//! ([`RulesSpec`]; the prefix, which may come from a variable, it has looked at), and the caller hands the problems of compiling them to [`Loaded::finish`].
//!
//! | file | what it holds |
//! | --- | --- |
//! | `endpoint`, `upstream`, `duration`, `size`, `secret` | values and how they are written |
//! | `sections`, `rules`, `addresses` | what each section means, and what they mean together |
//! | `reader`, `suggest` | walking tables, wrong types, unknown keys |
//! | `flags`, `errors` | the command line's overrides; problems and how they are shown |

mod addresses;
mod duration;
mod endpoint;
mod errors;
mod flags;
mod reader;
mod rules;
mod secret;
mod sections;
mod size;
mod suggest;
mod upstream;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

pub use duration::parse_duration;
pub use endpoint::{Endpoint, HostPort};
pub use errors::{ConfigErrors, ConfigProblem, Loaded, Place};
pub use flags::Flags;
pub use secret::Secret;
pub use size::parse_size;
pub use upstream::{Credentials, Server, Upstream, UpstreamUrl};

use crate::rules::spec::RulesSpec;
use reader::{Context, Environment, Lines};

/// Everything the configuration says, as plain values. Nothing of it is opened or connected yet.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// The Redis behind the proxy.
    pub upstream: Upstream,
    /// Metrics, health and status over HTTP.
    pub admin: Admin,
    /// `[keys]`, `[tags]`, `[[family]]` and `[[trigger]]` as written.
    pub rules: RulesSpec,
    /// The log of invalidations.
    pub journal: Journal,
}

impl Config {
    /// The sections that differ and that a reload does not change.
    pub fn needs_restart(&self, other: &Config) -> Vec<&'static str> {
        let differs = [
            ("[listen]", self.listen != other.listen),
            ("[upstream]", self.upstream != other.upstream),
            ("[admin]", self.admin != other.admin),
            ("[journal]", self.journal != other.journal),
        ];
        differs.into_iter().filter_map(|(section, differs)| differs.then_some(section)).collect()
    }
}

/// `[listen]`: where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Addresses to listen on; at least one.
    pub address: Vec<Endpoint>,
    /// How many clients may be connected at a time; at least 1.
    pub max_clients: usize,
    /// A client that says nothing for this long is disconnected; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// After this much silence the kernel asks whether a client is still there; `None`: never.
    pub tcp_keepalive: Option<Duration>,
    /// A client for which more bytes than this wait is disconnected, unless they are one reply.
    pub client_output_limit: usize,
    /// Worker threads; 0: chosen from the number of cores.
    pub workers: usize,
}

impl Default for Listen {
    fn default() -> Self {
        let address = HostPort { host: "127.0.0.1".to_owned(), port: 6380 };
        Self {
            address: vec![Endpoint::Tcp(address)],
            max_clients: 10_000,
            idle_timeout: None,
            tcp_keepalive: Some(Duration::from_secs(300)),
            client_output_limit: 1 << 30,
            workers: 0,
        }
    }
}

/// `[admin]`: the HTTP address for metrics, health and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Address to listen on.
    pub address: HostPort,
    /// Bearer token for POST. Without one POST is open on a loopback address and refused on any other
    /// ([`HostPort::is_loopback`]).
    pub token: Option<Secret>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: HostPort { host: "127.0.0.1".to_owned(), port: 9380 }, token: None }
    }
}

/// `[journal]`: the log of invalidations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Its directory; a relative path starts at the working directory.
    pub path: PathBuf,
    /// When it is forced to the disk.
    pub fsync: Fsync,
    /// How far back invalidations are repeated when Redis comes back with old data; zero: not at all.
    pub replay_window: Duration,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            path: PathBuf::from("data/journal"),
            fsync: Fsync::Always,
            replay_window: Duration::from_secs(3600),
        }
    }
}

/// When the journal is forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fsync {
    /// Before every acknowledgement.
    #[default]
    Always,
    /// Once a second.
    EverySec,
    /// When the system likes to.
    Never,
}

/// Reads the configuration from a file.
///
/// `environment` is all of it, such as `std::env::vars_os()`: known `RESCIND_<SECTION>_<KEY>` are used, others
/// ignored, with a note if that looks like a mistake. Never fails by itself: what is wrong stands in
/// [`Loaded::problems`], and where something is wrong [`Loaded::config`] has the default. A file that cannot be read is
/// the only problem then.
pub fn load<K, V>(path: &Path, environment: impl IntoIterator<Item = (K, V)>, flags: &Flags) -> Loaded
where
    K: AsRef<OsStr>,
    V: AsRef<OsStr>,
{
    let file_name = path.display().to_string();
    match std::fs::read(path) {
        Ok(bytes) => parse(&file_name, &bytes, environment, flags),
        Err(error) => {
            let message = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "no such file; name another with --config FILE or RESCIND_CONFIG".to_owned()
                }
                _ => format!("cannot be read: {error}; name another with --config FILE or RESCIND_CONFIG"),
            };
            let problems = vec![ConfigProblem { place: Place::File, message }];
            Loaded { config: Config::default(), file_name, problems, notes: vec![] }
        }
    }
}

/// Like [`load`], for text that is already in memory; `file_name` is for messages only.
pub fn parse<K, V>(
    file_name: &str,
    bytes: &[u8],
    environment: impl IntoIterator<Item = (K, V)>,
    flags: &Flags,
) -> Loaded
where
    K: AsRef<OsStr>,
    V: AsRef<OsStr>,
{
    let context = Context::new(Lines::new(bytes), Environment::new(environment));
    let root = text(bytes, &context).map(|text| syntax(text, &context)).unwrap_or_default();
    let (mut config, mut places) = sections::config(&root, &context);
    let notes = context.misspelt();
    let mut problems = context.into_problems();
    flags.apply(&mut config, &mut places, &mut problems);
    problems.extend(places.clashes(&config));
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    Loaded { config, file_name: file_name.to_owned(), problems, notes }
}

/// The file as text; bytes that are none are a problem of their line.
fn text<'a>(bytes: &'a [u8], context: &Context) -> Option<&'a str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            context.problem(error.valid_up_to(), "not UTF-8 text; save the file as UTF-8".to_owned());
            None
        }
    }
}

const TWICE: &str = "this key or section stands twice; remove one, or merge them";

/// First stage: text to tables. Where the text is broken, one problem for each broken line and no tables:
/// half a file would only yield follow-up errors.
fn syntax<'a>(text: &'a str, context: &Context) -> DeTable<'a> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut sound = true;
    let mut reported = Vec::new();
    for error in errors {
        let start = error.span().map_or(0, |span| span.start);
        // A key written twice leaves everything else readable.
        let twice = error.message().starts_with("duplicate key");
        sound &= twice;
        let line = context.line(start);
        if !reported.contains(&line) {
            reported.push(line);
            let what = if twice { TWICE.to_owned() } else { not_toml(error.message()) };
            context.problem(start, what);
        }
    }
    if sound { root.into_inner() } else { DeTable::default() }
}

/// Takes the error's message only: its Display shows the line, which may hold a password.
fn not_toml(message: &str) -> String {
    if message.starts_with("key with no value") {
        "not TOML: a key without a value; write key = value, and in quotes a key with : { } * or spaces"
            .to_owned()
    } else if message.starts_with("string values must be quoted") {
        "not TOML: a text without quotes; write \"…\" around it".to_owned()
    } else {
        format!("not TOML: {message}")
    }
}
