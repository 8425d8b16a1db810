#!/usr/bin/env python3
"""How the cost of Rescind grows with the work: one chart for each thing that can grow.

    python3 benches/scaling.py [--quick] [--only clients,depth,...] [--huge] [--output DIR]

clients     1 to 5,000, unpipelined, beside a direct connection (and predixy, where --predixy gives its binary)
depth       1 to 256 commands in a pipeline
size        values of 16 bytes to 1 MiB
patterns    10 to 10,000
index       1,000 to 1,000,000 keys in the index; with --huge 10,000,000
dependents  1 to 100,000 keys that depend on one tag, beside UNLINK of them
proxies     1 to 3 on one Redis

Rounds go over the points in turn, forth and back. CPU is user plus system time of all threads of a process. Needs the
standard library, redis-server and redis-benchmark only.
"""

import argparse
import contextlib
import signal
import statistics
import sys
import tempfile
from pathlib import Path

from support import charts
from support.bench import Bench, Sweep
from support.process import folder, found, note
from support.report import circumstances, compact_json, provenance
from support.servers import ROOT
from support.sweeps import SWEEPS

MEDIANS = (
    "Medians over rounds; of these only the half counts, but at least three, in which other processes took least of "
    "the machine."
)


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.directory.mkdir(parents=True, exist_ok=True)
    origin = provenance(options.rescind, *([options.predixy] if options.predixy else []))
    text, others = [], []
    for name in options.only:
        note(name)
        with contextlib.ExitStack() as stack:
            directory = tempfile.TemporaryDirectory(prefix="rescind-bench-", dir=options.directory)
            bench = Bench(options, Path(stack.enter_context(directory)), stack)
            sweep = SWEEPS[name](bench)
        others += [cell["others"] for point in bench.raw for cell in point["rounds"] if "others" in cell]
        text += [f"## {sweep.title}", f"![{name}](scaling-{name}.svg)", tables(sweep)]
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / f"scaling-{name}.svg").write_text(charts.lines(sweep.title, sweep.panels))
            raw = {**origin, "sweep": name, "points": bench.raw}
            (options.output / f"scaling-{name}.json").write_text(compact_json(raw))
    head = f"# How the cost grows, {origin['date'][:10]}"
    whole = "\n\n".join([head, circumstances(origin, statistics.median(others or [0])), MEDIANS, *text])
    print(whole)
    if options.output:
        (options.output / "scaling.md").write_text(whole + "\n")
        note(f"results: {options.output}")
    return 0


def tables(sweep: Sweep) -> str:
    """A line for each measure and series, a column for each x."""
    xs = sorted({x for panel in sweep.panels for line in panel.lines.values() for x, _ in line})
    lines = [
        f"| {sweep.panels[0].x} | | " + " | ".join(f"{x:,}" for x in xs) + " |",
        "| --- | --- |" + " ---: |" * len(xs),
    ]
    for panel in sweep.panels:
        for name, line in panel.lines.items():
            values = dict(line)
            cells = [figure(values[x]) if x in values else "" for x in xs]
            lines.append(f"| {panel.title} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rescind", default=str(ROOT / "target/release/rescind"), metavar="PATH", help="its binary")
    add("--config", type=Path, default=ROOT / "proxy.toml", metavar="FILE", help="the rules beside others")
    add("--predixy", metavar="PATH", help="the binary of predixy")
    add("--only", type=lambda text: text.split(","), default=list(SWEEPS), metavar="NAME,...")
    add("--quick", action="store_true", help="fewer points, fewer rounds")
    add("--huge", action="store_true", help="also ten million keys; takes 4 GB")
    add("--rounds", type=int, metavar="N", help="default 5, with --quick 1")
    add("--seconds", type=float, default=0.2, metavar="S", help="of a run; default 0.2")
    add("--minutes", type=float, default=2, metavar="M", help="no round of a sweep ends later; default 2")
    add(
        "--directory",
        type=folder,
        default=ROOT / "target",
        metavar="DIR",
        help="for journals; a disk; default: target/",
    )
    add("--output", type=Path, metavar="DIR", help="where charts and raw data go; default: nowhere")
    options = parser.parse_args()
    if unknown := set(options.only) - set(SWEEPS):
        parser.error(f"--only: no sweep {', '.join(sorted(unknown))}")
    for program in filter(None, (options.rescind, options.predixy)):
        if not found(program):
            parser.error(f"{program} is not there")
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
