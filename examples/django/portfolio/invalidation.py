"""Tells the cache which objects changed. The pages they are on stand in proxy.toml."""

import logging
from collections.abc import Callable, Iterable

from django.core.cache import cache
from django.db import models, transaction

logger = logging.getLogger(__name__)

TRIGGER_TIMEOUT = 60  # seconds; the write matters, not the value it leaves behind


def trigger_key(model: type[models.Model], pk: object) -> str:
    return f"model:{model.__name__}:{pk}"


def announce(model: type[models.Model], pk: object, using: str) -> None:
    """Writes the object's trigger key once the change is committed."""
    # The key is made now: after a delete, Django sets the instance's pk to None.
    key = trigger_key(model, pk)
    _after_commit(lambda: _write(key), using)


def announce_many(
    model: type[models.Model], pks: Iterable[object], using: str = "default"
) -> None:
    """For `QuerySet.update()` and `bulk_create()`, which send no signals."""
    keys = {trigger_key(model, pk): 1 for pk in pks}
    _after_commit(lambda: cache.set_many(keys, timeout=TRIGGER_TIMEOUT), using)


def _write(key: str) -> None:
    # With IGNORE_EXCEPTIONS, an unreachable cache shows as None.
    if not cache.set(key, 1, timeout=TRIGGER_TIMEOUT):
        logger.error("%s not announced: cached pages are stale until they expire", key)


def _after_commit(write: Callable[[], object], using: str) -> None:
    """`robust`: what is committed stays committed, whatever the cache does."""
    # Not for a functools.partial: Django's report of a failure asks for __qualname__.
    transaction.on_commit(write, using=using, robust=True)
