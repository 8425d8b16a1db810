//! Assembly: from a configuration to running threads, and back to nothing.
//!
//! Everything that can fail for want of a port, a file or a server fails here, before any worker runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::LocalRuntime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::accounting::{Firing, Noted};
use crate::admin;
use crate::command::Commands;
use crate::config::{self, Config, Endpoint, UpstreamUrl};
use crate::control::{self, Credentials, Knowledge};
use crate::descriptors;
use crate::doubt::Scope;
use crate::fanout;
use crate::index::SharedIndex;
use crate::journal::{self, Intent, Journal, Recovered};
use crate::metrics::Metrics;
use crate::net::{self, Address, Bound, SocketFile};
use crate::process::Process;
use crate::rules::Rules;
use crate::spawn::Spawned;
use crate::status::Status;
use crate::worker;

/// How long clients may take to finish after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);

/// The signals that the process takes, instead of ending at once, and the runtime of the thread that takes them.
pub struct Signals {
    runtime: LocalRuntime,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From here on none is lost: those that come before [`App::run`] are taken there. The error is one line for the user.
    pub fn catch() -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default())
            .map_err(|error| format!("the runtime cannot be made: {error}"))?;
        let catch = |kind| {
            let _inside = runtime.enter();
            signal(kind).map_err(|error| format!("signals cannot be handled: {error}"))
        };
        let terminate = catch(SignalKind::terminate())?;
        let (interrupt, hang_up) = (catch(SignalKind::interrupt())?, catch(SignalKind::hangup())?);
        Ok(Self { runtime, terminate, interrupt, hang_up })
    }
}

/// What is run: everything is bound, nothing has started.
pub struct App {
    config: Config,
    rules: Arc<Rules>,
    dry_run: bool,
    sockets: Vec<Vec<Bound>>,
    files: Vec<SocketFile>,
    admin: std::net::TcpListener,
    admin_connections: usize,
    spawned: Option<Spawned>,
    address: Address,
    credentials: Credentials,
    journal: Journal,
    recovered: Recovered,
    /// Reads the rules again: new ones, or what is wrong with them.
    reload: Box<dyn Fn() -> Result<Rules, String> + Send>,
}

impl From<&Endpoint> for Address {
    fn from(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Tcp(host) => Address::Tcp(host.to_string()),
            Endpoint::Unix(path) => Address::Unix(path.clone()),
        }
    }
}

impl App {
    /// Binds the sockets and, if asked to, starts a Redis. The error is one line for the user.
    pub fn build(
        mut config: Config,
        rules: Rules,
        dry_run: bool,
        reload: Box<dyn Fn() -> Result<Rules, String> + Send>,
    ) -> Result<Self, String> {
        let workers = match config.listen.workers {
            0 => default_workers(),
            n => n,
        };
        let (sockets, files) = bind(&config, workers)?;
        let admin = bind_admin(&config)?;
        let granted = descriptors::provide(descriptors::Wanted {
            clients: config.listen.max_clients,
            pinned: config.upstream.max_pinned,
            workers,
            addresses: config.listen.address.len(),
        })?;
        config.listen.max_clients = granted.clients;
        let (spawned, address, credentials) = match &config.upstream.url {
            UpstreamUrl::Spawn => {
                let spawned = Spawned::start()?;
                let address = spawned.address();
                (Some(spawned), address, None)
            }
            UpstreamUrl::Server(server) => {
                if server.database != 0 {
                    tracing::warn!("the database in upstream.url is not used: clients select their own");
                }
                let own = server.credentials.as_ref();
                let credentials = own.map(|own| (own.user.clone(), own.password.expose().to_owned()));
                (None, Address::from(&server.address), credentials)
            }
        };
        let (journal, recovered) =
            open_journal(&config.journal, &address, &rules, dry_run, spawned.is_some())?;
        journal.follow_rules(rules.fingerprint());
        Ok(Self {
            config,
            rules: Arc::new(rules),
            journal,
            recovered,
            dry_run,
            sockets,
            files,
            admin,
            admin_connections: granted.admin,
            spawned,
            address,
            credentials,
            reload,
        })
    }

    /// Serves until SIGTERM or SIGINT, or until a worker or the private Redis fails. The error is one line for the user.
    pub fn run(self, signals: Signals) -> Result<(), String> {
        let (handle, orders) = fanout::Handle::new();
        let process = Arc::new(self.process(handle));
        resume(&process, &self.recovered, &self.rules);
        let commands = Arc::new(Commands::builtin());
        let (knowledge, known) = watch::channel(Knowledge { rules: Arc::clone(&self.rules), commands });
        let (drain, draining) = watch::channel(false);
        let (reload_to, reloads) = mpsc::unbounded_channel();
        let (tick, ticks) = watch::channel(());
        self.announce();
        let mut threads = vec![];
        let (fail, failures) = mpsc::unbounded_channel();
        let seats = worker::Seats::new(self.sockets.len());
        for (number, (sockets, seats)) in self.sockets.into_iter().zip(seats).enumerate() {
            let parts = worker::Parts {
                process: Arc::clone(&process),
                sockets,
                seats,
                knowledge: known.clone(),
                drain: draining.clone(),
                ticks: ticks.clone(),
            };
            threads
                .push(start(&format!("worker-{number}"), fail.clone(), move || worker::run(parts, DRAIN))?);
        }
        let control = control::Parts {
            process: Arc::clone(&process),
            credentials: self.credentials,
            knowledge,
            orders,
            known: self.recovered.redis,
            reloads,
        };
        let knows = known.clone();
        let status = Arc::new(Status::new(Arc::clone(&process), known));
        let served = Served {
            process: Arc::clone(&process),
            listener: self.admin,
            files: self.files,
            admin: admin::Config {
                address: self.config.admin.address.to_string(),
                token: self.config.admin.token.as_ref().map(|token| token.expose().to_owned()),
                connections: self.admin_connections,
            },
            status,
            reload: self.reload,
            reload_to,
            terminate: signals.terminate,
            interrupt: signals.interrupt,
            hang_up: signals.hang_up,
            failures,
            spawned: self.spawned,
        };
        signals.runtime.block_on(async move {
            tokio::task::spawn_local(control::run(control));
            tokio::task::spawn_local(beat(tick));
            tokio::task::spawn_local(finish_for_others(process, knows));
            serve(served, drain, threads).await
        })
    }

    fn process(&self, fanout: fanout::Handle) -> Process {
        let metrics = Metrics::new();
        let names: Vec<&str> = self.rules.families().iter().map(|f| f.name.as_str()).collect();
        metrics.register_families(&names);
        let labels: Vec<&str> = self.rules.triggers().iter().map(|t| t.label.as_str()).collect();
        metrics.register_triggers(&labels);
        let index = SharedIndex::default();
        index.set_incomplete("the proxy has just started");
        Process {
            max_clients: self.config.listen.max_clients,
            max_pinned: self.config.upstream.max_pinned,
            tcp_keepalive: self.config.listen.tcp_keepalive,
            output_limit: self.config.listen.client_output_limit,
            idle_timeout: self.config.listen.idle_timeout,
            dry_run: self.dry_run,
            replay_window: self.config.journal.replay_window,
            index,
            ..Process::new(self.address.clone(), metrics, self.journal.clone(), fanout)
        }
    }

    fn announce(&self) {
        for address in &self.config.listen.address {
            let url = match address {
                Endpoint::Tcp(host) => format!("redis://{host}"),
                Endpoint::Unix(path) => format!("unix://{}", path.display()),
            };
            tracing::info!("clients: REDIS_URL={url}");
        }
        tracing::info!("metrics: http://{0}/metrics  status page: http://{0}/", self.config.admin.address);
        let private = if self.spawned.is_some() { " (private, ends with this process)" } else { "" };
        tracing::info!("upstream: {}{private}", self.address);
        if self.dry_run {
            tracing::warn!("dry run: nothing is deleted");
        }
        for note in self.rules.notes() {
            tracing::info!("{note}");
        }
    }
}

/// One thread serves a small machine best: it competes with Redis and the application for the cores.
fn default_workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores / 4).clamp(1, 8)
}

/// One socket per worker and address; the kernel spreads connections over them. Unix sockets have no such
/// spreading: the workers share one.
fn bind(config: &Config, workers: usize) -> Result<(Vec<Vec<Bound>>, Vec<SocketFile>), String> {
    let mut sockets: Vec<Vec<Bound>> = (0..workers).map(|_| vec![]).collect();
    let mut files = vec![];
    for endpoint in &config.listen.address {
        let address = Address::from(endpoint);
        let failed = |error: std::io::Error| format!("cannot listen at {address}: {error}");
        // Alone first: with SO_REUSEPORT a port that another process serves would be shared silently.
        if matches!(address, Address::Tcp(_)) && workers > 1 {
            drop(net::bind(&address, false).map_err(failed)?);
        }
        let first = net::bind(&address, workers > 1).map_err(failed)?;
        files.extend(SocketFile::of(&address));
        for slot in sockets.iter_mut().skip(1) {
            slot.push(match address {
                Address::Tcp(_) => net::bind(&address, true).map_err(failed)?,
                Address::Unix(_) => first.try_clone().map_err(failed)?,
            });
        }
        if let Some(slot) = sockets.first_mut() {
            slot.push(first);
        }
    }
    Ok((sockets, files))
}

/// The journal, and what earlier processes left in it. The default place may be unusable: nobody has asked for it.
fn open_journal(
    config: &config::Journal,
    upstream: &Address,
    rules: &Rules,
    dry_run: bool,
    is_private: bool,
) -> Result<(Journal, Recovered), String> {
    // The data of a private Redis end with the process.
    if dry_run || is_private {
        return Ok((Journal::none(config.replay_window), Recovered::default()));
    }
    let options = journal::Options {
        folder: config.path.clone(),
        fsync: config.fsync,
        upstream: upstream.to_string(),
        window: config.replay_window,
        rules: rules.fingerprint(),
    };
    let opened = match config.path.is_file() {
        true => Err(format!("the journal's path {} is a file; name a directory", config.path.display())),
        false => Journal::open(options),
    };
    match opened {
        Err(error) if config.path == config::Journal::default().path => {
            tracing::warn!(%error, "without a journal: an invalidation that a crash interrupts is lost");
            Ok((Journal::none(config.replay_window), Recovered::default()))
        }
        result => result,
    }
}

/// Takes up what a process before this one has left: what it had begun is done before its keys are served. Clients may
/// still fill what they missed there.
fn resume(process: &Process, recovered: &Recovered, rules: &Arc<Rules>) {
    recovered.damage.iter().for_each(|damage| tracing::error!("the journal is damaged: {damage}"));
    if recovered.unclean {
        process.leases.suspect(rules.longest_window().as_millis() as u64);
    }
    // Redis may have been replaced meanwhile.
    let noted = recovered.redis.as_deref();
    noted.into_iter().for_each(|noted| process.saw_run(control::run_of(noted)));
    if noted.is_some_and(control::had_others) {
        process.journal.heard(&Scope::Everything, Duration::ZERO);
    }
    process.labels.remember(noted.is_some_and(control::had_labels));
    process.doubt_redis();
    finish(process, &recovered.pending, rules, true);
}

/// Does what was begun and is not known to be done; `rules` name its tags. `own`: it is in the journal of this process.
fn finish(process: &Process, begun: &[Intent], rules: &Arc<Rules>, own: bool) {
    if begun.is_empty() {
        return;
    }
    tracing::info!(invalidations = begun.len(), "interrupted invalidations are finished first");
    // All at once: while the index is being built each fan-out looks through all keys.
    let mut firing = Firing::again(Arc::clone(rules), "interrupted".to_owned());
    firing
        .intents
        .extend(begun.iter().filter(|_| own).map(|intent| Noted { id: intent.id, took: Duration::ZERO }));
    let scope = begun.iter().fold(Scope::Tags(vec![]), |scope, intent| scope.and(&intent.scope));
    let doubt = process.doubt.enter(scope.clone());
    drop(process.fanout.repeat(firing, scope, Some(doubt)));
}

/// Finishes what processes have begun that shared the folder of the journal and have ended, as the old one does when it is
/// replaced by a new one that is there already.
async fn finish_for_others(process: Arc<Process>, known: watch::Receiver<Knowledge>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let rules = Arc::clone(&known.borrow().rules);
        finish(&process, &process.journal.orphans().await, &rules, false);
    }
}

/// The other proxies are told, and the journal is closed, unless somebody has to be careful after this process.
async fn say_goodbye(process: &Arc<Process>) {
    let told = process.fanout.ask(fanout::Order::Bye);
    let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
    let now = process.moment_of(Instant::now());
    let open = process.leases.has_open(now) || process.leases.knows_sharing(now);
    process.journal.close(!open);
}

fn bind_admin(config: &Config) -> Result<std::net::TcpListener, String> {
    let address = Address::Tcp(config.admin.address.to_string());
    match net::bind(&address, false) {
        Ok(Bound::Tcp(listener)) => Ok(listener),
        Ok(Bound::Unix(_)) => Err(format!("cannot serve metrics at {address}")),
        Err(error) => Err(format!("cannot serve metrics at {address}: {error}")),
    }
}

/// A thread that says when it fails.
fn start(
    name: &str,
    fail: mpsc::UnboundedSender<std::io::Error>,
    body: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>, String> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    let running = builder.spawn(move || {
        if let Err(error) = body() {
            // Nobody listens any more where the process has ended.
            let _ = fail.send(error);
        }
    });
    running.map_err(|error| format!("a thread cannot be started: {error}"))
}

/// Tells the workers once a second. They have no timer of their own where nothing is waited for: with one, each of their
/// waits for sockets would have to arm it in the kernel.
async fn beat(tick: watch::Sender<()>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        worker::give_back_pages();
        tick.send_replace(());
    }
}

struct Served {
    process: Arc<Process>,
    listener: std::net::TcpListener,
    files: Vec<SocketFile>,
    admin: admin::Config,
    status: Arc<Status>,
    reload: Box<dyn Fn() -> Result<Rules, String> + Send>,
    reload_to: mpsc::UnboundedSender<Arc<Rules>>,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// Why workers have ended.
    failures: mpsc::UnboundedReceiver<std::io::Error>,
    /// Ends with this.
    spawned: Option<Spawned>,
}

/// The main thread: admin address, signals, and at the end the orderly retreat.
async fn serve(
    mut served: Served,
    drain: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
) -> Result<(), String> {
    let (stop_admin, admin_stopped) = oneshot::channel::<()>();
    let listener = tokio::net::TcpListener::from_std(served.listener)
        .map_err(|error| format!("the admin address cannot be served: {error}"))?;
    let shutdown = async move {
        let _ = admin_stopped.await;
    };
    let admin = tokio::task::spawn_local(admin::serve(listener, served.status, served.admin, shutdown));
    let mut failure = None;
    loop {
        tokio::select! {
            _ = served.terminate.recv() => break,
            _ = served.interrupt.recv() => break,
            Some(error) = served.failures.recv() => {
                failure = Some(failed(&error));
                break;
            }
            error = ended(&mut served.spawned) => {
                failure = Some(error);
                break;
            }
            _ = served.hang_up.recv() => match (served.reload)() {
                Ok(rules) => {
                    let _ = served.reload_to.send(Arc::new(rules));
                    served.process.metrics.config_reloads(true);
                    tracing::info!("rules reloaded");
                }
                Err(error) => {
                    served.process.metrics.config_reloads(false);
                    tracing::error!("rules not reloaded, the old ones stay:\n{error}");
                }
            },
        }
    }
    failure.iter().for_each(|error| tracing::error!("{error}"));
    let deadline = tokio::time::Instant::now() + DRAIN;
    tracing::info!("draining");
    served.process.draining.store(true, Ordering::Relaxed);
    let _ = drain.send(true);
    drop(served.files);
    // Fan-outs of the last writers still run on this thread.
    let joined =
        tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join())));
    let _ = joined.await;
    // Fan-outs whose writer has gone.
    let deadline = deadline.max(tokio::time::Instant::now() + Duration::from_millis(100));
    while served.process.fanout.outstanding() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say_goodbye(&served.process).await;
    match served.process.fanout.outstanding() {
        0 => tracing::info!("ended"),
        pending => tracing::warn!(pending, "ended, although these invalidations were not finished"),
    }
    let _ = stop_admin.send(());
    let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
    match failure.or_else(|| served.failures.try_recv().ok().as_ref().map(failed)) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn failed(error: &std::io::Error) -> String {
    format!("a worker failed: {error}")
}

/// Resolves when the private Redis has ended, and its data with it. Nobody is served by a new one that knows nothing of them.
async fn ended(spawned: &mut Option<Spawned>) -> String {
    match spawned {
        Some(spawned) => spawned.ended().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_fails_says_so_at_once() {
        let (fail, mut failures) = mpsc::unbounded_channel();
        let good = start("good", fail.clone(), || Ok(())).unwrap();
        let bad = start("bad", fail, || Err(std::io::ErrorKind::OutOfMemory.into())).unwrap();
        assert_eq!(failures.blocking_recv().unwrap().kind(), std::io::ErrorKind::OutOfMemory);
        assert!(failures.blocking_recv().is_none());
        good.join().unwrap();
        bad.join().unwrap();
    }
}
