"""The application's readers: threads that share a pool, read, and fill what was missing after a slow query."""

import random
import threading
import time
from collections import Counter

import redis

from access import UNAVAILABLE, Access
from fills import fill
from keys import Key, Keyspace, Kind, Value
from oracle import Oracle, Read, Tell
from reads import read
from shared import Count, Event, History, Shared

# The oldest miss that is still filled, in seconds, counted from the read that missed. Together with the longest pause
# that the harness makes it is well within `fill_window`.
OLDEST = 1.0
BIG = 300 * 1024


class Reader(threading.Thread):
    """One thread of an application process."""

    def __init__(
        self, shared: Shared, keyspace: Keyspace, access: Access, history: History, actor: int, seed: str, tell: Tell
    ) -> None:
        super().__init__(name=f"reader-{actor}", daemon=True)
        self._shared = shared
        self._keyspace = keyspace
        self._access = access
        self._history = history
        self._actor = actor
        self._rng = random.Random(f"{seed}:reader:{actor}")
        self._oracle = Oracle(shared, history, access, actor, tell)
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        while not self._shared.stopping():
            try:
                self._turn()
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

    def _turn(self) -> None:
        proxy = self._access.current
        keys = self._choose()
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

    def _choose(self) -> list[Key]:
        rng = self._rng
        chance = rng.random()
        if chance < 0.10:
            return self._keyspace.pair(self._post())
        if chance < 0.35:
            keys = [rng.choice(self._keyspace.of[self._post()]) for _ in range(rng.randint(2, 6))]
            return list(dict.fromkeys(key for key in keys if key.kind is not Kind.TRANSACTION)) or self._keyspace.pages
        if chance < 0.45:
            return [rng.choice(self._keyspace.pages)]
        return [rng.choice(self._keyspace.of[self._post()])]

    def _post(self) -> int:
        """Some are popular."""
        if self._keyspace.direct and self._rng.random() < 0.05:
            return self._rng.choice(self._keyspace.direct)
        return int(self._keyspace.posts * self._rng.random() ** 2)

    def _fill(self, missing: list[Key], proxy: int, began: float) -> None:
        rng, shared = self._rng, self._shared
        if rng.random() < 0.05:
            shared.count(self._actor, Count.ABANDONED)
            return
        # One query after the other, as applications do.
        items = []
        for key in missing:
            read_at = time.monotonic()
            version = shared.query(key.object, rng)
            value = Value(key.name, version, self._actor, read_at)
            size = BIG * rng.randint(1, 2) if rng.randrange(200) == 0 else int(2000 * rng.random() ** 3)
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


def run(
    shared: Shared,
    keyspace: Keyspace,
    ports: list[int],
    number: int,
    actors: range,
    seed: str,
    tell: Tell,
) -> None:
    """One application process, until the harness says stop."""
    access = Access(ports, number, protocol=2 + number % 2)
    history = shared.histories[number]
    readers = [Reader(shared, keyspace, access, history, actor, seed, tell) for actor in actors]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
        tell(reader.errors)
