//! `--upstream spawn`: a private redis-server that ends with the proxy, however that ends.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tempfile::TempDir;

use crate::net::Address;

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it still runs.
const LOOKS: Duration = Duration::from_millis(200);

/// As which the proxy starts itself in order to become the server: only a process itself can ask to be ended with its parent,
/// and the wish outlives `exec`.
const STAND_IN: &str = "rescind: redis-server";
/// Its exit codes, as those of a shell.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;

/// Becomes the server, if that is what this process was started for; then what comes back is that it cannot.
pub fn stand_in() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    if args.next().is_none_or(|name| name != STAND_IN) {
        return None;
    }
    let parent = args.next().and_then(|pid| pid.to_str()?.parse().ok()).and_then(Pid::from_raw);
    let asked = set_parent_process_death_signal(Some(Signal::KILL));
    if asked.is_err() || getppid() != parent {
        return Some(ExitCode::from(NOT_STARTED));
    }
    let error = Command::new("redis-server").args(args).exec();
    let is_missing = error.kind() == std::io::ErrorKind::NotFound;
    Some(ExitCode::from(if is_missing { NOT_FOUND } else { NOT_STARTED }))
}

/// A running private redis-server without persistence; dropping it ends it.
#[derive(Debug)]
pub struct Spawned {
    child: Child,
    port: u16,
    /// Goes with it.
    _folder: TempDir,
}

impl Spawned {
    /// Starts it on a free loopback port. The error is one line for the user.
    pub fn start() -> Result<Self, String> {
        let port =
            free_port().map_err(|error| format!("no free port for a private redis-server: {error}"))?;
        let folder = tempfile::Builder::new().prefix("rescind-").tempdir().map_err(|error| {
            format!("no folder can be made in {}: {error}", std::env::temp_dir().display())
        })?;
        let child = Command::new("/proc/self/exe")
            .arg0(STAND_IN)
            .arg(std::process::id().to_string())
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--daemonize", "no", "--loglevel", "warning"])
            .arg("--dir")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Ctrl-C is for the proxy, which ends the server when its clients have gone.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("redis-server cannot be started: {error}"))?;
        let mut spawned = Self { child, port, _folder: folder };
        spawned.wait()?;
        Ok(spawned)
    }

    /// Where it listens.
    pub fn address(&self) -> Address {
        Address::Tcp(format!("127.0.0.1:{}", self.port))
    }

    /// Resolves when it has ended by itself; why.
    pub async fn ended(&mut self) -> String {
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return format!("the private redis-server has ended: {status}");
            }
            tokio::time::sleep(LOOKS).await;
        }
    }

    fn wait(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(why_ended(status));
            }
            if Instant::now() > deadline {
                return Err("the private redis-server does not answer".to_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // Nothing of it is worth keeping, so it need not end in an orderly way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn why_ended(status: ExitStatus) -> String {
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(NOT_FOUND) => "redis-server cannot be found; install it, or use --upstream URL".to_owned(),
        Some(NOT_STARTED) => "redis-server cannot be started; use --upstream URL".to_owned(),
        _ => format!("the private redis-server ended at once: {status}"),
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
