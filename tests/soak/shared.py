"""What all processes of the application see: the database, what was acknowledged, counters, a history.

It lies in memory that is shared by fork. Each cell has one writer at a time: committed and acknowledged versions are
written by the writers' process alone, a row of counters by one thread, a ring of the history by one process.
"""

import itertools
import mmap
import multiprocessing
import random
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Count(IntEnum):
    """Columns of the counters."""

    READS = 0
    HITS = 1
    MISSES = 2
    FILLS = 3
    ABANDONED = 4
    FAILED = 5
    TRIGGERS = 6
    RETRIED = 7
    DIRECT = 8
    VIOLATIONS = 9
    TOLERATED = 10


class Event(NamedTuple):
    """A line of the history: an operation from its begin to its end."""

    began: float
    ended: float
    object: int
    version: int
    # Of a read: what was acknowledged before it began.
    floor: int
    actor: int
    proxy: int
    what: str


RECORD = struct.Struct("<ddqqqii48s")
RING = 1 << 15
# The object of events that concern all.
ANY = -1


class History:
    """A ring of the latest events of one process."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._next = itertools.count(1)

    def note(self, event: Event) -> None:
        place = next(self._next) % RING * RECORD.size
        RECORD.pack_into(self._memory, place, *event[:-1], event.what.encode()[:48])

    def events(self, objects: set[int], begin: float, end: float) -> Iterator[Event]:
        for fields in RECORD.iter_unpack(self._memory):
            if fields[2] in objects and begin <= fields[1] <= end:
                yield Event._make((*fields[:-1], fields[-1].rstrip(b"\0").decode(errors="replace").strip()))


@dataclass(frozen=True)
class Latency:
    """Of the database, in seconds."""

    least: float = 0.0005
    most: float = 0.005
    # One in so many is slow.
    slow_one_in: int = 60
    slowest: float = 0.4

    def draw(self, rng: random.Random) -> float:
        if rng.randrange(self.slow_one_in) == 0:
            return rng.uniform(self.most, self.slowest)
        return rng.uniform(self.least, self.most)


class Shared:
    """Made before the processes are forked."""

    def __init__(self, objects: int, actors: int, processes: int, careful: bool) -> None:
        # Anonymous memory is shared with forked processes.
        self._cells = memoryview(mmap.mmap(-1, 8 * (1 + 2 * objects + actors * len(Count)))).cast("Q")
        self._stop = self._cells[:1]
        self.committed = self._cells[1 : 1 + objects]
        self.acknowledged = self._cells[1 + objects : 1 + 2 * objects]
        self._counters = self._cells[1 + 2 * objects :]
        self.latency = Latency()
        self.locks = [multiprocessing.get_context("fork").Lock() for _ in range(objects)] if careful else []
        rings = memoryview(mmap.mmap(-1, processes * RING * RECORD.size))
        size = RING * RECORD.size
        self.histories = [History(rings[size * i : size * (i + 1)]) for i in range(processes)]

    def stop(self) -> None:
        self._stop[0] = 1

    def stopping(self) -> bool:
        return self._stop[0] != 0

    def count(self, actor: int, what: Count, more: int = 1) -> None:
        self._counters[actor * len(Count) + what] += more

    def total(self, what: Count) -> int:
        return sum(self._counters[what :: len(Count)])

    @contextmanager
    def alone_with(self, objects: Iterable[int]) -> Iterator[None]:
        """Of a careful application: fills and changes of an object exclude each other. Of others: nothing."""
        with ExitStack() as stack:
            for obj in sorted(set(objects)):
                if self.locks:
                    stack.enter_context(self.locks[obj])
            yield

    def query(self, obj: int, rng: random.Random) -> int:
        """A slow read of the database: the value is that of some moment in between."""
        time.sleep(self.latency.draw(rng))
        version = self.committed[obj]
        time.sleep(self.latency.draw(rng))
        return version

    def around(self, objects: set[int], begin: float, end: float) -> list[Event]:
        """The history of some objects, and of the faults."""
        wanted = objects | {ANY}
        found = itertools.chain.from_iterable(history.events(wanted, begin, end) for history in self.histories)
        return sorted(found, key=lambda event: event.ended)
