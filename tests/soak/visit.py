"""One look at the cache by the application: read, have it judged, fill what was missing after a slow query."""

import random
import time
from collections import Counter

import redis

from access import UNAVAILABLE, Access
from fills import fill
from keys import BIG, Key, Value
from oracle import Oracle, Read, Tell
from reads import read
from shared import Count, Event, History, Shared

# The oldest miss that is still filled, in seconds, counted from the read that missed. Together with the longest pause
# that the harness makes it is well within `fill_window`.
OLDEST = 1.0
# One miss in so many is never filled. Each makes that the proxy must expect a stale fill until `fill_window` is over.
ABANDONED = 100


class Visitor:
    """Of one thread."""

    def __init__(
        self, shared: Shared, access: Access, history: History, actor: int, rng: random.Random, tell: Tell
    ) -> None:
        self._shared = shared
        self._access = access
        self._history = history
        self._actor = actor
        self._rng = rng
        self._oracle = Oracle(shared, history, access, actor, tell)
        self.errors: Counter[str] = Counter()

    def visit(self, keys: list[Key], proxy: int) -> None:
        """Errors are counted, and end it."""
        try:
            self._visit(keys, proxy)
        except UNAVAILABLE as error:
            self._failed(error)
            time.sleep(self._rng.uniform(0.005, 0.03))
        except redis.ResponseError as error:
            # Redis is loading, or the proxy has lost it.
            self._failed(error)
            time.sleep(self._rng.uniform(0.005, 0.03))

    def _failed(self, error: Exception) -> None:
        self._shared.count(self._actor, Count.FAILED)
        self.errors[f"{type(error).__name__}: {error}"[:120]] += 1

    def _visit(self, keys: list[Key], proxy: int) -> None:
        floors = self._oracle.floors(keys)
        began = time.monotonic()
        try:
            how, values = read(self._access.client(proxy), keys, self._rng)
        except UNAVAILABLE as error:
            self._access.after(error, proxy)
            raise
        missing = self._oracle.judge(Read(how, keys, floors, values, proxy, began, time.monotonic()))
        if missing:
            with self._shared.alone_with(key.object for key in missing):
                self._fill(missing, proxy, began)

    def _fill(self, missing: list[Key], proxy: int, began: float) -> None:
        rng, shared = self._rng, self._shared
        if rng.randrange(ABANDONED) == 0:
            shared.count(self._actor, Count.ABANDONED, len(missing))
            return
        # One query after the other, as applications do.
        found = []
        for key in missing:
            read_at = time.monotonic()
            version = shared.query(key.object, rng)
            size = BIG * rng.randint(1, 2) if rng.randrange(200) == 0 else int(2000 * rng.random() ** 3)
            found.append((key, version, read_at, size))
        big = any(size >= BIG for *_, size in found)
        items = []
        for key, version, read_at, size in found:
            value = Value(key.name, version, self._actor, read_at, big)
            items.append((key, value, value.encode(size)))
        tries = 0
        while time.monotonic() - began < OLDEST and not shared.stopping():
            tries += 1
            try:
                self._write(items, proxy, tries)
                return
            except UNAVAILABLE as error:
                self._failed(error)
                # The one place where a fill goes to another proxy than its miss.
                proxy = self._access.after(error, proxy)
                time.sleep(rng.uniform(0.001, 0.02))
        shared.count(self._actor, Count.ABANDONED, len(items))

    def _write(self, items: list[tuple[Key, Value, str]], proxy: int, tries: int) -> None:
        began = time.monotonic()
        try:
            how = fill(self._access.client(proxy), [(key, text) for key, _, text in items], self._rng)
            outcome = f"fill {how}"
            self._shared.count(self._actor, Count.FILLS, len(items))
        except redis.RedisError as error:
            outcome = f"fill not answered: {error}"
            raise
        finally:
            ended = time.monotonic()
            for key, value, _ in items:
                what = f"{outcome} {'again' if tries > 1 else ''}"
                self._note(began, ended, key, value.version, 0, proxy, what)

    def _note(self, began: float, ended: float, key: Key, version: int, floor: int, proxy: int, what: str) -> None:
        self._history.note(Event(began, ended, key.object, version, floor, self._actor, proxy, f"{key.short} {what}"))
