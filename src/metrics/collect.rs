//! Adds the counters of all workers up when Prometheus asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::OTHER;
use super::rare::FamilyEvents;
use super::worker::{CommandSums, DURATION_BOUNDS, WorkerMetrics, lock};

/// Nanoseconds per second.
const NANOS: f64 = 1e9;

/// What scrapes and workers share: the list of workers and the names of the families.
#[derive(Debug)]
pub(super) struct Shared {
    workers: Mutex<Vec<Arc<WorkerMetrics>>>,
    families: Mutex<FamilyNames>,
    events: FamilyEvents,
}

impl Shared {
    pub fn new(events: FamilyEvents) -> Shared {
        events.register(OTHER);
        Shared { workers: Mutex::default(), families: Mutex::default(), events }
    }

    pub fn add_worker(self: &Arc<Self>) -> Arc<WorkerMetrics> {
        let worker = Arc::new(WorkerMetrics::new(Arc::downgrade(self)));
        lock(&self.workers).push(Arc::clone(&worker));
        worker
    }

    /// Makes all series of a family appear.
    pub fn register_family(&self, name: &str) {
        if lock(&self.families).add(name) {
            self.events.register(name);
        }
    }

    /// The families in the order of their registration, [`OTHER`] last.
    pub fn family_names(&self) -> Vec<String> {
        lock(&self.families).in_order()
    }

    /// Hits and misses per family, also of families that have none.
    pub fn reads(&self) -> HashMap<String, (u64, u64)> {
        let mut sums: HashMap<String, (u64, u64)> =
            self.family_names().into_iter().map(|name| (name, (0, 0))).collect();
        for worker in self.workers() {
            worker.each_family(|name, counters| {
                let (hits, misses) = counters.get();
                let sum = sums.entry(name.to_owned()).or_default();
                *sum = (sum.0 + hits, sum.1 + misses);
            });
        }
        sums
    }

    /// Bytes received from clients and sent to them.
    fn bytes(&self) -> (u64, u64) {
        self.workers().iter().map(|w| w.bytes()).fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1))
    }

    /// The commands that were used.
    fn commands(&self) -> BTreeMap<String, CommandSums> {
        let mut sums: BTreeMap<String, CommandSums> = BTreeMap::new();
        for worker in self.workers() {
            worker.each_command(|label, counters| {
                let counted = counters.get();
                // The table has hundreds of commands, an application uses a dozen.
                if counted.count() > 0 {
                    sums.entry(label.to_owned()).or_default().add(&counted);
                }
            });
        }
        sums
    }

    fn workers(&self) -> Vec<Arc<WorkerMetrics>> {
        lock(&self.workers).clone()
    }
}

/// The families and the position of each in the order of registration.
#[derive(Debug, Default)]
struct FamilyNames(HashMap<String, usize>);

impl FamilyNames {
    /// Whether the name is new.
    fn add(&mut self, name: &str) -> bool {
        let new = name != OTHER && !self.0.contains_key(name);
        if new {
            self.0.insert(name.to_owned(), self.0.len());
        }
        new
    }

    fn in_order(&self) -> Vec<String> {
        let mut names: Vec<(&String, usize)> =
            self.0.iter().map(|(name, position)| (name, *position)).collect();
        names.sort_by_key(|(_, position)| *position);
        names.into_iter().map(|(name, _)| name.clone()).chain([OTHER.to_owned()]).collect()
    }
}

/// The collector that Prometheus asks for the counters of the workers.
pub(super) struct Workers {
    shared: Arc<Shared>,
    hits: Desc,
    misses: Desc,
    commands: Desc,
    durations: Desc,
    errors: Desc,
    bytes: Desc,
}

impl Workers {
    pub fn new(shared: Arc<Shared>) -> prometheus::Result<Workers> {
        Ok(Workers {
            shared,
            hits: desc(
                "rescind_hits_total",
                "Keys that a read named and that existed, by family.",
                "family",
            )?,
            misses: desc(
                "rescind_misses_total",
                "Keys that a read named and that did not exist, by family. \
                 hits / (hits + misses) is the hit ratio of the cache.",
                "family",
            )?,
            commands: desc("rescind_commands_total", "Commands answered to clients, by command.", "command")?,
            durations: desc(
                "rescind_command_duration_seconds",
                "Time from the arrival of a command at the proxy until its reply, in seconds, \
                 with Redis and any invalidation that the command caused.",
                "command",
            )?,
            errors: desc(
                "rescind_command_errors_total",
                "Commands answered with an error, by command.",
                "command",
            )?,
            bytes: desc(
                "rescind_client_bytes_total",
                "Bytes received from clients (in) and sent to them (out).",
                "direction",
            )?,
        })
    }

    fn reads(&self) -> [proto::MetricFamily; 2] {
        let reads = self.shared.reads();
        let hits = reads.iter().map(|(name, n)| counter("family", name, n.0)).collect();
        let misses = reads.iter().map(|(name, n)| counter("family", name, n.1)).collect();
        [
            family(&self.hits, proto::MetricType::COUNTER, hits),
            family(&self.misses, proto::MetricType::COUNTER, misses),
        ]
    }

    fn commands(&self) -> [proto::MetricFamily; 3] {
        let commands = self.shared.commands();
        let counts = commands.iter().map(|(label, sums)| counter("command", label, sums.count())).collect();
        let errors = commands.iter().map(|(label, sums)| counter("command", label, sums.errors)).collect();
        let durations = commands.iter().map(|(label, sums)| histogram(label, sums)).collect();
        [
            family(&self.commands, proto::MetricType::COUNTER, counts),
            family(&self.errors, proto::MetricType::COUNTER, errors),
            family(&self.durations, proto::MetricType::HISTOGRAM, durations),
        ]
    }
}

impl Collector for Workers {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.hits, &self.misses, &self.commands, &self.durations, &self.errors, &self.bytes]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let (received, sent) = self.shared.bytes();
        let bytes = vec![counter("direction", "in", received), counter("direction", "out", sent)];
        let mut all = vec![family(&self.bytes, proto::MetricType::COUNTER, bytes)];
        all.extend(self.reads());
        all.extend(self.commands());
        all
    }
}

fn desc(name: &str, help: &str, label: &str) -> prometheus::Result<Desc> {
    Desc::new(name.to_owned(), help.to_owned(), vec![label.to_owned()], HashMap::new())
}

fn family(desc: &Desc, kind: proto::MetricType, series: Vec<proto::Metric>) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(series);
    family
}

fn labelled(name: &str, value: &str) -> proto::Metric {
    let mut label = proto::LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    proto::Metric::from_label(vec![label])
}

fn counter(label: &str, value: &str, n: u64) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(n as f64);
    let mut metric = labelled(label, value);
    metric.set_counter(counter);
    metric
}

fn histogram(command: &str, sums: &CommandSums) -> proto::Metric {
    let mut below = 0;
    let buckets = DURATION_BOUNDS.iter().zip(sums.buckets).map(|(bound, n)| {
        below += n;
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(*bound as f64 / NANOS);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(sums.count());
    histogram.set_sample_sum(sums.nanoseconds as f64 / NANOS);
    let mut metric = labelled("command", command);
    metric.set_histogram(histogram);
    metric
}
