//! The exposition: every line parses, workers are added up, buckets are cumulative, labels are escaped.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rescind::metrics::{ConnectionMode, Metrics, OTHER};

/// Sample values by name and labels as written, and types by name.
#[derive(Debug, Default)]
struct Exposition {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
}

impl Exposition {
    /// Panics on anything that the text format does not allow.
    fn parse(text: &str) -> Exposition {
        let mut parsed = Exposition::default();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect(line);
                assert!(parsed.types.insert(name.into(), kind.into()).is_none(), "twice: {line}");
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect(line);
                parsed.helps.insert(name.into(), help.into());
            } else {
                let (series, value) = line.rsplit_once(' ').expect(line);
                check_series(series);
                let value = value.parse().expect(line);
                assert!(parsed.samples.insert(series.into(), value).is_none(), "twice: {line}");
            }
        }
        parsed
    }

    #[track_caller]
    fn get(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.samples))
    }
}

/// `name` or `name{label="value",…}` with `\`, `"` and newlines escaped in values.
fn check_series(series: &str) {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "name of {series}");
    let mut rest = labels;
    while rest != "}" {
        let (label, value) = rest.split_once("=\"").expect(series);
        assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "label of {series}");
        let mut bytes = value.bytes().enumerate();
        let end = loop {
            match bytes.next().expect(series) {
                (_, b'\\') => {
                    assert!(matches!(bytes.next(), Some((_, b'\\' | b'"' | b'n'))), "escape in {series}")
                }
                (end, b'"') => break end,
                _ => {}
            }
        };
        rest = value[end + 1..].trim_start_matches(',');
    }
}

fn scrape(metrics: &Metrics) -> Exposition {
    Exposition::parse(&metrics.render())
}

#[test]
fn every_metric_of_the_contract_is_there() {
    let metrics = Metrics::new();
    let worker = metrics.worker();
    worker.families(&["home"]);
    worker.commands(&["get"])[0].done(1_000_000, true);
    metrics.register_triggers(&["model saved"]);
    metrics.upstream_up("a:1").set(1);
    metrics.upstream_reconnects("a:1");
    metrics.feed_connected("a:1").set(1);
    metrics.feed_gaps("a:1");
    let exposition = scrape(&metrics);
    for (name, kind) in [
        ("rescind_hits_total", "counter"),
        ("rescind_misses_total", "counter"),
        ("rescind_evictions_total", "counter"),
        ("rescind_expirations_total", "counter"),
        ("rescind_invalidations_total", "counter"),
        ("rescind_invalidated_keys_total", "counter"),
        ("rescind_stale_fills_total", "counter"),
        ("rescind_coalesced_total", "counter"),
        ("rescind_coalesce_timeouts_total", "counter"),
        ("rescind_fanout_duration_seconds", "histogram"),
        ("rescind_fanout_keys", "histogram"),
        ("rescind_commands_total", "counter"),
        ("rescind_command_duration_seconds", "histogram"),
        ("rescind_command_errors_total", "counter"),
        ("rescind_clients", "gauge"),
        ("rescind_client_bytes_total", "counter"),
        ("rescind_upstream_connections", "gauge"),
        ("rescind_upstream_up", "gauge"),
        ("rescind_upstream_reconnects_total", "counter"),
        ("rescind_index_keys", "gauge"),
        ("rescind_index_bytes", "gauge"),
        ("rescind_index_complete", "gauge"),
        ("rescind_feed_connected", "gauge"),
        ("rescind_feed_gaps_total", "counter"),
        ("rescind_journal_pending", "gauge"),
        ("rescind_config_reloads_total", "counter"),
        ("rescind_build_info", "gauge"),
    ] {
        assert_eq!(exposition.types.get(name).map(String::as_str), Some(kind), "{name}");
    }
    assert!(
        exposition.helps.values().all(|help| help.ends_with('.') && help.len() > 15),
        "{:?}",
        exposition.helps
    );
    assert!(exposition.get("process_resident_memory_bytes") > 0.0);
    assert_eq!(
        exposition.get(&format!("rescind_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))),
        1.0
    );
}

#[test]
fn processor_time_is_finer_than_seconds() {
    let metrics = Metrics::new();
    let time = || scrape(&metrics).get("process_cpu_seconds_total");
    let (before, start) = (time(), std::time::Instant::now());
    while start.elapsed() < Duration::from_millis(50) {}
    let used = time() - before;
    assert!(used > 0.0 && used < 1.0, "{used}");
}

#[test]
fn families_and_triggers_are_zero_once_configured_and_commands_absent_until_used() {
    let metrics = Metrics::new();
    metrics.register_families(&["home", "blog_*"]);
    metrics.register_triggers(&["model saved"]);
    metrics.worker().commands(&["get", "set"]);
    let exposition = scrape(&metrics);
    for family in ["home", "blog_*", OTHER] {
        let keys = ["hits", "misses", "evictions", "expirations", "invalidated_keys", "stale_fills"];
        for name in keys.into_iter().chain(["coalesced", "coalesce_timeouts"]) {
            assert_eq!(exposition.get(&format!("rescind_{name}_total{{family=\"{family}\"}}")), 0.0);
        }
    }
    assert_eq!(exposition.get("rescind_invalidations_total{trigger=\"model saved\"}"), 0.0);
    for mode in ["shared", "pinned", "control"] {
        assert_eq!(exposition.get(&format!("rescind_upstream_connections{{mode=\"{mode}\"}}")), 0.0);
    }
    for result in ["ok", "error"] {
        assert_eq!(exposition.get(&format!("rescind_config_reloads_total{{result=\"{result}\"}}")), 0.0);
    }
    assert!(!exposition.samples.keys().any(|series| series.contains("command=")));
}

#[test]
fn workers_are_added_up() {
    let metrics = Metrics::new();
    let threads: Vec<_> = (1..=4_u64)
        .map(|n| {
            let worker = metrics.worker();
            std::thread::spawn(move || {
                let families = worker.families(&["home", OTHER]);
                let commands = worker.commands(&["get"]);
                for _ in 0..1000 {
                    families[0].hit(n);
                    families[1].miss(1);
                    commands[0].done(n * 1_000_000, n == 4);
                    worker.bytes_in(10);
                    worker.bytes_out(n);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let exposition = scrape(&metrics);
    assert_eq!(exposition.get("rescind_hits_total{family=\"home\"}"), 10_000.0);
    assert_eq!(exposition.get("rescind_misses_total{family=\"home\"}"), 0.0);
    assert_eq!(exposition.get("rescind_misses_total{family=\"other\"}"), 4_000.0);
    assert_eq!(exposition.get("rescind_commands_total{command=\"get\"}"), 4_000.0);
    assert_eq!(exposition.get("rescind_command_errors_total{command=\"get\"}"), 1_000.0);
    assert_eq!(exposition.get("rescind_client_bytes_total{direction=\"in\"}"), 40_000.0);
    assert_eq!(exposition.get("rescind_client_bytes_total{direction=\"out\"}"), 10_000.0);
    assert!((exposition.get("rescind_command_duration_seconds_sum{command=\"get\"}") - 10.0).abs() < 1e-9);
}

#[test]
fn buckets_are_cumulative() {
    let metrics = Metrics::new();
    let worker = metrics.worker();
    let get = worker.commands(&["get"]).remove(0);
    get.done(20_000, false);
    get.done(50_000, false);
    get.done(700_000, false);
    get.done(60_000_000_000, false);
    let exposition = scrape(&metrics);
    let bucket = |le: &str| {
        exposition.get(&format!("rescind_command_duration_seconds_bucket{{command=\"get\",le=\"{le}\"}}"))
    };
    assert_eq!(
        [bucket("0.00005"), bucket("0.0005"), bucket("0.001"), bucket("10"), bucket("+Inf")],
        [2., 2., 3., 3., 4.]
    );
    assert_eq!(exposition.get("rescind_command_duration_seconds_count{command=\"get\"}"), 4.0);

    metrics.fanout(Duration::from_millis(3), 0);
    metrics.fanout(Duration::from_secs(100), 2_000_000);
    let exposition = scrape(&metrics);
    assert_eq!(exposition.get("rescind_fanout_keys_bucket{le=\"1\"}"), 1.0);
    assert_eq!(exposition.get("rescind_fanout_keys_bucket{le=\"1000000\"}"), 1.0);
    assert_eq!(exposition.get("rescind_fanout_keys_bucket{le=\"+Inf\"}"), 2.0);
    assert_eq!(exposition.get("rescind_fanout_duration_seconds_bucket{le=\"0.005\"}"), 1.0);
}

#[test]
fn label_values_are_escaped() {
    let metrics = Metrics::new();
    metrics.worker().families(&["a\"b\\c\nd*"])[0].hit(1);
    metrics.invalidations("say \"hi\"");
    let exposition = scrape(&metrics);
    assert_eq!(exposition.get(r#"rescind_hits_total{family="a\"b\\c\nd*"}"#), 1.0);
    assert_eq!(exposition.get(r#"rescind_evictions_total{family="a\"b\\c\nd*"}"#), 0.0);
    assert_eq!(exposition.get(r#"rescind_invalidations_total{trigger="say \"hi\""}"#), 1.0);
}

#[test]
fn counters_survive_a_reload_of_the_rules() {
    let metrics = Metrics::new();
    let worker = metrics.worker();
    worker.families(&["home", "blog"])[1].hit(3);
    worker.families(&["blog", "tools"])[0].hit(4);
    assert_eq!(scrape(&metrics).get("rescind_hits_total{family=\"blog\"}"), 7.0);
}

#[test]
fn the_rare_ones_count() {
    let metrics = Metrics::new();
    metrics.evictions("home");
    metrics.expirations("home");
    metrics.invalidated_keys("home", 5);
    metrics.stale_fills("home");
    metrics.coalesced("home", true);
    metrics.coalesced("home", true);
    metrics.coalesced("home", false);
    metrics.config_reloads(false);
    metrics.upstream_connections(ConnectionMode::Pinned).inc();
    metrics.clients.inc();
    metrics.upstream_reconnects("a:1").inc();
    let exposition = scrape(&metrics);
    for (series, value) in [
        ("rescind_evictions_total{family=\"home\"}", 1.0),
        ("rescind_expirations_total{family=\"home\"}", 1.0),
        ("rescind_invalidated_keys_total{family=\"home\"}", 5.0),
        ("rescind_stale_fills_total{family=\"home\"}", 1.0),
        ("rescind_coalesced_total{family=\"home\"}", 2.0),
        ("rescind_coalesce_timeouts_total{family=\"home\"}", 1.0),
        ("rescind_config_reloads_total{result=\"error\"}", 1.0),
        ("rescind_upstream_connections{mode=\"pinned\"}", 1.0),
        ("rescind_clients", 1.0),
        ("rescind_upstream_reconnects_total{node=\"a:1\"}", 1.0),
    ] {
        assert_eq!(exposition.get(series), value, "{series}");
    }
}

#[test]
fn the_snapshot_says_the_same_in_the_order_of_the_configuration() {
    let metrics = Metrics::new();
    let worker = metrics.worker();
    let families = worker.families(&["zebra", OTHER, "ant"]);
    families[0].hit(9);
    families[0].miss(1);
    metrics.worker().families(&["zebra"])[0].hit(1);
    metrics.invalidated_keys("ant", 2);
    metrics.index_complete.set(1);
    metrics.clients.dec();
    metrics.upstream_up("b:2").set(1);
    metrics.upstream_up("a:1").set(0);
    metrics.upstream_reconnects("a:1").inc_by(4);
    metrics.feed_connected("b:2").set(1);
    let snapshot = metrics.snapshot();
    assert_eq!(
        snapshot.families.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(),
        ["zebra", "ant", OTHER]
    );
    assert_eq!((snapshot.families[0].hits, snapshot.families[0].misses), (10, 1));
    assert_eq!(snapshot.families[1].invalidated_keys, 2);
    assert_eq!((snapshot.index_complete, snapshot.clients), (true, 0));
    let nodes: Vec<_> = snapshot.nodes.iter().map(|n| (n.node.as_str(), n.up, n.reconnects)).collect();
    assert_eq!(nodes, [("a:1", false, 4), ("b:2", true, 0)]);
    assert_eq!(snapshot.feeds.len(), 1);
}

#[test]
fn metrics_are_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let metrics: Arc<Metrics> = Metrics::new();
    shared(&metrics);
    shared(&metrics.worker());
}
