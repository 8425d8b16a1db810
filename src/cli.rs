//! The command line: flags, subcommands, help.
//!
//! It only says what was written. Addresses and URLs are read by [`crate::config`], which reports what is wrong
//! in them along with everything else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Flags, Secret};

/// The exit code for a wrong configuration or command line.
pub const EXIT_USAGE: u8 = 2;

/// Names the configuration, unless a flag does.
const CONFIG_VARIABLE: &str = "RESCIND_CONFIG";

/// A Redis-protocol invalidation proxy: point REDIS_URL at it.
///
/// It forwards every command to Redis and deletes the cached keys that depend on a write before the write is
/// acknowledged.
#[derive(Clone, Debug, Parser)]
#[command(name = "rescind", version)]
pub struct Cli {
    /// The configuration
    #[arg(long, value_name = "FILE", env = CONFIG_VARIABLE, default_value = "proxy.toml", global = true)]
    pub config: PathBuf,

    /// Listen on this address instead: host:port or unix:/path; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,

    /// Use this Redis instead: redis://…, unix:///path, or "spawn" for a private one that ends with the proxy
    #[arg(long, value_name = "URL|spawn")]
    pub upstream: Option<Secret>,

    /// Serve metrics and status on this address instead: host:port
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,

    /// Forward and report as usual, but delete nothing
    #[arg(long)]
    pub dry_run: bool,

    /// What to do instead of running the proxy.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of running the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Check the configuration and say everything that is wrong with it
    Check {
        /// The file to check instead of the one that --config names
        file: Option<PathBuf>,
    },
    /// Say what a command would label, trigger and delete, from the rules alone
    Explain {
        /// The database the command would run in
        #[arg(long, value_name = "N", default_value_t = 0)]
        db: u32,

        /// A Redis command and its arguments, passed on as they are
        #[arg(
            required = true,
            value_names = ["COMMAND", "ARG"],
            num_args = 1..,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        request: Vec<OsString>,
    },
}

impl Cli {
    /// What the process was called with. Ends it if that is wrong, or asks for help.
    pub fn read() -> Self {
        let matches = Self::definition(std::env::var_os(CONFIG_VARIABLE)).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// `variable`: what [`CONFIG_VARIABLE`] says. Like those of the configuration it counts as not set if it is empty, which
    /// clap would take for a file without a name.
    fn definition(variable: Option<OsString>) -> clap::Command {
        let command = Self::command();
        match variable {
            Some(value) if value.is_empty() => command.mut_arg("config", |arg| arg.env(None::<&str>)),
            _ => command,
        }
    }

    /// The configuration file to read: what `check` names, otherwise `--config` or its default.
    pub fn config_file(&self) -> &Path {
        match &self.command {
            Some(Command::Check { file: Some(file) }) => file,
            _ => &self.config,
        }
    }

    /// The flags that override values of the configuration.
    pub fn flags(&self) -> Flags {
        Flags { listen: self.listen.clone(), upstream: self.upstream.clone(), admin: self.admin.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn cli(arguments: &[&str]) -> Cli {
        Cli::try_parse_from([&["rescind"], arguments].concat()).unwrap()
    }

    fn explained(arguments: &[&str]) -> (u32, Vec<OsString>) {
        match cli(arguments).command {
            Some(Command::Explain { db, request }) => (db, request),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_taken_as_written() {
        let cli = cli(&[
            "--config",
            "a.toml",
            "--listen",
            "x",
            "--listen",
            "y",
            "--upstream",
            "redis://:hunter2@h",
            "--admin",
            "z",
            "--dry-run",
        ]);
        assert_eq!(cli.config_file(), Path::new("a.toml"));
        let flags = cli.flags();
        assert_eq!((flags.listen, flags.admin), (vec!["x".to_owned(), "y".to_owned()], Some("z".to_owned())));
        assert_eq!(flags.upstream.unwrap().expose(), "redis://:hunter2@h");
        assert!(cli.dry_run);
        assert!(!format!("{cli:?}").contains("hunter2"));
    }

    #[test]
    fn check_names_its_own_file() {
        assert_eq!(cli(&["check"]).config_file(), Path::new("proxy.toml"));
        assert_eq!(cli(&["check", "--config", "a.toml"]).config_file(), Path::new("a.toml"));
        assert_eq!(cli(&["--config", "a.toml", "check"]).config_file(), Path::new("a.toml"));
        assert_eq!(cli(&["--config", "a.toml", "check", "b.toml"]).config_file(), Path::new("b.toml"));
    }

    #[test]
    fn explain_takes_arguments_raw() {
        assert_eq!(explained(&["explain", "SET", "k", "v"]), (0, vec!["SET".into(), "k".into(), "v".into()]));
        assert_eq!(explained(&["explain", "--db", "3", "DEL", "k"]), (3, vec!["DEL".into(), "k".into()]));
        assert_eq!(explained(&["explain", "--db=3", "DEL", "k"]), (3, vec!["DEL".into(), "k".into()]));
        let raw = ["SET", "-k", "--help", "--db", "9", "--version", "--config", "x", "--", "", "-1"];
        let (db, request) = explained(&[&["explain"], &raw[..]].concat());
        assert_eq!((db, request), (0, raw.iter().map(OsString::from).collect()));
        assert_eq!(explained(&["explain", "--", "--db", "k"]).1, vec![OsString::from("--db"), "k".into()]);
    }

    #[cfg(unix)]
    #[test]
    fn explain_takes_bytes() {
        use std::os::unix::ffi::OsStringExt;
        let key = OsString::from_vec(vec![0xff, 0xfe]);
        let cli =
            Cli::try_parse_from(["rescind".into(), "explain".into(), "GET".into(), key.clone()]).unwrap();
        let Some(Command::Explain { request, .. }) = cli.command else { panic!() };
        assert_eq!(request[1], key);
    }

    #[test]
    fn usage_errors_exit_with_two() {
        for arguments in [&["--nonsense"][..], &["explain"], &["--listen"], &["explain", "--db", "x", "GET"]]
        {
            let error = Cli::try_parse_from([&["rescind"], arguments].concat()).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(EXIT_USAGE), "{arguments:?}");
        }
        let version = Cli::try_parse_from(["rescind", "--version"]).unwrap_err();
        assert_eq!((version.exit_code(), version.to_string().starts_with("rescind ")), (0, true));
    }
}
