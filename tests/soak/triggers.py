"""The ways to fire a trigger through a proxy. Each returns when it was acknowledged, or raises."""

import json
import random
import urllib.request
from collections.abc import Callable
from typing import NamedTuple

import redis

from keys import PREFIX, Keyspace

CHANNEL = "rescind:invalidate"


class Target(NamedTuple):
    """Where a trigger goes."""

    client: redis.Redis
    # Of the proxy's admin address.
    admin: int


class Refused(Exception):
    """The reply is not that of a trigger that was acknowledged."""


Fire = Callable[[Target, list[int]], None]


def _model(post: int) -> str:
    return f"{PREFIX}model:Post:{post}"


def _tag(post: int) -> str:
    return f"{PREFIX}tag:post:{post}"


def _set_model(target: Target, posts: list[int]) -> None:
    for post in posts:
        target.client.set(_model(post), "1")


def _incr_model(target: Target, posts: list[int]) -> None:
    for post in posts:
        target.client.incr(_model(post))


def _del_model(target: Target, posts: list[int]) -> None:
    target.client.delete(*map(_model, posts))


def _multi_model(target: Target, posts: list[int]) -> None:
    pipe = target.client.pipeline(transaction=True)
    pipe.incr("counter")
    for post in posts:
        pipe.set(_model(post), "1", ex=60)
    pipe.execute()


def _pipeline_model(target: Target, posts: list[int]) -> None:
    pipe = target.client.pipeline(transaction=False)
    for post in posts:
        pipe.incr("counter")
        pipe.set(_model(post), "1")
        pipe.get("counter")
    pipe.execute()


def _invalidate_model(target: Target, posts: list[int]) -> None:
    target.client.execute_command("TAG.INVALIDATE", "Post", *[f"post:{post}" for post in posts])


def _publish_model(target: Target, posts: list[int]) -> None:
    target.client.publish(CHANNEL, " ".join(["Post", *[f"post:{post}" for post in posts]]))


def _set_tag(target: Target, posts: list[int]) -> None:
    for post in posts:
        target.client.set(_tag(post), "1", ex=60)


def _del_tag(target: Target, posts: list[int]) -> None:
    target.client.delete(*map(_tag, posts))


def _mset_tag(target: Target, posts: list[int]) -> None:
    target.client.mset({_tag(post): "1" for post in posts})


def _multi_tag(target: Target, posts: list[int]) -> None:
    pipe = target.client.pipeline(transaction=True)
    pipe.delete(*map(_tag, posts))
    pipe.incr("counter")
    pipe.execute()


def _invalidate_tag(target: Target, posts: list[int]) -> None:
    target.client.execute_command("TAG.INVALIDATE", *[f"post:{post}" for post in posts])


def _publish_tag(target: Target, posts: list[int]) -> None:
    target.client.publish(CHANNEL, " ".join(f"post:{post}" for post in posts))


# An HTTP proxy of the environment has no business with a loopback address.
_WEB = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _http_tag(target: Target, posts: list[int]) -> None:
    body = json.dumps({"tags": [f"post:{post}" for post in posts]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{target.admin}/api/invalidate", body, headers)
    with _WEB.open(request, timeout=20) as response:
        if "keys" not in json.load(response):
            raise Refused("no number of keys in the answer to POST /api/invalidate")


# They concern the front pages as well.
MODEL: list[Fire] = [
    _set_model,
    _incr_model,
    _del_model,
    _multi_model,
    _pipeline_model,
    _invalidate_model,
    _publish_model,
]
TAG: list[Fire] = [_set_tag, _del_tag, _mset_tag, _multi_tag, _invalidate_tag, _publish_tag, _http_tag]


def naive(keyspace: Keyspace, with_pages: bool) -> Fire:
    """What applications do without a proxy: delete the keys they know of."""

    def delete_keys(target: Target, posts: list[int]) -> None:
        keys = [key.name for post in posts for key in keyspace.of[post]]
        target.client.delete(*keys, *[key.name for key in keyspace.pages if with_pages])

    return delete_keys


def choose(rng: random.Random, with_pages: bool) -> Fire:
    return rng.choice(MODEL if with_pages else TAG)


def direct(client: redis.Redis, post: int, rng: random.Random) -> None:
    """Past the proxies. Deleting a key that is not there would be seen by nobody."""
    match rng.randrange(3):
        case 0:
            client.set(_model(post), "1")
        case 1:
            client.set(_tag(post), "1", ex=60)
        case 2:
            client.publish(CHANNEL, f"post:{post}")
