#!/usr/bin/env python3
"""Rescind beside direct Redis, haproxy (TCP mode), twemproxy, Envoy and predixy, in one interleaved run.

    python3 benches/compare.py [--quick] [--targets NAME,...] [--cases TEXT,...] [--output DIR]

Every cell is one run of redis-benchmark; support/cases.py lists the cases. All keys exist. Rounds go over cases and
targets in turn, forth and back, so a machine that slows down slows all of them; the tables show medians over the
rounds, and ratios are the medians of each round's ratio. Only the half of the rounds counts in which other processes
used less of the machine. CPU is user plus system time of all threads of a process. RSS is the largest of a cell.
Rescind runs with the sample proxy.toml (rules, metrics, feed and journal), and also with 1,000 patterns and with no
rules; each of these has a Redis of its own: the others must not pay for its feed.

Needs only the Python standard library, redis-server and redis-benchmark. A proxy that is not installed is left out,
with a note. Every process started here is stopped by its pid, also on Ctrl-C.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from support import cases as known
from support import report
from support.cases import CASES, QUICK, TARGETS, Case
from support.cell import Target, run
from support.judge import judge
from support.load import LoadFailed
from support.process import Address, Daemon, folder, found, free_port, note
from support.results import Results
from support.servers import (
    ROOT,
    start_envoy,
    start_haproxy,
    start_nutcracker,
    start_predixy,
    start_redis,
    start_rescind,
)

MANY_PATTERNS = 1000


# --- the run ------------------------------------------------------------------


def main() -> int:
    options = parse_options()
    if options.again:
        earlier = json.loads(options.again.read_text())
        cells = earlier.pop("cells")
        write(Results.of(cells), earlier, options)
        return 0
    origin = report.provenance(options.rescind, *options.programs.values())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="rescind-bench-", dir=options.directory))
        )
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rescind-")))
        starter = Starter(options, directory, sockets, stack)
        targets = {unix: list(starter.start(unix)) for unix in sorted({case.unix for case in options.cases})}
        results = measure(targets, options)
    write(results, {**origin, "seconds": options.seconds}, options)
    return 0


def measure(targets: dict[bool, list[Target]], options: argparse.Namespace) -> Results:
    """The first round only finds out how many requests keep a cell busy for long enough."""
    begun = time.monotonic()
    results = Results()
    cells = [(case, target) for case in options.cases for target in targets[case.unix] if target.name in case.targets]
    sizes = {(case, target.name): case.few() for case, target in cells}
    slowest = 0.0
    for number in range(options.rounds + 1):
        round_begun = time.monotonic()
        if number > 1 and round_begun - begun + slowest > options.minutes * 60:
            note(f"stopped after {number - 1} of {options.rounds} rounds: there is no time for more")
            break
        note(f"round {number} of {options.rounds}" if number else "how fast is it?")
        for case, target in cells if number % 2 else reversed(cells):
            if (requests := sizes.get((case, target.name))) is None:
                continue
            try:
                cell = run(
                    target, case.words(), case.pipeline, requests, case.clients, keys=case.keys, value=case.value()
                )
            except LoadFailed as failure:
                if target.name.startswith(known.RESCIND):
                    raise
                note(f"{target.name} fails at {case.name}, and is left out there: {failure}")
                del sizes[case, target.name]
                continue
            sizes[case, target.name] = max(case.few(), int(cell.rate * options.seconds))
            if number:
                results.add(case, target.name, cell)
        slowest = max(slowest, time.monotonic() - round_begun)
    return results


# --- targets ------------------------------------------------------------------


class Starter:
    """Starts what the options name; everything ends with the stack."""

    def __init__(
        self, options: argparse.Namespace, directory: Path, sockets: Path, stack: contextlib.ExitStack
    ) -> None:
        self.options, self.sockets, self.stack = options, sockets, stack
        self.root = directory

    def start(self, unix: bool) -> Iterator[Target]:
        self.directory = self.root / ("unix" if unix else "tcp")
        self.directory.mkdir()
        wanted = [name for name in self.options.targets if any(name in c.targets for c in self.cases(unix))]
        redis, address = self.redis("redis", unix)
        proxies = {
            known.HAPROXY: start_haproxy,
            known.TWEMPROXY: start_nutcracker,
            known.ENVOY: start_envoy,
            known.PREDIXY: start_predixy,
        }
        for name in wanted:
            if name == known.DIRECT:
                yield Target(name, address, redis)
            elif name.startswith(known.RESCIND):
                yield self.rescind(name, unix)
            elif program := found(self.options.programs[name]):
                listen = self.address(name, unix)
                proxy = self.stack.enter_context(proxies[name](program, self.directory, listen, address))
                yield Target(name, listen, redis, proxy)
            elif not unix:
                note(f"{name} is left out: {self.options.programs[name]} is not there")

    def cases(self, unix: bool) -> list[Case]:
        return [case for case in self.options.cases if case.unix == unix]

    def address(self, name: str, unix: bool) -> Address:
        return str(self.sockets / f"{name.replace(' ', '').replace(',', '-')}.sock") if unix else free_port()

    def redis(self, name: str, unix: bool) -> tuple[Daemon, Address]:
        socket = str(self.sockets / f"{name}.sock") if unix else None
        daemon = self.stack.enter_context(start_redis(self.directory, name, socket))
        known.fill(daemon.port, self.cases(unix))
        return daemon, socket or daemon.port

    def rescind(self, name: str, unix: bool) -> Target:
        plain = name.replace(",", "").replace(" ", "-")
        redis, upstream = self.redis(f"redis-of-{plain}", unix)
        config = self.options.config
        if name != known.RESCIND:
            config = self.directory / f"{plain}.toml"
            config.write_text("" if name == known.BARE else with_many_patterns(self.options.config.read_text()))
        listen = self.address(plain, unix)
        proxy = start_rescind(self.options.rescind, config, self.directory, upstream, listen, plain)
        self.stack.enter_context(proxy).wait_ready()
        return Target(name, listen, redis, proxy)


def with_many_patterns(rules: str) -> str:
    """More tags in [tags], of which every tenth captures something in the middle."""
    more = [
        f'"more{n}:{{id}}" = ["more{n}:*:{{id}}"]' if n % 10 == 0 else f'more{n} = ["more_{n}_*"]'
        for n in range(MANY_PATTERNS)
    ]
    head, tags, rest = rules.partition("\n[tags]\n")
    return head + tags + "\n".join(more) + "\n" + rest


# --- options and results ----------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rescind", default=str(ROOT / "target/release/rescind"), metavar="PATH", help="its binary")
    add("--config", type=Path, default=ROOT / "proxy.toml", metavar="FILE", help="the rules it runs with")
    add("--envoy", default=str(ROOT / "target/venv-bench/bin/envoy"), metavar="PATH", help="the binary of Envoy")
    add("--predixy", default="predixy", metavar="PATH", help="the binary of predixy")
    add("--targets", type=names, default=TARGETS, metavar="NAME,...", help=f"of: {'; '.join(TARGETS)}")
    add("--cases", type=names, metavar="TEXT,...", help="only cases whose names contain one of these")
    add("--list", action="store_true", help="list the cases")
    add("--quick", action="store_true", help="fewer cases, less than a minute and a half, less exact")
    add("--rounds", type=int, metavar="N", help="default 8, with --quick 3")
    add("--seconds", type=float, default=0.2, metavar="S", help="of a cell; default 0.2")
    add("--minutes", type=float, default=5.5, metavar="M", help="no round begins that would end later; default 5.5")
    add(
        "--directory",
        type=folder,
        default=ROOT / "target",
        metavar="DIR",
        help="for journals; a disk; default: target/",
    )
    add("--output", type=Path, metavar="DIR", help="where tables, plots and raw data go; default: nowhere")
    add("--again", type=Path, metavar="FILE", help="only tables and plots, from an earlier compare.json")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"--targets: no target {', '.join(sorted(unknown))}")
    options.cases = [
        case for case in (QUICK if options.quick and not options.cases else CASES)
        if not options.cases or any(text in case.name for text in options.cases)
    ]  # fmt: skip
    if options.list:
        print("\n".join(case.name for case in options.cases))
        sys.exit()
    options.rounds = options.rounds or (3 if options.quick else 8)
    envoy = options.envoy if found(options.envoy) else "envoy"
    options.programs = {
        known.HAPROXY: "haproxy", known.TWEMPROXY: "nutcracker", known.ENVOY: envoy, known.PREDIXY: options.predixy,
    }  # fmt: skip
    if not options.again and any(t.startswith(known.RESCIND) for t in options.targets) and not found(options.rescind):
        parser.error(f"--rescind: {options.rescind} is not there")
    return options


def names(text: str) -> list[str]:
    """Names are separated by commas; one of them has a comma of its own."""
    for name in TARGETS:
        text = text.replace(name, name.replace(",", "\0"))
    return [part.strip().replace("\0", ",") for part in text.split(",")]


def write(results: Results, origin: dict, options: argparse.Namespace) -> None:
    verdicts = judge(results)
    text = report.markdown(results, verdicts, origin)
    print(text)
    if not options.output:
        return
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "compare.md").write_text(text)
    data = {**origin, "verdicts": [asdict(v) for v in verdicts], "cells": results.raw()}
    (options.output / "compare.json").write_text(report.compact_json(data))
    for name, plot in report.plots(results).items():
        (options.output / f"{name}.svg").write_text(plot)
    note(f"results: {options.output}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
