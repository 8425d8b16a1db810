"""Starts what a sweep of benches/scaling.py needs, runs its points in turn, and keeps what they measured."""

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .cell import Target, run
from .charts import Panel
from .load import CLIENTS, KEYS, RANDOM, VALUE_BYTES
from .process import Address, Connection, Daemon, found, free_port, note
from .servers import start_predixy, start_redis, start_rescind

# Executed by Redis, so that a million keys take a second.
FILL = """
for n = tonumber(ARGV[2]), tonumber(ARGV[3]) - 1 do
    redis.call('SET', ARGV[1] .. string.format('%012d', n), ARGV[4])
end
"""
CHUNK = 100_000

Point = tuple[str, float]
Run = Callable[[], dict]


@dataclass
class Sweep:
    """What a chart shows."""

    title: str
    panels: list[Panel]
    raw: list[dict] = field(default_factory=list)


class Bench:
    """For one sweep; what it starts ends with the stack."""

    def __init__(self, options, directory: Path, stack: contextlib.ExitStack) -> None:
        self.options, self.directory, self.stack = options, directory, stack
        self.huge: bool = options.huge
        self.started = 0
        self.raw: list[dict] = []

    # --- servers

    def points(self, *values: int) -> list[int]:
        """With --quick every second one of many, and not the last."""
        return list(values[:-1:2]) if self.options.quick and len(values) > 3 else list(values)

    def targets(self) -> list[Target]:
        """Direct, predixy where it is given, and Rescind with the sample rules."""
        redis = self.redis(lambda redis: None)
        targets = [Target("direct", redis.port, redis)]
        if program := found(self.options.predixy or ""):
            proxy = self.stack.enter_context(start_predixy(program, self.directory, free_port(), redis.port))
            targets.append(Target("predixy", proxy.port, redis, proxy))
        own = self.redis(lambda redis: None)
        return [*targets, self.rescind(own, self.options.config.read_text(), "rescind")]

    def redis(self, fill: Callable[[Daemon], None]) -> Daemon:
        self.started += 1
        daemon = self.stack.enter_context(start_redis(self.directory, f"redis-{self.started}"))
        fill(daemon)
        return daemon

    def rescind(self, redis: Daemon, rules: str, name: str) -> Target:
        """Ready."""
        config = self.directory / f"{name}.toml"
        config.write_text(rules)
        proxy = start_rescind(self.options.rescind, config, self.directory, redis.port, None, name)
        self.stack.enter_context(proxy).wait_ready(120)
        return Target(name, proxy.port, redis, proxy)

    def connection(self, address: Address) -> Connection:
        return self.stack.enter_context(Connection(address))

    def fill(self, target: Target, count: int = KEYS, prefix: str = "key:", size: int = VALUE_BYTES) -> None:
        self.fill_redis(target.redis, count, prefix, size)

    def fill_redis(self, redis: Daemon, count: int = KEYS, prefix: str = "key:", size: int = VALUE_BYTES) -> None:
        with Connection(redis.port) as connection:
            for start in range(0, count, CHUNK):
                end = min(start + CHUNK, count)
                connection.call("EVAL", FILL, "0", prefix, start, end, "x" * size)

    # --- points

    def load(
        self,
        target: Target,
        command: tuple[str, ...],
        pipeline: int = 1,
        clients: int = CLIENTS,
        *,
        keys: int = KEYS,
        value: bytes | None = None,
    ) -> Run:
        """A run that takes about as long as the options say, once it was run before."""
        fewest = clients * pipeline * 4
        requests = max(fewest, 1000 if len(value or b"") < 1 << 18 else 0)

        def once() -> dict:
            nonlocal requests
            done = requests
            cell = asdict(run(target, command, pipeline, done, clients, keys=keys, value=value))
            requests = max(fewest, int(cell["rate"] * self.options.seconds))
            rss = cell.pop("rss_kib")
            return {**cell, "requests": done, "rss_mib": rss / 1024 if rss else None}

        return once

    def both(self, target: Target, prefix: str, pipeline: int, keys: int = KEYS) -> dict[str, Run]:
        word = f"{prefix}{RANDOM}"
        return {
            "GET": self.load(target, ("GET", word), pipeline, keys=keys),
            "SET": self.load(target, ("SET", word, "x" * VALUE_BYTES), pipeline, keys=keys),
        }

    def measure(self, points: dict[Point, Run]) -> dict[Point, dict]:
        """Medians over rounds, which go over the points forth and back. The first one is not counted, and of the others
        only the half in which other processes took least of the machine, but at least three."""
        cells: dict[Point, list[dict]] = {point: [] for point in points}
        begun, slowest = time.monotonic(), 0.0
        for number in range(self.options.rounds + 1):
            round_begun = time.monotonic()
            if number > 1 and round_begun - begun + slowest > self.options.minutes * 60:
                note(f"  stopped after {number - 1} of {self.options.rounds} rounds: there is no time for more")
                break
            for point in list(points)[:: 1 if number % 2 else -1]:
                cell = points[point]()
                if number:
                    cells[point].append(cell)
            slowest = max(slowest, time.monotonic() - round_begun)
        self.raw = [{"series": name, "x": x, "rounds": _rounded(done)} for (name, x), done in cells.items()]
        return {point: _medians(done) for point, done in cells.items()}

    def lines(self, measured: dict[Point, dict], measure: str, suffix: str = "") -> dict[str, list]:
        """Those of the series with this suffix, without it."""
        lines: dict[str, list] = {}
        for (name, x), cell in measured.items():
            if name.endswith(suffix) and cell.get(measure) is not None:
                lines.setdefault(name.removesuffix(suffix), []).append((x, cell[measure]))
        return lines


def _medians(cells: list[dict]) -> dict:
    cells = sorted(cells, key=lambda cell: cell.get("others", 0))[: max(3, (len(cells) + 1) // 2)]
    measures = {name for cell in cells for name, value in cell.items() if value is not None}
    return {name: statistics.median(cell[name] for cell in cells if cell.get(name) is not None) for name in measures}


def _rounded(cells: list[dict]) -> list[dict]:
    return [{n: float(f"{v:.5g}") for n, v in cell.items() if v is not None} for cell in cells]
