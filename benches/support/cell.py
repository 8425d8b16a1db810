"""One run of redis-benchmark against one target, with the CPU that it cost."""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

from .load import CLIENTS, KEYS, redis_benchmark
from .process import Address, Daemon


@dataclass
class Target:
    """Where redis-benchmark goes, the proxy that is there if any, and its Redis."""

    name: str
    address: Address
    redis: Daemon
    proxy: Daemon | None = None


@dataclass
class Cell:
    """Latencies in milliseconds, CPU in microseconds per command. `others`: the share of the machine that other
    processes used meanwhile."""

    rate: float
    p50: float
    p99: float
    p999: float
    redis_cpu: float
    proxy_cpu: float | None
    rss_kib: int | None
    others: float


def run(
    target: Target,
    command: tuple[str, ...],
    pipeline: int,
    requests: int,
    clients: int = CLIENTS,
    *,
    keys: int = KEYS,
    value: bytes | None = None,
) -> Cell:
    redis, proxy = target.redis, target.proxy
    if proxy:
        proxy.reset_peak()
    ours = [daemon for daemon in (redis, proxy) if daemon]
    before, (busy, total) = _cpu(ours), _machine()
    load = redis_benchmark(target.address, command, pipeline, requests, clients, keys=keys, value=value)
    busy, total = (after - earlier for after, earlier in zip(_machine(), (busy, total), strict=True))
    others = busy - (sum(_cpu(ours)) - sum(before))
    (proxy or redis).settle(1)
    spent = [(after - earlier) / requests * 1e6 for after, earlier in zip(_cpu(ours), before, strict=True)]
    return Cell(
        rate=load.rate,
        p50=load.p50,
        p99=load.p99,
        p999=load.p999,
        redis_cpu=spent[0],
        proxy_cpu=spent[1] if proxy else None,
        rss_kib=proxy.peak_kib() if proxy else None,
        others=max(0, others / total) if total else 0,
    )


def _cpu(daemons: list[Daemon]) -> list[float]:
    """Of each daemon, and of this script with redis-benchmark."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return [*(d.cpu_seconds() for d in daemons), time.process_time() + children.ru_utime + children.ru_stime]


def _machine() -> tuple[float, float]:
    """Seconds in which all cores together were busy, and in which they could have been."""
    user, nice, system, idle, wait, *more = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    busy = user + nice + system + sum(more)
    return busy / 100, (busy + idle + wait) / 100
