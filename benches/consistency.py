#!/usr/bin/env python3
"""What the guarantees cost: beside keys that no rule names, beside no protection, beside one proxy.

    python3 benches/consistency.py [--quick] [--only labelled,fill,...] [--json FILE]

labelled      CPU of the proxy for a GET that hits and for a SET, of keys with tags over keys without, by rule and
              by explicit label. redis-benchmark, 50 clients, 100,000 keys, pipelines of 1 and 16.
fill          A GET that misses and a SET of the same key over the same connection, over the same with
              `stale_fill = "off"`: one after the other, and 500 GETs, then 500 SETs at once.
trigger       A trigger without dependents beside a plain SET, with each kind of fsync.
group-commit  50 clients that trigger at once, over what the disk could do for one after the other: on a disk whose syncs
              take a millisecond longer, and as it is. One that syncs in a tenth of that costs a trigger less than its
              round trips do, so there is little to be shared.
fan-out       A trigger with 100,000 dependents over UNLINK of the same keys, known beforehand, in batches.
              (`large` of invalidation.py also tells what other clients notice of it.)
proxies       Three proxies on one Redis, load on one of them, over one proxy. A trigger a moment after its dependents
              were written, when all are idle; and right behind them, when those who do the work and those who only
              hear of it compete for the cores, of which there may be fewer.

Rounds go over what is compared in turn. A ratio is taken in each round, and the table has the median of the rounds.
CPU is that of all threads of a process. Journals are below --directory: a disk, not a tmpfs.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from invalidation import VALUE, fill, key, timed_trigger, trigger_after_fill, unlink_after_fill
from support.load import CLIENTS, KEYS, RANDOM, redis_benchmark
from support.process import Connection, Daemon, encode, folder, note
from support.report import provenance
from support.servers import ROOT, build_slow_disk, start_redis, start_rescind

RULES = """
[tags]
Page = ["page:*"]
Ruled = ["ruled:*"]

[[family]]
name = "pages"
keys = ["page:*"]
stale_fill = "{stale_fill}"

[[trigger]]
name = "model saved"
keys = ["model:{{model}}:{{pk}}"]
invalidate = ["{{model}}"]

[journal]
path = "journal"
fsync = "{fsync}"
"""


@dataclass
class Figure:
    """One line of the table. `met`: whether the target is; none if there is none."""

    measure: str
    value: float
    target: str | None = None
    met: bool | None = None


def at_most(limit: float, measure: str, value: float) -> Figure:
    return Figure(measure, value, f"≤ {limit:g}", value <= limit)


def at_least(limit: float, measure: str, value: float) -> Figure:
    return Figure(measure, value, f"≥ {limit:g}", value >= limit)


# --- the parts ----------------------------------------------------------------


def labelled(bench: "Bench") -> Iterator[Figure]:
    """Explicit labels have a proxy of their own: that there are any changes what all writes have to look up."""
    cells = [(command, pipeline) for pipeline in (1, 16) for command in ("GET", "SET")]
    with bench.pair() as plain, bench.pair() as explicit:
        for pair, kind in ((plain, "other"), (plain, "ruled"), (explicit, "other"), (explicit, "noted")):
            pair.direct.pipeline(("SET", f"{kind}:{n:012d}", VALUE) for n in range(KEYS))
        add_labels(explicit.proxy.port, [f"noted:{n:012d}" for n in range(KEYS)])
        targets = {
            "none": (plain, "other"),
            "by rule": (plain, "ruled"),
            "explicit": (explicit, "noted"),
            "none, others have": (explicit, "other"),
        }
        sizes = {cell: bench.size(plain, words(cell[0], "other"), cell[1], seconds=0.3) for cell in cells}
        for turn in bench.rounds(14, seconds=100):
            for cell in cells:
                for target, (pair, kind) in sorted(targets.items(), reverse=turn % 2 == 1):
                    before = pair.proxy.cpu_seconds()
                    redis_benchmark(pair.proxy.port, words(cell[0], kind), cell[1], sizes[cell])
                    pair.proxy.settle()
                    bench.keep(f"{cell} {target}", (pair.proxy.cpu_seconds() - before) / sizes[cell])
    for cell in cells:
        what = f"{cell[0]}, pipeline {cell[1]}"
        yield Figure(f"{what}: µs CPU of the proxy, no tags", bench.median(f"{cell} none") * 1e6)
        for target in list(targets)[1:]:
            yield at_most(1.1, f"{what}: tags {target} / none", bench.ratio(f"{cell} {target}", f"{cell} none"))


def fill_part(bench: "Bench") -> Iterator[Figure]:
    """Each fill is of a key that is not there, so it is a miss, a write, and news for the index."""
    ways = {"one by one": (sequential_fills, 500), "pipelined": (pipelined_fills, 5000)}
    with bench.pair() as protect, bench.pair(stale_fill="off") as off:
        pairs = {"protect": protect, "off": off}
        for turn in bench.rounds(40, seconds=30):
            for way, (run, count) in ways.items():
                for name, pair in sorted(pairs.items(), reverse=turn % 2 == 1):
                    count = bench.scaled(count, 2)
                    reads, redis, proxy = pair.redis_reads(), pair.redis.cpu_seconds(), pair.proxy.cpu_seconds()
                    begun = time.perf_counter()
                    run(pair.client, count)
                    bench.keep(f"{way} {name} time", (time.perf_counter() - begun) / count)
                    bench.keep(f"{way} {name} redis", (pair.redis.cpu_seconds() - redis) / count)
                    bench.keep(f"{way} {name} proxy", (pair.proxy.cpu_seconds() - proxy) / count)
                    bench.keep(f"{way} {name} reads", (pair.redis_reads() - reads) / count)
                    pair.direct.pipeline(("UNLINK", key("page", n)) for n in range(count))
    for way in ways:
        more = {of: bench.difference(f"{way} protect {of}", f"{way} off {of}") for of in ("redis", "proxy", "reads")}
        if way == "one by one":
            yield at_most(0.1, f"{way}: more round trips to Redis for a fill", more["reads"])
        yield Figure(f"{way}: µs CPU of Redis for a fill without", bench.median(f"{way} off redis") * 1e6)
        yield at_most(5, f"{way}: µs CPU of Redis more", more["redis"] * 1e6)
        yield Figure(f"{way}: µs CPU of the proxy more", more["proxy"] * 1e6)
        yield Figure(f"{way}: time / without", bench.ratio(f"{way} protect time", f"{way} off time"))


def trigger(bench: "Bench") -> Iterator[Figure]:
    """Redis counts how often it read something from a client: each is a round trip, or part of one."""
    count = bench.scaled(200, 2)
    with contextlib.ExitStack() as stack:
        pairs = {fsync: stack.enter_context(bench.pair(fsync=fsync)) for fsync in ("always", "everysec", "never")}
        for _ in bench.rounds(5, seconds=20):
            for fsync, pair in pairs.items():
                for what, name in (("plain", "other:1"), ("trigger", "model:None:1")):
                    reads, fsyncs = pair.redis_reads(), pair.fsyncs()
                    times = [timed(pair.client, "SET", name, "saved") for _ in range(count)]
                    bench.keep(f"{fsync} {what}", statistics.median(times))
                    bench.keep(f"{fsync} {what} reads", (pair.redis_reads() - reads) / count)
                    bench.keep(f"{fsync} {what} fsyncs", (pair.fsyncs() - fsyncs) / count)
    yield at_most(2.1, "more round trips than a SET", bench.difference("never trigger reads", "never plain reads"))
    yield at_most(1, "fsyncs, always", bench.median("always trigger fsyncs"))
    for fsync in pairs:
        yield Figure(f"ms, {fsync}", bench.median(f"{fsync} trigger") * 1e3)
        yield Figure(f"time / SET, {fsync}", bench.ratio(f"{fsync} trigger", f"{fsync} plain"))


def group_commit(bench: "Bench") -> Iterator[Figure]:
    """Each trigger has a tag of its own, so only the journal and the barrier are shared."""
    command = ("SET", f"model:{RANDOM}:1", "saved")
    slow_disk = build_slow_disk(bench.directory)
    with bench.pair() as always, bench.pair(fsync="never") as never, bench.pair(preload=slow_disk) as slow:
        pairs = {"as it is": always, "never": never, "slow": slow}
        many = {name: bench.size(pair, command, 1) for name, pair in pairs.items()}
        one = {name: bench.size(pair, command, 1, clients=1) for name, pair in pairs.items()}
        for _ in bench.rounds(7, seconds=45):
            bench.keep("fdatasync", fdatasync_seconds(always.proxy.directory))
            for name, pair in pairs.items():
                fsyncs = pair.fsyncs()
                bench.keep(f"50, {name}", redis_benchmark(pair.proxy.port, command, 1, many[name]).rate)
                bench.keep(f"fsyncs, {name}", (pair.fsyncs() - fsyncs) / many[name])
                bench.keep(f"1, {name}", redis_benchmark(pair.proxy.port, command, 1, one[name], clients=1).rate)
    yield at_least(20, "syncs of 1 ms more: 50 clients / one client", bench.ratio("50, slow", "1, slow"))
    yield Figure("syncs of 1 ms more: triggers/s, 50 clients", bench.median("50, slow"))
    yield Figure("syncs of 1 ms more: fsyncs for a trigger", bench.median("fsyncs, slow"))
    yield Figure("µs, fdatasync of 200 bytes", bench.median("fdatasync") * 1e6)
    yield Figure("triggers/s, 50 clients", bench.median("50, as it is"))
    yield Figure("triggers/s, 50 clients, fsync never", bench.median("50, never"))
    yield Figure("the same, always / never", bench.ratio("50, as it is", "50, never"))
    yield Figure("fsyncs for a trigger", bench.median("fsyncs, as it is"))
    yield Figure("50 clients / one client", bench.ratio("50, as it is", "1, as it is"))
    yield Figure("50 clients / one client, fsync never", bench.ratio("50, never", "1, never"))


def fan_out(bench: "Bench") -> Iterator[Figure]:
    dependents = bench.scaled(100_000)
    with bench.pair() as pair:
        for _ in bench.rounds(7, seconds=25):
            bench.keep("unlink", unlink_after_fill(pair.direct, dependents))
            bench.keep("trigger", trigger_after_fill(pair.direct, pair.client, dependents))
    yield Figure(f"ms, {dependents:,} dependents", bench.median("trigger") * 1e3)
    yield at_most(1.3, "trigger / UNLINK", bench.ratio("trigger", "unlink"))


def proxies(bench: "Bench") -> Iterator[Figure]:
    """No fsync: it would hide what the other proxies cost."""
    loads = {
        "GETs/s": (words("GET", "ruled"), 16),
        "SETs/s, no tags": (words("SET", "other"), 16),
        "SETs/s, tags, without a miss": (words("SET", "ruled"), 16),
        "triggers/s, 50 clients": (("SET", f"model:{RANDOM}:1", "saved"), 1),
    }
    fills = "misses and their fills/s, one client"
    # How many dependents, how often, and the pause before the trigger.
    triggers = {
        "100 dependents, idle": (100, bench.scaled(30), 0.01),
        "100 dependents, at once": (100, bench.scaled(50, 5), 0),
        "100,000 dependents": (bench.scaled(100_000), 1, 0.3),
    }
    with bench.pair(fsync="never") as one, bench.pair(fsync="never", others=2) as three:
        for pair in (one, three):
            pair.direct.pipeline(("SET", f"ruled:{n:012d}", VALUE) for n in range(KEYS))
        sizes = {load: bench.size(three, *command) for load, command in loads.items()}
        for turn in bench.rounds(6, seconds=75):
            pairs = [("one", one), ("three", three)][:: -1 if turn % 2 else 1]
            for load, command in loads.items():
                for name, pair in pairs:
                    rate = redis_benchmark(pair.proxy.port, *command, sizes[load]).rate
                    bench.keep(f"{load} {name}", rate)
            for name, pair in pairs:
                count = bench.scaled(10_000)
                begun = time.perf_counter()
                pipelined_fills(pair.client, count)
                bench.keep(f"{fills} {name}", count / (time.perf_counter() - begun))
                pair.direct.pipeline(("UNLINK", key("page", n)) for n in range(count))
            for what, (dependents, repeats, pause) in triggers.items():
                for name, pair in pairs:
                    pair.proxy.settle()
                    times = [trigger_after(pair, dependents, pause) for _ in range(repeats)]
                    bench.keep(f"{what} {name}", statistics.median(times))
    for what in triggers:
        yield Figure(f"ms, trigger with {what}, one proxy", bench.median(f"{what} one") * 1e3)
        ratio = bench.ratio(f"{what} three", f"{what} one")
        measure = "the same: three proxies / one"
        yield Figure(measure, ratio) if what.endswith("at once") else at_most(1.2, measure, ratio)
    for load in [*loads, fills]:
        yield Figure(f"{load}, one proxy", bench.median(f"{load} one"))
        yield at_least(0.83, f"{load}: three proxies / one", bench.ratio(f"{load} three", f"{load} one"))


PARTS: dict[str, Callable[["Bench"], Iterator[Figure]]] = {
    "labelled": labelled,
    "fill": fill_part,
    "trigger": trigger,
    "group-commit": group_commit,
    "fan-out": fan_out,
    "proxies": proxies,
}


# --- steps --------------------------------------------------------------------


def words(command: str, kind: str) -> tuple[str, ...]:
    return (command, f"{kind}:{RANDOM}", VALUE) if command == "SET" else (command, f"{kind}:{RANDOM}")


def add_labels(port: int, names: list[str]) -> None:
    """Over many connections: one does them one after the other."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Connection(port)) for _ in range(CLIENTS)]
        shares = [names[n::CLIENTS] for n in range(CLIENTS)]
        for client, share in zip(clients, shares, strict=True):
            client.socket.sendall(b"".join(encode(("TAG.ADD", name, "Noted")) for name in share))
        for client, share in zip(clients, shares, strict=True):
            assert all(client.reply() == 1 for _ in share)


def trigger_after(pair: "Pair", dependents: int, pause: float) -> float:
    fill(pair.direct, "page", dependents)
    time.sleep(pause)
    return timed_trigger(pair.direct, pair.client, dependents)


def timed(client: Connection, *command: str) -> float:
    begun = time.perf_counter()
    client.call(*command)
    return time.perf_counter() - begun


def sequential_fills(client: Connection, count: int) -> None:
    for name in (key("page", n) for n in range(count)):
        assert client.call("GET", name) is None
        client.call("SET", name, VALUE)


def pipelined_fills(client: Connection, count: int, batch: int = 500) -> None:
    for start in range(0, count, batch):
        names = [key("page", n) for n in range(start, min(start + batch, count))]
        client.socket.sendall(b"".join(encode(("GET", name)) for name in names))
        assert all(client.reply() is None for _ in names)
        client.socket.sendall(b"".join(encode(("SET", name, VALUE)) for name in names))
        assert all(client.reply() == b"OK" for _ in names)


def fdatasync_seconds(directory: Path) -> float:
    """What one costs behind a short append: the median of 50."""
    times = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 200)
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


@dataclass
class Pair:
    """A Redis and a proxy, with a connection to each."""

    redis: Daemon
    proxy: Daemon
    direct: Connection
    client: Connection

    def redis_reads(self) -> float:
        return number(self.direct, "total_reads_processed", "INFO", "stats")

    def fsyncs(self) -> float:
        """NaN where the proxy does not tell."""
        return number(self.client, "journal_fsyncs", "TAG.INFO")


def number(connection: Connection, name: str, *command: str) -> float:
    lines = connection.call(*command).decode().splitlines()
    return next((float(line.partition(":")[2]) for line in lines if line.startswith(f"{name}:")), math.nan)


class Bench:
    """Starts what a part needs, and keeps what it measures."""

    def __init__(self, binary: str, directory: Path, quick: bool) -> None:
        self.binary, self.directory, self.quick = binary, directory, quick
        self.raw: dict[str, list[float]] = {}

    def scaled(self, count: int, divisor: int = 10) -> int:
        return count // divisor if self.quick else count

    def rounds(self, count: int, seconds: float) -> Iterator[int]:
        """None that would probably end later than `seconds` from now, but always one."""
        count, seconds = (2, seconds / 6) if self.quick else (count, seconds)
        begun = time.monotonic()
        for done in range(count):
            spent = time.monotonic() - begun
            if done and spent * (done + 1) / done > seconds:
                note(f"  stopped after {done} of {count} rounds: the machine is slow today")
                return
            yield done

    def size(
        self, pair: Pair, command: tuple[str, ...], pipeline: int, clients: int = CLIENTS, seconds: float = 0.7
    ) -> int:
        """Requests that take about so long; with --quick a third of it."""
        few = 20 * clients * pipeline
        rate = redis_benchmark(pair.proxy.port, command, pipeline, few, clients).rate
        return max(few, int(rate * seconds / (3 if self.quick else 1)))

    @contextlib.contextmanager
    def pair(
        self, stale_fill: str = "protect", fsync: str = "always", others: int = 0, preload: Path | None = None
    ) -> Iterator[Pair]:
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        rules = directory / "proxy.toml"
        rules.write_text(RULES.format(stale_fill=stale_fill, fsync=fsync))
        with contextlib.ExitStack() as stack:
            redis = stack.enter_context(start_redis(directory, "redis"))
            for _ in range(1 + others):
                start = start_rescind(self.binary, rules, directory, redis.port, preload=preload)
                proxy = stack.enter_context(start)
                proxy.wait_ready()
            direct, client = (stack.enter_context(Connection(port)) for port in (redis.port, proxy.port))
            yield Pair(redis, proxy, direct, client)

    def keep(self, name: str, *values: float) -> None:
        self.raw.setdefault(name, []).extend(values)

    def median(self, name: str) -> float:
        return statistics.median(self.raw[name])

    def ratio(self, of: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(self.raw[of], self.raw[to], strict=True))

    def difference(self, of: str, to: str) -> float:
        return statistics.median(a - b for a, b in zip(self.raw[of], self.raw[to], strict=True))


# --- results ------------------------------------------------------------------


def table(results: dict[str, dict]) -> str:
    lines = ["| part | measure | target | value | met |", "| --- | --- | ---: | ---: | --- |"]
    for part, result in results.items():
        for figure in map(lambda figure: Figure(**figure), result["figures"]):
            met = {None: "", True: "yes", False: "no"}[figure.met]
            lines.append(f"| {part} | {figure.measure} | {figure.target or ''} | {figure.value:,.2f} | {met} |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rescind", default=str(ROOT / "target/release/rescind"), metavar="PATH")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PART,...")
    parser.add_argument("--quick", action="store_true", help="less than a minute, and less exact")
    parser.add_argument("--directory", type=folder, default=ROOT / "target", metavar="DIR", help="default: target/")
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
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rescind-bench-", dir=options.directory) as directory:
        for part in options.only:
            note(part)
            bench = Bench(options.rescind, Path(directory), options.quick)
            # What the proxy does not tell is left out.
            figures = [asdict(figure) for figure in PARTS[part](bench) if not math.isnan(figure.value)]
            raw = {name: values for name, values in bench.raw.items() if not any(map(math.isnan, values))}
            results[part] = {"figures": figures, "raw": raw}
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
