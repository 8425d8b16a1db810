"""What is printed: progress, violations with the history around them, the summary."""

import multiprocessing
import re
import time
from collections import Counter
from multiprocessing.queues import SimpleQueue

from faults import Site
from keys import Key, Value
from oracle import Violation
from servers import Proxy
from shared import Count, Event, Shared

# So many stale values are shown with their history, and so many at all.
SHOWN = 4
MOST_SHOWN = 40
LINES = 60
FEW = 12
# In errors that say that a request or a reply was not the one that was meant.
ODD = ["WRONGTYPE", "wrong kind of value", "unknown command", "syntax", "wrong number of arguments", "rotocol"]
# Events of one key.
OF_KEYS = ["hit", "miss", "fill"]
METRICS = ["invalidations", "invalidated_keys", "evictions", "expirations", "feed_gaps"]


class Report:
    """Gathers what the processes and the proxies tell."""

    def __init__(self, shared: Shared, quiet: bool) -> None:
        self.queue: SimpleQueue[Violation | Counter[str]] = multiprocessing.get_context("fork").SimpleQueue()
        self.errors: Counter[str] = Counter()
        self.violations = 0
        self.tolerated = 0
        self._known: set[tuple[Key, Value]] = set()
        # How stale values were filled.
        self.kinds: Counter[str] = Counter()
        self._quiet = quiet
        self.metrics: Counter[str] = Counter()
        self._latest: dict[int, tuple[int, dict[str, float]]] = {}
        self._shared = shared
        self.start()

    def start(self) -> None:
        self._began = self._printed = time.monotonic()

    def drain(self, site: Site) -> None:
        while not self.queue.empty():
            told = self.queue.get()
            if isinstance(told, Counter):
                for text, count in told.items():
                    # The same error at whatever port.
                    self.errors[re.sub(r":\d{4,5}\b", "", text)] += count
            elif any(begin - 5 < told.seen and told.value.filled < end for begin, end in site.blind):
                self.tolerated += 1
            elif any(begin < told.seen < end for begin, end in site.evicting):
                self.tolerated += 1
            else:
                self._violation(told)

    def _violation(self, violation: Violation) -> None:
        self.violations += 1
        # A stale value is read again and again; the first time tells it all.
        value = (violation.key, violation.value)
        if value in self._known:
            return
        self._known.add(value)
        if self._quiet or len(self._known) > MOST_SHOWN:
            return
        print(f"VIOLATION at {violation.seen:.6f}: {violation.text}", flush=True)
        # What is under way gets into the history when it ends.
        time.sleep(0.4)
        events = self._shared.around({violation.key.object}, violation.value.filled - 1, violation.seen + 0.4)
        events = _relevant(events, violation)
        fills = [e for e in events if _is_fill(e, violation)]
        how = fills[-1].what if fills else f"{violation.key.short} fill not in the history"
        self.kinds[how + (", not answered yet" if fills and fills[-1].ended > violation.seen else "")] += 1
        events = [e for e in events if e.ended < violation.seen + 0.01 or e in fills]
        shown = events[-LINES:] if len(self._known) <= SHOWN else [e for e in events if _matters(e)][-FEW:]
        for event in [*(e for e in fills if e not in shown), *shown]:
            print("   ", "*" if event in fills else " ", _line(event))

    def look(self, proxies: list[Proxy]) -> None:
        """Adds up the counters, over restarts."""
        for proxy in proxies:
            proxy.look_at_memory()
            pid = proxy.process.pid
            now = proxy.metrics()
            if not now or proxy.process.pid != pid:
                continue
            known, before = self._latest.get(proxy.number, (pid, {}))
            for name, value in now.items():
                self.metrics[name] += value - (before.get(name, 0) if known == pid else 0)  # type: ignore[assignment]
            self._latest[proxy.number] = pid, now

    def stale_values(self) -> int:
        return len(self._known)

    def undone(self) -> int:
        return int(self.metrics["rescind_stale_fills_total"])

    def progress(self, done: Counter[str], every: float) -> None:
        now = time.monotonic()
        if now - self._printed < every:
            return
        self._printed = now
        print(f"{now - self._began:5.0f} s  {self.counts()}  faults {sum(done.values())}", flush=True)

    def counts(self) -> str:
        shown = {count.name.lower(): self._shared.total(count) for count in Count}
        # Without those that are documented; and said also if there are none.
        shown = {name: count for name, count in shown.items() if count} | {"violations": self.violations}
        parts = [f"{name} {count}" for name, count in shown.items()]
        return ", ".join([*parts, f"stale fills undone {self.undone()}"])

    def odd_errors(self) -> list[str]:
        """What no fault explains."""
        return [f"{n} times: {text}" for text, n in self.errors.items() if any(word in text for word in ODD)]

    def summary(self, done: Counter[str], proxies: list[Proxy]) -> None:
        seconds = time.monotonic() - self._began
        print(f"== {seconds:.0f} s: {self.counts()}")
        if self.metrics:
            counted = [f"{name} {self.metrics[f'rescind_{name}_total']:.0f}" for name in METRICS]
            print("   proxies: " + ", ".join(counted))
        if proxies:
            peaks = ", ".join(f"{proxy.peak_kib >> 10} MiB" for proxy in proxies)
            print(f"   memory of the proxies, at most: {peaks}")
        if done:
            print("   faults: " + ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
        if self.kinds:
            print("   stale values: " + ", ".join(f"{name} {count}" for name, count in self.kinds.most_common()))
        for text, count in self.errors.most_common(8):
            print(f"   {count} times: {text}")
        if self.tolerated:
            print(f"   {self.tolerated} stale reads while events were off, after SWAPDB, or while epochs were evicted: documented")


def _relevant(events: list[Event], violation: Violation) -> list[Event]:
    """What happened to the key itself, and to all keys of its object."""
    name = violation.key.short + " "
    return [e for e in events if e.what.startswith(name) or not any(f" {what} " in e.what for what in OF_KEYS)]


def _is_fill(event: Event, violation: Violation) -> bool:
    value = violation.value
    same = (event.actor, event.version) == (value.actor, value.version) and event.began >= value.filled
    return same and " fill " in event.what


def _matters(event: Event) -> bool:
    return " hit " not in event.what


def _line(event: Event) -> str:
    where = f"proxy {event.proxy}" if event.proxy >= 0 else ""
    version = f"version {event.version}" if event.version else ""
    return f"{event.began:.6f} to {event.ended:.6f}  {event.what:45} {version:14} actor {event.actor} {where}"
