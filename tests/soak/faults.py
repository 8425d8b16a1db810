"""What goes wrong, at random: small faults and heavy ones, each kind in a thread of its own, so that they overlap."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import redis

from access import connect
from servers import Proxy, Redis, Trouble
from shared import ANY, Event, History


class Site:
    """The servers as they are now."""

    def __init__(self, redis_server: Redis, proxies: list[Proxy], history: History) -> None:
        self.redis = redis_server
        self.replica: Redis | None = None
        self.proxies = proxies
        self.history = history
        self.replicas = 0
        # Until when a fault that nobody can see at once may hide writes from the proxies, by its documentation.
        self.blind: list[tuple[float, float]] = []
        # When epochs were evicted: a stale fill may be seen then, until the proxies have dealt with that.
        self.evicting: list[tuple[float, float]] = []

    def add_replica(self, port: int) -> None:
        self.replicas += 1
        folder = self.redis.folder.parent / f"redis-{self.replicas}"
        self.replica = Redis(folder, port, master=self.redis.port)

    def note(self, what: str) -> None:
        now = time.monotonic()
        self.history.note(Event(now, now, ANY, 0, 0, -1, -1, f"fault: {what}"))


BALLAST = 100
BALLAST_SIZE = 32 * 1024

Fault = Callable[[Site, random.Random], None]


def _pause_length(rng: random.Random) -> float:
    return rng.uniform(0.1, 2) if rng.random() < 0.1 else rng.uniform(0.005, 0.1)


def pause_proxy(site: Site, rng: random.Random) -> None:
    proxy = rng.choice(site.proxies)
    length = _pause_length(rng)
    site.note(f"{proxy.name} paused for {length:.3f} s")
    proxy.pause(length)


def pause_redis(site: Site, rng: random.Random) -> None:
    length = _pause_length(rng)
    site.note(f"redis paused for {length:.3f} s")
    site.redis.pause(length)


def kill_connections(site: Site, rng: random.Random) -> None:
    """Any but those of replicas."""
    clients = [c for c in site.redis.admin.client_list() if "S" not in c["flags"]]
    for client in rng.sample(clients, min(len(clients), rng.randint(1, 4))):
        site.note(f"connection killed: {client.get('lib-name', '')} {client['cmd']}")
        site.redis.admin.client_kill_filter(_id=client["id"])


def kill_feeds(site: Site, rng: random.Random) -> None:
    site.note("feeds killed")
    site.redis.admin.client_kill_filter(_type="pubsub")


def events_off(site: Site, rng: random.Random) -> None:
    began = time.monotonic()
    site.note("notify-keyspace-events off")
    site.redis.admin.config_set("notify-keyspace-events", "")
    # The proxies look once a second.
    site.blind.append((began, began + 5))


def flush(site: Site, rng: random.Random) -> None:
    port = rng.choice([site.redis.port, rng.choice(site.proxies).listen])
    site.note(f"FLUSHDB at port {port}")
    connect(port).flushdb()


def script_flush(site: Site, rng: random.Random) -> None:
    site.note("SCRIPT FLUSH")
    site.redis.admin.script_flush()


def swap(site: Site, rng: random.Random) -> None:
    """The cache is away for a time, and comes back as it was."""
    for _ in range(2):
        began = time.monotonic()
        site.note("SWAPDB 0 9")
        site.redis.admin.swapdb(0, 9)
        # Nothing shows it but the count of commands, once a second.
        site.blind.append((began, began + 5))
        time.sleep(rng.uniform(3, 6))


def evict(site: Site, rng: random.Random) -> None:
    """Some of everything goes: cached values, epochs, labels."""
    admin = site.redis.admin
    policy = rng.choice(["allkeys-lru", "allkeys-random", "allkeys-lfu"])
    site.note(f"maxmemory with {policy}")
    began = time.monotonic()
    site.evicting.append((began, began + 3600))
    # Something big to give way, or Redis would refuse to write.
    with admin.pipeline(transaction=False) as pipe:
        for number in range(BALLAST):
            pipe.set(f"ballast:{number}", bytes(BALLAST_SIZE))
        pipe.execute()
    admin.config_set("maxmemory-policy", policy)
    admin.config_set("maxmemory", admin.info("memory")["used_memory"] - BALLAST * BALLAST_SIZE // 2)
    try:
        time.sleep(rng.uniform(0.2, 2))
    finally:
        site.redis.admin.config_set("maxmemory", 0)
        site.evicting[-1] = (began, time.monotonic() + 1)


def reload(site: Site, rng: random.Random) -> None:
    site.note("DEBUG RELOAD")
    site.redis.admin.execute_command("DEBUG", "RELOAD")


def kill_proxy(site: Site, rng: random.Random) -> None:
    proxies = site.proxies if rng.random() < 0.15 else [rng.choice(site.proxies)]
    _restart(site, rng, proxies, signal.SIGKILL)


def stop_proxy(site: Site, rng: random.Random) -> None:
    """In an orderly way."""
    proxy = rng.choice(site.proxies)
    # Before it has begun, SIGTERM simply ends it.
    proxy.ready()
    _restart(site, rng, [proxy], signal.SIGTERM)


def _restart(site: Site, rng: random.Random, proxies: list[Proxy], number: signal.Signals) -> None:
    for proxy in proxies:
        site.note(f"{proxy.name} gets {number.name}")
        code = proxy.end(number)
        if number is signal.SIGTERM and code != 0:
            raise Trouble(f"{proxy.name} ended with {code} after SIGTERM")
    time.sleep(rng.choice([0, rng.uniform(0, 1)]))
    for proxy in proxies:
        proxy.start()
        site.note(f"{proxy.name} started")


def kill_redis(site: Site, rng: random.Random) -> None:
    """It comes back empty; sometimes the proxies end at the same time."""
    proxies = [proxy for proxy in site.proxies if rng.random() < 0.15]
    _restart_redis(site, rng, None, proxies)


def old_snapshot(site: Site, rng: random.Random) -> None:
    """Redis comes back with data from before invalidations."""
    snapshot = site.redis.snapshot()
    site.note("SAVE")
    time.sleep(rng.uniform(0.2, 5))
    proxies = [proxy for proxy in site.proxies if rng.random() < 0.15]
    _restart_redis(site, rng, snapshot, proxies)


def _restart_redis(site: Site, rng: random.Random, data: object, proxies: list[Proxy]) -> None:
    server = site.redis
    for proxy in proxies:
        site.note(f"{proxy.name} gets SIGKILL")
        proxy.end()
    site.note("redis killed")
    server.end()
    server.restore(data)  # type: ignore[arg-type]
    time.sleep(rng.uniform(0, 0.5))
    server.start()
    site.note(f"redis started with {'old data' if data else 'nothing'}")
    for proxy in proxies:
        proxy.start()
        site.note(f"{proxy.name} started")
    server.ready()


def failover(site: Site, rng: random.Random) -> None:
    """A replica that has not got all takes over."""
    replica, master = site.replica, site.redis
    if replica is None:
        raise Trouble("no replica")
    deadline = time.monotonic() + 20
    while not replica.follows():
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    replica.admin.execute_command("REPLICAOF", "NO", "ONE")
    site.note("the replica is behind")
    time.sleep(rng.uniform(0, 0.7))
    site.note("the master is killed")
    master.end()
    port, spare = master.port, replica.port
    time.sleep(rng.uniform(0, 0.3))
    replica.promote(port)
    site.redis = replica
    site.note("the replica serves")
    site.add_replica(spare)


# With weights.
LIGHT: dict[str, tuple[int, Fault]] = {
    "pause-proxy": (20, pause_proxy),
    "pause-redis": (12, pause_redis),
    "kill-connections": (12, kill_connections),
    "kill-feeds": (8, kill_feeds),
    "events-off": (1, events_off),
    "flush": (4, flush),
    "script-flush": (4, script_flush),
    "swapdb": (1, swap),
    "evict": (8, evict),
    "reload": (3, reload),
}
HEAVY: dict[str, tuple[int, Fault]] = {
    "kill-proxy": (10, kill_proxy),
    "stop-proxy": (3, stop_proxy),
    "kill-redis": (3, kill_redis),
    "snapshot": (4, old_snapshot),
    "failover": (4, failover),
}


class Troublemaker(threading.Thread):
    """Does faults of one weight class, at random times, until told to stop."""

    def __init__(self, site: Site, table: dict[str, tuple[int, Fault]], chosen: list[str], every: float, seed: str):
        super().__init__(name="faults", daemon=True)
        self._site = site
        self._rng = random.Random(f"{seed}:faults:{','.join(table)}")
        # Each once at first, so that none is left out.
        self._next = self._rng.sample(chosen, len(chosen))
        self._table = table
        self._chosen = chosen
        self._every = every
        self._end = threading.Event()
        self.done: Counter[str] = Counter()
        self.trouble: list[str] = []

    def run(self) -> None:
        while not self._end.wait(self._rng.expovariate(1 / self._every)):
            name = self._next.pop() if self._next else self._draw()
            try:
                self._table[name][1](self._site, self._rng)
                self.done[name] += 1
            except (redis.RedisError, OSError):
                # Redis is being restarted by the other thread.
                continue
            except Trouble as trouble:
                self.trouble.append(f"{name}: {trouble}")
                return

    def _draw(self) -> str:
        weights = [self._table[name][0] for name in self._chosen]
        return self._rng.choices(self._chosen, weights)[0]

    def stop(self) -> None:
        self._end.set()
        self.join()
