"""What grows in benches/scaling.py, one function for each."""

import resource
import time
from collections.abc import Callable

from invalidation import trigger_after_fill, unlink_after_fill

from .bench import Bench, Sweep
from .cell import Target
from .charts import Panel
from .load import RANDOM

KIB = 1024
RULES = """
[tags]
Page = ["page:*"]
Bulk = ["bulk:*"]

[[trigger]]
keys = ["model:{model}:*"]
invalidate = ["{model}"]
"""
# An fsync takes longer than most of what is measured here, and would hide it.
NO_FSYNC = RULES + '[journal]\nfsync = "never"\n'

# --- clients, depth, size -------------------------------------------------------


def clients(bench: Bench) -> Sweep:
    """GET, unpipelined. With many clients, connecting them is part of the cost."""
    counts = [n for n in bench.points(1, 10, 50, 200, 1000, 5000) if 2 * n + 1000 < open_files()]
    points = {}
    for target in bench.targets():
        bench.fill(target)
        for count in counts:
            points[target.name, count] = bench.load(target, ("GET", f"key:{RANDOM}"), clients=count)
    return beside_others(bench, "Clients, one GET at a time", "clients", points)


def depth(bench: Bench) -> Sweep:
    """GET of 50 clients."""
    points = {}
    for target in bench.targets():
        bench.fill(target)
        for pipeline in bench.points(1, 4, 16, 64, 256):
            points[target.name, pipeline] = bench.load(target, ("GET", f"key:{RANDOM}"), pipeline)
    return beside_others(bench, "Commands in a pipeline, GET of 50 clients", "commands in a pipeline", points)


def size(bench: Bench) -> Sweep:
    """GET and SET of 50 clients, unpipelined."""
    sizes = bench.points(16, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB)
    points = {}
    for target in bench.targets():
        for length in sizes:
            # Not more than 16 MiB of them.
            count = max(16, min(10_000, 16 * KIB * KIB // length))
            prefix = f"key{length}:"
            bench.fill(target, count, prefix, length)
            word = f"{prefix}{RANDOM}"
            points[f"{target.name}, GET", length] = bench.load(target, ("GET", word), keys=count)
            points[f"{target.name}, SET", length] = bench.load(target, ("SET", word), keys=count, value=b"x" * length)
    measured = bench.measure(points)
    panels = [
        Panel(f"{command}: {title}", "bytes", bench.lines(measured, measure, f", {command}"), log_y=True)
        for command in ("GET", "SET")
        for title, measure in (("per second", "rate"), ("µs CPU of the proxy", "proxy_cpu"), ("p99, ms", "p99"))
    ]
    return Sweep("Value size, 50 clients, one command at a time", panels)


def beside_others(bench: Bench, title: str, x: str, points: dict) -> Sweep:
    measured = bench.measure(points)
    panels = [
        Panel("commands per second", x, bench.lines(measured, "rate")),
        Panel("µs CPU of the proxy per command", x, bench.lines(measured, "proxy_cpu")),
        Panel("µs CPU of Redis per command", x, bench.lines(measured, "redis_cpu")),
        Panel("p50, ms", x, bench.lines(measured, "p50"), log_y=True),
        Panel("p99, ms", x, bench.lines(measured, "p99"), log_y=True),
        Panel("MiB of RSS", x, bench.lines(measured, "rss_mib")),
    ]
    return Sweep(title, panels)


def open_files() -> int:
    """As many as the system lets this process, and what it starts, have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most if most != resource.RLIM_INFINITY else 1 << 20


# --- rules and the index ----------------------------------------------------------


def patterns(bench: Bench) -> Sweep:
    """Each pattern names ten keys, and each has a tag of its own."""
    points, memory, start = {}, [], []
    for count in bench.points(10, 100, 1_000, 10_000):
        tags = "\n".join(f't{n} = ["key:{n:011d}*"]' for n in range(count))
        redis = bench.redis(lambda redis, count=count: bench.fill_redis(redis, 10 * count))
        begun = time.monotonic()
        target = bench.rescind(redis, f"[tags]\n{tags}\n", f"patterns-{count}")
        start.append((count, time.monotonic() - begun))
        memory.append((count, target.proxy.rss_kib() / KIB))
        for pipeline in (1, 16):
            name = f"pipeline {pipeline}"
            load = bench.both(target, "key:", pipeline, 10 * count)
            points |= {(f"{command}, {name}", count): run for command, run in load.items()}
    measured = bench.measure(points)
    pipelined = {name: line for name, line in bench.lines(measured, "proxy_cpu").items() if name.endswith("16")}
    single = {name: line for name, line in bench.lines(measured, "proxy_cpu").items() if name.endswith(" 1")}
    panels = [
        Panel("µs CPU of the proxy, pipeline 16", "patterns", pipelined),
        Panel("µs CPU of the proxy, pipeline 1", "patterns", single),
        Panel("commands per second", "patterns", bench.lines(measured, "rate")),
        Panel("MiB of RSS after the start", "patterns", {"rescind": memory}),
        Panel("s until ready", "patterns", {"rescind": start}),
    ]
    return Sweep("Patterns; each key has one", panels)


def index(bench: Bench) -> Sweep:
    """A tag that all keys but 100 depend on, and one of those 100; without fsync."""
    dependents = 100
    points, memory, start = {}, [], []
    for count in bench.points(*(10**n for n in range(3, 8 if bench.huge else 7))):
        redis = bench.redis(lambda redis, count=count: bench.fill_redis(redis, count, "bulk:"))
        begun = time.monotonic()
        target = bench.rescind(redis, NO_FSYNC, f"index-{count}")
        start.append((count, time.monotonic() - begun))
        memory.append((count, target.proxy.rss_kib() / KIB))
        load = bench.both(target, "bulk:", 16, count)
        points |= {(command, count): run for command, run in load.items()}
        direct, client = bench.connection(redis.port), bench.connection(target.address)
        points["trigger", count] = timed(lambda d=direct, c=client: trigger_after_fill(d, c, dependents))
    measured = bench.measure(points)
    panels = [
        Panel("µs CPU of the proxy, pipeline 16", "keys in the index", bench.lines(measured, "proxy_cpu")),
        Panel(f"ms, trigger with {dependents} dependents", "keys in the index", bench.lines(measured, "ms")),
        Panel("MiB of RSS when ready", "keys in the index", {"rescind": memory}, log_y=True),
        Panel("s until ready", "keys in the index", {"rescind": start}, log_y=True),
    ]
    return Sweep("Keys in the index", panels)


def dependents(bench: Bench) -> Sweep:
    """A trigger with and without fsync, beside UNLINK of the same keys, known beforehand."""
    counts = bench.points(1, 10, 100, 1_000, 10_000, 100_000)
    points = {}
    for series, rules in (("trigger", RULES), ("trigger, no fsync", NO_FSYNC)):
        redis = bench.redis(lambda redis: None)
        target = bench.rescind(redis, rules, series.replace(", ", "-").replace(" ", "-"))
        direct, client = bench.connection(redis.port), bench.connection(target.address)
        for count in counts:
            points[series, count] = timed(lambda n=count, d=direct, c=client: trigger_after_fill(d, c, n))
    other = bench.connection(bench.redis(lambda redis: None).port)
    for count in counts:
        points["UNLINK", count] = timed(lambda n=count: unlink_after_fill(other, n))
    measured = bench.measure(points)
    spent = bench.lines(measured, "ms")
    each = {name: [(n, ms * 1e3 / n) for n, ms in line] for name, line in spent.items()}
    return Sweep(
        "Dependents of a tag",
        [
            Panel("ms until it is answered", "dependents", spent, log_y=True),
            Panel("µs for each dependent", "dependents", each, log_y=True),
        ],
    )


def proxies(bench: Bench) -> Sweep:
    """Load on one of them, without fsync."""
    points = {}
    for count in bench.points(1, 2, 3):
        redis = bench.redis(lambda redis: bench.fill_redis(redis, prefix="page:"))
        all_of_them = [bench.rescind(redis, NO_FSYNC, f"proxies-{count}-{n}") for n in range(count)]
        loads = {
            **bench.both(all_of_them[0], "page:", 16),
            "trigger": bench.load(all_of_them[0], ("SET", f"model:{RANDOM}:1", "saved")),
        }
        points |= {(what, count): with_rest(run, all_of_them[1:]) for what, run in loads.items()}
    measured = bench.measure(points)
    panels = [
        Panel("commands per second", "proxies", bench.lines(measured, "rate"), log_y=True),
        Panel("µs CPU of the loaded proxy", "proxies", bench.lines(measured, "proxy_cpu"), log_y=True),
        Panel("µs CPU of each of the others", "proxies", bench.lines(measured, "rest_cpu")),
        Panel("µs CPU of Redis", "proxies", bench.lines(measured, "redis_cpu"), log_y=True),
        Panel("p99, ms", "proxies", bench.lines(measured, "p99"), log_y=True),
    ]
    return Sweep("Proxies on one Redis, load on one of them; all keys labelled", panels)


def with_rest(run: Callable[[], dict], rest: list[Target]) -> Callable[[], dict]:
    def measured() -> dict:
        before = [target.proxy.cpu_seconds() for target in rest]
        cell = run()
        spent = [target.proxy.cpu_seconds() - earlier for target, earlier in zip(rest, before, strict=True)]
        if rest:
            cell["rest_cpu"] = sum(spent) / len(rest) / cell["requests"] * 1e6
        return cell

    return measured


def timed(seconds: Callable[[], float]) -> Callable[[], dict]:
    return lambda: {"ms": seconds() * 1e3}


SWEEPS: dict[str, Callable[[Bench], Sweep]] = {
    "clients": clients,
    "depth": depth,
    "size": size,
    "patterns": patterns,
    "index": index,
    "dependents": dependents,
    "proxies": proxies,
}
