"""The ways to fill what was missing."""

import random

import redis

from keys import Key, Kind


def fill(client: redis.Redis, items: list[tuple[Key, str]], rng: random.Random) -> str:
    """Writes the values; how."""
    if len(items) == 1:
        key, value = items[0]
        return _ONE[key.kind](client, key, value, rng)
    if all(key.kind is Kind.PAIR for key, _ in items):
        client.mset({key.name: value for key, value in items})
        return "MSET"
    pipe = client.pipeline(transaction=False)
    for key, value in items:
        _queue(pipe, key, value)
    pipe.execute()
    return "pipeline"


def _queue(pipe: redis.client.Pipeline, key: Key, value: str) -> None:
    match key.kind:
        case Kind.HASH:
            pipe.hset(key.name, "value", value)
        case Kind.LABELLED:
            pipe.execute_command("TAG.WITH", 1, key.tag, "SET", key.name, value, "EX", 60)
        case _:
            pipe.set(key.name, value, ex=60)


def _string(client: redis.Redis, key: Key, value: str, rng: random.Random) -> str:
    how = rng.choice(["SET", "SET EX", "SET PX", "SETEX", "PSETEX", "SET NX", "SETNX", "MULTI and more", "pipeline"])
    match how:
        case "SET":
            client.set(key.name, value)
        case "SET EX":
            client.set(key.name, value, ex=rng.randint(20, 120))
        case "SET PX":
            # Gone soon, so that keys also expire.
            client.set(key.name, value, px=rng.randint(20, 2000))
        case "SETEX":
            client.setex(key.name, 60, value)
        case "PSETEX":
            client.psetex(key.name, 30000, value)
        case "SET NX":
            client.set(key.name, value, nx=True, ex=60)
        case "SETNX":
            client.setnx(key.name, value)
        case "MULTI and more":
            # Not the fill itself: what is beside it on the connection.
            pipe = client.pipeline(transaction=True)
            pipe.incr("counter")
            pipe.expire("counter", 60)
            pipe.execute()
            client.set(key.name, value, ex=60)
        case "pipeline":
            pipe = client.pipeline(transaction=False)
            pipe.incr("counter")
            pipe.set(key.name, value)
            pipe.expire(key.name, 60)
            pipe.execute()
    return how


def _hash(client: redis.Redis, key: Key, value: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        client.hset(key.name, mapping={"value": value, "other": "1"})
        return "HSET"
    pipe = client.pipeline(transaction=False)
    pipe.hset(key.name, "value", value)
    pipe.expire(key.name, 60)
    pipe.execute()
    return "HSET, EXPIRE"


def _transaction(client: redis.Redis, key: Key, value: str, rng: random.Random) -> str:
    pipe = client.pipeline(transaction=True)
    pipe.set(key.name, value)
    if rng.random() < 0.5:
        pipe.expire(key.name, 60)
    pipe.execute()
    return "MULTI"


def _labelled(client: redis.Redis, key: Key, value: str, rng: random.Random) -> str:
    if rng.random() < 0.7:
        client.execute_command("TAG.WITH", 1, key.tag, "SET", key.name, value, "EX", 60)
        return "TAG.WITH"
    # One behind the other on one connection.
    pipe = client.pipeline(transaction=False)
    pipe.execute_command("TAG.NEXT", key.tag)
    pipe.set(key.name, value, ex=60)
    pipe.execute()
    return "TAG.NEXT"


_ONE = {
    Kind.STRING: _string,
    Kind.PAIR: _string,
    Kind.HASH: _hash,
    Kind.TRANSACTION: _transaction,
    Kind.LABELLED: _labelled,
}
