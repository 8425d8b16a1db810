//! `--upstream spawn`: a private redis-server that ends with the proxy.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::net::Address;

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running private redis-server without persistence; dropping it ends it.
#[derive(Debug)]
pub struct Spawned {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Spawned {
    /// Starts it on a free loopback port. The error is one line for the user.
    pub fn start() -> Result<Self, String> {
        let port =
            free_port().map_err(|error| format!("no free port for a private redis-server: {error}"))?;
        let folder = std::env::temp_dir().join(format!("rescind-{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .map_err(|error| format!("{} cannot be made: {error}", folder.display()))?;
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--daemonize", "no", "--loglevel", "warning"])
            .arg("--dir")
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Ctrl-C is for the proxy, which ends the server when its clients have gone.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                format!("redis-server cannot be started ({error}); install it, or use --upstream URL")
            })?;
        let mut spawned = Self { child, port, folder };
        spawned.wait()?;
        Ok(spawned)
    }

    /// Where it listens.
    pub fn address(&self) -> Address {
        Address::Tcp(format!("127.0.0.1:{}", self.port))
    }

    fn wait(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the private redis-server ended at once: {status}"));
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
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
