"""One run: servers, processes of the application, faults; then what must hold at the end."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import config
import final
import reader
import writer
from faults import HEAVY, LIGHT, Site, Troublemaker
from keys import Keyspace
from options import Options
from report import Report
from servers import Proxy, Redis, Trouble, free_ports
from shared import Count, Shared

WRITERS = 6
# Seconds between lines of progress.
PROGRESS = 5.0
# How long the processes of the application may take to come to their end.
PATIENCE = 90
# No fault lasts so many seconds: if nobody reads anything for that long, something hangs.
STANDSTILL = 10.0


class Run:
    """Everything of one run."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        direct = 0 if options.naive or options.careful else options.direct
        self.keyspace = Keyspace(options.posts, direct, labels=not (options.naive or options.no_labels))
        readers = options.apps * options.threads
        writers = WRITERS + direct
        self.shared = Shared(self.keyspace.objects, readers + writers, options.apps + 2, options.careful)
        self.report = Report(self.shared, quiet=options.expect_violations)
        self.site = self._site(folder)
        self.problems: list[str] = []
        self._reads, self._moved = 0, time.monotonic()
        self.standstill = 0.0
        # Forked before there are threads.
        self.processes = [*self._readers(), self._writers(range(readers, readers + writers))]
        self.troublemakers = self._troublemakers()

    def _site(self, folder: Path) -> Site:
        options = self.options
        count = 0 if options.naive else options.proxies
        port, spare, *ports = free_ports(2 + 2 * count)
        site = Site(Redis(folder / "redis-0", port), [], self.shared.histories[-2])
        if "failover" in options.faults:
            site.add_replica(spare)
        for number, (listen, admin) in enumerate(zip(ports[::2], ports[1::2], strict=True)):
            file = folder / f"proxy-{number}.toml"
            config.write(options.binary, file, listen, admin, port, options.stale_fill, options.fill_window)
            site.proxies.append(Proxy(number, options.binary, file, listen, admin))
        for proxy in site.proxies:
            proxy.ready()
        return site

    def _ports(self) -> list[int]:
        return [self.site.redis.port] if self.options.naive else [proxy.listen for proxy in self.site.proxies]

    def _readers(self) -> Iterator[BaseProcess]:
        threads, seed = self.options.threads, str(self.options.seed)
        for number in range(self.options.apps):
            actors = range(number * threads, (number + 1) * threads)
            yield _fork(
                reader.run, self.shared, self.keyspace, self._ports(), number, actors, seed, self.report.queue.put
            )

    def _writers(self, actors: range) -> BaseProcess:
        shop = writer.Shop(
            self.shared,
            self.keyspace,
            self._ports(),
            [proxy.admin for proxy in self.site.proxies] or [0],
            self.site.redis.port,
            self.report.queue.put,
        )
        shop.seed = str(self.options.seed)
        shop.ratio = self.options.triggers / self.options.reads
        shop.faults = bool(self.options.faults)
        shop.naive = self.options.naive
        return _fork(writer.run, shop, actors)

    def _troublemakers(self) -> list[Troublemaker]:
        made = []
        for table, every in (LIGHT, self.options.light_every), (HEAVY, self.options.heavy_every):
            if chosen := [name for name in self.options.faults if name in table]:
                made.append(Troublemaker(self.site, table, chosen, every, str(self.options.seed)))
        return made

    def faults(self) -> Counter[str]:
        return sum((t.done for t in self.troublemakers), Counter())

    def go(self) -> None:
        """Until all is read and triggered, but not too short; or time is up, or something is broken."""
        self.report.start()
        for process in self.processes:
            process.start()
        began = self._moved = time.monotonic()
        for troublemaker in self.troublemakers:
            troublemaker.start()
        least, most = began + self.options.seconds_min, began + self.options.seconds_max
        while time.monotonic() < (least if self._enough() else most) and not self._broken():
            self.turn()
        self._calm()
        self.shared.stop()
        deadline = time.monotonic() + PATIENCE
        while any(process.is_alive() for process in self.processes) and time.monotonic() < deadline:
            self.turn()
        self.report.drain(self.site)
        if self.standstill >= STANDSTILL:
            self.problems.append(f"for {self.standstill:.0f} s nobody read anything")
        if any(process.is_alive() for process in self.processes):
            self.problems.append("processes of the application did not end: somebody waits for ever")
        self.problems += [f"a process of the application ended with {p.exitcode}" for p in self.processes if p.exitcode]

    def turn(self) -> None:
        time.sleep(0.1)
        self.report.drain(self.site)
        self.report.look(self.site.proxies)
        self.report.progress(self.faults(), PROGRESS)
        reads, now = self.shared.total(Count.READS), time.monotonic()
        if reads > self._reads:
            self._reads, self._moved = reads, now
        self.standstill = max(self.standstill, now - self._moved)

    def _enough(self) -> bool:
        total = self.shared.total
        return total(Count.READS) >= self.options.reads and total(Count.TRIGGERS) >= self.options.triggers

    def _broken(self) -> bool:
        return any(proxy.died() is not None for proxy in self.site.proxies)

    def _calm(self) -> None:
        """No more faults, and a moment of traffic without them."""
        for troublemaker in self.troublemakers:
            troublemaker.stop()
            self.problems += troublemaker.trouble
        for proxy in self.site.proxies:
            try:
                proxy.ready()
            except Trouble as trouble:
                self.problems.append(str(trouble))
        before = self.shared.total(Count.READS)
        for _ in range(10):
            self.turn()
        if self.shared.total(Count.READS) == before:
            self.problems.append("without faults, there are still no reads")

    def finish(self) -> None:
        """What must hold at the end."""
        self.problems += final.settle(self.site)
        self.report.look(self.site.proxies)
        self.problems += final.stale_keys(self.site, self.keyspace, self.shared)
        self.problems += final.proxies(self.site)

    def close(self) -> None:
        for process in self.processes:
            if process.pid is not None:
                process.kill()
                process.join()
        for server in [*self.site.proxies, self.site.redis, self.site.replica]:
            if server is not None and server.process.poll() is None:
                server.end()


def _fork(target: object, *arguments: object) -> BaseProcess:
    def child() -> None:
        # The harness decides when it ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.excepthook = _give_up
        target(*arguments)  # type: ignore[operator]

    return multiprocessing.get_context("fork").Process(target=child, daemon=True)


def _give_up(failure: threading.ExceptHookArgs) -> None:
    """A thread that fails is a failure of the run."""
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    made = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def soak(options: Options) -> bool:
    """Whether all that must hold held."""
    print(f"== seed {options.seed}, faults: {', '.join(options.faults) or 'none'}", flush=True)
    with _folder(options.keep) as folder:
        run = Run(options, folder)
        try:
            run.go()
            if not run.options.naive:
                run.finish()
        finally:
            run.close()
        run.report.summary(run.faults(), run.site.proxies)
        return _verdict(run)


def _verdict(run: Run) -> bool:
    options, stale = run.options, run.report.violations
    if options.expect_violations:
        print(f"== {stale} stale reads found, as there should be" if stale else "== failed: no stale read was found")
        return stale > 0
    problems = [*run.problems, *run.report.odd_errors(), *_not_tested(run)]
    if stale:
        problems.insert(0, f"{stale} stale reads of {run.report.stale_values()} values, seed {options.seed}")
    for problem in problems:
        print(f"== failed: {problem}")
    if not problems:
        print("== passed")
    return not problems


def _not_tested(run: Run) -> Iterator[str]:
    """A run that has not tried is not a success."""
    total, options = run.shared.total, run.options
    # While proxies die and come back, much of what is filled is undone.
    least = 30 if options.faults else max(total(Count.READS) * 0.03, 100)
    if total(Count.HITS) < least:
        yield "too few hits to say anything"
    if not options.faults and (errors := total(Count.FAILED) + total(Count.RETRIED)):
        yield f"{errors} errors without faults"
    for count, wanted in (Count.READS, options.reads), (Count.TRIGGERS, options.triggers):
        if total(count) < wanted:
            yield f"{total(count)} {count.name.lower()} instead of {wanted}"
    if run.report.undone() == 0 and options.stale_fill == "protect" and not options.careful:
        yield "no stale fill was undone: none was tried, or none was noticed"
    if len(run.faults()) < min(len(options.faults), 3):
        yield "faults did not happen"
