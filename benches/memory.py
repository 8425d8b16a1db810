#!/usr/bin/env python3
"""What Rescind's memory does under load that changes all the time: are buffers given back?

    python3 benches/memory.py [--rescind PATH] [--minutes 60] [--seed N] [--output FILE]

Each minute has a load of its own, at random: 1 to 1,000 clients, pipelines of 1 to 256, values of 100 bytes to 1 MiB, GET,
SET, MSET or LRANGE, tagged keys and others, now and then a trigger. Then everybody is silent for a few seconds, and the
resident size is read, as well as its peak during the load. The last minute is as the first. Sample rules, 100,000 keys at most.
"""

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.process import Connection, note
from support.servers import ROOT, start_redis, start_rescind

KIB = 1024
FIRST = {"clients": 50, "pipeline": 16, "size": 100, "what": "set"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rescind", default=str(ROOT / "target/release/rescind"), metavar="PATH")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--output", type=Path, metavar="FILE", help="the table, as Markdown")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    note(f"seed {options.seed}")
    rng = random.Random(options.seed)
    rows = ["| minute | load | peak, MiB | silent, MiB |", "| ---: | --- | ---: | ---: |"]
    silent = []
    with tempfile.TemporaryDirectory(prefix="rescind-bench-", dir=ROOT / "target") as name:
        directory = Path(name)
        with (
            start_redis(directory, "redis") as redis,
            start_rescind(options.rescind, ROOT / "proxy.toml", directory, redis.port) as proxy,
        ):
            proxy.wait_ready()
            for minute in range(options.minutes):
                begun = time.monotonic()
                load = FIRST if minute in (0, options.minutes - 1) else some_load(rng)
                proxy.reset_peak()
                while time.monotonic() - begun < 40:
                    run(proxy.port, load)
                    # Other work wants the machine, too.
                    time.sleep(2)
                peak = proxy.peak_kib() / KIB
                # Idle connections that were pinned are kept for a minute; buffers of silent clients for seconds.
                time.sleep(max(5.0, begun + 60 - time.monotonic()))
                silent.append(proxy.rss_kib() / KIB)
                text = f"{load['what']}, {load['clients']} clients, pipeline {load['pipeline']}, {load['size']} bytes"
                rows.append(f"| {minute + 1} | {text} | {peak:.1f} | {silent[-1]:.1f} |")
                note(rows[-1])
    tenth = max(1, len(silent) // 10)
    rows.append("")
    rows.append(
        f"Silent: {silent[0]:.1f} MiB after the first minute, {silent[-1]:.1f} after the last; medians of the first and the "
        f"last tenth: {statistics.median(silent[:tenth]):.1f} and {statistics.median(silent[-tenth:]):.1f}. Seed {options.seed}."
    )
    print("\n".join(rows))
    if options.output:
        options.output.write_text("\n".join(rows) + "\n")
    return 0


def some_load(rng: random.Random) -> dict:
    size = rng.choice([100, 100, 1000, 4096, 65536, 262144, 1048576])
    most = 256 if size <= 4096 else 4
    return {
        "clients": rng.choice([1, 10, 50, 200, 1000] if size <= 65536 else [1, 10, 50]),
        "pipeline": rng.choice([n for n in (1, 4, 16, 64, 256) if n <= most]),
        "size": size,
        "what": rng.choice(["get", "set", "mset", "lrange_100", "tagged", "triggers"] if size <= 4096 else ["get", "set"]),
    }


def run(port: int, load: dict) -> None:
    """A few seconds at most; for every client at least some requests."""
    budget = {"mset": 10, "lrange_100": 10, "triggers": 20}.get(load["what"], 1)
    count = max(2 * load["clients"] * load["pipeline"], min(200_000, 400_000_000 // load["size"]) // budget)
    keys = min(100_000, 200_000_000 // load["size"])
    common = ["redis-benchmark", "-p", str(port), "-c", str(load["clients"]), "-P", str(load["pipeline"])]
    common += ["-n", str(count), "-d", str(load["size"]), "-r", str(keys), "-q"]
    match load["what"]:
        case "tagged":
            command = [*common, "SET", "app:1:blog_posts___rand_int__", "x" * load["size"]]
        case "triggers":
            command = [*common, "SET", "app:1:model:Post:__rand_int__", "1"]
        case what:
            command = [*common, "-t", what]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False)
    with Connection(port) as client:
        client.call("FLUSHALL")


if __name__ == "__main__":
    sys.exit(main())
