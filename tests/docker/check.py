#!/usr/bin/env python3
"""Static checks of everything under docker/: no container engine needed.

    python3 tests/docker/check.py [--metrics FILE] [--rescind BINARY] [--root DIR]

--metrics FILE    the text of a running proxy's /metrics, after some traffic. Dashboard
                  and alerts may use only names that are in it, and every metric of the
                  contract must be. Without it the contract alone decides.
--rescind BINARY  the configurations must also pass `BINARY check FILE`.

Needs Python 3.11 (tomllib) and PyYAML. promtool is used when it is on the PATH.
Exit code: 0 when nothing failed, 1 otherwise.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import yaml
except ImportError:
    sys.exit("check.py needs PyYAML: pip install pyyaml")

# The metrics that the proxy promises, and what may hang on a histogram's name.
COUNTERS_AND_GAUGES = """
    rescind_hits_total rescind_misses_total rescind_evictions_total rescind_expirations_total
    rescind_invalidations_total rescind_invalidated_keys_total rescind_stale_fills_total
    rescind_coalesced_total rescind_coalesce_timeouts_total
    rescind_commands_total rescind_command_errors_total rescind_clients
    rescind_client_bytes_total rescind_upstream_connections rescind_upstream_up
    rescind_upstream_reconnects_total rescind_index_keys rescind_index_bytes
    rescind_index_complete rescind_feed_connected rescind_feed_gaps_total
    rescind_journal_pending rescind_config_reloads_total
""".split()
HISTOGRAMS = ["rescind_fanout_duration_seconds", "rescind_fanout_keys", "rescind_command_duration_seconds"]
CONTRACT = {*COUNTERS_AND_GAUGES, *HISTOGRAMS}

# Promised, but on no panel and in no alert, each for a reason given here.
ALLOWED_UNUSED = {
    "rescind_build_info",  # Always 1; asked for by hand, to see which version runs.
    "rescind_stale_fills_total",  # Reserved: 0 until stale fills are undone.
}

# Not the proxy's own: what Prometheus adds.
FOREIGN = {"up", "ALERTS"}
# What the process collector exports on Linux.
PROCESS = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
}

PORTS = {"listen": 6380, "admin": 9380}


class Failure(Exception):
    """A check did not hold; the text says what to do about it."""


class Skip(Exception):
    """A check could not be made; the text says why."""


class Repo:
    """Where the files are, and what the caller gave to check them with."""

    def __init__(self, root: Path, metrics: Path | None, binary: Path | None) -> None:
        self.root = root
        self.docker = root / "docker"
        self.metrics = metrics
        self.binary = binary

    def yaml_files(self) -> list[Path]:
        return sorted(p for p in self.docker.rglob("*") if p.suffix in {".yaml", ".yml"})

    def yaml(self, name: str) -> Any:
        return yaml.safe_load((self.docker / name).read_text())

    def dashboards(self) -> list[Path]:
        return sorted((self.docker / "grafana/dashboards").glob("*.json"))

    def configs(self) -> dict[str, str]:
        """The two configurations: the reference, and the one in the ConfigMap."""
        reference = self.root / "proxy.toml"
        require(reference.is_file(), "there is no proxy.toml at the root")
        config_map = self.yaml("kubernetes/configmap.yaml")
        return {
            "proxy.toml": reference.read_text(),
            "docker/kubernetes/configmap.yaml": config_map["data"]["proxy.toml"],
        }


def require(condition: object, message: str) -> None:
    if not condition:
        raise Failure(message)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    output = (done.stdout + done.stderr).strip()
    require(done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{output}")
    return output


# --- syntax ------------------------------------------------------------------


def check_yaml_parses(repo: Repo) -> str:
    files = repo.yaml_files()
    require(files, "no YAML files under docker/")
    for path in files:
        try:
            list(yaml.safe_load_all(path.read_text()))
        except yaml.YAMLError as error:
            raise Failure(f"{path.relative_to(repo.root)}: {error}") from error
    return f"{len(files)} files"


def check_mounts_exist(repo: Repo) -> str:
    """A bind mount of a missing file makes Docker create a directory in its place."""
    count = 0
    for name, service in repo.yaml("compose.yaml")["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                count += 1
                require(
                    (repo.docker / source).exists(), f"compose.yaml mounts {source} into {name}: not there"
                )
    return f"{count} bind mounts"


def check_kustomization(repo: Repo) -> str:
    resources = repo.yaml("kubernetes/kustomization.yaml")["resources"]
    missing = [r for r in resources if not (repo.docker / "kubernetes" / r).is_file()]
    require(not missing, f"kustomization.yaml lists {missing}: not there")
    if not shutil.which("kubectl"):
        return f"{len(resources)} resources; kubectl is not on the PATH, not rendered"
    rendered = run("kubectl", "kustomize", str(repo.docker / "kubernetes"))
    return f"{len(list(yaml.safe_load_all(rendered)))} objects rendered"


# --- configuration -----------------------------------------------------------


def check_configs_load(repo: Repo) -> str:
    for name, text in repo.configs().items():
        try:
            config = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Failure(f"{name}: {error}") from error
        for section in ("listen", "upstream", "admin"):
            require(section in config, f"{name} has no [{section}]")
    return ", ".join(repo.configs())


def check_configs_pass(repo: Repo) -> str:
    if repo.binary is None:
        raise Skip("no --rescind BINARY")
    require_rejects_nonsense(repo.binary)
    for name, text in repo.configs().items():
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "proxy.toml"
            path.write_text(text)
            try:
                run(repo.binary.resolve(), "check", path, cwd=Path(directory))
            except Failure as failure:
                raise Failure(f"{name}: {failure}") from failure
    return f"{repo.binary} check"


def check_pods_fill_strictly(repo: Repo) -> str:
    """The miss may go through one pod and its fill through another."""
    if repo.yaml("kubernetes/deployment.yaml")["spec"]["replicas"] < 2:
        raise Skip("there is one pod")
    config = tomllib.loads(repo.configs()["docker/kubernetes/configmap.yaml"])
    families = [one for one in config.get("family", []) if one.get("stale_fill") == "strict"]
    strict = {key for one in families for key in one["keys"]}
    dependents = {re.sub(r"\{\w+\}", "*", key) for keys in config["tags"].values() for key in keys}
    require(dependents <= strict, f'no family with stale_fill = "strict" has {sorted(dependents - strict)}')
    return f"{len(dependents)} patterns"


def require_rejects_nonsense(binary: Path) -> None:
    """A binary that accepts anything would make the check above an empty one."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "proxy.toml"
        path.write_text("[no_such_section]\nkey = 1\n")
        done = subprocess.run([binary.resolve(), "check", path], capture_output=True, timeout=30, check=False)
    require(done.returncode == 2, f"{binary} check of a wrong file exits with {done.returncode} instead of 2")


# --- ports -------------------------------------------------------------------


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def ports_in_dockerfile(repo: Repo) -> Iterator[tuple[str, str, int]]:
    text = (repo.docker / "Dockerfile").read_text()
    listen, admin = re.search(r"^EXPOSE (\d+) (\d+)$", text, re.M).groups()
    yield "Dockerfile EXPOSE", "listen", int(listen)
    yield "Dockerfile EXPOSE", "admin", int(admin)
    yield "Dockerfile ENV", "listen", port_of(re.search(r"RESCIND_LISTEN_ADDRESS=(\S+)", text)[1])
    yield "Dockerfile ENV", "admin", port_of(re.search(r"RESCIND_ADMIN_ADDRESS=(\S+)", text)[1])
    yield "Dockerfile HEALTHCHECK", "admin", int(re.search(r"127\.0\.0\.1:(\d+)/healthz", text)[1])


def ports_in_compose(repo: Repo) -> Iterator[tuple[str, str, int]]:
    service = repo.yaml("compose.yaml")["services"]["rescind"]
    yield "compose environment", "listen", port_of(service["environment"]["RESCIND_LISTEN_ADDRESS"])
    yield "compose environment", "admin", port_of(service["environment"]["RESCIND_ADMIN_ADDRESS"])
    for kind, published in zip(("listen", "admin"), service["ports"], strict=True):
        for port in published.split(":")[-2:]:
            yield "compose ports", kind, int(port)
    probe = " ".join(service["healthcheck"]["test"])
    yield "compose healthcheck", "admin", int(re.search(r":(\d+)/healthz", probe)[1])
    for target in repo.yaml("prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]:
        yield "prometheus.yml", "admin", port_of(target)


def ports_in_kubernetes(repo: Repo) -> Iterator[tuple[str, str, int]]:
    template = repo.yaml("kubernetes/deployment.yaml")["spec"]["template"]
    container = template["spec"]["containers"][0]
    kinds = {"redis": "listen", "metrics": "admin"}
    for port in container["ports"]:
        yield "deployment ports", kinds[port["name"]], port["containerPort"]
    env = {e["name"]: e.get("value") for e in container["env"]}
    yield "deployment env", "listen", port_of(env["RESCIND_LISTEN_ADDRESS"])
    yield "deployment env", "admin", port_of(env["RESCIND_ADMIN_ADDRESS"])
    for probe in ("livenessProbe", "readinessProbe"):
        require(container[probe]["httpGet"]["port"] == "metrics", f"{probe} must use the port `metrics`")
    yield "deployment annotations", "admin", int(template["metadata"]["annotations"]["prometheus.io/port"])
    for port in repo.yaml("kubernetes/service.yaml")["spec"]["ports"]:
        require(port["targetPort"] == port["name"], f"service port {port['name']} must target its own name")
        yield "service", kinds[port["name"]], port["port"]


def ports_in_configs(repo: Repo) -> Iterator[tuple[str, str, int]]:
    for name, text in repo.configs().items():
        config = tomllib.loads(text)
        listen = config["listen"]["address"]
        for address in [listen] if isinstance(listen, str) else listen:
            if not address.startswith("unix:"):
                yield name, "listen", port_of(address)
        yield name, "admin", port_of(config["admin"]["address"])


def check_ports(repo: Repo) -> str:
    sources = (ports_in_dockerfile, ports_in_compose, ports_in_kubernetes, ports_in_configs)
    found = [port for source in sources for port in source(repo)]
    wrong = [f"{where}: {kind} is {port}" for where, kind, port in found if port != PORTS[kind]]
    require(not wrong, f"expected {PORTS}; {'; '.join(wrong)}")
    return f"{len(found)} places agree on {PORTS['listen']} and {PORTS['admin']}"


# --- metrics -----------------------------------------------------------------

NOT_METRICS = set("and or unless by without on ignoring group_left group_right offset bool inf nan".split())


def names_in_promql(expression: str) -> set[str]:
    """The metrics an expression reads. Recording rules (they have a colon) are not among them."""
    query = re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', "", expression)
    query = re.sub(r"label_values\((.*),\s*\w+\s*\)", r"\1", query)
    query = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", query)
    query = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    query = re.sub(r"\boffset\s+-?\w+", " ", query)
    names = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*\b(?!\s*\()", query)
    return {n for n in names if n.lower() not in NOT_METRICS and ":" not in n}


def expressions_of_dashboard(node: Any) -> Iterator[str]:
    """Every `expr` (panels, annotations) and every query variable, however deep."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        if node.get("type") == "query" and isinstance(node.get("definition"), str):
            yield node["definition"]
            yield node["query"]["query"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from expressions_of_dashboard(child)


def uses(repo: Repo) -> dict[str, set[str]]:
    """Metric name → the files that use it."""
    found: dict[str, set[str]] = {}
    for path in repo.dashboards():
        for expression in expressions_of_dashboard(json.loads(path.read_text())):
            for name in names_in_promql(expression):
                found.setdefault(name, set()).add(path.name)
    for group in repo.yaml("prometheus/alerts.yml")["groups"]:
        for rule in group["rules"]:
            for name in names_in_promql(rule["expr"]):
                found.setdefault(name, set()).add("alerts.yml")
    return found


def families_in(text: str) -> set[str]:
    """Metric families of an exposition: from TYPE lines, or from bare samples without one."""
    families = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    samples = set(re.findall(r"^([a-zA-Z_:][\w:]*)(?=[{ ])", text, re.M))
    typed = {name + suffix for name, kind in families.items() for suffix in suffixes(kind)}
    return set(families) | (samples - typed)


def suffixes(kind: str) -> tuple[str, ...]:
    return {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}.get(kind, ("",))


def family_of(name: str) -> str:
    """The contract's name for a sample: a histogram's `_bucket`, `_sum`, `_count` belong to it."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base if base in HISTOGRAMS else name


def known_families(repo: Repo) -> set[str]:
    if repo.metrics is None:
        return CONTRACT | PROCESS
    return families_in(repo.metrics.read_text())


def check_contract_is_exported(repo: Repo) -> str:
    if repo.metrics is None:
        raise Skip("no --metrics FILE; the contract stands in for it")
    exported = families_in(repo.metrics.read_text())
    missing = sorted(CONTRACT - exported)
    require(
        not missing, f"{repo.metrics} lacks {', '.join(missing)} (did the proxy have traffic of every kind?)"
    )
    return f"{len(CONTRACT)} of {len(CONTRACT)} names"


def check_uses_are_known(repo: Repo) -> str:
    found = uses(repo)
    known = known_families(repo) | FOREIGN
    unknown = {n: sorted(where) for n, where in found.items() if family_of(n) not in known}
    require(not unknown, f"not exported: {unknown}")
    bare = sorted(n for n in found if n in HISTOGRAMS)
    require(not bare, f"histograms have no sample of that name, use _bucket, _sum or _count: {bare}")
    return f"{len(found)} names"


def check_metrics_are_used(repo: Repo) -> str:
    used = {family_of(name) for name in uses(repo)}
    own = {name for name in known_families(repo) | CONTRACT if name.startswith("rescind_")}
    unused = sorted(own - used - ALLOWED_UNUSED)
    require(not unused, f"on no panel and in no alert: {', '.join(unused)} (or add to ALLOWED_UNUSED)")
    return f"{len(own)} names"


# --- dashboards --------------------------------------------------------------


def check_dashboards(repo: Repo) -> str:
    require(repo.dashboards(), "no dashboard under docker/grafana/dashboards")
    count = 0
    for path in repo.dashboards():
        board = json.loads(path.read_text())
        variables = {v["name"] for v in board["templating"]["list"]}
        require({"datasource", "instance"} <= variables, f"{path.name}: variables are {sorted(variables)}")
        panels = [p for p in board["panels"] if p["type"] != "row"]
        for panel in panels:
            check_panel(path.name, panel)
        ids = [p["id"] for p in board["panels"]]
        require(len(ids) == len(set(ids)), f"{path.name}: two panels share an id")
        require_no_overlap(path.name, board["panels"])
        count += len(panels)
    return f"{count} panels"


def check_panel(board: str, panel: dict[str, Any]) -> None:
    where = f"{board}: panel {panel['title']!r}"
    require(panel.get("description"), f"{where} has no description")
    require(panel.get("targets"), f"{where} has no query")
    for target in panel["targets"]:
        require(target["datasource"]["uid"] == "${datasource}", f"{where} names a data source of its own")
        require("$instance" in target["expr"], f"{where} does not follow $instance")


def require_no_overlap(board: str, panels: list[dict[str, Any]]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        at = panel["gridPos"]
        require(at["x"] + at["w"] <= 24, f"{board}: {panel['title']!r} is wider than the board")
        for cell in (
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        ):
            require(cell not in taken, f"{board}: {panel['title']!r} lies on {taken.get(cell)!r}")
            taken[cell] = panel["title"]


# --- alerts ------------------------------------------------------------------


def check_every_alert_is_tested(repo: Repo) -> str:
    groups = repo.yaml("prometheus/alerts.yml")["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    cases = [
        c for t in repo.yaml("prometheus/alerts.test.yml")["tests"] for c in t.get("alert_rule_test", [])
    ]
    fires = {c["alertname"] for c in cases if c.get("exp_alerts")}
    silent = {c["alertname"] for c in cases if not c.get("exp_alerts")}
    require(
        alerts == fires == silent, f"without a case for and one against: {sorted(alerts - (fires & silent))}"
    )
    return f"{len(alerts)} alerts, each seen to fire and to be silent"


def check_promtool(repo: Repo) -> str:
    promtool = shutil.which("promtool")
    if promtool is None:
        raise Skip("promtool is not on the PATH")
    directory = repo.docker / "prometheus"
    run(promtool, "check", "config", "prometheus.yml", cwd=directory)
    run(promtool, "check", "rules", "alerts.yml", cwd=directory)
    run(promtool, "test", "rules", "alerts.test.yml", cwd=directory)
    return "config, rules and unit tests"


def check_promql_parses(repo: Repo) -> str:
    """Dashboard queries, as promtool sees them: each becomes a recording rule."""
    promtool = shutil.which("promtool")
    if promtool is None:
        raise Skip("promtool is not on the PATH")
    boards = [json.loads(p.read_text()) for p in repo.dashboards()]
    queries = [e for e in expressions_of_dashboard(boards) if not e.startswith("label_values(")]
    plain = [q.replace("$__rate_interval", "5m").replace("$instance", ".*") for q in queries]
    rules = [{"record": f"dashboard:query:{n}", "expr": q} for n, q in enumerate(plain)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "queries.yml"
        path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        run(promtool, "check", "rules", str(path))
    return f"{len(queries)} queries"


CHECKS: list[tuple[str, Callable[[Repo], str]]] = [
    ("YAML parses", check_yaml_parses),
    ("bind mounts exist", check_mounts_exist),
    ("kustomization is complete", check_kustomization),
    ("configurations load", check_configs_load),
    ("configurations pass `rescind check`", check_configs_pass),
    ("what several pods fill is strict", check_pods_fill_strictly),
    ("ports agree", check_ports),
    ("/metrics has the whole contract", check_contract_is_exported),
    ("dashboards and alerts use known metrics", check_uses_are_known),
    ("every rescind_ metric is used", check_metrics_are_used),
    ("dashboards are well formed", check_dashboards),
    ("dashboard queries parse", check_promql_parses),
    ("every alert is tested", check_every_alert_is_tested),
    ("promtool agrees", check_promtool),
]


def outcome(check: Callable[[Repo], str], repo: Repo) -> tuple[str, str]:
    try:
        return "ok", check(repo)
    except Skip as skip:
        return "skip", str(skip)
    except Failure as failure:
        return "FAIL", str(failure)
    except (OSError, subprocess.SubprocessError, LookupError, TypeError, ValueError, AttributeError) as error:
        return "FAIL", f"unexpected shape: {type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metrics", type=Path, metavar="FILE")
    parser.add_argument("--rescind", type=Path, metavar="BINARY")
    parser.add_argument("--root", type=Path, metavar="DIR", default=Path(__file__).resolve().parents[2])
    options = parser.parse_args()
    repo = Repo(options.root, options.metrics, options.rescind)
    tally = {"ok": 0, "skip": 0, "FAIL": 0}
    for title, check in CHECKS:
        result, detail = outcome(check, repo)
        tally[result] += 1
        print(f"{result:>4}  {title}: {detail}")
    print(f"\n{tally['ok']} ok, {tally['skip']} skipped, {tally['FAIL']} failed")
    return 1 if tally["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
