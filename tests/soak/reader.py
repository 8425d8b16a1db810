"""The application's readers: threads that share a pool."""

import random
import threading

from access import Access
from keys import Key, Keyspace, Kind
from oracle import Tell
from shared import Shared
from visit import Visitor


class Reader(threading.Thread):
    """One thread of an application process."""

    def __init__(
        self, shared: Shared, keyspace: Keyspace, access: Access, visitor: Visitor, rng: random.Random
    ) -> None:
        super().__init__(daemon=True)
        self._shared = shared
        self._keyspace = keyspace
        self._access = access
        self._rng = rng
        self.visitor = visitor

    def run(self) -> None:
        while not self._shared.stopping():
            self.visitor.visit(self._choose(), self._access.current)

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
    readers = []
    for actor in actors:
        rng = random.Random(f"{seed}:reader:{actor}")
        visitor = Visitor(shared, access, history, actor, rng, tell)
        readers.append(Reader(shared, keyspace, access, visitor, rng))
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
        tell(reader.visitor.errors)
