//! Real servers for tests: a redis-server and a rescind on free loopback ports, ended when dropped, and a raw
//! client that shows every byte.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. Long, because machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The sample rules, shared by most tests.
pub const RULES: &str = r#"
[keys]
prefix = "app:1:"

[tags]
PersonalInfo = ["home_page_data_*", "personal_page_data", "portfolio_statistics"]
Post = ["home_page_data_*", "blog_posts_*"]
Tool = ["home_page_data_*", "tools_*"]
"post:{id}" = ["post:{id}:*", "feed:*:{id}"]

[[family]]
name = "home"
keys = ["home_page_data_*"]

[[trigger]]
name = "model saved"
keys = ["model:{model}:{pk}"]
invalidate = ["{model}", "post:{pk}"]

[[trigger]]
name = "tag key"
keys = ["tag:{tag*}"]
invalidate = ["{tag*}"]

[[trigger]]
name = "cascade"
tags = ["Post"]
invalidate = ["SiteMap"]
"#;

/// A port that was free a moment ago, and that nobody is given but who asks for it: those from 32768 on go to connections, of
/// which the other tests make many. Each once, from a place of this process's own on.
pub fn free_port() -> u16 {
    const FIRST: u32 = 15_000;
    const COUNT: u32 = 17_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(997);
    let ports =
        std::iter::repeat_with(|| start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT + FIRST);
    let ports = ports.take(COUNT as usize).map(|port| u16::try_from(port).unwrap());
    ports.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

/// Waits until `check` gives something.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder of the test's own, removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rescind-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A real redis-server without persistence.
pub struct Redis {
    pub port: u16,
    child: Child,
    args: Vec<String>,
    folder: Folder,
}

impl Redis {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more arguments, such as `["--requirepass", "secret"]`.
    pub fn with(more: &[&str]) -> Self {
        let (port, folder) = (free_port(), Folder::new());
        let mut args: Vec<String> =
            ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"].map(str::to_owned).to_vec();
        args.push(folder.0.display().to_string());
        args.extend(["--port".to_owned(), port.to_string()]);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let redis = Self { port, child: spawn(&args), args, folder };
        redis.wait();
        redis
    }

    /// Where it keeps its snapshot.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder.0
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port, with its last snapshot, if there is one.
    pub fn restart(&mut self) {
        self.child = spawn(&self.args);
        self.wait();
    }

    /// Likewise, with more arguments.
    pub fn restart_with(&mut self, more: &[&str]) {
        self.args.extend(more.iter().map(|arg| (*arg).to_owned()));
        self.restart();
    }

    /// `-STOP`, `-CONT`, …
    pub fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }

    fn wait(&self) {
        eventually("redis-server answers", || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(args: &[String]) -> Child {
    Command::new("redis-server")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server on the PATH")
}

pub fn send_signal(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// A running rescind.
pub struct Proxy {
    pub port: u16,
    pub admin: u16,
    pub config: PathBuf,
    pub folder: Folder,
    args: Vec<String>,
    variables: BTreeMap<String, String>,
    child: Child,
}

fn spawn_proxy(args: &[String], variables: &BTreeMap<String, String>, folder: &Folder) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(folder.0.join("log")).unwrap();
    Command::new(&args[0])
        .args(&args[1..])
        .envs(variables)
        // Its journal is the test's own.
        .current_dir(&folder.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Proxy {
    /// In front of `redis`, with these rules, and ready.
    pub fn start(redis: &Redis, rules: &str) -> Self {
        let proxy = Self::launch(&format!("redis://127.0.0.1:{}", redis.port), rules, &[]);
        proxy.ready();
        proxy
    }

    /// In front of any URL, with more arguments; does not wait until it is ready, only until it listens.
    pub fn launch(upstream: &str, rules: &str, more: &[&str]) -> Self {
        Self::launch_with(upstream, rules, more, &[])
    }

    /// As [`Proxy::launch`], with so many open files allowed, which it may raise up to `hard`.
    pub fn launch_limited(upstream: &str, rules: &str, soft: u32, hard: u32) -> Self {
        let limits = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
        Self::launch_by(&["sh", "-c", &limits], upstream, rules, &[], &[])
    }

    /// As [`Proxy::launch`], with more environment variables.
    pub fn launch_with(upstream: &str, rules: &str, more: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::launch_by(&[], upstream, rules, more, variables)
    }

    /// As [`Proxy::launch_with`], by a program that runs what it is given.
    fn launch_by(
        program: &[&str],
        upstream: &str,
        rules: &str,
        more: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let (port, admin, folder) = (free_port(), free_port(), Folder::new());
        let config = folder.write("proxy.toml", rules);
        let own = |text: &str| text.to_owned();
        let mut args: Vec<String> = program.iter().map(|word| own(word)).collect();
        args.extend([env!("CARGO_BIN_EXE_rescind"), "--config"].map(own));
        args.push(config.display().to_string());
        args.extend([own("--listen"), format!("127.0.0.1:{port}")]);
        args.extend([own("--admin"), format!("127.0.0.1:{admin}")]);
        args.extend([own("--upstream"), own(upstream)]);
        args.extend(more.iter().map(|arg| own(arg)));
        let variables = variables.iter().map(|(name, value)| (own(name), own(value))).collect();
        let child = spawn_proxy(&args, &variables, &folder);
        let proxy = Self { port, admin, config, folder, args, variables, child };
        proxy.listens();
        proxy
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again at the same place, with these variables besides; waits until it listens.
    pub fn start_again(&mut self, variables: &[(&str, &str)]) {
        let own = |text: &str| text.to_owned();
        self.variables = variables.iter().map(|(name, value)| (own(name), own(value))).collect();
        self.child = spawn_proxy(&self.args, &self.variables, &self.folder);
        self.listens();
    }

    fn listens(&self) {
        eventually("rescind listens", || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    /// In front of `redis`, with these lines above the sample rules, and ready.
    pub fn configured(redis: &Redis, config: &str) -> Self {
        let rules = format!("{config}\n{RULES}");
        let proxy = Self::launch(&format!("redis://127.0.0.1:{}", redis.port), &rules, &[]);
        proxy.ready();
        proxy
    }

    /// Waits until `/readyz` says yes.
    pub fn ready(&self) {
        eventually("rescind is ready", || (self.http("GET", "/readyz", &[], "").0 == 200).then_some(()));
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }

    /// `-TERM`, `-HUP`, `-STOP`, …
    pub fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Waits for its end; its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        eventually("rescind ends", || self.child.try_wait().unwrap()).code()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.0.join("log")).unwrap()
    }

    /// One HTTP request to the admin address: status and body.
    pub fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.admin)) else { return (0, String::new()) };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", self.admin);
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        if stream.write_all(request.as_bytes()).is_err() {
            return (0, String::new());
        }
        let mut reply = String::new();
        let _ = stream.read_to_string(&mut reply);
        let status = reply.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// One sample of `/metrics`, named as it stands there: `rescind_hits_total{family="home"}`. 0 if absent.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.http("GET", "/metrics", &[], "");
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }

    /// Connections to Redis that belong to one client each, and idle ones that did.
    pub fn pinned(&self) -> usize {
        self.metric("rescind_upstream_connections{mode=\"pinned\"}") as usize
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, bytes.
    pub fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of rescind ---\n{}", self.log());
        }
    }
}

/// A raw client.
pub struct Client {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub fn connect(port: u16) -> Self {
        let stream = eventually("connected", || TcpStream::connect(("127.0.0.1", port)).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends one request.
    pub fn request<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        self.send(&encode(args));
    }

    /// The raw bytes of the next reply.
    pub fn raw(&mut self) -> Vec<u8> {
        let reply = self.try_raw();
        let unread = String::from_utf8_lossy(&self.unread);
        reply.unwrap_or_else(|| panic!("the connection was closed; unread: {unread:?}"))
    }

    /// Likewise; `None`: the connection was closed.
    pub fn try_raw(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = complete(&self.unread) {
                return Some(self.unread.drain(..length).collect());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Sends one request and returns the raw reply as text.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> String {
        self.request(args);
        self.reply()
    }

    /// The next reply as text.
    pub fn reply(&mut self) -> String {
        String::from_utf8_lossy(&self.raw()).into_owned()
    }

    /// `call` with the words of one line.
    pub fn cmd(&mut self, line: &str) -> String {
        self.call(&line.split(' ').collect::<Vec<_>>())
    }

    /// All strings and numbers of a reply, flattened.
    pub fn list(&mut self, line: &str) -> Vec<String> {
        self.request(&line.split(' ').collect::<Vec<_>>());
        texts(&self.raw())
    }

    /// Whatever arrives until the connection is closed.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.unread)
    }

    fn fill(&mut self) -> bool {
        let mut chunk = vec![0; 1 << 16];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(n) => {
                self.unread.extend_from_slice(&chunk[..n]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            // Some kernels do so when a machine is suspended.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill(),
            Err(error) => panic!("no reply: {error}"),
        }
    }
}

/// What CLIENT LIST says, asked on `direct`: the fields of each client.
pub fn client_list(direct: &mut Client) -> Vec<BTreeMap<String, String>> {
    let reply = direct.cmd("CLIENT LIST");
    let fields = |line: &str| {
        let words = line.split(' ').filter_map(|word| word.split_once('='));
        words.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    reply.lines().filter(|line| line.contains(" laddr=")).map(fields).collect()
}

/// How many connections Redis has been asked for so far, by whomever.
pub fn connections_made(direct: &mut Client) -> u64 {
    let reply = direct.cmd("INFO stats");
    let line = reply.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().parse().unwrap()
}

pub fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.as_ref().len()).as_bytes());
        bytes.extend_from_slice(arg.as_ref());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The kind of a value, its line, and how many bytes or values follow that line.
fn head(bytes: &[u8]) -> Option<(u8, &[u8], usize, u64)> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let line = &bytes[1..end];
    let number = std::str::from_utf8(line).ok().and_then(|text| text.parse::<i64>().ok()).unwrap_or(-1);
    let (body, values) = match bytes[0] {
        b'$' | b'=' | b'!' if number >= 0 => (number as usize + 2, 0),
        b'*' | b'~' | b'>' => (0, number.max(0) as u64),
        b'%' => (0, number as u64 * 2),
        b'|' => (0, number as u64 * 2 + 1),
        _ => (0, 0),
    };
    Some((bytes[0], line, body, values))
}

/// The length of the first reply in `bytes`, nils of RESP2 included; `None`: more is to come.
pub fn complete(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut left) = (0, 1);
    while left > 0 {
        let (_, line, body, values) = head(bytes.get(at..)?)?;
        at += line.len() + 3 + body;
        left += values;
        left -= 1;
    }
    (at <= bytes.len()).then_some(at)
}

/// All strings and numbers of a complete reply, flattened.
pub fn texts(bytes: &[u8]) -> Vec<String> {
    let (mut at, mut out) = (0, vec![]);
    while at < bytes.len() {
        let (kind, line, body, _) = head(&bytes[at..]).unwrap();
        at += line.len() + 3 + body;
        match kind {
            b'*' | b'~' | b'>' | b'%' | b'|' if line != b"-1" => {}
            b'$' | b'=' | b'!' if body > 0 => {
                out.push(String::from_utf8_lossy(&bytes[at - body..at - 2]).into_owned());
            }
            b'$' | b'*' | b'_' => out.push("(nil)".to_owned()),
            _ => out.push(String::from_utf8_lossy(line).into_owned()),
        }
    }
    out
}
