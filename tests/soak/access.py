"""The way of an application process to the cache: pools of redis-py, one per proxy, one of them in use."""

import random
import threading
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# Longer than a writer waits for its fan-out, and than any pause that the harness makes.
PATIENCE = 20
# Who is not there, or not any more, or is not ready.
UNAVAILABLE = (redis.ConnectionError, redis.TimeoutError)


def connect(port: int, protocol: int = 2, **more: Any) -> redis.Redis:
    """Nothing is tried again behind the harness's back: it must know how old a fill is."""
    return redis.Redis(
        port=port,
        protocol=protocol,
        socket_timeout=PATIENCE,
        socket_connect_timeout=PATIENCE,
        retry=Retry(NoBackoff(), 0),
        **more,
    )


def refused(error: BaseException) -> bool:
    """Nobody listens there: the proxy is dead, not merely slow."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionRefusedError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


class Access:
    """One process's pools, shared by its threads."""

    def __init__(self, ports: list[int], first: int, protocol: int) -> None:
        self._clients = [connect(port, protocol) for port in ports]
        self._lock = threading.Lock()
        self.current = first % len(ports)

    def client(self, proxy: int) -> redis.Redis:
        return self._clients[proxy]

    def any(self, rng: random.Random) -> int:
        return rng.randrange(len(self._clients))

    def after(self, error: BaseException, proxy: int) -> int:
        """Where to go on after an error at `proxy`: elsewhere if it is dead."""
        if not refused(error) or len(self._clients) == 1:
            return proxy
        with self._lock:
            if self.current == proxy:
                self.current = (proxy + 1) % len(self._clients)
            return self.current
