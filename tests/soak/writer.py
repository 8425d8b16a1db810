"""The application's writers: they commit to the database, then fire a trigger until it is acknowledged."""

import random
import threading
import time
from collections import Counter

import redis

import triggers
from access import Access, connect
from keys import Key, Keyspace, Kind, Value
from oracle import Tell, Violation
from shared import Count, Event, Shared
from triggers import Fire, Target
from visit import Visitor

# HTTP errors are OSErrors.
NOT_ACKNOWLEDGED = (redis.RedisError, triggers.Refused, OSError)
# A trigger past the proxies has no acknowledgement; seen so late, it was not seen.
NOTICED = 20.0


class Database:
    """Commits: the one place where versions are counted. Of the writers' process alone."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._lock = threading.Lock()

    def commit(self, objects: list[int]) -> None:
        with self._lock:
            for obj in objects:
                self._shared.committed[obj] += 1

    def versions(self, objects: list[int]) -> dict[int, int]:
        return {obj: self._shared.committed[obj] for obj in objects}

    def acknowledged(self, versions: dict[int, int]) -> None:
        with self._lock:
            for obj, version in versions.items():
                self._shared.acknowledged[obj] = max(self._shared.acknowledged[obj], version)


class Writer(threading.Thread):
    """One thread of the writers' process."""

    def __init__(self, shop: "Shop", actor: int) -> None:
        super().__init__(name=f"writer-{actor}", daemon=True)
        self._shop = shop
        self._shared = shop.shared
        self._actor = actor
        self._rng = random.Random(f"{shop.seed}:writer:{actor}")
        self._visitor = Visitor(shop.shared, shop.access, shop.history, actor, self._rng, shop.tell)
        self.errors: Counter[str] = self._visitor.errors

    def run(self) -> None:
        while not self._shared.stopping():
            if self._shop.ahead():
                time.sleep(0.002)
            else:
                self._turn()

    def _turn(self) -> None:
        rng, shop = self._rng, self._shop
        posts = sorted({self._post() for _ in range(1 if rng.random() < 0.8 else rng.randint(2, 4))})
        with_pages = rng.random() < 0.3
        objects = [*posts, shop.keyspace.home] if with_pages else posts
        time.sleep(self._shared.latency.draw(rng))
        with self._shared.alone_with(objects):
            shop.database.commit(objects)
            self._note(objects, time.monotonic(), -1, "commit")
            if rng.random() < 0.2:
                time.sleep(self._shared.latency.draw(rng))
            self.until_acknowledged(posts, objects)
        self._shared.count(self._actor, Count.TRIGGERS)
        if rng.random() < 0.5:
            self._look(objects)

    def _look(self, objects: list[int]) -> None:
        """Reads at once, through any proxy, what was just invalidated."""
        keys = [key for key in self._shop.keyspace.of[self._rng.choice(objects)] if key.kind is not Kind.TRANSACTION]
        self._visitor.visit(keys, self._shop.access.any(self._rng))

    def _post(self) -> int:
        return int(self._shop.keyspace.posts * self._rng.random() ** 2)

    def until_acknowledged(self, posts: list[int], objects: list[int]) -> None:
        with_pages = self._shop.keyspace.home in objects
        while not self._fire(self._shop.choose(self._rng, with_pages), posts, objects):
            # What failed may have happened or not: nothing is known until one is acknowledged.
            self._shared.count(self._actor, Count.RETRIED)
            time.sleep(self._rng.uniform(0.005, 0.05))

    def _fire(self, fire: Fire, posts: list[int], objects: list[int]) -> bool:
        shop, proxy = self._shop, self._shop.access.any(self._rng)
        # Whatever was committed before the trigger is covered by it, by whomever.
        versions = shop.database.versions(objects)
        began = time.monotonic()
        try:
            fire(Target(shop.access.client(proxy), shop.admins[proxy]), posts)
        except NOT_ACKNOWLEDGED as error:
            self.errors[f"{fire.__name__[:12]} {type(error).__name__}: {error}"[:120]] += 1
            self._note(objects, began, proxy, f"not acknowledged: {fire.__name__} {error}")
            return False
        shop.database.acknowledged(versions)
        self._note(objects, began, proxy, f"acknowledged: {fire.__name__}")
        return True

    def _note(self, objects: list[int], began: float, proxy: int, what: str) -> None:
        for obj in objects:
            version = self._shared.committed[obj]
            floor = self._shared.acknowledged[obj]
            now = time.monotonic()
            self._shop.history.note(Event(began, now, obj, version, floor, self._actor, proxy, what))


class DirectWriter(Writer):
    """Changes one post by triggers that go past the proxies, and looks whether its keys follow."""

    def __init__(self, shop: "Shop", actor: int, post: int) -> None:
        super().__init__(shop, actor)
        self._post_number = post
        self._redis = connect(shop.redis)

    def run(self) -> None:
        while not self._shared.stopping():
            self._shop.database.commit([self._post_number])
            began = time.monotonic()
            try:
                triggers.direct(self._redis, self._post_number, self._rng)
            except redis.RedisError as error:
                self.errors[f"direct {type(error).__name__}: {error}"[:120]] += 1
                self.until_acknowledged([self._post_number], [self._post_number])
                continue
            self._note([self._post_number], began, -1, "direct trigger")
            self._follow(began)
            time.sleep(self._rng.uniform(0.05, 0.3))
        if self._shop.faults:
            # The trigger may have been lost with a Redis or a feed.
            self.until_acknowledged([self._post_number], [self._post_number])

    def _follow(self, began: float) -> None:
        version = self._shared.committed[self._post_number]
        while (stale := self._stale(version)) and not self._shared.stopping():
            if time.monotonic() - began > (NOTICED / 4 if self._shop.faults else NOTICED):
                if not self._shop.faults:
                    text = f"a trigger past the proxies for version {version} was not noticed: {stale}"
                    self._shared.count(self._actor, Count.VIOLATIONS)
                    self._shop.tell(Violation(time.monotonic(), *stale, text))
                self.until_acknowledged([self._post_number], [self._post_number])
                return
            time.sleep(0.02)
        self._shared.count(self._actor, Count.DIRECT)

    def _stale(self, version: int) -> tuple[Key, Value] | None:
        """What is in Redis and older than it should be."""
        for key in self._shop.keyspace.of[self._post_number]:
            try:
                data = self._redis.hget(key.name, "value") if key.is_hash else self._redis.get(key.name)
            except redis.RedisError:
                continue
            if data and (value := Value.decode(data)).version < version:
                return key, value
        return None


class Shop:
    """What the writers share."""

    def __init__(
        self, shared: Shared, keyspace: Keyspace, ports: list[int], admins: list[int], redis_port: int, tell: Tell
    ) -> None:
        self.shared = shared
        self.keyspace = keyspace
        self.access = Access(ports, 0, protocol=2)
        self.admins = admins
        self.redis = redis_port
        self.tell = tell
        self.database = Database(shared)
        self.history = shared.histories[-1]
        self.seed = ""
        self.faults = False
        self.naive = False
        # Triggers per read.
        self.ratio = 0.04

    def ahead(self) -> bool:
        """Whether there have been enough triggers for the reads so far."""
        return self.shared.total(Count.TRIGGERS) > self.shared.total(Count.READS) * self.ratio

    def choose(self, rng: random.Random, with_pages: bool) -> Fire:
        return triggers.naive(self.keyspace, with_pages) if self.naive else triggers.choose(rng, with_pages)


def run(shop: Shop, actors: range) -> None:
    """The writers' process, until the harness says stop."""
    direct = list(shop.keyspace.direct)
    writers = [DirectWriter(shop, actor, post) for actor, post in zip(actors, direct, strict=False)]
    threads: list[Writer] = [*writers, *[Writer(shop, actor) for actor in actors[len(direct) :]]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
        shop.tell(thread.errors)
