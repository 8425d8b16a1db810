"""What one run does."""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

from faults import HEAVY, LIGHT


@dataclass(frozen=True)
class Options:
    """As given on the command line."""

    binary: Path
    seed: int
    reads: int = 500_000
    triggers: int = 20_000
    seconds_min: float = 0
    seconds_max: float = 3600
    proxies: int = 3
    apps: int = 3
    threads: int = 8
    posts: int = 24
    direct: int = 3
    faults: tuple[str, ...] = ()
    light_every: float = 0.7
    heavy_every: float = 3.0
    stale_fill: str = "protect"
    fill_window: int = 5
    naive: bool = False
    no_labels: bool = False
    careful: bool = False
    expect_violations: bool = False
    keep: Path | None = None


def parse(description: str, arguments: list[str] | None = None) -> tuple[Options, bool]:
    """The options, and whether the quick phases are wanted instead."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=lambda path: Path(path).resolve(strict=True))
    add = parser.add_argument
    add("--quick", action="store_true", help="several short phases with different faults, self-checks included")
    add("--seed", type=int, default=random.randrange(1 << 32), help="of all choices (the timing is the machine's)")
    add("--reads", type=int, default=Options.reads)
    add("--triggers", type=int, default=Options.triggers)
    add("--seconds-max", type=float, default=Options.seconds_max, help="give up then")
    add("--proxies", type=int, default=Options.proxies)
    add("--apps", type=int, default=Options.apps, help="processes that read")
    add("--threads", type=int, default=Options.threads, help="of each process")
    add("--posts", type=int, default=Options.posts)
    add("--faults", type=_faults, default=(), help=f"none, all, or a list: {','.join([*LIGHT, *HEAVY])}; -x: without x")
    add("--light-every", type=float, default=Options.light_every, help="seconds between small faults, on average")
    add("--heavy-every", type=float, default=Options.heavy_every, help="… between those that end processes")
    add("--stale-fill", choices=["protect", "off"], default="protect")
    add("--fill-window", type=int, default=Options.fill_window, help="seconds; careful after a crash for as long")
    add("--naive", action="store_true", help="no proxy: readers and a plain DEL straight at Redis")
    add("--no-labels", action="store_true", help="no keys that only TAG.WITH labels")
    add("--careful", action="store_true", help="the application never fills while it changes: no protection is needed")
    add("--expect-violations", action="store_true", help="fail unless stale reads are found")
    add("--keep", type=Path, help="a new folder for logs, data and journals; kept")
    given = vars(parser.parse_args(arguments))
    quick = given.pop("quick")
    return Options(**given), quick


def _faults(text: str) -> tuple[str, ...]:
    every = [*LIGHT, *HEAVY]
    chosen: list[str] = []
    for word in text.split(","):
        if word == "all":
            chosen += every
        elif word in every:
            chosen.append(word)
        elif word.removeprefix("-") in every:
            chosen = [name for name in chosen or every if name != word[1:]]
        elif word != "none":
            raise argparse.ArgumentTypeError(f"no fault is called {word}: all, none, {', '.join(every)}")
    return tuple(dict.fromkeys(chosen))
