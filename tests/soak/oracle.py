"""The oracle: a read that starts after a trigger was acknowledged never returns a value older than the commit before
that trigger."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import redis

from access import Access
from keys import Key, Value
from shared import Count, Event, History, Shared

# For how long a stale value may be seen that is big: no script can hold it, and a short window is documented.
WINDOW = 5.0


@dataclass(frozen=True)
class Violation:
    """A read that must not have been."""

    seen: float
    key: Key
    value: Value
    text: str


# What a process tells the harness: violations at once, its errors at its end.
Tell = Callable[["Violation | Counter[str]"], None]


@dataclass(frozen=True)
class Read:
    """A read that was answered. The floors were noted before it began: what was acknowledged of each key's object."""

    how: str
    keys: list[Key]
    floors: list[int]
    values: list[bytes | None]
    proxy: int
    began: float
    ended: float


class Oracle:
    """Of one thread."""

    def __init__(self, shared: Shared, history: History, access: Access, actor: int, tell: Tell) -> None:
        self._shared = shared
        self._history = history
        self._access = access
        self._actor = actor
        self.tell = tell

    def floors(self, keys: list[Key]) -> list[int]:
        return [self._shared.acknowledged[key.object] for key in keys]

    def judge(self, read: Read) -> list[Key]:
        """What was missing."""
        missing = []
        for key, floor, data in zip(read.keys, read.floors, read.values, strict=True):
            self._shared.count(self._actor, Count.READS)
            if data is None:
                self._shared.count(self._actor, Count.MISSES)
                self._note(read, key, 0, floor, "miss")
                missing.append(key)
            else:
                self._shared.count(self._actor, Count.HITS)
                try:
                    value = Value.decode(data)
                except (AttributeError, ValueError) as error:
                    what = f"{read.how} at proxy {read.proxy} from {read.began:.6f} to {read.ended:.6f}"
                    raise AssertionError(f"no reply to {what}: {read.keys} gave {read.values}"[:2000]) from error
                self._note(read, key, value.version, floor, "hit")
                self._hit(read, key, value, floor)
        return missing

    def _hit(self, read: Read, key: Key, value: Value, floor: int) -> None:
        how = f"{read.how} at proxy {read.proxy} from {read.began:.6f} to {read.ended:.6f}"
        if value.key != key.name:
            self._violation(key, value, f"{key.name} has the value of {value.key}: {how}")
        elif value.version < floor:
            if value.big and self._vanishes(key, value, read.proxy):
                self._shared.count(self._actor, Count.TOLERATED)
                return
            self._violation(key, value, f"{key.name}: {value}; acknowledged before the read: {floor}; {how}")

    def _vanishes(self, key: Key, value: Value, proxy: int) -> bool:
        """Whether a stale value goes by itself."""
        deadline = time.monotonic() + WINDOW
        while time.monotonic() < deadline:
            try:
                data = self._access.client(proxy).get(key.name)
                if data is None or Value.decode(data) != value:
                    return True
            except redis.RedisError:
                proxy = self._access.current
            time.sleep(0.05)
        return False

    def _violation(self, key: Key, value: Value, text: str) -> None:
        self._shared.count(self._actor, Count.VIOLATIONS)
        self.tell(Violation(time.monotonic(), key, value, text))

    def _note(self, read: Read, key: Key, version: int, floor: int, what: str) -> None:
        what = f"{key.short} {what} {read.how}"
        self._history.note(Event(read.began, read.ended, key.object, version, floor, self._actor, read.proxy, what))
