"""Clients for the tests: to the proxy (REDIS_URL), and past it (DIRECT_URL)."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis._parsers import (
    _AsyncHiredisParser,
    _AsyncRESP2Parser,
    _AsyncRESP3Parser,
    _HiredisParser,
    _RESP2Parser,
    _RESP3Parser,
)
from redis.backoff import NoBackoff
from redis.retry import Retry

URL = os.environ["REDIS_URL"]
DIRECT_URL = os.environ["DIRECT_URL"]
THROUGH_PROXY = URL != DIRECT_URL

# How long anything may take before a test gives up. Long, because machines are slow and shared.
PATIENCE = 30

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """A version of the protocol, and who parses it."""

    name: str
    protocol: int
    parser: type
    async_parser: type

    def __str__(self) -> str:
        return self.name


VARIANTS = [
    Variant("resp2", 2, _RESP2Parser, _AsyncRESP2Parser),
    Variant("resp3", 3, _RESP3Parser, _AsyncRESP3Parser),
    Variant("resp2-hiredis", 2, _HiredisParser, _AsyncHiredisParser),
    Variant("resp3-hiredis", 3, _HiredisParser, _AsyncHiredisParser),
]


def options(variant: Variant | None = None, *, db: int = 1, **more: Any) -> dict[str, Any]:
    """For redis.Redis.from_url. By default nothing is tried again: a lost connection must not go unnoticed."""
    patience = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
    chosen: dict[str, Any] = {"db": db, "decode_responses": True} | patience
    if variant:
        chosen |= {"protocol": variant.protocol, "parser_class": variant.parser}
    return chosen | {"retry": Retry(NoBackoff(), 0)} | more


def async_options(variant: Variant, **more: Any) -> dict[str, Any]:
    retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
    return options(variant, **{"parser_class": variant.async_parser, "retry": retry} | more)


def eventually(check: Callable[[], T]) -> T:
    """Waits until `check` gives something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
    return found


def blocked(direct: redis.Redis, count: int = 1) -> None:
    """Waits until so many clients are blocked in Redis."""
    eventually(lambda: direct.info("clients")["blocked_clients"] >= count)
