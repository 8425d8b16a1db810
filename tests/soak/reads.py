"""The ways to read."""

import random
from typing import Any

import redis

from keys import Key, Kind

# Bytes, or None; the annotations of redis-py do not know that nothing is decoded here.
Data = Any


def read(client: redis.Redis, keys: list[Key], rng: random.Random) -> tuple[str, list[Data]]:
    """How it was read, and the value of each key."""
    if len(keys) > 1 and all(key.kind is Kind.PAIR for key in keys):
        return "MGET", list(client.mget([key.name for key in keys]))
    if len(keys) > 1:
        pipe = client.pipeline(transaction=False)
        for key in keys:
            _queue(pipe, key)
        return "pipeline", pipe.execute()
    key = keys[0]
    if key.kind is Kind.TRANSACTION:
        pipe = client.pipeline(transaction=True)
        pipe.get(key.name)
        return "MULTI", pipe.execute()
    if key.is_hash:
        return _hash(client, key.name, rng)
    if rng.random() < 0.05:
        return "GETEX", [client.getex(key.name, ex=60)]
    return "GET", [client.get(key.name)]


def _queue(pipe: redis.client.Pipeline, key: Key) -> None:
    if key.is_hash:
        pipe.hget(key.name, "value")
    else:
        pipe.get(key.name)


def _hash(client: redis.Redis, name: str, rng: random.Random) -> tuple[str, list[Data]]:
    how = rng.choice(["HGET", "HMGET", "HGETALL"])
    if how == "HGET":
        return how, [client.hget(name, "value")]
    if how == "HMGET":
        return how, client.hmget(name, ["value"])
    return how, [client.hgetall(name).get(b"value")]
