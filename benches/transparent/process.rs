//! What a part runs against: two redis-servers and the proxy, ended by pid whatever happens.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// Ended in this order: the proxy before what it is connected to.
pub struct Stage {
    pub proxy: Daemon,
    pub behind: Daemon,
    pub direct: Daemon,
    _directory: Directory,
}

impl Stage {
    pub fn start(rescind: &Path) -> Result<Self> {
        let directory = Directory::create()?;
        let direct = redis(&directory.0, "direct")?;
        let behind = redis(&directory.0, "behind")?;
        let proxy = proxy(&directory.0, rescind, behind.port)?;
        Ok(Self { proxy, behind, direct, _directory: directory })
    }
}

fn redis(directory: &Path, name: &str) -> Result<Daemon> {
    let port = free_port()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--appendonly", "no", "--save", "", "--maxclients", "1000"]);
    command.args(["--proto-max-bulk-len", "1gb", "--client-query-buffer-limit", "2gb"]);
    command.args(["--port", &port.to_string()]).arg("--dir").arg(directory);
    let mut daemon = Daemon::spawn(command, directory, name, port)?;
    daemon.wait_for(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())?;
    Ok(daemon)
}

/// With the sample rules, and no override from outside.
fn proxy(directory: &Path, rescind: &Path, upstream: u16) -> Result<Daemon> {
    let (port, admin) = (free_port()?, free_port()?);
    let mut command = Command::new(rescind);
    for (name, _) in std::env::vars_os().filter(|(name, _)| starts_with_rescind(name)) {
        command.env_remove(name);
    }
    command.env("RESCIND_JOURNAL_PATH", directory.join("journal")).env("RESCIND_LISTEN_MAX_CLIENTS", "20000");
    command.arg("--config").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy.toml"));
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--admin", &format!("127.0.0.1:{admin}")]);
    command.args(["--upstream", &format!("redis://127.0.0.1:{upstream}")]);
    let mut daemon = Daemon::spawn(command, directory, "rescind", port)?;
    daemon.wait_for(|| ready(admin).unwrap_or(false))?;
    Ok(daemon)
}

fn starts_with_rescind(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("RESCIND_")
}

fn ready(admin: u16) -> Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, admin))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A process that listens on `port`.
pub struct Daemon {
    pub port: u16,
    child: Child,
    guard: Child,
    log: PathBuf,
}

impl Daemon {
    fn spawn(mut command: Command, directory: &Path, name: &str, port: u16) -> Result<Self> {
        let log = directory.join(format!("{name}.out"));
        let file = File::create(&log)?;
        command.current_dir(directory).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut child =
            command.spawn().map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        match guard(child.id()) {
            Ok(guard) => Ok(Self { port, child, guard, log }),
            Err(error) => {
                child.kill().and_then(|()| child.wait())?;
                Err(error.into())
            }
        }
    }

    fn wait_for(&mut self, mut condition: impl FnMut() -> bool) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        while !condition() {
            if self.child.try_wait()?.is_some() || Instant::now() > until {
                return Err(format!("not ready:\n{}", fs::read_to_string(&self.log)?).into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn rss_kib(&self) -> Result<f64> {
        self.status("VmRSS:")
    }

    pub fn peak_kib(&self) -> Result<f64> {
        self.status("VmHWM:")
    }

    /// From here on the peak is that of what follows. Where the kernel refuses, an older and higher peak stays.
    pub fn reset_peak(&self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }

    fn status(&self, field: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next());
        Ok(value.ok_or("the process is gone")?.parse()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for process in [&mut self.guard, &mut self.child] {
            let _ = process.kill().and_then(|()| process.wait());
        }
    }
}

/// Ends the process `pid` when this one dies without a `drop`: its standard input then closes.
fn guard(pid: u32) -> std::io::Result<Child> {
    let script = r#"trap "" HUP INT TERM; read _; kill -9 "$0""#;
    Command::new("sh")
        .args(["-c", script, &pid.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
}

/// A temporary directory.
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("rescind-bench-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How many files this process and what it starts may have open: raised to `wanted` where that is allowed.
pub fn open_files(wanted: usize) -> Result<usize> {
    let (soft, hard) = file_limits()?;
    if soft >= wanted {
        return Ok(soft);
    }
    // Only root may raise the hard limit.
    if set_file_limits(wanted, hard.max(wanted)) || set_file_limits(hard.min(wanted), hard) {
        eprintln!("open files: limit {soft} raised to {}", file_limits()?.0);
    }
    Ok(file_limits()?.0)
}

fn set_file_limits(soft: usize, hard: usize) -> bool {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &std::process::id().to_string(), &format!("--nofile={soft}:{hard}")]);
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn file_limits() -> Result<(usize, usize)> {
    let text = fs::read_to_string("/proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut numbers = line.unwrap_or("").split_whitespace().map(|word| word.parse().unwrap_or(1 << 30));
    Ok((
        numbers.next().ok_or("no limit of open files")?,
        numbers.next().ok_or("no hard limit of open files")?,
    ))
}
