"""redis-benchmark: how it is called, and what it says."""

import re
import subprocess
from dataclasses import dataclass

from .process import Address

CLIENTS, KEYS, VALUE_BYTES = 50, 100_000, 100
RANDOM = "__rand_int__"

_RATE = re.compile(r"throughput summary: ([\d.]+)")
_SUMMARY = re.compile(r"avg\s+min\s+p50\s+p95\s+p99\s+max\s+([\d. ]+)")
_PERCENTILE = re.compile(r"^([\d.]+)% <= ([\d.]+) milliseconds", re.MULTILINE)


class LoadFailed(SystemExit):
    """redis-benchmark did not come to an end; what it said. Uncaught, it ends the benchmark."""


@dataclass
class Load:
    """What one run did: commands per second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float
    p999: float
    longest: float


def redis_benchmark(
    address: Address,
    command: str | tuple[str, ...],
    pipeline: int,
    requests: int,
    clients: int = CLIENTS,
    *,
    keys: int = KEYS,
    value: bytes | None = None,
    timeout: float = 30,
) -> Load:
    """Runs one of its tests, or the words of a command; `value` becomes the last word of those."""
    where = ["-h", "127.0.0.1", "-p", str(address)] if isinstance(address, int) else ["-s", address]
    arguments = [*where, *f"-n {requests} -P {pipeline} -c {clients} -r {keys} -d {VALUE_BYTES}".split()]
    arguments += ["-x"] if value is not None else []
    arguments += ["-t", command.lower()] if isinstance(command, str) else command
    shown = "redis-benchmark " + " ".join(arguments)[:300]
    try:
        done = subprocess.run(
            ["redis-benchmark", *arguments], input=value or b"", capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"{shown} takes longer than {timeout:g} s") from None
    out = done.stdout.decode(errors="replace").replace("\r", "\n")
    rate, summary = _RATE.search(out), _SUMMARY.search(out)
    if done.returncode or not rate or not summary:
        raise LoadFailed(f"{shown} failed:\n{out[-1000:]}{done.stderr.decode()[-1000:]}")
    _, _, p50, _, p99, longest = map(float, summary[1].split())
    return Load(float(rate[1]), p50, p99, _percentile(out, 99.9, longest), longest)


def _percentile(out: str, wanted: float, otherwise: float) -> float:
    """The first step of the distribution at or above it: redis-benchmark halves what remains at each step."""
    steps = _PERCENTILE.findall(out.partition("Cumulative distribution")[0])
    return next((float(latency) for percent, latency in steps if float(percent) >= wanted), otherwise)
