#!/usr/bin/env python3
"""Rescind beside direct Redis, haproxy (TCP mode) and twemproxy, in one interleaved run.

    python3 benches/compare.py [--quick] [--json FILE]

Every cell is one redis-benchmark run: GET or SET, 50 clients, pipelines of 1, 16 and 64,
100-byte values, 100,000 keys that all exist. Rounds go over the targets in turn
(A B C D A B C D ...), so a machine that slows down slows all of them; the table shows
medians over the rounds. CPU is user plus system time of all threads of a process, from
/proc. Rescind has a Redis of its own: the others must not pay for its feed.

Needs only the Python standard library, redis-server and redis-benchmark. A proxy that
is not installed is left out, with a note. Every process started here is stopped by its
pid, also on Ctrl-C.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENTS, KEYS, VALUE_BYTES = 50, 100_000, 100
COMMANDS = ("GET", "SET")
PIPELINES = (1, 16, 64)
TARGETS = ("direct", "haproxy", "twemproxy", "rescind")
CALIBRATION_SECONDS = 0.15
CELL_TIMEOUT = 20.0

HAPROXY_CONF = """
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen redis
    bind 127.0.0.1:{listen}
    server redis 127.0.0.1:{upstream}
"""

NUTCRACKER_YML = """
redis:
  listen: 127.0.0.1:{listen}
  redis: true
  hash: fnv1a_64
  distribution: ketama
  auto_eject_hosts: false
  preconnect: true
  servers:
    - 127.0.0.1:{upstream}:1
"""


# --- the run ------------------------------------------------------------------


@dataclass
class Cell:
    """One redis-benchmark run. Latencies in milliseconds, CPU in microseconds per command."""

    round: int
    target: str
    command: str
    pipeline: int
    requests: int
    rate: float
    p50: float
    p99: float
    proxy_cpu: float | None
    redis_cpu: float
    proxy_rss_kib: int | None
    redis_rss_kib: int


@dataclass
class Target:
    """Where redis-benchmark goes: a port, the proxy behind it if any, and its Redis."""

    name: str
    port: int
    redis: "Daemon"
    proxy: "Daemon | None" = None


def main() -> int:
    options = parse_options()
    options.provenance = provenance(options.rescind)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rescind-bench-")))
        targets = list(start_targets(options, directory, stack))
        cells = measure(targets, options)
    medians = summarize(cells)
    print(table(medians))
    if options.json:
        write_json(options, cells, medians)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rescind",
        default=str(ROOT / "target/release/rescind"),
        metavar="PATH",
        help="the binary, or `none`",
    )
    parser.add_argument(
        "--config", default=str(ROOT / "proxy.toml"), metavar="FILE", help="the rules rescind runs with"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="default 7, with --quick 2")
    parser.add_argument(
        "--requests",
        type=numbers,
        metavar="N[,N,N]",
        help=f"requests of a cell, for pipelines {PIPELINES}; default: what takes about a second",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=TARGETS,
        metavar="NAME,...",
        help=f"of {', '.join(TARGETS)}",
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute, and less exact")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="store every cell, the medians, the machine and the versions",
    )
    options = parser.parse_args()
    if unknown := set(options.only) - set(TARGETS):
        parser.error(f"--only: no target {', '.join(sorted(unknown))}")
    if options.requests and len(options.requests) not in (1, len(PIPELINES)):
        parser.error(f"--requests: one number, or {len(PIPELINES)}")
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.seconds = 0.5 if options.quick else 1.2
    # No further round begins that would end later than this.
    options.limit = 50 if options.quick else 330
    return options


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def measure(targets: list[Target], options: argparse.Namespace) -> list[Cell]:
    kinds = [(command, pipeline) for command in COMMANDS for pipeline in PIPELINES]
    begun = time.monotonic()
    sizes = {(t.name, *kind): cell_size(t, *kind, options) for kind in kinds for t in targets}
    cells: list[Cell] = []
    slowest = 0.0
    for number in range(1, options.rounds + 1):
        round_begun = time.monotonic()
        if cells and round_begun - begun + slowest > options.limit:
            note(f"stopped after {number - 1} of {options.rounds} rounds: the machine is slow today")
            break
        note(f"round {number} of {options.rounds}")
        for kind in kinds:
            cells += [run_cell(number, target, *kind, sizes[target.name, *kind]) for target in targets]
        slowest = max(slowest, time.monotonic() - round_begun)
    return cells


def cell_size(target: Target, command: str, pipeline: int, options: argparse.Namespace) -> int:
    """Requests that keep a cell of this kind busy for about `options.seconds`."""
    if options.requests:
        given = options.requests
        return given[0] if len(given) == 1 else given[PIPELINES.index(pipeline)]
    few = 10 * CLIENTS * pipeline
    rate = redis_benchmark(target.port, command, pipeline, few)["rps"]
    if few / rate < CALIBRATION_SECONDS:
        rate = redis_benchmark(target.port, command, pipeline, int(rate * CALIBRATION_SECONDS))["rps"]
    return max(1000, int(rate * options.seconds))


def run_cell(number: int, target: Target, command: str, pipeline: int, requests: int) -> Cell:
    daemons = [d for d in (target.redis, target.proxy) if d]
    before = {d.name: d.cpu_seconds() for d in daemons}
    result = redis_benchmark(target.port, command, pipeline, requests)
    cpu = {d.name: (d.cpu_seconds() - before[d.name]) / requests * 1e6 for d in daemons}
    return Cell(
        round=number,
        target=target.name,
        command=command,
        pipeline=pipeline,
        requests=requests,
        rate=result["rps"],
        p50=result["p50_latency_ms"],
        p99=result["p99_latency_ms"],
        proxy_cpu=cpu[target.proxy.name] if target.proxy else None,
        redis_cpu=cpu[target.redis.name],
        proxy_rss_kib=target.proxy.rss_kib() if target.proxy else None,
        redis_rss_kib=target.redis.rss_kib(),
    )


def redis_benchmark(
    port: int, command: str | tuple[str, ...], pipeline: int, requests: int, clients: int = CLIENTS
) -> dict[str, float]:
    """Run one of its tests, or the words of a command, and return its CSV row: rps, p50_latency_ms and others."""
    arguments = f"-h 127.0.0.1 -p {port} -n {requests} -P {pipeline}".split()
    arguments += f"-c {clients} -r {KEYS} -d {VALUE_BYTES} --csv --precision 3".split()
    arguments += ["-t", command.lower()] if isinstance(command, str) else command
    done = subprocess.run(
        ["redis-benchmark", *arguments], capture_output=True, text=True, timeout=CELL_TIMEOUT, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or len(lines) < 2:
        raise SystemExit(f"redis-benchmark {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    header, row = list(csv.reader(io.StringIO("\n".join(lines))))[-2:]
    return {name: float(value) for name, value in zip(header[1:], row[1:], strict=True)}


# --- targets ------------------------------------------------------------------


def start_targets(
    options: argparse.Namespace, directory: Path, stack: contextlib.ExitStack
) -> Iterator[Target]:
    redis = stack.enter_context(start_redis(directory, "redis"))
    fill(redis.port)
    if "direct" in options.only:
        yield Target("direct", redis.port, redis)
    for name, program, start in (
        ("haproxy", "haproxy", start_haproxy),
        ("twemproxy", "nutcracker", start_nutcracker),
    ):
        if name in options.only and available(name, program):
            proxy = stack.enter_context(start(directory, redis.port))
            yield Target(name, proxy.port, redis, proxy)
    if "rescind" in options.only and available("rescind", options.rescind):
        own = stack.enter_context(start_redis(directory, "redis-of-rescind"))
        fill(own.port)
        proxy = stack.enter_context(start_rescind(options.rescind, Path(options.config), directory, own.port))
        proxy.wait_ready()
        yield Target("rescind", proxy.port, own, proxy)


def available(name: str, program: str) -> bool:
    if program != "none" and shutil.which(program):
        return True
    note(f"{name} is left out: {program} is not there" if program != "none" else f"{name} is left out")
    return False


def fill(port: int) -> None:
    """Every key that redis-benchmark may ask for, so that each GET is a hit."""
    with Connection(port) as redis:
        redis.pipeline(("SET", f"key:{number:012d}", "x" * VALUE_BYTES) for number in range(KEYS))


def start_redis(directory: Path, name: str) -> "Daemon":
    port = free_port()
    arguments = f"--bind 127.0.0.1 --port {port} --appendonly no --dir {directory}"
    return Daemon(name, ["redis-server", *arguments.split(), "--save", ""], directory, port)


def start_haproxy(directory: Path, upstream: int) -> "Daemon":
    port, conf = free_port(), directory / "haproxy.cfg"
    conf.write_text(HAPROXY_CONF.format(listen=port, upstream=upstream))
    return Daemon("haproxy", ["haproxy", "-db", "-f", str(conf)], directory, port)


def start_nutcracker(directory: Path, upstream: int) -> "Daemon":
    port, conf = free_port(), directory / "nutcracker.yml"
    conf.write_text(NUTCRACKER_YML.format(listen=port, upstream=upstream))
    arguments = (
        f"-c {conf} -a 127.0.0.1 -s {free_port()} -p {directory}/nutcracker.pid -o {directory}/nutcracker.log"
    )
    return Daemon("nutcracker", ["nutcracker", *arguments.split()], directory, port)


def start_rescind(binary: str, config: Path, directory: Path, upstream: int) -> "Daemon":
    """Its journal goes to the temporary directory, and no override from outside reaches it."""
    port, admin = free_port(), free_port()
    command = [str(Path(binary).resolve()), "--config", str(config.resolve())]
    command += ["--upstream", f"redis://127.0.0.1:{upstream}"]
    command += ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RESCIND_")}
    env["RESCIND_JOURNAL_PATH"] = tempfile.mkdtemp(prefix="journal-", dir=directory) + "/journal"
    return Daemon("rescind", command, directory, port, admin, env)


# --- processes and connections (the other benchmarks use them too) -----------------


@dataclass
class Daemon:
    """A process that listens on `port`: running inside `with`, stopped by pid at its end."""

    name: str
    command: list[str]
    directory: Path
    port: int
    admin: int = 0
    env: dict[str, str] | None = None

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.out"

    def __enter__(self) -> "Daemon":
        # A session of its own: Ctrl-C reaches this script, which then stops the process.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.directory, env=self.env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self.wait_for(lambda: connects(self.port), 10)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(12)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_ready(self, seconds: float = 60, pause: float = 0.01) -> None:
        """Until /readyz answers 200: the index is complete."""
        self.wait_for(lambda: http_status(self.admin, "/readyz") == 200, seconds, pause)

    def wait_for(self, condition, seconds: float, pause: float = 0.02) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > until:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise SystemExit(f"{self.name} is not ready: {' '.join(self.command)}\n{tail}")
            time.sleep(pause)

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


class Connection:
    """A blocking RESP2 connection: as much of the protocol as the benchmarks need."""

    def __init__(self, port: int, timeout: float = 120) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.socket.makefile("rb", 1 << 16)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.replies.close()
        self.socket.close()

    def call(self, *arguments: str | bytes):
        self.socket.sendall(encode(arguments))
        return self.reply()

    def pipeline(self, commands: Iterable[tuple], batch: int = 5000) -> None:
        """Send many commands, and read all replies; the first error ends it."""
        commands = iter(commands)
        while chunk := [encode(command) for command in itertools.islice(commands, batch)]:
            self.socket.sendall(b"".join(chunk))
            for _ in chunk:
                self.reply()

    def reply(self):
        line = self.replies.readline()
        if not line.endswith(b"\r\n"):
            raise SystemExit("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise SystemExit(f"error reply: {rest.decode()}")
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest


def encode(arguments: tuple) -> bytes:
    parts = [a if isinstance(a, bytes) else str(a).encode() for a in arguments]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def http_status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- results ------------------------------------------------------------------

MEASURES = ("rate", "p50", "p99", "proxy_cpu", "redis_cpu", "proxy_rss_kib", "redis_rss_kib")


def summarize(cells: list[Cell]) -> list[dict]:
    """Medians over the rounds, one entry per command, pipeline and target, in that order."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.command, cell.pipeline, cell.target), []).append(cell)
    medians = []
    for (command, pipeline, target), group in groups.items():
        entry: dict = {"command": command, "pipeline": pipeline, "target": target, "rounds": len(group)}
        for measure_name in MEASURES:
            values = [v for cell in group if (v := getattr(cell, measure_name)) is not None]
            entry[measure_name] = statistics.median(values) if values else None
        medians.append(entry)
    return medians


def table(medians: list[dict]) -> str:
    rates = {(m["command"], m["pipeline"], m["target"]): m["rate"] for m in medians}
    lines = [
        "| command | pipeline | target | commands/s | × direct | × haproxy | p50 ms | p99 ms "
        "| proxy µs CPU | Redis µs CPU | proxy RSS MiB |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for m in medians:
        peers = [rates.get((m["command"], m["pipeline"], peer)) for peer in ("direct", "haproxy")]
        ratios = [number(m["rate"] / peer if peer else None) for peer in peers]
        rss = m["proxy_rss_kib"] / 1024 if m["proxy_rss_kib"] else None
        columns = [m["command"], m["pipeline"], m["target"], f"{m['rate']:,.0f}", *ratios]
        columns += [
            number(m["p50"], 3),
            number(m["p99"], 3),
            number(m["proxy_cpu"]),
            number(m["redis_cpu"]),
            number(rss, 1),
        ]
        lines.append(f"| {' | '.join(map(str, columns))} |")
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def write_json(options: argparse.Namespace, cells: list[Cell], medians: list[dict]) -> None:
    setup = {
        "clients": CLIENTS,
        "keys": KEYS,
        "value_bytes": VALUE_BYTES,
        "rounds": options.rounds,
        "quick": options.quick,
    }
    data = {**options.provenance, "setup": setup, "medians": medians, "cells": [asdict(c) for c in cells]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(data, indent=1) + "\n")
    note(f"raw data: {options.json}")


def provenance(rescind: str) -> dict:
    """When, on what machine and with which versions a result was measured."""
    cpu = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commands = {
        "redis-server": ["--version"],
        "redis-benchmark": ["--version"],
        "haproxy": ["-v"],
        "nutcracker": ["-V"],
        rescind: ["--version"],
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "cpu": cpu[0] if cpu else platform.machine(),
            "load": os.getloadavg()[0],
        },
        "versions": {
            Path(name).name: version(name, flags) for name, flags in commands.items() if shutil.which(name)
        },
    }


def version(program: str, flags: list[str]) -> str:
    done = subprocess.run([program, *flags], capture_output=True, text=True, timeout=5, check=False)
    return (done.stdout + done.stderr).strip().partition("\n")[0]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
