#!/usr/bin/env python3
"""What an invalidation costs: beside SCAN, beside a plain UNLINK, and the warm-up before it.

    python3 benches/invalidation.py [--quick] [--only small,large,warmup] [--json FILE]

small   1,000,000 keys of which 100 depend on a tag. A trigger through the proxy (median
        of 20), against SCAN MATCH and UNLINK of the same keys, straight to Redis.
large   100,000 dependents. One trigger, against UNLINK of the same keys, known beforehand,
        in pipelined batches of 512. Meanwhile two other clients of the proxy measure how
        long a PING and a GET take at most.
warmup  1,000,000 existing keys that rules name. From the start of the proxy until /readyz
        answers 200; and what each key adds to its memory.

Every part has a redis-server and a proxy of its own and checks that the dependents are
gone when the trigger is answered. Needs the standard library and redis-server only.
"""

import argparse
import contextlib
import json
import re
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from support.process import Connection, Daemon, encode, note
from support.report import provenance
from support.servers import ROOT, start_redis, start_rescind

RULES = """
[tags]
Page = ["page:*"]

[[trigger]]
name = "model saved"
keys = ["model:{model}:{pk}"]
invalidate = ["{model}"]

[journal]
path = "journal"
"""

VALUE = "x" * 100
BATCH = 512


# --- the three parts ----------------------------------------------------------


def small(bench: "Bench") -> dict:
    """A few dependents in a large key space."""
    total, dependents, repeats = bench.scaled(1_000_000), 100, 5 if bench.quick else 20
    with bench.redis() as redis, Connection(redis.port) as direct:
        fill(direct, "other", total - dependents)
        fill(direct, "page", dependents)
        with bench.proxy(redis) as proxy, Connection(proxy.port) as client:
            triggers = [trigger_after_fill(direct, client, dependents) for _ in range(repeats)]
        scans = [scan_after_fill(direct, dependents) for _ in range(3)]
    trigger, scan = statistics.median(triggers), statistics.median(scans)
    return {
        "keys": total,
        "dependents": dependents,
        "trigger_ms": trigger * 1e3,
        "trigger_max_ms": max(triggers) * 1e3,
        "scan_ms": scan * 1e3,
        "scan / trigger": scan / trigger,
    }


def large(bench: "Bench") -> dict:
    """So many dependents that deleting them is work for Redis itself."""
    dependents, repeats = bench.scaled(100_000), 1 if bench.quick else 3
    with bench.redis() as redis, Connection(redis.port) as direct:
        unlinks = [unlink_after_fill(direct, dependents) for _ in range(repeats)]
        fill(direct, "other", 1)
        with bench.proxy(redis) as proxy, Connection(proxy.port) as client:
            with Prober(proxy.port, "PING") as idle:
                time.sleep(0.5)
            triggers, pings, gets = [], [], []
            for _ in range(repeats):
                fill(direct, "page", dependents)
                with Prober(proxy.port, "PING") as ping, Prober(proxy.port, "GET", key("other", 0)) as get:
                    triggers.append(timed_trigger(direct, client, dependents))
                pings += ping.samples
                gets += get.samples
    trigger, unlink = statistics.median(triggers), statistics.median(unlinks)
    return {
        "dependents": dependents,
        "trigger_ms": trigger * 1e3,
        "unlink_ms": unlink * 1e3,
        "trigger / unlink": trigger / unlink,
        "idle_ping_max_ms": max(idle.samples) * 1e3,
        "ping_max_ms": max(pings) * 1e3,
        "get_max_ms": max(gets) * 1e3,
    }


def warmup(bench: "Bench") -> dict:
    """Start on a full Redis, compared with a start on an empty one."""
    total = bench.scaled(1_000_000)
    with bench.redis() as redis, Connection(redis.port) as direct:
        with bench.proxy(redis) as proxy:
            empty_kib = proxy.rss_kib()
        fill(direct, "page", total)
        begun = time.monotonic()
        with bench.proxy(redis) as proxy:
            seconds = time.monotonic() - begun
            full_kib = proxy.rss_kib()
            indexed, index_bytes = (gauge(proxy, f"rescind_index_{what}") for what in ("keys", "bytes"))
    if indexed < total:
        raise SystemExit(f"ready with {indexed:.0f} of {total} keys in the index")
    return {
        "keys": total,
        "seconds": seconds,
        "keys_per_second": total / seconds,
        "rss_empty_mib": empty_kib / 1024,
        "rss_full_mib": full_kib / 1024,
        "rss_bytes_per_key": (full_kib - empty_kib) * 1024 / total,
        "index_bytes_per_key": index_bytes / indexed,
    }


PARTS: dict[str, Callable[["Bench"], dict]] = {"small": small, "large": large, "warmup": warmup}


# --- steps --------------------------------------------------------------------


def key(kind: str, number: int) -> str:
    return f"{kind}:{number:08d}"


def fill(direct: Connection, kind: str, count: int) -> None:
    direct.pipeline(("SET", key(kind, number), VALUE) for number in range(count))


def trigger_after_fill(direct: Connection, client: Connection, dependents: int) -> float:
    fill(direct, "page", dependents)
    return timed_trigger(direct, client, dependents)


def timed_trigger(direct: Connection, client: Connection, dependents: int) -> float:
    """One triggering write; when it is answered, all its dependents must be gone."""
    begun = time.perf_counter()
    client.call("SET", "model:Page:1", "saved")
    seconds = time.perf_counter() - begun
    require_gone(direct, dependents)
    return seconds


def scan_after_fill(direct: Connection, dependents: int) -> float:
    """What an application does without an index: SCAN MATCH, COUNT as large as is polite."""
    fill(direct, "page", dependents)
    begun = time.perf_counter()
    cursor = b"0"
    while True:
        cursor, found = direct.call("SCAN", cursor, "MATCH", "page:*", "COUNT", 1000)
        if found:
            direct.call("UNLINK", *found)
        if cursor == b"0":
            break
    seconds = time.perf_counter() - begun
    require_gone(direct, dependents)
    return seconds


def unlink_after_fill(direct: Connection, dependents: int) -> float:
    """The least it can cost: the keys are known, and the requests ready to send."""
    fill(direct, "page", dependents)
    starts = range(0, dependents, BATCH)
    batches = [[key("page", n) for n in range(s, min(s + BATCH, dependents))] for s in starts]
    requests = b"".join(encode(("UNLINK", *batch)) for batch in batches)
    begun = time.perf_counter()
    direct.socket.sendall(requests)
    deleted = sum(direct.reply() for _ in batches)
    seconds = time.perf_counter() - begun
    assert deleted == dependents, f"UNLINK deleted {deleted} of {dependents}"
    return seconds


def require_gone(direct: Connection, dependents: int) -> None:
    for start in range(0, dependents, BATCH):
        names = [key("page", n) for n in range(start, min(start + BATCH, dependents))]
        if left := direct.call("EXISTS", *names):
            raise SystemExit(f"{left} of {len(names)} dependents are left after the trigger was answered")


def gauge(proxy: Daemon, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.admin}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)
    if not found:
        raise SystemExit(f"/metrics has no {name}")
    return float(found[1])


class Prober:
    """Another client: sends one command over and over and keeps how long each took."""

    PAUSE = 0.0005

    def __init__(self, port: int, *command: str) -> None:
        self.command = command
        self.samples: list[float] = []
        self.connection = Connection(port)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.probe, daemon=True)

    def __enter__(self) -> "Prober":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        self.connection.__exit__()
        if not self.samples:
            raise SystemExit(f"the client that sends {self.command[0]} got no answer")

    def probe(self) -> None:
        while not self.stopped.is_set():
            begun = time.perf_counter()
            self.connection.call(*self.command)
            self.samples.append(time.perf_counter() - begun)
            time.sleep(self.PAUSE)


class Bench:
    """Starts what a part needs, in a temporary directory."""

    def __init__(self, binary: str, directory: Path, quick: bool) -> None:
        self.binary, self.directory, self.quick = binary, directory, quick
        self.rules = directory / "proxy.toml"
        self.rules.write_text(RULES)

    def scaled(self, count: int) -> int:
        return count // 10 if self.quick else count

    def redis(self) -> Daemon:
        return start_redis(self.directory, "redis")

    @contextlib.contextmanager
    def proxy(self, redis: Daemon) -> Iterator[Daemon]:
        with start_rescind(self.binary, self.rules, self.directory, redis.port) as proxy:
            proxy.wait_ready(seconds=120, pause=0.002)
            yield proxy


# --- results ------------------------------------------------------------------


def table(results: dict[str, dict]) -> str:
    lines = ["| part | measure | value |", "| --- | --- | ---: |"]
    for part, measures in results.items():
        for name, value in measures.items():
            shown = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
            lines.append(f"| {part} | {name} | {shown} |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rescind", default=str(ROOT / "target/release/rescind"), metavar="PATH")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PART,...")
    parser.add_argument("--quick", action="store_true", help="a tenth of the keys")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="store the results, the machine and the versions"
    )
    options = parser.parse_args()
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"--only: no part {', '.join(sorted(unknown))}")
    if not shutil.which(options.rescind):
        parser.error(f"--rescind: {options.rescind} is not there")
    return options


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    origin = provenance(options.rescind)
    results = {}
    with tempfile.TemporaryDirectory(prefix="rescind-bench-") as directory:
        bench = Bench(options.rescind, Path(directory), options.quick)
        for part in options.only:
            note(part)
            results[part] = PARTS[part](bench)
    print(table(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps({**origin, "quick": options.quick, "results": results}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
